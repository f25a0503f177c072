use super::{Quota, RateLimit};
use crate::{Clock, InvalidConfig, Name};

/// Builds a [`RateLimit`].
///
/// ```
/// use buttress_core::{ManualClock, rate_limit::{Quota, RateLimit}};
/// use std::time::Duration;
///
/// let builder = RateLimit::<ManualClock>::builder(Quota::new(100, Duration::ZERO));
/// assert_eq!(builder.build().unwrap_err().field(), "period");
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder<C> {
    name: Option<Name>,
    quota: Quota,
    clock: C,
}

impl<C: Clock + Default> Builder<C> {
    pub(super) fn new(quota: Quota) -> Self {
        Self { name: None, quota, clock: C::default() }
    }
}

impl<C: Clock> Builder<C> {
    /// Sets the name in rejections, metrics and the header `RateLimit`. None by default; the header
    /// then says `default`.
    pub fn name(mut self, name: impl Into<Name>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the calls that may come at once. At least 1. Default: the limit.
    pub fn burst(mut self, calls: u32) -> Self {
        self.quota.burst = calls;
        self
    }

    /// Sets the clock, for tests and simulations.
    ///
    /// ```
    /// use buttress_core::{ManualClock, rate_limit::{Quota, RateLimit}};
    ///
    /// let clock = ManualClock::new();
    /// let limit = RateLimit::<ManualClock>::builder(Quota::per_second(10)).clock(clock.clone()).build()?;
    /// limit.try_take(10).unwrap();
    /// clock.advance(std::time::Duration::from_millis(500));
    /// assert_eq!(limit.available(), 5);
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn clock<D: Clock>(self, clock: D) -> Builder<D> {
        Builder { name: self.name, quota: self.quota, clock }
    }

    /// Creates the limit, with a full bucket.
    ///
    /// # Errors
    /// If a value is out of its range. The error names the field and the rule: see
    /// [`Quota::check`].
    pub fn build(self) -> Result<RateLimit<C>, InvalidConfig> {
        self.quota.check()?;
        Ok(RateLimit::of(self.quota, self.name, self.clock))
    }
}
