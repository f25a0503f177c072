use crate::{Failure, FailureKind, Ignored, Label, Outcome, Reason, TimeoutKind};
use std::{fmt, time::Duration};

/// A call that a policy did not let through, or gave up on: which policy, why, and when to come
/// back.
///
/// Four words, made without an allocation. It travels where a permit or a response would, and those
/// are moved in pieces as wide as it.
///
/// ```
/// use buttress_core::{Rejection, bulkhead};
/// use std::time::Duration;
///
/// let rejection = Rejection::new("bulkhead", &bulkhead::FULL).after(Some(Duration::from_secs(1)));
/// assert_eq!(rejection.to_string(), "bulkhead: full; try again in 1.0s");
/// assert_eq!(rejection.reason().word(), "bulkhead_full");
/// ```
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[must_use]
pub struct Rejection {
    label: Label,
    /// Nanoseconds; [`UNKNOWN`] where there is no such number. The time to come back, or, of a
    /// timeout, the time that ran out: no timeout says when to come back.
    nanos: u64,
    reason: &'static Reason,
}

const UNKNOWN: u64 = u64::MAX;

impl Rejection {
    /// `policy` is the kind of policy in words, such as `"circuit breaker"`.
    pub const fn new(policy: &'static str, reason: &'static Reason) -> Self {
        Self::labelled(Label::new(policy), reason)
    }

    /// By the policy that the label names.
    pub const fn labelled(label: Label, reason: &'static Reason) -> Self {
        Self { label, nanos: UNKNOWN, reason }
    }

    /// By a timeout of `limit`, which ran out.
    pub fn timed_out(label: Label, reason: &'static Reason, limit: Duration) -> Self {
        Self { label, nanos: nanos(limit), reason }
    }

    /// The earliest moment, from now, at which another try may go through. A timeout has none.
    pub fn after(mut self, retry_after: Option<Duration>) -> Self {
        if !self.is_timeout() {
            self.nanos = retry_after.map_or(UNKNOWN, nanos);
        }
        self
    }

    /// The kind of policy, in words.
    pub fn policy(&self) -> &'static str {
        self.label.policy()
    }

    /// The name that the policy was given.
    pub fn name(&self) -> Option<&str> {
        self.label.name()
    }

    /// Why the call was rejected.
    pub fn reason(&self) -> &'static Reason {
        self.reason
    }

    /// How long to wait before another try can succeed; `None` where that is not known.
    pub fn retry_after(&self) -> Option<Duration> {
        (!self.is_timeout() && self.nanos != UNKNOWN).then(|| Duration::from_nanos(self.nanos))
    }

    /// The time that ran out, of a rejection by a timeout.
    pub fn limit(&self) -> Option<Duration> {
        (self.is_timeout() && self.nanos != UNKNOWN).then(|| Duration::from_nanos(self.nanos))
    }

    fn is_timeout(&self) -> bool {
        self.reason.timeout_kind().is_some()
    }

    /// Whether the other side cannot have processed the call, because it was rejected before it was
    /// sent.
    pub fn is_unprocessed(&self) -> bool {
        !self.is_timeout()
    }

    /// What this rejection tells the layers around the one that made it. A refusal of our own is no
    /// evidence against a backend; an attempt that timed out while the backend had it, is.
    pub fn outcome(&self) -> Outcome {
        match self.reason.timeout_kind() {
            Some(TimeoutKind::Reader) => Outcome::CANCELLED,
            Some(kind) => {
                let no_retry = kind == TimeoutKind::Total;
                Failure { no_retry, ..Failure::new(FailureKind::Timeout) }.into()
            }
            None => Outcome::Ignored(Ignored::LocalReject),
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.policy())?;
        if let Some(name) = self.name() {
            write!(f, " `{name}`")?;
        }
        write!(f, ": {}", self.reason)?;
        if let Some(limit) = self.limit() {
            return write!(f, " ({limit:?})");
        }
        match self.retry_after() {
            Some(after) if !after.is_zero() => write!(f, "; try again in {after:.1?}"),
            _ => Ok(()),
        }
    }
}

/// 584 years stand for all longer times.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(UNKNOWN - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Class, bulkhead, circuit_breaker, policy};

    static TOO_SLOW: Reason = Reason::timeout("attempt_timeout", "the attempt took too long", TimeoutKind::Attempt);

    #[test]
    fn a_rejection_reads_as_a_sentence() {
        let label = Label::named("circuit breaker", "payments".into());
        let rejection = Rejection::labelled(label, &circuit_breaker::OPEN).after(Some(Duration::from_millis(4200)));
        assert_eq!(rejection.to_string(), "circuit breaker `payments`: open; try again in 4.2s");
    }

    #[test]
    fn a_timeout_says_how_long_it_was_and_not_when_to_come_back() {
        let label = Label::named("timeout", "payments".into());
        let rejection = Rejection::timed_out(label, &TOO_SLOW, Duration::from_millis(500));
        assert_eq!(rejection.to_string(), "timeout `payments`: the attempt took too long (500ms)");
        let after = rejection.after(Some(Duration::from_secs(1)));
        assert_eq!((after.retry_after(), after.limit()), (None, Some(Duration::from_millis(500))));
        assert_eq!(Rejection::new("timeout", &TOO_SLOW).limit(), None);
    }

    #[test]
    fn a_reader_that_stops_is_no_evidence_against_the_backend() {
        static STALLED: Reason = Reason::timeout("reader_timeout", "the reader stopped", TimeoutKind::Reader);
        assert_eq!(Rejection::new("timeout", &STALLED).outcome(), Outcome::CANCELLED);
    }

    #[test]
    fn only_a_timeout_of_a_call_that_was_sent_is_evidence_against_the_backend() {
        static HOPELESS: Reason = Reason::new("deadline", "too little time is left", Class::Deadline);
        let of = |reason| Rejection::new("x", reason).outcome();
        assert!(of(&TOO_SLOW).is_failure());
        for reason in [&circuit_breaker::OPEN, &bulkhead::FULL, &bulkhead::QUEUE_TIMEOUT, &policy::NOT_READY, &HOPELESS]
        {
            assert_eq!(of(reason), Outcome::Ignored(Ignored::LocalReject));
        }
    }
}
