//! DEBUG events of the layers for `tracing`. Without the feature `tracing` these functions do
//! nothing.

use buttress_core::{Failure, Outcome, Rejection};
use std::time::Duration;

#[cfg(feature = "tracing")]
fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A policy rejected a call.
#[inline]
pub(crate) fn rejected(rejection: &Rejection) {
    #[cfg(feature = "tracing")]
    tracing::debug!(
        resilience.policy.kind = rejection.policy(),
        resilience.policy.name = rejection.name(),
        reason = rejection.reason().word(),
        retry_after_ms = rejection.retry_after().map(millis),
        "call rejected"
    );
    let _ = rejection;
}

/// A call exceeded its timeout.
pub(crate) fn timed_out(rejection: &Rejection) {
    #[cfg(feature = "tracing")]
    tracing::debug!(
        resilience.policy.name = rejection.name(),
        reason = rejection.reason().word(),
        limit_ms = rejection.limit().map(millis),
        "call timed out"
    );
    let _ = rejection;
}

/// A failed attempt is retried after a pause.
pub(crate) fn retrying(failure: &Failure, attempt: u32, pause: Duration) {
    #[cfg(feature = "tracing")]
    tracing::debug!(failure = ?failure.kind, sent = ?failure.sent, attempt, pause_ms = millis(pause), "call is repeated");
    let _ = (failure, attempt, pause);
}

/// A failed attempt is not retried, because the budget is empty.
pub(crate) fn out_of_budget(failure: &Failure, attempt: u32) {
    #[cfg(feature = "tracing")]
    tracing::debug!(failure = ?failure.kind, attempt, "retry denied by the budget");
    let _ = (failure, attempt);
}

/// A failed attempt is not retried, because a service below has repeated it.
pub(crate) fn retried_below(failure: &Failure, attempt: u32) {
    #[cfg(feature = "tracing")]
    tracing::debug!(failure = ?failure.kind, attempt, "not repeated: a service below has repeated the call");
    let _ = (failure, attempt);
}

/// A failed attempt is not retried, because the deadline of the call would pass first.
pub(crate) fn out_of_time(failure: &Failure, attempt: u32, pause: Duration) {
    #[cfg(feature = "tracing")]
    tracing::debug!(failure = ?failure.kind, attempt, pause_ms = millis(pause), "not repeated: the deadline is too near");
    let _ = (failure, attempt, pause);
}

/// Another attempt of a call is sent, because the attempts before have no answer or have failed.
pub(crate) fn hedging(attempt: u32, delay: Option<Duration>) {
    #[cfg(feature = "tracing")]
    tracing::debug!(attempt, delay_ms = delay.map(millis), "call is hedged");
    let _ = (attempt, delay);
}

/// Another attempt than the first one had the answer of a call.
pub(crate) fn hedge_won(attempt: u32) {
    #[cfg(feature = "tracing")]
    tracing::debug!(attempt, "hedge had the answer");
    let _ = attempt;
}

/// Another attempt of a call is not sent, because the budget is empty.
pub(crate) fn hedge_out_of_budget(attempt: u32) {
    #[cfg(feature = "tracing")]
    tracing::debug!(attempt, "hedge denied by the budget");
    let _ = attempt;
}

/// A fallback answers in place of a call with this outcome.
pub(crate) fn falling_back(name: Option<&str>, outcome: &Outcome) {
    #[cfg(feature = "tracing")]
    tracing::debug!(resilience.policy.name = name, ?outcome, "call falls back");
    let _ = (name, outcome);
}

