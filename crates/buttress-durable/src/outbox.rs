//! The outbox: publishes an event if, and only if, the transaction that wrote it commits.
//!
//! [`Outbox::append`] writes the event in the caller's transaction. A [`Relay`] publishes it and
//! marks the row. A crash in between publishes the event again; it is never lost. The relay finds
//! rows by the missing mark, not by a cursor behind the last id: ids become visible in another
//! order than they are assigned, and a cursor would skip those that commit late. So every query of
//! the relay also finds what a crash has left.
//!
//! # Order
//!
//! The events of one topic and key are published in the order in which their transactions
//! committed. SQLite has one writer, so that row numbers follow this order. On PostgreSQL `append`
//! locks the key until the transaction ends, with the same effect. Rows are hashed to shards by
//! key, and a relay locks a shard while it reads, publishes and marks, so that two relays cannot
//! overtake each other. (`FOR UPDATE SKIP LOCKED` alone would let them.)
//!
//! An event that the bus rejects permanently is parked ([`Outbox::parked`]), and the key continues
//! without it.
//!
//! # When the bus fails
//!
//! What fails alone waits alone: a key whose partition has no leader, or a topic that does not
//! exist. It is tried again after growing pauses of up to 5 s, or when the bus says
//! ([`BusError::retry_after`] of an open circuit). The relay publishes the rest. While nothing at
//! all can be published, it gives its lease up (SQLite), so that a relay of another process that
//! reaches the bus takes over. [`Relay::health`] shows the failures, and [`Outbox::backlog`] what
//! waits.
//!
//! [`BusError::retry_after`]: crate::bus::BusError::retry_after

mod relay;
mod round;
mod store;
mod waiting;

pub use relay::Relay;
pub(crate) use store::purge;
pub use store::{Backlog, Outbox, OutboxError, Parked, SHARDS};
