use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::event::DomainEvent;

/// Why an event is on a dead-letter topic.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The group that could not handle it.
    pub group: String,
    /// The topic that it came from.
    pub topic: String,
    /// The partition that it came from.
    pub partition: i64,
    /// The position that it came from.
    pub offset: i64,
    /// How often it was tried.
    pub attempts: u32,
    /// What the last attempt said.
    pub error: String,
    /// When the last attempt failed.
    pub failed_at: Timestamp,
}

/// An event on a dead-letter topic.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeadLettered {
    /// The event. `None` if it is the event itself that cannot be read.
    pub event: Option<DomainEvent>,
    /// Its partition on the dead-letter topic.
    pub partition: i64,
    /// Its position there.
    pub offset: i64,
    /// Where it failed, and why.
    pub cause: DeadLetter,
}

impl DeadLetter {
    /// The dead-letter topic of a group and a topic.
    pub fn topic_of(group: &str, topic: &str) -> String {
        format!("dead.{group}.{topic}")
    }
}
