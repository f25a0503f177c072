use super::{Deadlines, Mode, POLICY, State, Valve};
use crate::label::Labels;
use crate::shard::{Counter, Sharded, shards};
use crate::sync::AtomicU32;
use crate::{Clock, InvalidConfig, Name, Ratio};
use std::time::Duration;

/// Builds [`Deadlines`].
///
/// ```
/// use buttress_core::{ManualClock, deadline::{Deadlines, Mode}};
///
/// let deadlines = Deadlines::<ManualClock>::builder().name("orders").mode(Mode::Observe).build()?;
/// assert_eq!(deadlines.name(), Some("orders"));
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder<C> {
    name: Option<Name>,
    clock: C,
    mode: Mode,
    max_share: f64,
    window: Duration,
}

/// Source: Finagle's `DeadlineFilter`.
pub(super) const MAX_SHARE: Ratio = Ratio::from_millionths(200_000);

impl<C: Clock + Default> Default for Builder<C> {
    fn default() -> Self {
        Self {
            name: None,
            clock: C::default(),
            mode: Mode::default(),
            max_share: MAX_SHARE.as_f64(),
            window: Duration::from_secs(10),
        }
    }
}

impl<C: Clock> Builder<C> {
    /// Sets the name, for rejections and metrics. Default: none.
    pub fn name(mut self, name: impl Into<Name>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the clock, for tests and simulations.
    ///
    /// ```
    /// use buttress_core::{ManualClock, deadline::Deadlines};
    ///
    /// let clock = ManualClock::new();
    /// let deadlines = Deadlines::<ManualClock>::builder().clock(clock.clone()).build()?;
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn clock<D: Clock>(self, clock: D) -> Builder<D> {
        let Self { name, clock: _, mode, max_share, window } = self;
        Builder { name, clock, mode, max_share, window }
    }

    /// Sets what happens to calls without time left. Default [`Mode::Enforce`].
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets the largest share of the calls of the [window](Self::window) that [`Mode::Enforce`]
    /// rejects: 0 to 1. Default 0.2 (Finagle's `DeadlineFilter`).
    ///
    /// ```
    /// use buttress_core::{ManualClock, deadline::Deadlines};
    ///
    /// let error = Deadlines::<ManualClock>::builder().max_share(1.5).build().unwrap_err();
    /// assert_eq!(error.to_string(), "invalid configuration: `max_share` must be between 0 and 1");
    /// ```
    pub fn max_share(mut self, share: f64) -> Self {
        self.max_share = share;
        self
    }

    /// Sets the time over which calls are counted for [`max_share`](Self::max_share): 1 second to 1
    /// hour. Default 10 seconds (Finagle).
    ///
    /// ```
    /// use buttress_core::{ManualClock, deadline::Deadlines};
    /// use std::time::Duration;
    ///
    /// let builder = Deadlines::<ManualClock>::builder().window(Duration::ZERO);
    /// assert_eq!(builder.build().unwrap_err().field(), "window");
    /// ```
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// Creates the handle.
    ///
    /// # Errors
    /// If the share or the window is out of its range.
    pub fn build(self) -> Result<Deadlines<C>, InvalidConfig> {
        let Some(max_share) = Ratio::new(self.max_share) else {
            return Err(InvalidConfig::new("max_share", "must be between 0 and 1"));
        };
        if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&self.window) {
            return Err(InvalidConfig::new("window", "must be between 1 second and 1 hour"));
        }
        Ok(self.into_deadlines(max_share))
    }

    pub(super) fn into_deadlines(self, max_share: Ratio) -> Deadlines<C> {
        let shards = shards();
        let state = State {
            labels: Labels::new(POLICY, self.name.as_ref(), shards),
            mode: AtomicU32::new(self.mode as u32),
            valve: Valve::new(max_share, self.window, shards),
            expired: Counter::new(shards),
            observed: Counter::new(shards),
            exceeded: Counter::new(shards),
        };
        Deadlines { state: Sharded::new(shards, state), clock: self.clock }
    }
}
