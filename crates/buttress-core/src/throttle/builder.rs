use super::{Lane, POLICY, REFRESH, State, Throttle};
use crate::beat::Beat;
use crate::buckets::width_of;
use crate::cut::Cut;
use crate::draws::Draws;
use crate::label::Labels;
use crate::shard::{Counter, Sharded, shards};
use crate::timeline::Timeline;
use crate::{Clock, InvalidConfig, Name};
use std::time::Duration;

/// Builds a [`Throttle`].
///
/// ```
/// use buttress_core::{ManualClock, throttle::Throttle};
/// use std::time::Duration;
///
/// let throttle = Throttle::<ManualClock>::builder("search")
///     .window(Duration::from_secs(300))
///     .slowest_answer(Duration::from_secs(60))
///     .build()?;
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder<C> {
    name: Name,
    clock: C,
    window: Duration,
    slowest_answer: Duration,
    multiplier: f64,
    max_share: f64,
    min_requests: u64,
    seed: Option<u64>,
}

impl<C: Clock + Default> Builder<C> {
    pub(super) fn new(name: Name) -> Self {
        Self {
            name,
            clock: C::default(),
            window: Duration::from_secs(120),
            slowest_answer: Duration::from_secs(10),
            multiplier: 2.0,
            max_share: 0.9,
            min_requests: 10,
            seed: None,
        }
    }
}

impl<C: Clock> Builder<C> {
    /// Sets the clock, for tests and simulations.
    ///
    /// ```
    /// use buttress_core::{ManualClock, throttle::Throttle};
    ///
    /// let clock = ManualClock::new();
    /// let throttle = Throttle::<ManualClock>::builder("search").clock(clock.clone()).build()?;
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn clock<D: Clock>(self, clock: D) -> Builder<D> {
        let Self { name, clock: _, window, slowest_answer, multiplier, max_share, min_requests, seed } = self;
        Builder { name, clock, window, slowest_answer, multiplier, max_share, min_requests, seed }
    }

    /// Sets the time over which requests are counted: 1 second to 1 hour. Default 2 minutes (SRE
    /// book, chapter 21). It must be longer than the [slowest answer](Self::slowest_answer).
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// Sets how long an answer of a healthy backend may take. Default 10 seconds. Nothing is
    /// measured: the window is checked against it, because requests without answers look rejected.
    ///
    /// ```
    /// use buttress_core::{ManualClock, throttle::Throttle};
    /// use std::time::Duration;
    ///
    /// let builder = Throttle::<ManualClock>::builder("search").slowest_answer(Duration::from_secs(600));
    /// assert_eq!(builder.build().unwrap_err().field(), "window");
    /// ```
    pub fn slowest_answer(mut self, time: Duration) -> Self {
        self.slowest_answer = time;
        self
    }

    /// Sets how many requests may be sent for each one that is accepted: 1 to 100. Default 2 (SRE
    /// book). A lower one rejects earlier, and spares the backend more; a higher one lets the
    /// backend decide, and finds out earlier that it has recovered.
    ///
    /// ```
    /// use buttress_core::{ManualClock, throttle::Throttle};
    ///
    /// let builder = Throttle::<ManualClock>::builder("search").multiplier(0.5);
    /// assert_eq!(builder.build().unwrap_err().field(), "multiplier");
    /// ```
    pub fn multiplier(mut self, multiplier: f64) -> Self {
        self.multiplier = multiplier;
        self
    }

    /// Sets the largest share of the calls that is rejected: 0 to 0.99. Default 0.9 (failsafe-go;
    /// Envoy 0.8). The others find out whether the backend has recovered.
    pub fn max_share(mut self, share: f64) -> Self {
        self.max_share = share;
        self
    }

    /// Sets the number of requests in the window below which none is rejected. Default 10: fewer
    /// say little about a share.
    pub fn min_requests(mut self, requests: u64) -> Self {
        self.min_requests = requests;
        self
    }

    /// Seeds the random choice of the calls that are rejected, for tests. Random by default.
    ///
    /// ```
    /// # use buttress_core::{ManualClock, throttle::Throttle};
    /// let throttle = Throttle::<ManualClock>::builder("search").seed(7).build()?;
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Creates the throttle.
    ///
    /// # Errors
    /// If a value is out of its range, or the window is not longer than the slowest answer.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::{ManualClock, throttle::Throttle};
    ///
    /// let error = Throttle::<ManualClock>::builder("search").max_share(1.0).build().unwrap_err();
    /// assert_eq!(error.to_string(), "invalid configuration: `max_share` must be between 0 and 0.99");
    /// ```
    pub fn build(self) -> Result<Throttle<C>, InvalidConfig> {
        if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&self.window) {
            return Err(InvalidConfig::new("window", "must be between 1 second and 1 hour"));
        }
        if self.window <= self.slowest_answer {
            return Err(InvalidConfig::new("window", "must be longer than `slowest_answer`"));
        }
        if !(1.0..=100.0).contains(&self.multiplier) {
            return Err(InvalidConfig::new("multiplier", "must be between 1 and 100"));
        }
        if !(0.0..=0.99).contains(&self.max_share) {
            return Err(InvalidConfig::new("max_share", "must be between 0 and 0.99"));
        }
        Ok(self.into_throttle())
    }

    pub(super) fn into_throttle(self) -> Throttle<C> {
        let (shards, width) = (shards(), width_of(self.window));
        let state = State {
            labels: Labels::new(POLICY, Some(&self.name), shards),
            time: Timeline::default(),
            width,
            multiplier: self.multiplier,
            max_share: self.max_share,
            min_requests: self.min_requests,
            beat: Beat::new(REFRESH),
            cut: Cut::new(shards),
            draws: Draws::new(self.seed),
            lanes: (0..shards.next_power_of_two()).map(|_| Lane::default()).collect(),
            rejected: Counter::new(shards),
        };
        Throttle { state: Sharded::new(shards, state), clock: self.clock }
    }
}
