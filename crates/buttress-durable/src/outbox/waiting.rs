//! What a relay does not try to publish for now, and until when.

use std::collections::HashMap;
use std::time::Duration;

use buttress_core::Backoff;
use tokio::time::Instant;

use crate::bus::BusError;
use crate::event::DomainEvent;
use crate::hash::fnv1a;

/// Pauses between attempts while the bus or the database fails.
pub(super) const PAUSE: Backoff = Backoff::equal_jitter(Duration::from_millis(100), Duration::from_secs(5));
/// Longest pause that an error of the bus can ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// After a pause of which no event was tried again for this time, its failures are forgotten.
const FORGET: Duration = Duration::from_secs(10);
/// A topic that was published to within this time is alive: only the failed keys wait, and not the
/// whole topic. Longer than the time limit of a publication.
const ALIVE: Duration = Duration::from_secs(10);
/// With so many topics failing, the bus itself is down, and one attempt is enough to see it.
const TOPICS_OF_A_BUS: usize = 3;

/// Topics and keys that wait for another attempt.
///
/// What fails alone waits alone: a key, if other keys of its topic can be published; otherwise the
/// topic, whose events are then not even read. A topic that was not tried again keeps the order of
/// its keys, because it starts at its first event when its pause is over.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    bus: Option<Pause>,
    topics: HashMap<String, Pause>,
    /// By a hash of topic and key. Two keys that share one only wait for each other.
    keys: HashMap<u64, Pause>,
    alive: HashMap<String, Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Pause {
    until: Instant,
    failures: u32,
}

impl Waiting {
    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.bus.is_none() && self.topics.is_empty() && self.keys.is_empty()
    }

    /// Returns the time until the next pause is over. Those that are over already do not count:
    /// their events have been tried, or are gone.
    pub(super) fn next(&self, now: Instant) -> Option<Duration> {
        let pauses = self.topics.values().chain(self.keys.values());
        let first = pauses.map(|pause| pause.until).filter(|until| *until > now).min()?;
        // While the bus is down, the others wait at least as long.
        let first = self.bus.map_or(first, |bus| first.max(bus.until));
        Some(first.saturating_duration_since(now))
    }

    pub(super) fn holds_topic(&self, topic: &str, now: Instant) -> bool {
        let waits = |pause: &Pause| pause.until > now;
        self.bus.as_ref().is_some_and(waits) || self.topics.get(topic).is_some_and(waits)
    }

    pub(super) fn holds(&self, event: &DomainEvent, now: Instant) -> bool {
        self.keys.get(&key(event)).is_some_and(|pause| pause.until > now)
    }

    /// Notes what became of a publication.
    pub(super) fn note(&mut self, events: &[DomainEvent], results: &[Result<(), BusError>], now: Instant) {
        let pairs = || events.iter().zip(results);
        for (event, result) in pairs() {
            // A rejection shows that the bus is there.
            if matches!(result, Ok(()) | Err(BusError::Refused { .. })) {
                self.bus = None;
                self.topics.remove(event.topic());
                self.keys.remove(&key(event));
                self.alive.insert(event.topic().to_owned(), now);
            }
        }
        // Topics of this publication that have been paused already.
        let mut paused: HashMap<&str, ()> = HashMap::new();
        for (event, result) in pairs() {
            let Err(error) = result else { continue };
            if matches!(error, BusError::Refused { .. } | BusError::HeldBack) {
                continue;
            }
            let alive = self.alive.get(event.topic()).is_some_and(|at| now.duration_since(*at) < ALIVE);
            if alive {
                let failures = self.keys.get(&key(event)).map_or(0, |pause| pause.failures);
                self.keys.insert(key(event), Pause::new(failures, error, now));
            } else if paused.insert(event.topic(), ()).is_none() {
                let failures = self.topics.get(event.topic()).map_or(0, |pause| pause.failures);
                self.topics.insert(event.topic().to_owned(), Pause::new(failures, error, now));
            }
        }
        self.note_bus(now);
    }

    fn note_bus(&mut self, now: Instant) {
        // The bus fails if many topics fail, and none has been published to.
        let alive = self.alive.values().any(|at| now.duration_since(*at) < ALIVE);
        if alive || self.topics.len() < TOPICS_OF_A_BUS {
            return;
        }
        self.bus = self.topics.values().max_by_key(|pause| pause.until).copied();
    }

    /// Forgets pauses that ended long ago: their events have been published by others, or deleted.
    pub(super) fn forget(&mut self, now: Instant) {
        let recent = |pause: &Pause| pause.until + FORGET > now;
        self.keys.retain(|_, pause| recent(pause));
        self.topics.retain(|_, pause| recent(pause));
        self.bus = self.bus.filter(recent);
    }
}

