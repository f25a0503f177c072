//! The outbox: an event is published if, and only if, what it tells of has happened.
//!
//! [`Outbox::append`] writes the event in the caller's transaction; a [`Relay`] publishes it and marks the row. A crash in
//! between publishes it again, never not at all. Rows are found by not being marked, never by a cursor behind the last id:
//! ids become visible in another order than they are handed out, and a cursor skips what comes late. So every look of the
//! relay is also the sweep that finds what a crash left.
//!
//! # Order
//!
//! The events of one key are published in the order in which their transactions committed. On SQLite there is one writer,
//! so the row numbers tell that order. On PostgreSQL `append` locks the key until the transaction ends, which makes the same
//! true; and since rows are hashed to shards by key, and a relay locks a shard around reading, publishing and marking, two
//! relays cannot overtake each other. (`FOR UPDATE SKIP LOCKED` alone lets them.)
//!
//! An event that the bus refuses for good is parked ([`Outbox::parked`]), and the key goes on without it.

mod relay;
mod store;

pub use relay::Relay;
pub use store::{Backlog, Outbox, OutboxError, Parked, SHARDS};
