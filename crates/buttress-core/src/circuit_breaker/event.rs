use crate::{Failure, Name, Outcome, Reason};
use std::{fmt, time::Duration};

/// The state of a circuit.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum State {
    /// Calls go through and are counted.
    Closed = 0,
    /// By an operator: calls go through and are counted, and nothing trips.
    MetricsOnly = 1,
    /// By an operator: calls go through and nothing is counted.
    Disabled = 2,
    /// Calls are refused until a time.
    Open = 3,
    /// Probes go through; the rest is refused.
    HalfOpen = 4,
    /// By an operator: calls are refused until the operator says otherwise.
    ForcedOpen = 5,
}

impl State {
    /// All states, each at the index that it has as a number.
    pub const ALL: [Self; 6] =
        [Self::Closed, Self::MetricsOnly, Self::Disabled, Self::Open, Self::HalfOpen, Self::ForcedOpen];

    /// The bits of the state word that hold the state.
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

    /// A lower-case word, as for logs and metrics.
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

/// Results in the window.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Calls that succeeded in time.
    pub succeeded: u64,
    /// Calls that failed in time.
    pub failed: u64,
    /// Calls that succeeded, and took longer than the slow threshold.
    pub slow: u64,
    /// Calls that failed, and took longer than the slow threshold.
    pub slow_failed: u64,
}

impl Counts {
    /// Sums until two sums in a row agree, a few times at most.
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

    /// These without so many failures, those that were slow last; none of them where there are not
    /// so many.
    pub(super) fn without_failures(mut self, failures: u64) -> Self {
        let slow = failures.saturating_sub(self.failed);
        self.failed = self.failed.saturating_sub(failures);
        self.slow_failed = self.slow_failed.saturating_sub(slow);
        self
    }

    /// All calls.
    pub fn total(&self) -> u64 {
        self.succeeded + self.failed + self.slow + self.slow_failed
    }

    /// All failures, slow or not.
    pub fn failures(&self) -> u64 {
        self.failed + self.slow_failed
    }

    /// All slow calls, failed or not.
    pub fn slow_calls(&self) -> u64 {
        self.slow + self.slow_failed
    }

    /// The share of failures; `None` without calls.
    pub fn failure_rate(&self) -> Option<f64> {
        (self.total() > 0).then(|| self.failures() as f64 / self.total() as f64)
    }

    /// The share of slow calls; `None` without calls.
    pub fn slow_rate(&self) -> Option<f64> {
        (self.total() > 0).then(|| self.slow_calls() as f64 / self.total() as f64)
    }
}

/// Why a circuit changed its state, with the numbers that led to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Cause {
    /// This many failures in a row.
    ConsecutiveFailures(u32),
    /// This many failures in a row, which are too many to be chance at the failure rate of the
    /// other results.
    FailureStreak {
        /// In a row.
        failures: u32,
        /// The results in the window without those failures.
        others: Counts,
    },
    /// The failure rate of these results.
    FailureRate(Counts),
    /// The rate of slow calls among these results.
    SlowRate(Counts),
    /// The custom rule.
    Custom(Counts),
    /// The open time is over.
    OpenTimeElapsed,
    /// Enough probes succeeded.
    ProbesSucceeded(u32),
    /// A probe failed, or too many did.
    ProbesFailed(u32),
    /// A probe did not come back within its lease.
    ProbeLeaseExpired,
    /// A probe failed, and no other one returned within the bound on half-open time.
    HalfOpenTimedOut,
    /// A call of a method of the handle.
    Operator,
    /// The configuration was reloaded with another window.
    Reloaded,
    /// Another instance of this service opened or closed the same circuit.
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
            Self::ProbeLeaseExpired => f.write_str("a probe did not come back"),
            Self::HalfOpenTimedOut => f.write_str("the probes did not decide in time"),
            Self::Operator => f.write_str("by hand"),
            Self::Reloaded => f.write_str("reloaded with another window"),
            Self::Peer => f.write_str("by another instance"),
        }
    }
}

/// A change of state.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Transition {
    /// The circuit's name.
    pub name: Name,
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
    /// Why.
    pub cause: Cause,
    /// The generation that begins with it. Listeners on several threads may receive two transitions
    /// in either order; the one with the smaller generation came first.
    pub generation: u64,
    /// How long the circuit stays open, where it opens for a time.
    pub open_for: Option<Duration>,
    /// The failure that tripped it, or that opened it again; `None` where that was something else,
    /// such as a slow call or a lease.
    pub last_failure: Option<Failure>,
}

/// What happens at a circuit, for listeners of more than its [transitions](Transition).
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A call ended, or was dropped, and the circuit took note of it.
    Called {
        /// What became of it.
        outcome: Outcome,
        /// From its admission to the head of its response, or to its end where no head was reported
        /// or [`CallTime::ToEnd`](super::CallTime::ToEnd) is chosen. To within 10 microseconds, up
        /// to 93 hours.
        elapsed: Duration,
        /// Whether that is more than the slow threshold.
        slow: bool,
    },
    /// A call was refused.
    NotPermitted {
        /// Why.
        reason: &'static Reason,
        /// How long nothing can be admitted.
        retry_after: Option<Duration>,
    },
    /// A result came back from an earlier generation, or from a probe that had been given up, and
    /// changed nothing.
    Stale(Outcome),
    /// A rule is met: a closed circuit trips next, one that is metrics-only does not. Emitted with
    /// every bad result for which it is met.
    RateExceeded(Cause),
    /// A probe did not come back within its lease and is counted as failed.
    ProbeLeaseExpired,
    /// The state changed. A reset is one to [`State::Closed`] by [`Cause::Operator`].
    Transition(Transition),
    /// The configuration was reloaded.
    Reloaded,
}

/// One look at a circuit.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The circuit's name.
    pub name: Name,
    /// Its state.
    pub state: State,
    /// How many changes of state there were.
    pub generation: u64,
    /// Results in the window; zeros without one.
    pub counts: Counts,
    /// Calls in flight past the slow threshold, where they are counted.
    pub overdue: u64,
    /// Failures since the last success. Overload does not count.
    pub consecutive_failures: u32,
    /// Openings since it was last closed.
    pub openings: u32,
    /// How long to wait before another try can succeed; `None` when one can now, or when that is
    /// unknown.
    pub retry_after: Option<Duration>,
    /// Results that the window has to hold before its rates mean anything.
    pub minimum_throughput: u64,
    /// Calls refused since it was made.
    pub rejected: u64,
    /// Results that came back from an earlier generation, since it was made.
    pub stale: u64,
}

impl Snapshot {
    /// The share of calls in the window that failed; `None` below the minimum throughput, where it
    /// is unknown.
    pub fn failure_rate(&self) -> Option<f64> {
        self.counts.failure_rate().filter(|_| self.is_known())
    }

    /// The share of calls in the window that were slow; `None` below the minimum throughput, where
    /// it is unknown.
    pub fn slow_rate(&self) -> Option<f64> {
        self.counts.slow_rate().filter(|_| self.is_known())
    }

    fn is_known(&self) -> bool {
        self.counts.total() >= self.minimum_throughput
    }
}
