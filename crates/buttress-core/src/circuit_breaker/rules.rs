use super::{
    config::{Config, CustomRule, RateRule},
    event::{Cause, Counts},
    settings::{CallTime, FailureStreak, OnDrop},
};
use crate::Ratio;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

const OFF: u32 = u32::MAX;
/// In place of a number of failures, [`FailureStreak::Calibrated`]; in place of a share of them,
/// [`FailureRate::Calibrated`](super::FailureRate::Calibrated).
const CALIBRATED: u32 = 0;
/// The shortest streak that the calibrated rule takes for an outage: the fixed number of Finagle,
/// Envoy and Istio.
const SHORTEST: u32 = 5;
/// The longest that it asks for. At a failure rate of 81 % and more, chance explains it more often
/// than once in 10^9 calls, and such a backend is down in any case.
const LONGEST: u32 = 100;
/// How rarely chance may explain a streak: once in this many calls.
const RARE: f64 = 1e9;
/// How many other results make a failure rate by which a streak is judged. Not the minimum
/// throughput: a user who raises that one asks for fewer trips, and not for shorter streaks.
const KNOWN: u64 = 10;
/// More nanoseconds than any call takes.
const NEVER: u64 = u64::MAX;

/// When results trip the circuit. Every field is an atomic of its own, so that a reload needs no
/// lock and no pause: a call that is judged meanwhile sees old and new thresholds mixed, once.
pub(super) struct Rules {
    consecutive_failures: AtomicU32,
    failure_rate: AtomicU32,
    slow_rate: AtomicU32,
    minimum_throughput: AtomicU32,
    /// 1 while a peer's circuit is open: then half of the minimum throughput is enough.
    cautious: AtomicU32,
    on_drop: AtomicU32,
    /// 1 where calls are timed to their end and not to the head of their response.
    to_end: AtomicU32,
    slow: AtomicU64,
    ramp: AtomicU64,
    /// Nanoseconds of the first open time.
    first_open: AtomicU64,
    custom: Option<CustomRule>,
}

impl Rules {
    pub(super) fn new(config: &Config) -> Self {
        let rules = Self {
            consecutive_failures: AtomicU32::new(OFF),
            failure_rate: AtomicU32::new(OFF),
            slow_rate: AtomicU32::new(OFF),
            minimum_throughput: AtomicU32::new(1),
            cautious: AtomicU32::new(0),
            on_drop: AtomicU32::new(0),
            to_end: AtomicU32::new(0),
            slow: AtomicU64::new(NEVER),
            ramp: AtomicU64::new(0),
            first_open: AtomicU64::new(0),
            custom: config.custom.clone(),
        };
        rules.set(config);
        rules
    }

    /// The custom rule stays: it is code, and code is not reloaded. Returns whether anything has
    /// changed that results are judged by.
    pub(super) fn set(&self, config: &Config) -> bool {
        let failure_rate = match config.failure_rate {
            Some(RateRule::Calibrated) => CALIBRATED,
            Some(RateRule::Exact(share)) => share.millionths(),
            None => OFF,
        };
        let streak = match config.consecutive_failures {
            FailureStreak::Calibrated => CALIBRATED,
            FailureStreak::Fixed(failures) => failures,
            FailureStreak::Off => OFF,
        };
        self.on_drop.store(config.on_drop as u32, Ordering::Relaxed);
        self.to_end.store((config.call_time == CallTime::ToEnd).into(), Ordering::Relaxed);
        self.ramp.store(super::nanos(config.recovery_ramp), Ordering::Relaxed);
        self.first_open.store(super::nanos(config.recovery.open_time.base()), Ordering::Relaxed);
        self.slow.store(config.slow_threshold.map_or(NEVER, super::nanos), Ordering::Relaxed);
        let changes = [
            (&self.consecutive_failures, streak),
            (&self.failure_rate, failure_rate),
            (&self.slow_rate, config.slow_rate.map_or(OFF, Ratio::millionths)),
            (&self.minimum_throughput, config.minimum_throughput),
        ];
        changes.into_iter().fold(false, |changed, (rule, new)| rule.swap(new, Ordering::Relaxed) != new || changed)
    }

    /// Whether anything is slow, so that calls have to be timed.
    pub(super) fn times_calls(&self) -> bool {
        self.slow.load(Ordering::Relaxed) != NEVER
    }

    #[inline]
    pub(super) fn is_slow(&self, nanos: u64) -> bool {
        nanos > self.slow.load(Ordering::Relaxed)
    }

    /// Nanoseconds of the recovery ramp.
    pub(super) fn ramp(&self) -> u64 {
        self.ramp.load(Ordering::Relaxed)
    }

    /// The longest that a half-open circuit asks its callers to wait, in nanoseconds.
    pub(super) fn first_open(&self) -> u64 {
        self.first_open.load(Ordering::Relaxed)
    }

    /// Whether calls are timed to their end and not to the head of their response.
    pub(super) fn times_to_end(&self) -> bool {
        self.to_end.load(Ordering::Relaxed) != 0
    }

    pub(super) fn slow_threshold(&self) -> Option<u64> {
        Some(self.slow.load(Ordering::Relaxed)).filter(|slow| *slow != NEVER)
    }

    pub(super) fn has_slow_rate(&self) -> bool {
        self.slow_rate.load(Ordering::Relaxed) != OFF
    }

    pub(super) fn on_drop(&self) -> OnDrop {
        match self.on_drop.load(Ordering::Relaxed) {
            0 => OnDrop::Ignore,
            1 => OnDrop::Slow,
            _ => OnDrop::Failure,
        }
    }

    /// Whether a streak is judged by the other results in the window.
    pub(super) fn calibrates(&self, streak: u32) -> bool {
        streak >= SHORTEST && self.consecutive_failures.load(Ordering::Relaxed) == CALIBRATED
    }

