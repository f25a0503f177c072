//! Domain events, outbox, inbox and sagas: what keeps the business right when calls fail anyway.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod clock;
pub mod db;
pub mod event;

pub use clock::{Clock, ManualClock, Timestamp};
pub use db::{Database, Db, DbError, Tx};
pub use event::{DomainEvent, EventError, TraceContext};
