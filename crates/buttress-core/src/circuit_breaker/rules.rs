use super::{
    config::{Config, CustomRule, OnDrop},
    event::{Cause, Counts},
};
use crate::Ratio;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

const OFF: u32 = u32::MAX;
/// More nanoseconds than any call takes.
const NEVER: u64 = u64::MAX;

/// When results trip the circuit. Every field is an atomic of its own, so that a reload needs no lock and no pause: a call
/// that is judged meanwhile sees old and new thresholds mixed, once.
pub(super) struct Rules {
    consecutive_failures: AtomicU32,
    failure_rate: AtomicU32,
    slow_rate: AtomicU32,
    minimum_throughput: AtomicU32,
    /// 1 while a peer's circuit is open: then half of the minimum throughput is enough.
    cautious: AtomicU32,
    on_drop: AtomicU32,
    slow: AtomicU64,
    ramp: AtomicU64,
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
            slow: AtomicU64::new(NEVER),
            ramp: AtomicU64::new(0),
            custom: config.custom.clone(),
        };
        rules.set(config);
        rules
    }

    /// The custom rule stays: it is code, and code is not reloaded.
    pub(super) fn set(&self, config: &Config) {
        let rate = |rate: Option<Ratio>| rate.map_or(OFF, Ratio::millionths);
        self.consecutive_failures.store(config.consecutive_failures.unwrap_or(OFF), Ordering::Relaxed);
        self.failure_rate.store(rate(config.failure_rate), Ordering::Relaxed);
        self.slow_rate.store(rate(config.slow_rate), Ordering::Relaxed);
        self.minimum_throughput.store(config.minimum_throughput, Ordering::Relaxed);
        self.on_drop.store(config.on_drop as u32, Ordering::Relaxed);
        self.ramp.store(super::nanos(config.recovery_ramp), Ordering::Relaxed);
        self.slow.store(config.slow_threshold.map_or(NEVER, super::nanos), Ordering::Relaxed);
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

    pub(super) fn on_drop(&self) -> OnDrop {
        match self.on_drop.load(Ordering::Relaxed) {
            0 => OnDrop::Ignore,
            1 => OnDrop::Slow,
            _ => OnDrop::Failure,
        }
    }

    pub(super) fn row(&self, failures: u32) -> Option<Cause> {
        (failures >= self.consecutive_failures.load(Ordering::Relaxed)).then_some(Cause::ConsecutiveFailures(failures))
    }

    pub(super) fn set_cautious(&self, cautious: bool) {
        self.cautious.store(cautious.into(), Ordering::Relaxed);
    }

    /// The minimum throughput, or the half of it, rounded up.
    fn minimum(&self) -> u64 {
        let whole = u64::from(self.minimum_throughput.load(Ordering::Relaxed));
        if self.cautious.load(Ordering::Relaxed) == 0 { whole } else { whole.div_ceil(2) }
    }

    /// The first of the rate rules that is met.
    pub(super) fn rates(&self, counts: Counts) -> Option<Cause> {
        let total = counts.total();
        let minimum = self.minimum();
        let met = |rate: &AtomicU32, part| match rate.load(Ordering::Relaxed) {
            OFF => false,
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

    /// How many more bad results the nearest rate rule lacks at the least, while the total does not shrink. 0 where a custom rule decides.
    pub(super) fn missing(&self, counts: Counts) -> u32 {
        if self.custom.is_some() {
            return 0;
        }
        let whole = counts.total().max(self.minimum());
        let missing = |rate: &AtomicU32, part: u64| match rate.load(Ordering::Relaxed) {
            OFF => u32::MAX,
            millionths => Ratio::from_millionths(millionths)
                .of(u32::try_from(whole).unwrap_or(u32::MAX))
                .saturating_sub(part as u32),
        };
        missing(&self.failure_rate, counts.failures()).min(missing(&self.slow_rate, counts.slow_calls()))
    }
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
