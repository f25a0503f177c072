use super::{Limits, RetryBudget, State, bucket::Bucket, in_flight::InFlight, tokens::Tokens};
use crate::{Clock, InvalidConfig, Name};
use std::sync::Arc;

/// Builds a [`RetryBudget`].
///
/// ```
/// use buttress_core::{ManualClock, retry_budget::RetryBudget};
///
/// let builder = RetryBudget::<ManualClock>::builder().name("stock").percent(10.0).min_per_second(1.0);
/// assert_eq!(builder.burst(50).build()?.balance(), 50.0);
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder<C> {
    name: Option<Name>,
    clock: C,
    has_ratio: bool,
    percent: f64,
    min_per_second: f64,
    burst: u32,
    /// The share and the minimum.
    in_flight: Option<(f64, u32)>,
    /// The maximum, and what a success adds.
    tokens: Option<(f64, f64)>,
}

impl<C: Default> Default for Builder<C> {
    fn default() -> Self {
        Self {
            name: None,
            clock: C::default(),
            has_ratio: true,
            percent: 20.0,
            min_per_second: 3.0,
            burst: 100,
            in_flight: None,
            tokens: None,
        }
    }
}

impl<C: Clock> Builder<C> {
    /// Sets the name in metrics. None by default.
    pub fn name(mut self, name: impl Into<Name>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the clock, for tests and simulations.
    ///
    /// ```
    /// use buttress_core::{ManualClock, retry_budget::RetryBudget};
    ///
    /// let clock = ManualClock::new();
    /// let budget = RetryBudget::<ManualClock>::builder().clock(clock.clone()).build()?;
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn clock<D: Clock>(self, clock: D) -> Builder<D> {
        let Self { name, clock: _, has_ratio, percent, min_per_second, burst, in_flight, tokens } = self;
        Builder { name, clock, has_ratio, percent, min_per_second, burst, in_flight, tokens }
    }

    /// Sets the retries for each hundred requests: 0 to 1000, rounded to a tenth. Default 20
    /// (Finagle, tower).
    ///
    /// ```
    /// use buttress_core::{ManualClock, retry_budget::RetryBudget};
    ///
    /// let builder = RetryBudget::<ManualClock>::builder();
    /// assert_eq!(builder.percent(-1.0).build().unwrap_err().field(), "percent");
    /// ```
    pub fn percent(mut self, percent: f64) -> Self {
        self.percent = percent;
        self
    }

    /// Sets the retries that each second adds, whatever the traffic: 0 to 1,000,000, rounded to a
    /// thousandth. Default 3: enough for a client with few requests, and less than the 10 of
    /// Finagle and tower.
    pub fn min_per_second(mut self, retries: f64) -> Self {
        self.min_per_second = retries;
        self
    }

    /// Sets the maximum balance, in retries, with which the budget starts. At least 1. Default 100
    /// (the AWS SDKs' bucket, in retries).
    pub fn burst(mut self, retries: u32) -> Self {
        self.burst = retries;
        self
    }

    /// Removes the ratio: only the budgets that are set with [`in_flight`](Self::in_flight) and
    /// [`grpc_tokens`](Self::grpc_tokens) limit retries. At least one of them must be set.
    ///
    /// ```
    /// use buttress_core::{ManualClock, retry_budget::RetryBudget};
    ///
    /// // As Envoy's `retry_budget`:
    /// let budget = RetryBudget::<ManualClock>::builder().without_ratio().in_flight(0.2, 3).build()?;
    /// // As gRPC's `retryThrottling`:
    /// let budget = RetryBudget::<ManualClock>::builder().without_ratio().grpc_tokens(10.0, 0.1).build()?;
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn without_ratio(mut self) -> Self {
        self.has_ratio = false;
        self
    }

    /// Limits the retries and hedges in flight to `share` of the calls in flight, 0 to 1, rounded
    /// to a thousandth, and to at least `min`. Off by default. Envoy and failsafe-go use 0.2 and 3.
    ///
    /// A call is in flight from its start to the head of its response, its pauses included. A retry
    /// is so from the decision to repeat, its pause included.
    ///
    /// ```
    /// use buttress_core::{ManualClock, retry_budget::RetryBudget};
    ///
    /// let budget = RetryBudget::<ManualClock>::builder().in_flight(0.2, 3).build()?;
    /// let retries: Vec<_> = std::iter::from_fn(|| budget.try_withdraw()).collect();
    /// assert_eq!(retries.len(), 3);
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn in_flight(mut self, share: f64, min: u32) -> Self {
        self.in_flight = Some((share, min));
        self
    }

    /// Allows retries while more than a half of `max` tokens is left, as gRPC's `retryThrottling`
    /// (gRFC A6). Off by default.
    ///
    /// The tokens start at `max`, above 0 and at most 1000. A failure that could be repeated takes
    /// one, and a success adds `ratio`, 0.001 to 1000. Of both numbers the decimals after the third
    /// are ignored. A success is a call for which the backend did its work: gRPC's `NOT_FOUND` is
    /// one here, and neutral in gRPC's own clients.
    ///
    /// ```
    /// use buttress_core::{ManualClock, retry_budget::RetryBudget};
    ///
    /// let builder = RetryBudget::<ManualClock>::builder();
    /// assert_eq!(builder.clone().grpc_tokens(1001.0, 0.1).build().unwrap_err().field(), "grpc_tokens");
    /// assert_eq!(builder.grpc_tokens(10.0, 0.1).build()?.tokens(), Some(10.0));
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn grpc_tokens(mut self, max: f64, ratio: f64) -> Self {
        self.tokens = Some((max, ratio));
        self
    }

    /// Creates the budget.
    ///
    /// # Errors
    /// If a value is out of its range, or if there is no budget at all. The error names the setting
    /// and the rule that it breaks.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::{ManualClock, retry_budget::RetryBudget};
    ///
    /// let error = RetryBudget::<ManualClock>::builder().burst(0).build().unwrap_err();
    /// assert_eq!(error.field(), "burst");
    /// ```
    pub fn build(self) -> Result<RetryBudget<C>, InvalidConfig> {
        let rule = |is_met: bool, field, rule| if is_met { Ok(()) } else { Err(InvalidConfig::new(field, rule)) };
        rule((0.0..=1000.0).contains(&self.percent), "percent", "must be between 0 and 1000")?;
        let min_per_second = (0.0..=1_000_000.0).contains(&self.min_per_second);
        rule(min_per_second, "min_per_second", "must be between 0 and 1,000,000")?;
        rule(self.burst > 0, "burst", "must be at least 1, or no retry is allowed")?;
        if let Some((share, _)) = self.in_flight {
            rule((0.0..=1.0).contains(&share), "in_flight", "must have a share between 0 and 1")?;
        }
        if let Some((max, ratio)) = self.tokens {
            rule((0.001..=1000.0).contains(&max), "grpc_tokens", "must have a maximum above 0 and at most 1000")?;
            rule((0.001..=1000.0).contains(&ratio), "grpc_tokens", "must have a ratio between 0.001 and 1000")?;
        }
        let is_limited = self.has_ratio || self.in_flight.is_some() || self.tokens.is_some();
        rule(is_limited, "without_ratio", "must come with in_flight or grpc_tokens, or retries have no limit")?;
        Ok(self.into_budget())
    }

    pub(super) fn into_budget(self) -> RetryBudget<C> {
        let in_flight = self.in_flight.map(|(share, min)| InFlight::new(share, min));
        let tokens = self.tokens.map(|(max, ratio)| Tokens::new(max, ratio));
        let has_limits = in_flight.is_some() || tokens.is_some();
        let state = State {
            name: self.name,
            bucket: self.has_ratio.then(|| Bucket::new(self.percent, self.min_per_second, self.burst)),
            limits: has_limits.then(|| Box::new(Limits { in_flight, tokens })),
        };
        RetryBudget { state: Arc::new(state), clock: self.clock }
    }
}
