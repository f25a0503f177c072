use std::num::NonZeroU32;
use std::time::Duration;

use buttress_core::{Backoff, InvalidConfig};

use crate::event::is_topic;
use crate::task::{Worker, WorkerHealth};

/// Configures a group's subscription: its topics, attempts, pauses, timeout and start.
///
/// ```
/// use buttress_durable::bus::{Start, Subscribe};
/// use std::num::NonZeroU32;
///
/// let subscribe = Subscribe::new("shipping", ["OrderConfirmed", "OrderCancelled"])?
///     .attempts(NonZeroU32::new(8).unwrap_or(NonZeroU32::MIN))
///     .start(Start::Earliest);
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Subscribe {
    pub(super) group: String,
    pub(super) topics: Vec<String>,
    pub(super) attempts: NonZeroU32,
    pub(super) backoff: Backoff,
    pub(super) timeout: Duration,
    pub(super) patience: Duration,
    pub(super) start: Start,
}

/// Where a new group starts to read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Start {
    /// At the oldest event that the topic holds.
    #[default]
    Earliest,
    /// At the first event published after the subscription.
    Latest,
}

/// A member of a group. Dropping it aborts its handlers; other members take over when its leases
/// expire.
#[derive(Debug)]
#[must_use = "dropping a subscription ends it"]
pub struct Subscription {
    worker: Worker,
}

/// Longest name of a group. It is part of the names of dead-letter topics, which brokers limit to
/// 249 bytes.
const MAX_GROUP: usize = 60;
const MAX_TOPIC: usize = 249;
const PATIENCE: Duration = Duration::from_secs(6 * 3_600);

impl Subscribe {
    /// Creates a subscription of a group to topics: 5 attempts of at most 30 s each, pauses of 100
    /// ms to 10 s with equal jitter, starting at the earliest event.
    ///
    /// # Errors
    ///
    /// If the group's name is not 1 to 60 of `A-Za-z0-9._-`, a topic is not 1 to 249 of them, or
    /// there is no topic.
    pub fn new<T: Into<String>>(
        group: impl Into<String>,
        topics: impl IntoIterator<Item = T>,
    ) -> Result<Self, InvalidConfig> {
        let group = group.into();
        let mut topics: Vec<String> = topics.into_iter().map(Into::into).collect();
        topics.sort();
        topics.dedup();
        if !is_topic(&group, MAX_GROUP) {
            return Err(InvalidConfig::new("group", "must be 1 to 60 of the characters A-Z, a-z, 0-9, '.', '_', '-'"));
        }
        if topics.is_empty() || !topics.iter().all(|topic| is_topic(topic, MAX_TOPIC)) {
            let rule = "must be at least one, each 1 to 249 of the characters A-Z, a-z, 0-9, '.', '_', '-'";
            return Err(InvalidConfig::new("topics", rule));
        }
        Ok(Self {
            group,
            topics,
            attempts: NonZeroU32::MIN.saturating_add(4),
            backoff: Backoff::equal_jitter(Duration::from_millis(100), Duration::from_secs(10)),
            timeout: Duration::from_secs(30),
            patience: PATIENCE,
            start: Start::Earliest,
        })
    }

    /// Sets how often an event is tried before it goes to the dead-letter topic. Default: 5.
    pub fn attempts(mut self, attempts: NonZeroU32) -> Self {
        self.attempts = attempts;
        self
    }

    /// Sets the pauses between attempts. Default: equal jitter, 100 ms to 10 s.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets how long one attempt may take. Default: 30 s. After that the attempt is dropped and
    /// counts as failed.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how long an event waits that this version of the program does not know yet. Default: 6
    /// h, which should be longer than a rolling update takes. After that it goes to the dead-letter
    /// topic. See [`HandlerError::postpone`](super::HandlerError::postpone).
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sets where a new group starts. Default: [`Start::Earliest`].
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }
}

impl Subscription {
    pub(super) fn new(worker: Worker) -> Self {
        Self { worker }
    }

    /// Reports whether the member reaches its broker or database. It does not show whether the
    /// handler succeeds: one that waits for something
    /// [unavailable](super::HandlerError::unavailable) shows in the [lag](super::EventBus::lag), by
    /// `waiting_since`.
    pub fn health(&self) -> WorkerHealth {
        self.worker.health()
    }

    /// Finishes the events at hand and leaves the group, so that other members take over at once.
    pub async fn shutdown(self) {
        self.worker.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_documentation() {
        let Subscribe { attempts, backoff, timeout, patience, start, .. } = Subscribe::new("g", ["T"]).unwrap();
        assert_eq!((attempts.get(), timeout, start), (5, Duration::from_secs(30), Start::Earliest));
        assert_eq!(patience, Duration::from_secs(21_600));
        assert_eq!(backoff, Backoff::equal_jitter(Duration::from_millis(100), Duration::from_secs(10)));
    }

    #[test]
    fn every_setting_is_its_own() {
        let (pause, limit) = (Backoff::constant(Duration::from_secs(1)), Duration::from_secs(2));
        let subscribe = Subscribe::new("g", ["T"]).unwrap();
        let subscribe = subscribe.attempts(NonZeroU32::MIN).backoff(pause).timeout(limit).start(Start::Latest);
        let Subscribe { attempts, backoff, timeout, patience, start, .. } = subscribe.patience(3 * limit);
        assert_eq!((attempts.get(), backoff, timeout, start), (1, pause, limit, Start::Latest));
        assert_eq!(patience, 3 * limit);
    }

    #[test]
    fn a_topic_is_subscribed_to_once_and_names_have_a_longest() {
        let topics = ["b".to_owned(), "a".to_owned(), "b".to_owned(), "x".repeat(249)];
        let subscribe = Subscribe::new("g".repeat(60), topics).unwrap();
        assert_eq!(subscribe.topics, ["a".to_owned(), "b".to_owned(), "x".repeat(249)]);
        let wrong = |group: &str, topics: &[&str]| Subscribe::new(group, topics.iter().copied()).is_err();
        assert!(wrong("", &["T"]) && wrong(&"g".repeat(61), &["T"]) && wrong("a b", &["T"]));
        assert!(wrong("g", &[]) && wrong("g", &["T", ""]) && wrong("g", &["T", &"x".repeat(250)]));
    }
}
