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
//! The events of one key are published in the order in which their transactions committed. SQLite
//! has one writer, so that row numbers follow this order. On PostgreSQL `append` locks the key
//! until the transaction ends, with the same effect. Rows are hashed to shards by key, and a relay
//! locks a shard while it reads, publishes and marks, so that two relays cannot overtake each
//! other. (`FOR UPDATE SKIP LOCKED` alone would let them.)
//!
//! An event that the bus rejects permanently is parked ([`Outbox::parked`]), and the key continues
//! without it.

mod relay;
mod round;
mod store;
mod waiting;

pub use relay::Relay;
pub use store::{Backlog, Outbox, OutboxError, Parked, SHARDS};
