//! The settings of a [`Builder`](super::Builder) that are not numbers or durations.

use std::time::Duration;

/// The results over which rates are computed.
///
/// A [`Duration`] converts into [`Time`](Self::Time).
///
/// ```
/// use buttress_core::{ManualClock, circuit_breaker::{CircuitBreaker, Window}};
/// use std::time::Duration;
///
/// assert_eq!(Window::from(Duration::from_secs(60)), Window::Time(Duration::from_secs(60)));
/// let builder = CircuitBreaker::<ManualClock>::builder("payments");
/// let breaker = builder.window(Window::Count(100)).minimum_throughput(50).build()?;
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Window {
    /// The results of this time, from 10 ms to a day, in ten buckets: a result stays in the window
    /// for 90 % to 100 % of the time.
    Time(Duration),
    /// This many of the last results, from 1 to 1,000,000. Exact, but every result writes to one
    /// shared counter: prefer a time window for many calls on many threads.
    Count(u32),
}

/// How many consecutive failures, without a success between them, trip the circuit.
///
/// Failures by [overload](crate::Failure::overload) do not count. A number converts into
/// [`Fixed`](Self::Fixed), `None` into [`Off`](Self::Off).
///
/// ```
/// use buttress_core::circuit_breaker::FailureStreak;
///
/// assert_eq!(FailureStreak::from(10), FailureStreak::Fixed(10));
/// assert_eq!(FailureStreak::from(None), FailureStreak::Off);
/// assert_eq!(FailureStreak::default(), FailureStreak::Calibrated);
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum FailureStreak {
    /// A number that depends on the failure rate `p` of the other results in the window:
    /// `ln(1e-9) / ln(p)`, at least 5 and at most 100. Chance produces such a streak less than once
    /// in 10^9 calls. The number is 5 for a failure rate up to 1 %, 7 at 5 %, 13 at 20 % and 23 at
    /// 40 %. With fewer than 10 other results in the window, the rate is unknown, and the number is
    /// 5 (Finagle, Envoy, Istio).
    ///
    /// A fixed number does not suit both a healthy backend and one with random errors: if 20 % of
    /// the calls fail, chance produces 5 consecutive failures once in about 4,000 calls, which is
    /// every 4 seconds at 1,000 calls per second.
    ///
    /// The rate is measured from a sample: the fewer calls the window contains, the more often
    /// chance trips the circuit.
    #[default]
    Calibrated,
    /// This number, at least 1. For backends without random errors.
    Fixed(u32),
    /// Consecutive failures do not trip the circuit.
    Off,
}

impl From<u32> for FailureStreak {
    fn from(failures: u32) -> Self {
        Self::Fixed(failures)
    }
}

impl From<Option<u32>> for FailureStreak {
    fn from(failures: Option<u32>) -> Self {
        failures.map_or(Self::Off, Self::Fixed)
    }
}

/// The share of failures among the calls in the window at which the circuit trips.
///
/// It applies from the [minimum throughput](super::Builder::minimum_throughput) on. A number
/// converts into [`Exact`](Self::Exact), `None` into [`Off`](Self::Off).
///
/// ```
/// use buttress_core::circuit_breaker::FailureRate;
///
/// assert_eq!(FailureRate::from(0.3), FailureRate::Exact(0.3));
/// assert_eq!(FailureRate::from(None), FailureRate::Off);
/// assert_eq!(FailureRate::default(), FailureRate::Calibrated);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum FailureRate {
    /// At least `n/2 + 1.5 √n` failures of `n` calls: 17 of 20 calls, 65 of 100, 548 of 1,000 and
    /// 5,150 of 10,000. This is three standard deviations (`√n / 2` each) above the mean of a
    /// backend that fails half of its calls.
    ///
    /// A share of exactly one half (Hystrix, resilience4j) trips by chance if the window holds few
    /// calls: of 20 calls to a backend that fails 40 % of its calls, at least half fail with a
    /// probability of 24 %. This rule is met by chance:
    ///
    /// * with 50 % of errors, in at most `exp(-2 · 1.5²)` = 1.1 % of all windows (Hoeffding's
    ///   inequality, for any `n`), and in 0.13 % for large `n`;
    /// * with 40 % of errors, in 0.005 % of windows of 20 calls, and in 0.00004 % of windows of 100
    ///   calls.
    ///
    /// A failure rate of 90 % meets the rule from 20 calls on, 70 % from 57 and 60 % from 225. A
    /// rate up to 50 % hardly ever meets it: use [`Exact`](Self::Exact) if such a rate must trip
    /// the circuit, or if a count window holds fewer than 9 calls, which cannot meet the rule.
    #[default]
    Calibrated,
    /// At least this share, whatever the number of calls. Above 0, up to 1.
    Exact(f64),
    /// The failure rate does not trip the circuit.
    Off,
}

impl From<f64> for FailureRate {
    fn from(share: f64) -> Self {
        Self::Exact(share)
    }
}

impl From<Option<f64>> for FailureRate {
    fn from(share: Option<f64>) -> Self {
        share.map_or(Self::Off, Self::Exact)
    }
}

/// The time of a call that is compared with the [slow threshold](super::Builder::slow_threshold).
///
/// ```
/// use buttress_core::circuit_breaker::CallTime;
///
/// assert_eq!(CallTime::default(), CallTime::ToHead);
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum CallTime {
    /// The time to the head of its response, or to the first part that is reported by
    /// [`Permit::progress`](crate::Permit::progress). A long stream is not slow.
    #[default]
    ToHead,
    /// The time to the end of its response.
    ToEnd,
}

/// How many probes must succeed to close the circuit. The circuit changes its state as soon as the
/// remaining probes cannot change the decision.
///
/// ```
/// use buttress_core::{ManualClock, circuit_breaker::{CircuitBreaker, CloseRule}};
///
/// let builder = CircuitBreaker::<ManualClock>::builder("payments");
/// let breaker = builder.probes(5).close_rule(CloseRule::Share(0.8)).build()?; // 4 of 5
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum CloseRule {
    /// All of them. The first failure opens the circuit again.
    AllProbes,
    /// At least this share of them: above 0, up to 1.
    Share(f64),
}

/// How to count a call that was dropped after the [slow threshold](super::Builder::slow_threshold)
/// and before its end, or before the head of its response. A call that was dropped sooner is not
/// counted.
///
/// A layer reports the drop by settling the permit with
/// [`Outcome::CANCELLED`](crate::Outcome::CANCELLED). A permit that is dropped without being
/// settled is not counted.
///
/// ```
/// use buttress_core::{ManualClock, circuit_breaker::{CircuitBreaker, OnDrop}};
/// use std::time::Duration;
///
/// let breaker = CircuitBreaker::<ManualClock>::builder("payments")
///     .slow_threshold(Duration::from_secs(1))
///     .on_drop(OnDrop::Failure)
///     .build()?;
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum OnDrop {
    /// Does not count it.
    Ignore = 0,
    /// Counts it as slow: a backend that hangs under an outer timeout meets the slow rate.
    #[default]
    Slow = 1,
    /// Counts it as slow and failed: a backend that hangs under an outer timeout meets any rule.
    Failure = 2,
}

impl From<Duration> for Window {
    fn from(time: Duration) -> Self {
        Self::Time(time)
    }
}
