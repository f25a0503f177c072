use super::{
    AdaptiveLimit, Gradient2, LimitAlgorithm, Statistic,
    control::{Settings, Shared},
};
use crate::bulkhead::Bulkhead;
use crate::label::Labels;
use crate::shard::shards;
use crate::timeline::SET_BACK;
use crate::{Clock, InvalidConfig, Name};
use std::{ops::RangeInclusive, time::Duration};

/// Builds an [`AdaptiveLimit`].
///
/// ```
/// use buttress_core::{ManualClock, concurrency::{AdaptiveLimit, Gradient2}};
///
/// let builder = AdaptiveLimit::<_, ManualClock>::builder("orders").limits(8..=200);
/// let limit = builder.algorithm(Gradient2::builder().tolerance(1.25).build()?).build()?;
/// assert_eq!(limit.bounds(), (8, 200));
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder<A, C> {
    name: Name,
    clock: C,
    algorithm: A,
    min: usize,
    max: usize,
    initial: Option<usize>,
    settings: Settings,
}

/// Netflix's initial limit.
const INITIAL: usize = 20;

impl<C: Clock + Default> Builder<Gradient2, C> {
    pub(super) fn new(name: Name) -> Self {
        Self {
            name,
            clock: C::default(),
            algorithm: Gradient2::default(),
            min: 4,
            max: 1000,
            initial: None,
            settings: Settings {
                window: Duration::from_millis(250),
                min_samples: 10,
                statistic: Statistic::default(),
                priority_step: 0.2,
            },
        }
    }
}

impl<A: LimitAlgorithm, C: Clock> Builder<A, C> {
    /// Sets the algorithm. By default [`Gradient2`].
    ///
    /// ```
    /// use buttress_core::{ManualClock, concurrency::{AdaptiveLimit, Aimd}};
    ///
    /// let limit = AdaptiveLimit::<_, ManualClock>::builder("orders").algorithm(Aimd::default()).build()?;
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn algorithm<B: LimitAlgorithm>(self, algorithm: B) -> Builder<B, C> {
        let Self { name, clock, algorithm: _, min, max, initial, settings } = self;
        Builder { name, clock, algorithm, min, max, initial, settings }
    }

    /// Sets the clock, for tests and simulations.
    ///
    /// ```
    /// use buttress_core::{ManualClock, concurrency::AdaptiveLimit};
    ///
    /// let clock = ManualClock::new();
    /// let limit = AdaptiveLimit::<_, ManualClock>::builder("orders").clock(clock.clone()).build()?;
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn clock<D: Clock>(self, clock: D) -> Builder<A, D> {
        let Self { name, clock: _, algorithm, min, max, initial, settings } = self;
        Builder { name, clock, algorithm, min, max, initial, settings }
    }

    /// Sets the smallest and the largest limit. The smallest is at least 1, and by default 4: with
    /// the 20 of Netflix's library, a small backend could not be protected. The largest is at most
    /// `u32::MAX`, and by default 1000, as for Vegas and Envoy.
    pub fn limits(mut self, limits: RangeInclusive<usize>) -> Self {
        (self.min, self.max) = (*limits.start(), *limits.end());
        self
    }

    /// Sets the limit at the start, within the [`limits`](Self::limits). By default 20, as in
    /// Netflix's library, or the nearer bound.
    pub fn initial(mut self, limit: usize) -> Self {
        self.initial = Some(limit);
        self
    }

    /// Sets the length of a window: between 10 ms and 30 s. By default 250 ms. A window is at least
    /// twice as long as the mean latency of the one before, and at most 30 s.
    ///
    /// Netflix's library takes 1 s. A limit that takes several windows to follow a change would
    /// then take several seconds; shorter windows have fewer samples, for which
    /// [`min_samples`](Self::min_samples) is the bound.
    pub fn window(mut self, length: Duration) -> Self {
        self.settings.window = length;
        self
    }

    /// Sets how many calls a window needs, answered or dropped: at least 1. By default 10, as in
    /// Netflix's library. Until then the window goes on.
    pub fn min_samples(mut self, calls: u64) -> Self {
        self.settings.min_samples = calls;
        self
    }

