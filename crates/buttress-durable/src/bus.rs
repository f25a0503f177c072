//! The event bus: publish and subscribe, at least once, in order per key.
//!
//! A consumer group can have members in any number of processes; each event goes to one member of
//! every group. The members share the partitions of the topics. All events of a key are in one
//! partition and are handled one at a time.
//!
//! An event is acknowledged when its handler returns `Ok`. After an error, a panic or a timeout the
//! event is delivered again, with growing pauses, and the events behind it wait. After the last
//! attempt it goes to the dead-letter topic `dead.<group>.<topic>` and the group continues; from
//! there on the order of that key is broken.
//!
//! Delivery is *at least* once: after a crash between the handler's work and the acknowledgement
//! the event is delivered again. An [`Inbox`](crate::Inbox) makes repeated deliveries harmless.
//!
//! [`LogBus`] is the embedded broker: an append-only log in a database. `KafkaBus` (feature
//! `kafka`) uses Kafka; its module lists the differences. Implement [`EventBus`] for another
//! broker.

mod attempt;
mod dead_letter;
mod event_bus;
mod handler;
#[cfg(feature = "kafka")]
pub mod kafka;
mod lag;
mod log;
mod subscribe;

pub use dead_letter::{DeadLetter, DeadLettered};
pub use event_bus::{BusError, EventBus};
pub use handler::{Delivery, Handler, HandlerError};
#[cfg(feature = "kafka")]
pub use kafka::{KafkaBus, KafkaConfig};
pub use lag::Lag;
pub use log::{LogBus, PARTITIONS};
pub use subscribe::{Start, Subscribe, Subscription};
