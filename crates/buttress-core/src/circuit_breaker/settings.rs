//! The values that a [`Builder`] takes.

#[cfg(doc)]
use super::builder::Builder;
use std::time::Duration;

/// The results over which rates are computed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Window {
    /// The results of this time, in ten buckets: between nine tenths of it and all of it.
    Time(Duration),
    /// This many of the last results. Exact, and threads contend for it: prefer a time window under
    /// load.
    Count(u32),
}

/// Which failures in a row, without a success in between, trip the circuit. Overload does not
/// count.
///
/// Numbers convert into [`Fixed`](Self::Fixed), and `None` into [`Off`](Self::Off).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum FailureStreak {
    /// At least 5, and so many that chance explains them less than once in 10^9 calls: with `p` as
    /// the failure rate of the window without the streak, `ln(1e-9) / ln(p)` of them, at most 100.
    /// That is 5 up to an error rate of 1 %, 7 at 5 %, 13 at 20 % and 23 at 40 %.
    ///
    /// A fixed number cannot be right for both a healthy backend and one with random errors: 5 in a
    /// row come by chance after some 4,000 calls of which 20 % fail, which is every 4 seconds at
    /// 1,000 calls a second. With fewer than 10 other results in the window, no rate is known, and
    /// 5 are enough.
    ///
    /// The rate is that of a sample. With some 100 calls in the window, as at 10 calls a second,
    /// chance trips it about once in 10^7 calls.
    #[default]
    Calibrated,
    /// This many. At least 1. For endpoints that hardly ever fail at random.
    Fixed(u32),
    /// No number of them.
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

/// At which share of failures among the calls in the window the circuit trips, from the [minimum
/// throughput](Builder::minimum_throughput) on.
///
/// Numbers convert into [`Exact`](Self::Exact), and `None` into [`Off`](Self::Off).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum FailureRate {
    /// Half of the calls, and more by so much that chance does not explain it: of `n` calls,
    /// `n/2 + 1.5 √n` failed. Those are 17 of 20 calls, 65 of 100, 548 of 1,000 and 5,150 of
    /// 10,000.
    ///
    /// An exact half cannot be judged from few calls: of 20 calls to a backend that fails 40 % of
    /// them, half fail with a probability of 24 %. The number of failures among `n` calls to a
    /// backend that fails half of them has a standard deviation of `√n / 2`, so this is three of
    /// them above the mean. Chance goes beyond that in at most `exp(-2 · 1.5²)` = 1.1 % of all
    /// windows (Hoeffding's bound for any `n`), and in 0.13 % where `n` is large. With 40 % of
    /// errors it is 0.005 % of windows of 20 calls and 0.00004 % of those of 100, and a circuit of
    /// the default window trips by chance about once in 10 hours at 2 calls a second, and once in
    /// 300 hours at 10 (simulated).
    ///
    /// What is above a half is found as soon as it is certain: with 20 calls where 90 % fail, 57
    /// where 70 % do, and 225 where 60 % do. A backend that fails no more than half of its calls
    /// hardly ever trips it: give an exact share where that is too many, and where the window holds
    /// fewer than 9 calls, which are never enough.
    #[default]
    Calibrated,
    /// This share, however few calls it is computed from. Above 0, up to 1.
    Exact(f64),
    /// No share of them.
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

/// What the time of a call is, which is compared with the [slow
/// threshold](Builder::slow_threshold).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum CallTime {
    /// The time to the head of its response, or to the first part of it that was reported. A stream
    /// that lasts for minutes is not slow.
    #[default]
    ToHead,
    /// The time to the end of its response.
    ToEnd,
}

/// When probes close the circuit. Either way it is decided as soon as the remaining probes cannot
/// change it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum CloseRule {
    /// All probes succeed. The first failure opens it again.
    AllProbes,
    /// At least this share of the probes succeeds, between 0 (exclusive) and 1.
    Share(f64),
}

/// How to count a call that was dropped after the slow threshold and before its end (or the head of
/// its response). A call that was dropped sooner is not counted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum OnDrop {
    /// Not at all.
    Ignore = 0,
    /// As slow. A backend that hangs under an outer timeout trips the slow rate.
    #[default]
    Slow = 1,
    /// As slow and failed. A backend that hangs under an outer timeout trips any rule.
    Failure = 2,
}

impl From<Duration> for Window {
    fn from(time: Duration) -> Self {
        Self::Time(time)
    }
}