    /// A streak as long as the fixed number.
    pub(super) fn fixed_streak(&self, streak: u32) -> Option<Cause> {
        let needed = self.consecutive_failures.load(Ordering::Relaxed);
        (needed != CALIBRATED && streak >= needed).then_some(Cause::ConsecutiveFailures(streak))
    }

    /// A streak that chance does not explain, at the failure rate of the results that are not part
    /// of it. `counts` holds all of them.
    pub(super) fn calibrated_streak(&self, streak: u32, counts: Counts) -> Option<Cause> {
        if !self.calibrates(streak) {
            return None;
        }
        let others = counts.without_failures(streak.into());
        if others.total() < KNOWN {
            return Some(Cause::ConsecutiveFailures(streak));
        }
        (streak >= needed(others)).then_some(Cause::FailureStreak { failures: streak, others })
    }

    pub(super) fn set_cautious(&self, cautious: bool) {
        self.cautious.store(cautious.into(), Ordering::Relaxed);
    }

    /// The minimum throughput, or the half of it, rounded up.
    pub(super) fn minimum(&self) -> u64 {
        let whole = u64::from(self.minimum_throughput.load(Ordering::Relaxed));
        if self.cautious.load(Ordering::Relaxed) == 0 { whole } else { whole.div_ceil(2) }
    }

    /// The first of the rate rules that is met.
    pub(super) fn rates(&self, counts: Counts) -> Option<Cause> {
        let total = counts.total();
        let minimum = self.minimum();
        let met = |rate: &AtomicU32, part| match rate.load(Ordering::Relaxed) {
            OFF => false,
            CALIBRATED => part >= beyond_chance(total),
            millionths => Ratio::from_millionths(millionths).reached_by(part, total),
        };
        if total < minimum {
            None
        } else if met(&self.failure_rate, counts.failures()) {
            Some(Cause::FailureRate(counts))
        } else if met(&self.slow_rate, counts.slow_calls()) {
            Some(Cause::SlowRate(counts))
        } else {
            let custom = |rule: &CustomRule| catch_unwind(AssertUnwindSafe(|| rule(&counts))).unwrap_or(false);
            self.custom.as_ref().is_some_and(custom).then_some(Cause::Custom(counts))
        }
    }

    /// How many more bad results the nearest rate rule lacks at the least, while the total does not
    /// shrink. 0 where a custom rule decides.
    pub(super) fn missing(&self, counts: Counts) -> u32 {
        if self.custom.is_some() {
            return 0;
        }
        let whole = counts.total().max(self.minimum());
        let missing = |rate: &AtomicU32, part: u64| match rate.load(Ordering::Relaxed) {
            OFF => u32::MAX,
            CALIBRATED => u32::try_from(beyond_chance(whole).saturating_sub(part)).unwrap_or(u32::MAX),
            millionths => Ratio::from_millionths(millionths)
                .of(u32::try_from(whole).unwrap_or(u32::MAX))
                .saturating_sub(part as u32),
        };
        missing(&self.failure_rate, counts.failures()).min(missing(&self.slow_rate, counts.slow_calls()))
    }
}

/// The failures in a row that come by chance once in 10^9 calls, when `others` tell how often calls
/// fail.
fn needed(others: Counts) -> u32 {
    let rate = others.failures() as f64 / others.total() as f64;
    let needed = (RARE.ln() / rate.ln().abs()).ceil();
    // A rate of 1 makes it infinite, and one of 0 makes it 0.
    (needed.min(f64::from(LONGEST)) as u32).max(SHORTEST)
}

/// The fewest failures of so many calls that are three standard deviations above a half of them:
/// `n/2 + 1.5 √n`. It grows with the calls, as [`Rules::missing`] requires.
fn beyond_chance(calls: u64) -> u64 {
    let squared = calls.saturating_mul(9);
    let root = squared.isqrt();
    let ceil = if root * root < squared { root + 1 } else { root };
    calls.saturating_add(ceil).div_ceil(2)
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules")
            .field("consecutive_failures", &self.consecutive_failures)
            .field("failure_rate", &self.failure_rate)
            .field("slow_rate", &self.slow_rate)
            .field("minimum_throughput", &self.minimum_throughput)
            .field("slow", &self.slow)
            .field("custom", &self.custom.is_some())
            .finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_more_fails_at_random_the_longer_a_streak_has_to_be() {
        let of = |failed| needed(Counts { succeeded: 100 - failed, failed, ..Counts::default() });
        assert_eq!([0, 1, 2, 5, 10, 20, 40, 50].map(of), [5, 5, 6, 7, 9, 13, 23, 30]);
        assert_eq!([81, 90, 100].map(of), [99, 100, 100], "bounded");
    }

    #[test]
    fn the_more_calls_there_are_the_nearer_to_a_half_is_beyond_chance() {
        assert_eq!([9, 10, 20, 57, 100, 225, 1000, 10_000].map(beyond_chance), [9, 10, 17, 40, 65, 135, 548, 5150]);
        assert!((0..9).all(|calls| calls == 0 || beyond_chance(calls) > calls), "8 calls are too few");
        for calls in 1..20_000 {
            let failures = beyond_chance(calls);
            let deviations = |failures: u64| (2.0 * failures as f64 - calls as f64) / (calls as f64).sqrt();
            assert!(deviations(failures) >= 3.0 && deviations(failures - 1) < 3.0, "{failures} of {calls}");
            assert!(failures >= beyond_chance(calls - 1), "{calls}: it must grow with the calls");
        }
        assert!(beyond_chance(u64::MAX) > u64::MAX / 2);
    }
}
