//! Runs a handler once, and decides what follows a failure. Both buses use it.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use buttress_core::Backoff;
use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::handler::{Delivery, Handler, HandlerError, Kind};
use super::subscribe::Subscribe;
use crate::clock::Timestamp;

/// Failed attempts at an event, and when to try again.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub(super) struct Tries {
    pub(super) attempts: u32,
    pub(super) retry_at: Timestamp,
    /// Since when the event waits for infrastructure, or for a version that knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) waiting_since: Option<Timestamp>,
    /// Pauses since then. Another owner begins with short pauses again.
    #[serde(skip)]
    pub(super) waits: u32,
}

/// Pauses while infrastructure is away. The event itself is the probe.
const WAIT: Backoff = Backoff::equal_jitter(Duration::from_millis(100), Duration::from_secs(10));
/// Longest pause that an error can ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Calls the handler with a time limit. A panic and a timeout are failures that may be retried.
pub(super) async fn attempt(handler: &dyn Handler, delivery: Delivery, limit: Duration) -> Result<(), HandlerError> {
    let attempt = AssertUnwindSafe(async { timeout(limit, handler.handle(delivery)).await }).catch_unwind();
    match attempt.await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(HandlerError::retry(format!("the handler timed out after {limit:?}"))),
        Err(_) => Err(HandlerError::retry("the handler panicked")),
    }
}

impl Tries {
    /// Number of the attempt that is made next.
    pub(super) fn next(self) -> u32 {
        self.attempts.saturating_add(1)
    }

    /// Whether ended processes have used up the attempts. Two at least, also with one attempt: the
    /// first may have ended before it saw the event.
    pub(super) fn are_crashes(self, subscribe: &Subscribe) -> bool {
        self.attempts >= subscribe.attempts.get().max(2)
    }

    /// Returns the time until the next attempt. A pause that is longer than any that [`after`]
    /// sets was measured by a clock that was ahead, and is over.
    ///
    /// [`after`]: Self::after
    pub(super) fn pause(self, subscribe: &Subscribe, now: Timestamp) -> Duration {
        let pause = self.retry_at.since(now);
        if pause > subscribe.backoff.cap().max(LONGEST_WAIT) { Duration::ZERO } else { pause }
    }

    /// Returns the state after another attempt has failed, or `None` if it was the last one.
    pub(super) fn after(self, error: &HandlerError, subscribe: &Subscribe, now: Timestamp) -> Option<Self> {
        match error.kind() {
            Kind::Reject => None,
            Kind::Retry if self.next() >= subscribe.attempts.get() => None,
            Kind::Retry => {
                let pause = subscribe.backoff.pause(self.attempts, &mut fastrand::Rng::new());
                Some(Self { attempts: self.next(), retry_at: now.plus(pause), ..Self::default() })
            }
            Kind::Unavailable { after } => Some(self.waiting(after, now)),
            Kind::Postponed => {
                let waited = now.since(self.waiting_since.unwrap_or(now));
                (waited < subscribe.patience).then(|| self.waiting(None, now))
            }
        }
    }

