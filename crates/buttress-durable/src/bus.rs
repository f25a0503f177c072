//! The event bus: publish and subscribe, at least once, in order per key.
//!
//! A consumer group can have members in any number of processes; each event goes to one member of
//! every group. The members share the partitions of the topics. All events of a key are in one
//! partition and are handled one at a time.
//!
//! An event is acknowledged when its handler returns `Ok`. After an error, a panic or a timeout the
//! event is delivered again, with growing pauses, and the events behind it wait. After the last
//! attempt it goes to the dead-letter topic `dead.<group>.<topic>` and the group continues; from
//! there on the order of that key is broken. [`EventBus`] lists dead letters, and sends them back
//! or discards them.
//!
//! Not every failure is an attempt ([`HandlerError`]):
//!
//! * While the consumer's own database or bus is away, or a circuit is open, the partition pauses
//!   and nothing is used up, for however long it takes. `?` recognises these errors.
//! * An event of a version that this program does not know yet waits for a program that does, up to
//!   [`Subscribe::patience`].
//! * An event that ends its process counts as an attempt when another member takes the partition
//!   over, so that it becomes a dead letter in the end. So does an event that was at hand when its
//!   process was killed for another reason.
//!
//! # Publishing
//!
//! [`EventBus::publish_each`] returns a result for each event: a topic, partition or key that
//! cannot be published to holds back only its own events.
//!
//! # Rolling updates
//!
//! Members of a group may have different topics. Each topic is shared among the members that have
//! it. A group can be joined before its broker is up: [`Subscription::health`] shows whether it is.
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
pub(crate) use log::{trim_dead_letters, trim_log};
pub use subscribe::{Start, Subscribe, Subscription};
