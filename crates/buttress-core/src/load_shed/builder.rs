use super::control::Control;
use super::monitor::{Monitor, Watched};
use super::{LoadShed, POLICY, QueueDelay, STEP, State, Times, Waits};
use crate::beat::Beat;
use crate::cut::Cut;
use crate::draws::Draws;
use crate::label::Labels;
use crate::shard::{Counter, Sharded, shards};
use crate::sync::AtomicU64;
use crate::timeline::Timeline;
use crate::{Clock, InvalidConfig, Name};
use std::{ops::RangeInclusive, sync::OnceLock, time::Duration};

/// Builds a [`LoadShed`].
///
/// ```
/// use buttress_core::{ManualClock, bulkhead::Bulkhead, load_shed::{LoadShed, monitor_fn}};
///
/// let bulkhead = Bulkhead::<ManualClock>::new(64); // also the one of the layer inside
/// let shed = LoadShed::<ManualClock>::builder("orders")
///     .monitor_at(0.9, bulkhead.clone())
///     .monitor(monitor_fn("connections", || 0.25))
///     .max_share(0.9)
///     .build()?;
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Debug)]
#[must_use]
pub struct Builder<C> {
    name: Name,
    clock: C,
    monitors: Vec<Watched>,
    waits: Option<Waits>,
    max_share: f64,
    retry_after: RangeInclusive<Duration>,
    seed: Option<u64>,
}

impl<C: Clock + Default> Builder<C> {
    pub(super) fn new(name: Name) -> Self {
        Self {
            name,
            clock: C::default(),
            monitors: Vec::new(),
            waits: None,
            max_share: 0.95,
            retry_after: Duration::from_secs(1)..=Duration::from_secs(3),
            seed: None,
        }
    }
}

impl<C: Clock> Builder<C> {
    /// Sets the clock, for tests and simulations.
    pub fn clock<D: Clock>(self, clock: D) -> Builder<D> {
        let Self { name, clock: _, monitors, waits, max_share, retry_after, seed } = self;
        Builder { name, clock, monitors, waits, max_share, retry_after, seed }
    }

    /// Adds a monitor, whose limit is a level of 1. The highest level of all monitors counts.
    pub fn monitor(self, monitor: impl Monitor) -> Self {
        self.monitor_at(1.0, monitor)
    }

    /// Adds a monitor with another limit: with 0.9, a bulkhead of 100 counts as overloaded from 90
    /// calls, so that unimportant calls are rejected before important ones find it full.
    ///
    /// ```
    /// use buttress_core::{ManualClock, Policy, bulkhead::Bulkhead, load_shed::LoadShed};
    ///
    /// let bulkhead = Bulkhead::<ManualClock>::new(2);
    /// let shed = LoadShed::<ManualClock>::builder("orders").monitor_at(0.5, bulkhead.clone()).build()?;
    /// let _place = bulkhead.admit("a request").unwrap();
    /// assert_eq!(shed.levels(), [("bulkhead", 1.0)]);
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn monitor_at(mut self, limit: f64, monitor: impl Monitor) -> Self {
        self.monitors.push(Watched { monitor: Box::new(monitor), limit });
        self
    }

    /// Adds a monitor of the time that calls have [waited](super::Call::waited) before the layer.
    ///
    /// ```
    /// use buttress_core::{ManualClock, load_shed::{Call, LoadShed, QueueDelay}};
    /// use std::time::Duration;
    ///
    /// let (clock, ms) = (ManualClock::new(), Duration::from_millis(1));
    /// let waits = QueueDelay::<ManualClock>::new(20 * ms, 100 * ms)?.clock(clock.clone());
    /// let shed = LoadShed::<ManualClock>::builder("orders").clock(clock).waits(waits).build()?;
    /// let mut call = Call::default();
    /// call.waited = Some(10 * ms);
    /// let _admitted = shed.admit_call(call);
    /// assert_eq!(shed.levels(), [("queue_delay", 0.5)]);
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn waits<D: Clock>(self, delay: QueueDelay<D>) -> Self {
        let monitor = delay.clone();
        Self { waits: Some(Waits(Box::new(move |waited| delay.observe(waited)))), ..self.monitor(monitor) }
    }

    /// Sets the largest share of the calls that is rejected for overload: 0 to 0.99. Default 0.95.
    pub fn max_share(mut self, share: f64) -> Self {
        self.max_share = share;
        self
    }

    /// Sets when rejected callers are told to come back: at random within `range`, so that they do
    /// not come together. Default 1 to 3 seconds. HTTP rounds up to whole seconds.
    ///
    /// ```
    /// use buttress_core::{ManualClock, load_shed::LoadShed};
    /// use std::time::Duration;
    ///
    /// let range = Duration::from_secs(5)..=Duration::from_secs(1);
    /// let error = LoadShed::<ManualClock>::builder("orders").retry_after(range).build().unwrap_err();
    /// assert_eq!(error.field(), "retry_after");
    /// ```
    pub fn retry_after(mut self, range: RangeInclusive<Duration>) -> Self {
        self.retry_after = range;
        self
    }

    /// Seeds the random choices, for tests. Random by default.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Creates the handle.
    ///
    /// # Errors
    /// If a value is out of its range, or two monitors have one name.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::{ManualClock, load_shed::LoadShed};
    ///
    /// let error = LoadShed::<ManualClock>::builder("orders").max_share(1.0).build().unwrap_err();
    /// assert_eq!(error.to_string(), "invalid configuration: `max_share` must be between 0 and 0.99");
    /// ```
    pub fn build(self) -> Result<LoadShed<C>, InvalidConfig> {
        if !(0.0..=0.99).contains(&self.max_share) {
            return Err(InvalidConfig::new("max_share", "must be between 0 and 0.99"));
        }
        if self.retry_after.is_empty() {
            return Err(InvalidConfig::new("retry_after", "must not end before it begins"));
        }
        if self.monitors.iter().any(|watched| !(watched.limit > 0.0 && watched.limit.is_finite())) {
            return Err(InvalidConfig::new("monitor_at", "must have a limit above 0"));
        }
        let mut names: Vec<_> = self.monitors.iter().map(Watched::name).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(InvalidConfig::new("monitor", "must have a name that no other monitor has"));
        }
        Ok(self.into_load_shed())
    }

    pub(super) fn into_load_shed(self) -> LoadShed<C> {
        let shards = shards();
        let state = State {
            labels: Labels::new(POLICY, Some(&self.name), shards),
            clock: self.clock,
            time: Timeline::default(),
            beat: Beat::new(STEP),
            cut: Cut::new(shards),
            draws: Draws::new(self.seed),
            monitors: self.monitors.into(),
            waits: self.waits,
            tenants: OnceLock::new(),
            times: Times::new(),
            control: Control::new(self.max_share),
            retry_after: self.retry_after,
            shed: std::array::from_fn(|_| Counter::new(shards)),
            late: Counter::new(shards),
            expected_late: AtomicU64::new(0),
        };
        LoadShed(Sharded::new(shards, state))
    }
}