/// A fallback failed, and the original result is returned.
pub(crate) fn fallback_failed(name: Option<&str>, error: &(dyn std::error::Error + 'static)) {
    #[cfg(feature = "tracing")]
    tracing::debug!(resilience.policy.name = name, error, "fallback failed");
    let _ = (name, error);
}

#[cfg(all(test, feature = "tracing"))]
mod tests {
    use super::*;
    use crate::{bulkhead, timeout};
    use buttress_core::{FailureKind, Label, Sent};
    use std::{
        collections::BTreeMap,
        fmt,
        sync::{Arc, Mutex},
    };
    use tracing::{
        Event, Level, Metadata, Subscriber,
        field::{Field, Visit},
        span::{Attributes, Id, Record},
    };

    type Fields = BTreeMap<&'static str, String>;

    /// Stores the fields of each event.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<Fields>>>);

    struct Reader(Fields);

    impl Visit for Reader {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            self.0.insert(field.name(), format!("{value:?}"));
        }
    }

    impl Subscriber for Log {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() == Level::DEBUG
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            unreachable!("the layers open no spans")
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, event: &Event<'_>) {
            let mut fields = Reader(Fields::new());
            event.record(&mut fields);
            self.0.lock().unwrap().push(fields.0);
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    /// Returns the fields of the one event of `act`.
    fn logged(act: impl FnOnce()) -> Vec<(&'static str, String)> {
        let log = Log::default();
        tracing::subscriber::with_default(log.clone(), act);
        let mut events = log.0.lock().unwrap();
        assert_eq!(events.len(), 1, "{events:?}");
        events.pop().unwrap().into_iter().collect()
    }

    fn fields<const N: usize>(fields: [(&'static str, &str); N]) -> Vec<(&'static str, String)> {
        fields.map(|(name, value)| (name, value.to_owned())).to_vec()
    }

    #[test]
    fn a_rejection_is_logged_with_its_policy_its_reason_and_its_time() {
        let label = Label::named("bulkhead", "orders".into());
        let rejection = Rejection::labelled(label, &bulkhead::FULL).after(Some(Duration::from_millis(1500)));
        let expected = [
            ("message", "call rejected"),
            ("reason", "\"bulkhead_full\""),
            ("resilience.policy.kind", "\"bulkhead\""),
            ("resilience.policy.name", "\"orders\""),
            ("retry_after_ms", "1500"),
        ];
        assert_eq!(logged(|| rejected(&rejection)), fields(expected));
    }

    #[test]
    fn a_timeout_is_logged_with_its_limit() {
        let label = Label::named("timeout", "payments".into());
        let rejection = Rejection::timed_out(label, &timeout::TOTAL, Duration::from_secs(2));
        let expected = [
            ("limit_ms", "2000"),
            ("message", "call timed out"),
            ("reason", "\"total_timeout\""),
            ("resilience.policy.name", "\"payments\""),
        ];
        assert_eq!(logged(|| timed_out(&rejection)), fields(expected));
    }

    #[test]
    fn a_retry_is_logged_with_the_attempt_that_failed_and_its_pause() {
        let failure = Failure::new(FailureKind::Connect).sent(Sent::Never);
        let expected = [
            ("attempt", "2"),
            ("failure", "Connect"),
            ("message", "call is repeated"),
            ("pause_ms", "250"),
            ("sent", "Never"),
        ];
        assert_eq!(logged(|| retrying(&failure, 2, Duration::from_millis(250))), fields(expected));
        let expected = [("attempt", "3"), ("failure", "Connect"), ("message", "retry denied by the budget")];
        assert_eq!(logged(|| out_of_budget(&failure, 3)), fields(expected));
        let below = [
            ("attempt", "1"),
            ("failure", "Connect"),
            ("message", "not repeated: a service below has repeated the call"),
        ];
        assert_eq!(logged(|| retried_below(&failure, 1)), fields(below));
        let late = [
            ("attempt", "1"),
            ("failure", "Connect"),
            ("message", "not repeated: the deadline is too near"),
            ("pause_ms", "250"),
        ];
        assert_eq!(logged(|| out_of_time(&failure, 1, Duration::from_millis(250))), fields(late));
    }

    #[test]
    fn a_hedge_is_logged_with_its_number_and_its_delay() {
        let expected = [("attempt", "2"), ("delay_ms", "30"), ("message", "call is hedged")];
        assert_eq!(logged(|| hedging(2, Some(Duration::from_millis(30)))), fields(expected));
        let expected = [("attempt", "2"), ("message", "call is hedged")];
        assert_eq!(logged(|| hedging(2, None)), fields(expected));
        let expected = [("attempt", "2"), ("message", "hedge had the answer")];
        assert_eq!(logged(|| hedge_won(2)), fields(expected));
        let expected = [("attempt", "2"), ("message", "hedge denied by the budget")];
        assert_eq!(logged(|| hedge_out_of_budget(2)), fields(expected));
    }
}
