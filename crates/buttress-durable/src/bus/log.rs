//! The embedded broker: an append-only log in a database.
//!
//! [`bus`] is the public type. A subscription runs a [`member`] of its group, which claims its
//! share of the partitions and runs one [`partition`] task for each. [`store`] and [`group`] are
//! the SQL: records and heads, positions and leases. [`share`] says which members own how many
//! partitions.

mod bus;
mod dead_letters;
mod group;
mod member;
mod partition;
mod share;
mod store;
mod trim;

pub use bus::LogBus;
pub use store::PARTITIONS;
pub(crate) use trim::{trim_dead_letters, trim_log};
