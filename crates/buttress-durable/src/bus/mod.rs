//! The event bus: publish and subscribe, at least once, in order per key.
//!
//! A group is one reader in as many processes as you like: each event goes to one member of every group. The members share
//! the partitions of the topics, and the events of one key are always in one partition, so they are handled one after the
//! other. An event is acknowledged when its handler has returned `Ok`, and not before: a handler that fails, panics or
//! does not return in time gets the event again, with growing pauses, and the events behind it wait. After the last attempt
//! the event goes to the dead-letter topic `dead.<group>.<topic>` and the group goes on; from then on the order of that
//! key is broken, which is the price of going on.
//!
//! Delivery is *at least* once: a crash between the handler's work and the acknowledgement delivers the event again. An
//! [`Inbox`](crate::Inbox) makes that harmless.
//!
//! [`LogBus`] is the embedded broker: an append-only log in a database. `KafkaBus` (feature `kafka`) is the same over Kafka;
//! its module says what differs. Another broker implements [`EventBus`].

mod attempt;
mod dead_letter;
mod event_bus;
mod handler;
#[cfg(feature = "kafka")]
pub mod kafka;
mod log;
mod subscribe;

pub use dead_letter::{DeadLetter, DeadLettered};
pub use event_bus::{BusError, EventBus};
pub use handler::{Delivery, Handler, HandlerError};
#[cfg(feature = "kafka")]
pub use kafka::{KafkaBus, KafkaConfig};
pub use log::{LogBus, PARTITIONS};
pub use subscribe::{Start, Subscribe, Subscription};
