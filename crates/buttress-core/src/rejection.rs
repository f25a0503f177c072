use crate::{
    Class, Failure, FailureKind, Ignored, Label, Outcome, Reason, TimeoutKind,
    rate_limit::{LiveQuota, Quota},
};
use std::{fmt, time::Duration};

/// The error of a call that a policy rejected, or gave up on: which policy, why, and when to retry.
///
/// It is four words long, because a `Result` that holds it is returned in place of a permit or a
/// response, and its size is part of the cost of moving them. Of the policies of this crate, each
/// allocates for its first rejection, and for no other.
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
    /// Nanoseconds; [`UNKNOWN`] if there is no such time. Of a timeout, the limit that expired; of
    /// any other reason, the time until a retry may succeed. A timeout has no time to retry.
    nanos: u64,
    reason: &'static Reason,
}

const UNKNOWN: u64 = u64::MAX;

impl Rejection {
    /// Creates a rejection by a policy without a name. `policy` is the kind of policy in words,
    /// such as `"circuit breaker"`.
    pub const fn new(policy: &'static str, reason: &'static Reason) -> Self {
        Self::labelled(Label::new(policy), reason)
    }

    /// Creates a rejection by the policy that the label names.
    ///
    /// ```
    /// use buttress_core::{Label, Rejection, circuit_breaker};
    ///
    /// let label = Label::named("circuit breaker", "payments".into());
    /// let rejection = Rejection::labelled(label, &circuit_breaker::OPEN);
    /// assert_eq!(rejection.to_string(), "circuit breaker `payments`: open");
    /// ```
    pub const fn labelled(label: Label, reason: &'static Reason) -> Self {
        Self { label, nanos: UNKNOWN, reason }
    }

    /// Creates the rejection of a call whose time limit expired. The limit of a `reason` that is no
    /// [timeout](Reason::timeout) is not kept.
    ///
    /// ```
    /// use buttress_core::{Label, Reason, Rejection, TimeoutKind};
    /// use std::time::Duration;
    ///
    /// static TOO_SLOW: Reason =
    ///     Reason::timeout("attempt_timeout", "the attempt took too long", TimeoutKind::Attempt);
    ///
    /// let rejection = Rejection::timed_out(Label::new("timeout"), &TOO_SLOW, Duration::from_millis(500));
    /// assert_eq!(rejection.to_string(), "timeout: the attempt took too long (500ms)");
    /// assert!(!rejection.is_unprocessed());
    /// ```
    pub fn timed_out(label: Label, reason: &'static Reason, limit: Duration) -> Self {
        let nanos = if reason.timeout_kind().is_some() { nanos(limit) } else { UNKNOWN };
        Self { label, nanos, reason }
    }

    /// Sets the limit of a timeout. Has no effect on any other reason.
    pub(crate) fn with_limit(mut self, limit: Duration) -> Self {
        if self.is_timeout() {
            self.nanos = nanos(limit);
        }
        self
    }

    /// Sets the time until a retry may be admitted; `None` if it is unknown. Has no effect on a
    /// timeout.
    pub fn after(mut self, retry_after: Option<Duration>) -> Self {
        if !self.is_timeout() {
            self.nanos = retry_after.map_or(UNKNOWN, nanos);
        }
        self
    }