    fn waiting(self, after: Option<Duration>, now: Timestamp) -> Self {
        let pause = after.map(|after| after.min(LONGEST_WAIT));
        let pause = pause.unwrap_or_else(|| WAIT.pause(self.waits, &mut fastrand::Rng::new()));
        Self {
            attempts: self.attempts,
            retry_at: now.plus(pause),
            waiting_since: self.waiting_since.or(Some(now)),
            waits: self.waits.saturating_add(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::DomainEvent;
    use crate::bus::BusError;

    const NOW: Timestamp = Timestamp::from_millis(1_000);

    /// Attempts a handler with a limit of 7 s.
    async fn attempted<F>(handler: impl Fn() -> F + Send + Sync + 'static) -> Option<(String, Kind)>
    where
        F: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let event = DomainEvent::new("T", "k", Timestamp::default(), &()).unwrap();
        let topic = event.topic().to_owned();
        let delivery = Delivery { event, topic, partition: 0, offset: 0, attempt: 1, dead_letter: None };
        let handler = move |_: Delivery| handler();
        let error = attempt(&handler, delivery, Duration::from_secs(7)).await.err()?;
        Some((error.to_string(), error.kind()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_and_a_panic_may_be_retried_and_a_rejection_may_not() {
        let told = |message: &str, kind| Some((message.to_owned(), kind));
        assert_eq!(attempted(|| async { Ok(()) }).await, None);
        assert_eq!(attempted(|| async { Err(HandlerError::retry("later")) }).await, told("later", Kind::Retry));
        assert_eq!(attempted(|| async { Err(HandlerError::reject("never")) }).await, told("never", Kind::Reject));
        assert_eq!(attempted(std::future::pending).await, told("the handler timed out after 7s", Kind::Retry));
        let panics = || async { std::panic::resume_unwind(Box::new("a bug")) };
        assert_eq!(attempted(panics).await, told("the handler panicked", Kind::Retry));
        let early = || async {
            tokio::time::sleep(Duration::from_secs(6)).await;
            Ok(())
        };
        assert_eq!(attempted(early).await, None, "within the limit");
    }

    fn subscribe() -> Subscribe {
        let subscribe = Subscribe::new("g", ["T"]).unwrap().attempts(NonZeroU32::new(2).unwrap());
        subscribe.backoff(Backoff::constant(Duration::from_secs(1))).patience(Duration::from_secs(60))
    }

    #[test]
    fn failures_are_counted_up_to_the_last_attempt() {
        let (subscribe, error) = (subscribe(), HandlerError::retry("later"));
        let tries = Tries::default().after(&error, &subscribe, NOW).unwrap();
        assert_eq!((tries.attempts, tries.retry_at), (1, NOW.plus(Duration::from_secs(1))));
        assert_eq!(tries.after(&error, &subscribe, NOW), None);
        assert_eq!(Tries::default().after(&HandlerError::reject("never"), &subscribe, NOW), None);
    }

    #[test]
    fn a_value_that_the_database_of_the_bus_rejects_uses_up_attempts() {
        let data = BusError::from(sqlx::Error::Encode("a NUL in a text".into()));
        let (subscribe, error) = (subscribe(), HandlerError::from(data));
        let tries = Tries::default().after(&error, &subscribe, NOW).unwrap();
        assert_eq!((tries.attempts, tries.waiting_since), (1, None));
        assert_eq!(tries.after(&error, &subscribe, NOW), None);
    }

    #[test]
    fn a_pause_that_no_clock_could_have_set_is_over() {
        let tries = |pause| Tries { retry_at: NOW.plus(pause), ..Tries::default() };
        assert_eq!(tries(LONGEST_WAIT).pause(&subscribe(), NOW), LONGEST_WAIT);
        assert_eq!(tries(2 * LONGEST_WAIT).pause(&subscribe(), NOW), Duration::ZERO);
        let slow = subscribe().backoff(Backoff::constant(3 * LONGEST_WAIT));
        assert_eq!(tries(2 * LONGEST_WAIT).pause(&slow, NOW), 2 * LONGEST_WAIT);
    }

    #[test]
    fn what_is_away_costs_no_attempt_however_long_it_takes() {
        let (subscribe, error) = (subscribe(), HandlerError::unavailable("no database"));
        let (mut tries, mut now) = (Tries { attempts: 1, ..Tries::default() }, NOW);
        for _ in 0..10_000 {
            tries = tries.after(&error, &subscribe, now).unwrap();
            assert!(tries.retry_at > now && tries.retry_at <= now.plus(Duration::from_secs(10)));
            now = tries.retry_at;
        }
        assert_eq!((tries.attempts, tries.waiting_since), (1, Some(NOW)));
        let after = |after| {
            let error = HandlerError::unavailable("open").after(after);
            tries.after(&error, &subscribe, NOW).unwrap().retry_at
        };
        assert_eq!(after(Duration::from_secs(7)), NOW.plus(Duration::from_secs(7)), "as long as the error says");
        assert_eq!(after(Duration::MAX), NOW.plus(LONGEST_WAIT));
    }

    #[test]
    fn a_postponed_event_waits_until_the_patience_is_over() {
        let (subscribe, error) = (subscribe(), HandlerError::postpone("version 2"));
        let tries = Tries::default().after(&error, &subscribe, NOW).unwrap();
        assert_eq!((tries.attempts, tries.waiting_since), (0, Some(NOW)));
        let last = NOW.plus(Duration::from_millis(59_999));
        assert!(tries.after(&error, &subscribe, last).is_some());
        assert_eq!(tries.after(&error, &subscribe, NOW.plus(Duration::from_secs(60))), None);
    }
}
