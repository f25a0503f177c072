use crate::{Failure, Name, Outcome, Reason};
use std::{fmt, time::Duration};

/// The state of a circuit.
///
/// ```
/// use buttress_core::circuit_breaker::State;
///
/// assert_eq!(State::HalfOpen.to_string(), "half-open");
/// assert_eq!(State::ALL[State::HalfOpen as usize], State::HalfOpen);
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum State {
    /// Calls are admitted and counted.
    Closed = 0,
    /// Set by an operator: calls are admitted and counted, and no rule trips the circuit.
    MetricsOnly = 1,
    /// Set by an operator: calls are admitted and not counted.
    Disabled = 2,
    /// Calls are rejected until the open time has elapsed.
    Open = 3,
    /// A limited number of probes is admitted; other calls are rejected.
    HalfOpen = 4,
    /// Set by an operator: calls are rejected until the operator sets another state.
    ForcedOpen = 5,
}

impl State {
    /// All states. The index of each is its discriminant.
    pub const ALL: [Self; 6] =
        [Self::Closed, Self::MetricsOnly, Self::Disabled, Self::Open, Self::HalfOpen, Self::ForcedOpen];

    /// The number of bits of the circuit's word that contain the state.
    pub(super) const BITS: u32 = 3;

    pub(super) fn of_word(word: u64) -> Self {
        match word & ((1 << Self::BITS) - 1) {
            0 => Self::Closed,
            1 => Self::MetricsOnly,
            2 => Self::Disabled,
            3 => Self::Open,
            4 => Self::HalfOpen,
            _ => Self::ForcedOpen,
        }
    }

    pub(super) fn admits_all(self) -> bool {
        matches!(self, Self::Closed | Self::MetricsOnly | Self::Disabled)
    }

    /// Returns the state in lower case, such as `half-open`, for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::MetricsOnly => "metrics-only",
            Self::Disabled => "disabled",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
            Self::ForcedOpen => "forced-open",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The numbers of results in the window.
///
/// ```
/// use buttress_core::circuit_breaker::Counts;
///
/// let counts = Counts { succeeded: 6, failed: 1, slow: 2, slow_failed: 1 };
/// assert_eq!((counts.total(), counts.failures(), counts.slow_calls()), (10, 2, 3));
/// assert_eq!((counts.failure_rate(), counts.slow_rate()), (Some(0.2), Some(0.3)));
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Calls that succeeded and were not slow.
    pub succeeded: u64,
    /// Calls that failed and were not slow.
    pub failed: u64,
    /// Calls that succeeded and took longer than the slow threshold.
    pub slow: u64,
    /// Calls that failed and took longer than the slow threshold.
    pub slow_failed: u64,
}

impl Counts {
    /// Calls `sum` until two consecutive sums agree, up to five times.
    pub(super) fn agreed(sum: impl Fn() -> Self) -> Self {
        let mut last = sum();
        for _ in 0..4 {
            let again = sum();
            if again == last {
                break;
            }
            last = again;
        }
        last
    }

    /// Returns the counts without `failures` failures: first those that were not slow, then slow
    /// ones. Stops at zero.
    pub(super) fn without_failures(mut self, failures: u64) -> Self {
        let slow = failures.saturating_sub(self.failed);
        self.failed = self.failed.saturating_sub(failures);
        self.slow_failed = self.slow_failed.saturating_sub(slow);
        self
    }

    /// Returns the number of all calls.
    pub fn total(&self) -> u64 {
        self.succeeded + self.failed + self.slow + self.slow_failed
    }

    /// Returns the number of failures, slow or not.
    pub fn failures(&self) -> u64 {
        self.failed + self.slow_failed
    }

    /// Returns the number of slow calls, failed or not.
    pub fn slow_calls(&self) -> u64 {
        self.slow + self.slow_failed
    }

    /// Returns the share of failures; `None` without calls.
    pub fn failure_rate(&self) -> Option<f64> {
        (self.total() > 0).then(|| self.failures() as f64 / self.total() as f64)
    }

    /// Returns the share of slow calls; `None` without calls.
    pub fn slow_rate(&self) -> Option<f64> {
        (self.total() > 0).then(|| self.slow_calls() as f64 / self.total() as f64)
    }
}