    /// Returns the kind of policy, in words.
    pub fn policy(&self) -> &'static str {
        self.label.policy()
    }

    /// Returns the name of the policy, if it has one.
    pub fn name(&self) -> Option<&str> {
        self.label.name()
    }

    /// Returns the present quota of the policy, if it has one. A
    /// [`RateLimit`](crate::rate_limit::RateLimit) has.
    pub fn quota(&self) -> Option<Quota> {
        self.label.quota().map(LiveQuota::get)
    }

    /// Returns why the call was rejected.
    pub fn reason(&self) -> &'static Reason {
        self.reason
    }

    /// Returns how long to wait before a retry can succeed; `None` if that is unknown.
    pub fn retry_after(&self) -> Option<Duration> {
        (!self.is_timeout() && self.nanos != UNKNOWN).then(|| Duration::from_nanos(self.nanos))
    }

    /// Returns the time limit that expired; `None` if the rejection is not a timeout.
    pub fn limit(&self) -> Option<Duration> {
        (self.is_timeout() && self.nanos != UNKNOWN).then(|| Duration::from_nanos(self.nanos))
    }

    fn is_timeout(&self) -> bool {
        self.reason.timeout_kind().is_some()
    }

    /// Returns the HTTP status of its class: 503, 429 if the caller sends too much, 504 if a time
    /// is over or too short, 403 if the policy does not allow the request.
    ///
    /// ```
    /// use buttress_core::{Class, Reason, Rejection, bulkhead};
    ///
    /// static OVER_RATE: Reason = Reason::new("over_rate", "over its rate", Class::RateLimited);
    ///
    /// assert_eq!(Rejection::new("bulkhead", &bulkhead::FULL).http_status(), 503);
    /// assert_eq!(Rejection::new("token bucket", &OVER_RATE).http_status(), 429);
    /// ```
    pub fn http_status(&self) -> u16 {
        match self.reason.class() {
            Class::Unavailable | Class::Exhausted => 503,
            Class::RateLimited => 429,
            Class::Deadline => 504,
            Class::Refused => 403,
        }
    }

    /// Returns whether the call was rejected before it was sent, so that the backend cannot have
    /// processed it.
    pub fn is_unprocessed(&self) -> bool {
        !self.is_timeout()
    }

    /// Returns the outcome that the layers outside the rejecting one record.
    ///
    /// A rejection before the call was sent is [`Ignored::LocalReject`]: it is no evidence against
    /// the backend. (An inner bulkhead that tripped an outer breaker is resilience4j#1657.) A
    /// timeout of a call that was sent is a failure, except that of [`TimeoutKind::Reader`], which
    /// is [`Outcome::CANCELLED`].
    ///
    /// ```
    /// use buttress_core::{Ignored, Outcome, Rejection, bulkhead};
    ///
    /// let rejection = Rejection::new("bulkhead", &bulkhead::FULL);
    /// assert_eq!(rejection.outcome(), Outcome::Ignored(Ignored::LocalReject));
    /// ```
    pub fn outcome(&self) -> Outcome {
        match self.reason.timeout_kind() {
            Some(TimeoutKind::Reader) => Outcome::CANCELLED,
            Some(kind) => {
                let no_retry = matches!(kind, TimeoutKind::Total | TimeoutKind::Deadline);
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

/// Returns the nanoseconds, limited to 584 years.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(UNKNOWN - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bulkhead, circuit_breaker, policy};

    static TOO_SLOW: Reason = Reason::timeout("attempt_timeout", "the attempt took too long", TimeoutKind::Attempt);

    #[test]
    fn it_is_four_words_long() {
        assert_eq!(size_of::<Rejection>(), 4 * size_of::<usize>());
    }

    #[test]
    fn each_class_has_its_status_and_only_a_timeout_may_have_been_processed() {
        use crate::Class::{Deadline, Exhausted, RateLimited, Refused, Unavailable};
        let classes = [Unavailable, Exhausted, RateLimited, Deadline, Refused];
        for (class, status) in classes.into_iter().zip([503, 503, 429, 504, 403]) {
            let reason: &'static Reason = Box::leak(Box::new(Reason::new("mine", "mine", class)));
            let rejection = Rejection::new("mine", reason);
            assert_eq!((rejection.http_status(), rejection.is_unprocessed()), (status, true), "{class:?}");
        }
        static LATE: Reason = Reason::timeout("late", "late", crate::TimeoutKind::Total);
        let late = Rejection::timed_out(Label::new("mine"), &LATE, Duration::from_secs(1));
        assert_eq!((late.http_status(), late.is_unprocessed()), (504, false));
    }

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
    fn the_limit_of_a_reason_that_is_no_timeout_is_not_taken_for_the_time_to_come_back() {
        static TOO_LATE: Reason = Reason::new("too_late", "too little time is left", Class::Deadline);
        let rejection = Rejection::timed_out(Label::new("deadline"), &TOO_LATE, Duration::from_millis(500));
        assert_eq!((rejection.retry_after(), rejection.limit()), (None, None));
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
