//! Domain events, outbox, inbox and sagas: what keeps the business right when calls fail anyway.
//!
//! Everything lives in `buttress_*` tables of the service's own database, SQLite or PostgreSQL: see [`db`].
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod bus;
mod clock;
pub mod db;
pub mod event;
mod hash;
pub mod inbox;
pub mod outbox;
mod task;
mod text;

pub use bus::{EventBus, LogBus};
pub use clock::{Clock, ManualClock, Timestamp};
pub use db::{Database, Db, DbError, Tx};
pub use event::{DomainEvent, EventError, TraceContext};
pub use inbox::Inbox;
pub use outbox::Outbox;