    /// Sets which number stands for the latencies of a window. By default the median.
    pub fn statistic(mut self, statistic: Statistic) -> Self {
        self.settings.statistic = statistic;
        self
    }

    /// Sets the part of the limit that each class of [priorities](crate::Priority) keeps from the
    /// less important ones while the limit rejects calls: 0 to 0.3, in which 0 treats all classes
    /// alike. By default 0.2. Of a limit below 50 it is up to 10 places, or 0.3 if that is less.
    ///
    /// Only classes that had calls in the last 10 seconds keep places. With a limit of 100 and
    /// calls of three classes, the most important ones may take all places, the next ones 80, and
    /// the last ones 60. This is trunk reservation, as in telephone networks: while important calls
    /// need half of what the backend can do, they find 10 kept places taken once in 1,000 calls
    /// (0.5^10). With fewer calls in flight the latency is smaller, so the limit grows, and no
    /// capacity is unused, unless the largest limit is too small.
    ///
    /// Calls that wait for a place (backpressure) are admitted in the order in which they came.
    ///
    /// ```
    /// use buttress_core::{ManualClock, concurrency::AdaptiveLimit};
    ///
    /// let builder = AdaptiveLimit::<_, ManualClock>::builder("orders").priority_step(0.5);
    /// assert_eq!(builder.build().unwrap_err().field(), "priority_step");
    /// ```
    pub fn priority_step(mut self, share: f64) -> Self {
        self.settings.priority_step = share;
        self
    }

    /// Creates the limiter.
    ///
    /// # Errors
    /// If a value is out of its range. The error names the setting and the rule that it breaks.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::{ManualClock, concurrency::AdaptiveLimit};
    ///
    /// let builder = AdaptiveLimit::<_, ManualClock>::builder("orders").limits(1..=10).initial(11);
    /// assert_eq!(builder.build().unwrap_err().field(), "initial");
    /// ```
    pub fn build(self) -> Result<AdaptiveLimit<A, C>, InvalidConfig> {
        check_bounds(self.min, self.max)?;
        if self.initial.is_some_and(|initial| !(self.min..=self.max).contains(&initial)) {
            return Err(InvalidConfig::new("initial", "must be within the limits"));
        }
        if !(Duration::from_millis(10)..=Duration::from_secs(30)).contains(&self.settings.window) {
            return Err(InvalidConfig::new("window", "must be between 10 ms and 30 s"));
        }
        if self.settings.min_samples == 0 {
            return Err(InvalidConfig::new("min_samples", "must be at least 1"));
        }
        if !(0.0..=0.3).contains(&self.settings.priority_step) {
            return Err(InvalidConfig::new("priority_step", "must be between 0 and 0.3"));
        }
        Ok(self.into_limit())
    }

    pub(super) fn into_limit(self) -> AdaptiveLimit<A, C> {
        let Self { name, clock, algorithm, min, max, initial, settings } = self;
        let shards = shards();
        let initial = initial.unwrap_or(INITIAL).max(min).min(max);
        let labels = Labels::new("concurrency limit", Some(&name), shards);
        let (places, origin) = (Bulkhead::with_clock(initial, clock.clone()), clock.now());
        let origin = origin.checked_sub(SET_BACK).unwrap_or(origin);
        let shared = Shared::new(places, labels, shards, origin, settings, algorithm, (min, max));
        AdaptiveLimit::with(shared, shards, clock)
    }
}

pub(super) fn check_bounds(min: usize, max: usize) -> Result<(), InvalidConfig> {
    if min == 0 {
        return Err(InvalidConfig::new("limits", "must begin at 1 or more, so that an idle limiter admits a call"));
    }
    if min > max {
        return Err(InvalidConfig::new("limits", "must not be empty"));
    }
    if u32::try_from(max).is_err() {
        return Err(InvalidConfig::new("limits", "must end at u32::MAX or less"));
    }
    Ok(())
}