impl Pause {
    fn new(failures: u32, error: &BusError, now: Instant) -> Self {
        let pause = PAUSE.pause(failures, &mut fastrand::Rng::new());
        // An open circuit says when it will admit a probe.
        let pause = error.retry_after().map_or(pause, |after| after.clamp(pause, LONGEST_PAUSE));
        Self { until: now + pause, failures: failures.saturating_add(1) }
    }
}

fn key(event: &DomainEvent) -> u64 {
    // No topic contains a space.
    fnv1a(&format!("{} {}", event.topic(), event.key()))
}

#[cfg(test)]
mod tests {
    use buttress::{Rejection, bulkhead};

    use super::*;
    use crate::Timestamp;
    use crate::clock::monotonic;

    fn event(topic: &str, key: &str) -> DomainEvent {
        DomainEvent::new(topic, key, Timestamp::default(), &()).unwrap()
    }

    fn away() -> Result<(), BusError> {
        Err(BusError::Unavailable("no leader".into()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_alone_if_its_topic_is_alive() {
        let (mut waiting, now) = (Waiting::default(), monotonic());
        let events = [event("T", "a"), event("T", "b"), event("U", "a")];
        waiting.note(&events, &[away(), Ok(()), Ok(())], now);
        assert!(waiting.holds(&events[0], now) && !waiting.holds(&events[1], now) && !waiting.holds(&events[2], now));
        assert!(!waiting.holds_topic("T", now));
        let due = now + waiting.next(now).unwrap();
        assert!(!waiting.holds(&events[0], due));
        waiting.note(&events[..1], &[Ok(())], due);
        assert!(waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_topic_that_fails_as_a_whole_waits_as_a_whole_and_longer_each_time() {
        let (mut waiting, mut now) = (Waiting::default(), monotonic());
        let events = [event("T", "a"), event("T", "b")];
        let mut longest = Duration::ZERO;
        for _ in 0..12 {
            waiting.note(&events, &[away(), away()], now);
            assert!(waiting.holds_topic("T", now) && !waiting.holds_topic("U", now));
            let pause = waiting.next(now).unwrap();
            longest = longest.max(pause);
            now += pause;
        }
        assert!(longest > Duration::from_secs(2) && longest <= Duration::from_secs(5), "{longest:?}");
        waiting.forget(now + FORGET);
        assert!(waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn when_many_topics_fail_the_bus_waits_until_one_succeeds() {
        let (mut waiting, now) = (Waiting::default(), monotonic());
        let events = ["A", "B", "C"].map(|topic| event(topic, "k"));
        waiting.note(&events, &[away(), away(), away()], now);
        assert!(waiting.holds_topic("another", now));
        waiting.note(&events[..1], &[Ok(())], now);
        assert!(!waiting.holds_topic("another", now) && waiting.holds_topic("B", now));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_as_long_as_an_open_circuit_asks_for() {
        let (mut waiting, now) = (Waiting::default(), monotonic());
        let open = Rejection::new("circuit breaker", &bulkhead::FULL).after(Some(Duration::from_secs(30)));
        let error = BusError::Unavailable(Box::new(open));
        waiting.note(&[event("T", "k")], &[Err(error)], now);
        assert_eq!(waiting.next(now), Some(Duration::from_secs(30)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_rejected_or_held_back_does_not_wait() {
        let (mut waiting, now) = (Waiting::default(), monotonic());
        let refused = event("T", "a");
        let rejected = Err(BusError::Refused { event_id: refused.event_id(), reason: "too large".to_owned() });
        waiting.note(&[refused, event("T", "b")], &[rejected, Err(BusError::HeldBack)], now);
        assert!(waiting.is_empty());
    }
}
