use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::event::DomainEvent;

/// Why an event is on a dead-letter topic. Stored as JSON with the event.
///
/// ```
/// use buttress_durable::bus::DeadLetter;
///
/// assert_eq!(DeadLetter::topic_of("shipping", "OrderConfirmed"), "dead.shipping.OrderConfirmed");
/// ```
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The group whose handler failed.
    pub group: String,
    /// The original topic.
    pub topic: String,
    /// The partition of the original topic.
    pub partition: i64,
    /// The position in that partition.
    pub offset: i64,
    /// Number of attempts made.
    pub attempts: u32,
    /// The error of the last attempt, with its causes. At most 1,000 bytes.
    pub error: String,
    /// When the last attempt failed.
    pub failed_at: Timestamp,
}

/// An event on a dead-letter topic, as [`EventBus::dead_letters`](crate::EventBus::dead_letters)
/// lists it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeadLettered {
    /// The event. `None` if its bytes cannot be decoded.
    pub event: Option<DomainEvent>,
    /// The partition of the dead-letter topic.
    pub partition: i64,
    /// The position in that partition.
    pub offset: i64,
    /// Where and why the event failed.
    pub cause: DeadLetter,
}

impl DeadLetter {
    /// Returns the name of the dead-letter topic for a group and a topic: `dead.<group>.<topic>`.
    pub fn topic_of(group: &str, topic: &str) -> String {
        format!("dead.{group}.{topic}")
    }
}
