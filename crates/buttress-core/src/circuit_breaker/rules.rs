use super::{
    circuit::Timing,
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
/// Stands for [`FailureStreak::Calibrated`] in place of a number of failures, and for
/// [`FailureRate::Calibrated`](super::FailureRate::Calibrated) in place of a share.
const CALIBRATED: u32 = 0;
/// The shortest streak that meets the calibrated rule: the fixed number of Finagle, Envoy and
/// Istio.
const MIN_STREAK: u32 = 5;
/// The longest streak that the calibrated rule requires. At a failure rate from 82 % on, chance
/// produces it more often than once in 10^9 calls, but such a backend is down in any case.
const MAX_STREAK: u32 = 100;
/// Chance may produce a streak that meets the calibrated rule once in this many calls.
const CALLS_PER_CHANCE_STREAK: f64 = 1e9;
/// The minimum number of other results from which a failure rate is computed. Not the minimum
/// throughput: raising that means fewer trips, and must not make streaks shorter.
const MIN_OTHER_RESULTS: u64 = 10;
/// A slow threshold in nanoseconds that no call exceeds.
const NEVER: u64 = u64::MAX;
/// The slow threshold in nanoseconds from which on the coarse clock is precise enough: it is behind
/// by a tick of the kernel, which is 1 to 10 ms.
const COARSE: u64 = 100_000_000;

/// The rules by which results trip the circuit. Each field is an atomic, so that a reload takes no
/// lock. A result that is evaluated during a reload may see old and new thresholds.
pub(super) struct Rules {
    consecutive_failures: AtomicU32,
    failure_rate: AtomicU32,
    slow_rate: AtomicU32,
    minimum_throughput: AtomicU32,
    /// 1 while the circuit of another instance is open: half of the minimum throughput is enough.
    cautious: AtomicU32,
    on_drop: AtomicU32,
    /// 1 if calls are timed to their end and not to the head of their response.
    to_end: AtomicU32,
    slow: AtomicU64,
    ramp: AtomicU64,
    /// The first open time in nanoseconds.
    first_open: AtomicU64,
    custom: Option<CustomRule>,
    /// Counts the changes, for a thread that has judged by the old rules.
    version: AtomicU32,
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
            version: AtomicU32::new(0),
        };
        rules.set(config);
        rules
    }

    /// Replaces all rules except the custom one, which is code. Returns whether a trip rule has
    /// changed.
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

    pub(super) fn version(&self) -> u32 {
        self.version.load(Ordering::SeqCst)
    }

    /// Shows a change to other threads.
    pub(super) fn renew(&self) {
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns how calls must be timed for the slow threshold.
    pub(super) fn timing(&self) -> Timing {
        match self.slow.load(Ordering::Relaxed) {
            NEVER => Timing::Off,
            COARSE.. => Timing::Coarse,
            _ => Timing::Precise,
        }
    }

    #[inline]
    pub(super) fn is_slow(&self, nanos: u64) -> bool {
        nanos > self.slow.load(Ordering::Relaxed)
    }

    /// Returns the length of the recovery ramp in nanoseconds.
    pub(super) fn ramp(&self) -> u64 {
        self.ramp.load(Ordering::Relaxed)
    }

    /// Returns the first open time in nanoseconds, which limits the `retry_after` of a half-open
    /// circuit.
    pub(super) fn first_open(&self) -> u64 {
        self.first_open.load(Ordering::Relaxed)
    }

    /// Returns whether calls are timed to their end and not to the head of their response.
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

    /// Returns whether a streak must be compared with the other results in the window.
    pub(super) fn calibrates(&self, streak: u32) -> bool {
        streak >= MIN_STREAK && self.consecutive_failures.load(Ordering::Relaxed) == CALIBRATED
    }

    /// Returns the cause, if a streak reaches the fixed number.
    pub(super) fn fixed_streak(&self, streak: u32) -> Option<Cause> {
        let needed = self.consecutive_failures.load(Ordering::Relaxed);
        (needed != CALIBRATED && streak >= needed).then_some(Cause::ConsecutiveFailures(streak))
    }

    /// Returns the cause, if chance does not explain a streak at the failure rate of the results
    /// that are not part of it. `counts` contains all results.
    pub(super) fn calibrated_streak(&self, streak: u32, counts: Counts) -> Option<Cause> {
        if !self.calibrates(streak) {
            return None;
        }
        let others = counts.without_failures(streak.into());
        if others.total() < MIN_OTHER_RESULTS {
            return Some(Cause::ConsecutiveFailures(streak));
        }
        (streak >= required_streak(others)).then_some(Cause::FailureStreak { failures: streak, others })
    }

    pub(super) fn set_cautious(&self, cautious: bool) {
        self.cautious.store(cautious.into(), Ordering::Relaxed);
    }

    /// Returns the minimum throughput, or half of it, rounded up, while
    /// [cautious](Self::set_cautious).
    pub(super) fn minimum(&self) -> u64 {
        let whole = u64::from(self.minimum_throughput.load(Ordering::Relaxed));
        if self.cautious.load(Ordering::Relaxed) == 0 { whole } else { whole.div_ceil(2) }
    }

    /// Returns the first rate rule that is met: the failure rate, the slow rate, the custom rule.
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

    /// Returns the minimum number of further bad results after which a rate rule can be met, as
    /// long as no result leaves the window. 0 with a custom rule, about which nothing is known.
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

/// Returns the number of consecutive failures that chance produces once in 10^9 calls at the
/// failure rate of `others`, at least 5 and at most 100.
fn required_streak(others: Counts) -> u32 {
    let rate = others.failures() as f64 / others.total() as f64;
    // Infinite for a rate of 1, and 0 for a rate of 0.
    let required = (CALLS_PER_CHANCE_STREAK.ln() / rate.ln().abs()).ceil();
    (required.min(f64::from(MAX_STREAK)) as u32).max(MIN_STREAK)
}

/// Returns the smallest number of failures of `calls` calls that is three standard deviations above
/// one half: `n/2 + 1.5 √n`. It never decreases with more calls, as [`Rules::missing`] requires.
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
        let of = |failed| required_streak(Counts { succeeded: 100 - failed, failed, ..Counts::default() });
        assert_eq!([0, 1, 2, 5, 10, 20, 40, 50].map(of), [5, 5, 6, 7, 9, 13, 23, 30]);
        assert_eq!([81, 90, 100].map(of), [99, 100, 100], "at most 100");
    }

    /// Returns the probability that at least `k` of `n` calls fail, if each fails with `p`.
    fn at_least(k: i32, n: i32, p: f64) -> f64 {
        let choose = |k: i32| (0..k).fold(1.0, |ways, i| ways * f64::from(n - i) / f64::from(i + 1));
        (k..=n).map(|k| choose(k) * p.powi(k) * (1.0 - p).powi(n - k)).sum()
    }

    #[test]
    fn the_probabilities_in_the_documentation_are_right() {
        let percent =
            |probability: f64| format!("{:.1$}", 100.0 * probability, if probability < 0.001 { 5 } else { 0 });
        assert_eq!(percent(at_least(10, 20, 0.4)), "24", "half of 20 calls, with 40 % of errors");
        assert_eq!(percent(at_least(17, 20, 0.4)), "0.00473", "0.005 %");
        assert_eq!(percent(at_least(65, 100, 0.4)), "0.00004");
        assert_eq!(percent(at_least(3, 3, 0.8)), "51", "all of 3 probes, with 20 % of errors");
        assert_eq!(percent(at_least(2, 3, 0.8)), "90", "2 of 3");
        // The expected number of calls until 5 of them in a row have failed.
        let streak = (1.0 - 0.2_f64.powi(5)) / (0.8 * 0.2_f64.powi(5));
        assert_eq!(streak.round(), 3905.0, "about 4,000");
        assert!(at_least(beyond_chance(900) as i32, 900, 0.5) < 0.0016, "0.13 % for large numbers");
        assert!((9..200).all(|n| at_least(beyond_chance(n as u64) as i32, n, 0.5) < 0.0112), "1.1 % for any number");
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