/// The cause of a change of state, with its numbers.
///
/// ```
/// use buttress_core::circuit_breaker::{Cause, Counts};
///
/// let counts = Counts { succeeded: 3, failed: 17, ..Counts::default() };
/// assert_eq!(Cause::FailureRate(counts).to_string(), "17 of 20 calls failed");
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Cause {
    /// This many consecutive failures: a [fixed number](super::FailureStreak::Fixed), or 5 or more
    /// while the failure rate is unknown.
    ConsecutiveFailures(u32),
    /// More consecutive failures than chance explains at the failure rate of the other results.
    FailureStreak {
        /// The number of consecutive failures.
        failures: u32,
        /// The results in the window without those failures.
        others: Counts,
    },
    /// The failure rate of these results.
    FailureRate(Counts),
    /// The rate of slow calls among these results.
    SlowRate(Counts),
    /// The custom rule, called with these results.
    Custom(Counts),
    /// The open time has elapsed.
    OpenTimeElapsed,
    /// Enough probes, this many, succeeded.
    ProbesSucceeded(u32),
    /// Too many probes, this many, failed.
    ProbesFailed(u32),
    /// The lease of a probe expired before its result arrived.
    ProbeLeaseExpired,
    /// A probe failed, and no other result arrived within
    /// [`max_half_open`](super::Builder::max_half_open).
    HalfOpenTimedOut,
    /// An operator called a method of the handle, such as
    /// [`force_open`](super::CircuitBreaker::force_open).
    Operator,
    /// The settings were reloaded with a window of another length.
    Reloaded,
    /// Another instance of this service opened or closed its circuit:
    /// [`follow`](super::CircuitBreaker::follow).
    Peer,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConsecutiveFailures(1) => f.write_str("1 failure"),
            Self::ConsecutiveFailures(n) => write!(f, "{n} failures in a row"),
            Self::FailureStreak { failures, others } => {
                write!(
                    f,
                    "{failures} failures in a row, where {} of {} other calls failed",
                    others.failures(),
                    others.total()
                )
            }
            Self::FailureRate(counts) => write!(f, "{} of {} calls failed", counts.failures(), counts.total()),
            Self::SlowRate(counts) => write!(f, "{} of {} calls were slow", counts.slow_calls(), counts.total()),
            Self::Custom(counts) => {
                write!(f, "the custom rule, at {} of {} calls failed", counts.failures(), counts.total())
            }
            Self::OpenTimeElapsed => f.write_str("the open time is over"),
            Self::ProbesSucceeded(1) => f.write_str("1 probe succeeded"),
            Self::ProbesSucceeded(n) => write!(f, "{n} probes succeeded"),
            Self::ProbesFailed(1) => f.write_str("1 probe failed"),
            Self::ProbesFailed(n) => write!(f, "{n} probes failed"),
            Self::ProbeLeaseExpired => f.write_str("the lease of a probe expired"),
            Self::HalfOpenTimedOut => f.write_str("the probes did not decide in time"),
            Self::Operator => f.write_str("set by an operator"),
            Self::Reloaded => f.write_str("reloaded with another window"),
            Self::Peer => f.write_str("set by another instance"),
        }
    }
}

/// A change of state.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Transition {
    /// The circuit's name.
    pub name: Name,
    /// The state before.
    pub from: State,
    /// The state after.
    pub to: State,
    /// The cause.
    pub cause: Cause,
    /// The generation that begins with the change. Listeners on several threads may receive two
    /// transitions in either order; the one with the smaller generation came first.
    pub generation: u64,
    /// The open time; `None` if the circuit does not open or has no end of its open time.
    pub open_for: Option<Duration>,
    /// The failure that opened the circuit; `None` for any other cause, such as a slow call or an
    /// expired lease.
    pub last_failure: Option<Failure>,
}

/// An event of a circuit, for [`CircuitBreaker::on_event`](super::CircuitBreaker::on_event).
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A call was settled in the generation in which it was admitted.
    Called {
        /// The outcome.
        outcome: Outcome,
        /// The time from its admission to the head of its response, or to its end if no head was
        /// reported or with [`CallTime::ToEnd`](super::CallTime::ToEnd). To within 10 microseconds,
        /// up to 93 hours.
        elapsed: Duration,
        /// Whether the time exceeds the slow threshold.
        slow: bool,
    },
    /// A call was rejected.
    NotPermitted {
        /// The reason of the rejection.
        reason: &'static Reason,
        /// The time after which a call may be admitted; `None` if it is unknown.
        retry_after: Option<Duration>,
    },
    /// A result of an earlier generation, or of a probe whose lease had expired, arrived and
    /// changed nothing.
    Stale(Outcome),
    /// A trip rule is met. A closed circuit trips next; a circuit that is metrics-only does not.
    /// Emitted for each failed or slow call after which the rule is met.
    RateExceeded(Cause),
    /// The lease of a probe expired, and the probe counts as failed.
    ProbeLeaseExpired,
    /// The state changed. A reset is a transition to [`State::Closed`] by [`Cause::Operator`].
    Transition(Transition),
    /// The settings were reloaded.
    Reloaded,
}

/// The state, the results and the counters of a circuit at one moment, from
/// [`CircuitBreaker::snapshot`](super::CircuitBreaker::snapshot).
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The circuit's name.
    pub name: Name,
    /// The state.
    pub state: State,
    /// The number of changes of state since the circuit was created.
    pub generation: u64,
    /// The results in the window; zeros if the circuit has no window.
    pub counts: Counts,
    /// Calls in flight that have exceeded the slow threshold; 0 without
    /// [`count_overdue`](super::Builder::count_overdue).
    pub overdue: u64,
    /// Failures since the last success. Overload does not count.
    pub consecutive_failures: u32,
    /// How often the circuit has opened since it was last closed.
    pub openings: u32,
    /// How long to wait before a call can be admitted; `None` if it can be now, or if the time is
    /// unknown.
    pub retry_after: Option<Duration>,
    /// The number of results in the window from which the rate rules apply.
    pub minimum_throughput: u64,
    /// Calls rejected since the circuit was created.
    pub rejected: u64,
    /// Results since the circuit was created that changed nothing: see [`Event::Stale`].
    pub stale: u64,
}

impl Snapshot {
    /// Returns the share of calls in the window that failed; `None` below the minimum throughput.
    pub fn failure_rate(&self) -> Option<f64> {
        self.counts.failure_rate().filter(|_| self.is_known())
    }

    /// Returns the share of calls in the window that were slow; `None` below the minimum
    /// throughput.
    pub fn slow_rate(&self) -> Option<f64> {
        self.counts.slow_rate().filter(|_| self.is_known())
    }

    fn is_known(&self) -> bool {
        self.counts.total() >= self.minimum_throughput
    }
}
