use super::{
    breaker::CircuitBreaker,
    config::Settings,
    event::Counts,
    settings::{CallTime, CloseRule, FailureRate, FailureStreak, OnDrop, Window},
};
use crate::{Clock, InvalidConfig, Name};
use std::{fmt, ops::RangeInclusive, sync::Arc, time::Duration};

/// Builds a [`CircuitBreaker`].
///
/// | setting | default |
/// |---|---|
/// | [`consecutive_failures`](Self::consecutive_failures) | calibrated: 5 or more |
/// | [`failure_rate`](Self::failure_rate) | calibrated: above half of the calls |
/// | [`slow_rate`](Self::slow_rate), [`slow_threshold`](Self::slow_threshold), [`custom_rule`](Self::custom_rule) | off |
/// | [`minimum_throughput`](Self::minimum_throughput) | 20 calls |
/// | [`window`](Self::window) | 10 seconds |
/// | [`open_time`](Self::open_time) | 5 to 30 seconds |
/// | [`probes`](Self::probes), [`concurrent_probes`](Self::concurrent_probes) | 3, 1 |
/// | [`close_rule`](Self::close_rule) | 60 % of the probes |
/// | [`probe_lease`](Self::probe_lease), [`max_half_open`](Self::max_half_open) | 30 seconds, 60 seconds |
/// | [`recovery_ramp`](Self::recovery_ramp) | off |
///
/// ```
/// use buttress_core::{ManualClock, circuit_breaker::CircuitBreaker};
/// use std::time::Duration;
///
/// let breaker = CircuitBreaker::<ManualClock>::builder("payments")
///     .failure_rate(0.3)
///     .minimum_throughput(20)
///     .open_time(Duration::from_secs(1)..=Duration::from_secs(30))
///     .build()?;
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct Builder<C> {
    name: Name,
    pub(super) settings: Settings,
    seed: Option<u64>,
    clock: C,
}

impl<C: Clock + Default> Builder<C> {
    fn new(name: Name) -> Self {
        Self { name, settings: Settings::default(), seed: None, clock: C::default() }
    }
}

impl<C: Clock + Default> CircuitBreaker<C> {
    /// Returns a builder with the default settings.
    pub fn builder(name: impl Into<Name>) -> Builder<C> {
        Builder::new(name.into())
    }
}

impl<C: Clock> Builder<C> {
    /// Trips after this many consecutive failures: at least 1, or `None` to switch the rule off.
    ///
    /// The default, [`FailureStreak::Calibrated`], is 5 for a backend without random errors (as in
    /// Finagle, Envoy and Istio), and more for a backend with them.
    ///
    /// ```
    /// use buttress_core::{ManualClock, circuit_breaker::CircuitBreaker};
    ///
    /// let builder = CircuitBreaker::<ManualClock>::builder("payments");
    /// let fixed = builder.clone().consecutive_failures(10).build()?;
    /// let rate_only = builder.consecutive_failures(None).failure_rate(0.3).build()?;
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn consecutive_failures(mut self, rule: impl Into<FailureStreak>) -> Self {
        self.settings.consecutive_failures = rule.into();
        self
    }

    /// Trips if at least this share of the calls in the window failed: above 0, up to 1, or `None`
    /// to switch the rule off.
    ///
    /// The default, [`FailureRate::Calibrated`], is half of the calls (Hystrix, resilience4j) plus
    /// three standard deviations.
    ///
    /// Rates are evaluated after a call that failed or was slow, and not after a success. If a
    /// success completes the [minimum throughput](Self::minimum_throughput), the rate is evaluated
    /// after the next failed or slow call.
    pub fn failure_rate(mut self, rule: impl Into<FailureRate>) -> Self {
        self.settings.failure_rate = rule.into();
        self
    }

    /// Trips if at least this share of the calls in the window took longer than the
    /// [`slow_threshold`](Self::slow_threshold): above 0, up to 1, or `None`, the default, to
    /// switch the rule off. It is evaluated like the [`failure_rate`](Self::failure_rate).
    ///
    /// ```
    /// use buttress_core::{ManualClock, circuit_breaker::CircuitBreaker};
    /// use std::time::Duration;
    ///
    /// let breaker = CircuitBreaker::<ManualClock>::builder("payments")
    ///     .slow_threshold(Duration::from_secs(2))
    ///     .slow_rate(0.5)
    ///     .build()?;
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn slow_rate(mut self, share: impl Into<Option<f64>>) -> Self {
        self.settings.slow_rate = share.into();
        self
    }

    /// Sets the time to the head of the response above which a call is slow, whether it succeeds or
    /// not. Above zero. `None` by default. A call that takes exactly this time is not slow
    /// (resilience4j).
    ///
    /// If the layer does not report the head, the whole call is timed; see also
    /// [`call_time`](Self::call_time). A reserved permit
    /// ([`Reserve::try_reserve`](crate::Reserve::try_reserve)) is timed from
    /// [`Policy::confirm`](crate::Policy::confirm) on.
    ///
    /// With a threshold of 100 ms or more, calls are timed by the [coarse
    /// clock](crate::Clock::coarse), to within some milliseconds: it costs a fraction of the
    /// precise one. With a shorter one, or while there is a listener of calls, they are timed to
    /// within 10 microseconds. Up to 93 hours.
    pub fn slow_threshold(mut self, threshold: impl Into<Option<Duration>>) -> Self {
        self.settings.slow_threshold = threshold.into();
        self
    }

    /// Sets which time is compared with the [`slow_threshold`](Self::slow_threshold): the time to
    /// the head of the response, or to its end. Default: [`CallTime::ToHead`].
    pub fn call_time(mut self, time: CallTime) -> Self {
        self.settings.call_time = time;
        self
    }

    /// Trips if `rule` returns true for the results in the window.
    ///
    /// It is called after each failed and each slow call, if the window contains at least
    /// [`minimum_throughput`](Self::minimum_throughput) calls. A panic in it counts as false. None
    /// by default.
    ///
    /// ```
    /// use buttress_core::{ManualClock, circuit_breaker::CircuitBreaker};
    ///
    /// let breaker = CircuitBreaker::<ManualClock>::builder("payments")
    ///     .custom_rule(|counts| counts.failures() + counts.slow_calls() > 100)
    ///     .build()?;
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn custom_rule(mut self, rule: impl Fn(&Counts) -> bool + Send + Sync + 'static) -> Self {
        self.settings.custom = Some(Arc::new(rule));
        self
    }

    /// Sets the minimum number of calls in the window before rate rules apply. At least 1, and at
    /// most the size of a count window. Default 20 (Hystrix).
    pub fn minimum_throughput(mut self, calls: u32) -> Self {
        self.settings.minimum_throughput = calls;
        self
    }

    /// Sets the results over which rates are computed: those of a [`Duration`] from 10 ms to a day,
    /// or the last 1 to 1,000,000 with [`Window::Count`]. Default 10 seconds (Hystrix). A window of
    /// time has ten buckets and covers between nine tenths and all of its length.
    pub fn window(mut self, window: impl Into<Window>) -> Self {
        self.settings.window = window.into();
        self
    }

    /// Sets how long the circuit stays open. Above zero. Default 5 to 30 seconds.
    ///
    /// The open time starts at the start of the range, and doubles each time the probes fail, up to
    /// its end. Equal jitter draws it between half of that step and all of it, but it is never less
    /// than the start. A `Retry-After` of the failure that opened the circuit lengthens it, up to
    /// the end.
    ///
    /// The end decides how late a recovery is detected: once an outage has lasted for a minute, on
    /// average after 0.4 of it. With 30 seconds, a backend that stays down receives 6 or 7 probes
    /// per minute (`cargo xtask trips` in the repository). With Finagle's 300 seconds it receives
    /// fewer, but after a long outage the circuit stays open for two minutes on average.
    pub fn open_time(mut self, range: RangeInclusive<Duration>) -> Self {
        self.settings.open_time = range;
        self
    }

    /// Sets the number of probes that decide whether the circuit closes. At least 1. Default 3.
    pub fn probes(mut self, probes: u32) -> Self {
        self.settings.probes = probes;
        self
    }

    /// Sets how many probes may be in flight at the same time. Between 1 and the number of
    /// [`probes`](Self::probes). Default 1.
    pub fn concurrent_probes(mut self, probes: u32) -> Self {
        self.settings.concurrent_probes = probes;
        self
    }

    /// Sets how many probes must succeed. Default: `CloseRule::Share(0.6)`, which is 2 of 3 probes.
    ///
    /// With [`CloseRule::AllProbes`], random errors keep a circuit open after an outage: if 20 % of
    /// the calls fail, all of 3 probes succeed with a probability of 51 %, and 2 of 3 with 90 %.
    /// The cost of the default is a second probe each time, while the backend is down.
    pub fn close_rule(mut self, rule: CloseRule) -> Self {
        self.settings.close_rule = rule;
        self
    }

    /// Sets the time after which a probe counts as failed if neither its result nor a part of its
    /// response (the head or a frame of the body) arrives. Above zero. Default 30 seconds.
    ///
    /// Without a lease, one probe that hangs keeps a circuit half-open (resilience4j#935, #2028;
    /// Polly#216).
    pub fn probe_lease(mut self, lease: Duration) -> Self {
        self.settings.probe_lease = lease;
        self
    }

    /// Sets the time without a result or a part of a response of any probe after which a half-open
    /// circuit opens again, if a probe has failed. Above zero. Default 60 seconds.
    ///
    /// It matters only if the [`close_rule`](Self::close_rule) tolerates failures. A circuit
    /// without a failed probe stays half-open until enough probes have succeeded, even if calls are
    /// rare.
    pub fn max_half_open(mut self, bound: Duration) -> Self {
        self.settings.max_half_open = bound;
        self
    }

    /// Sets how to count a call that was dropped after the slow threshold. Default:
    /// [`OnDrop::Slow`].
    pub fn on_drop(mut self, rule: OnDrop) -> Self {
        self.settings.on_drop = rule;
        self
    }

    /// Counts a call as slow while it is still in flight, once it has exceeded the slow threshold,
    /// to within an eighth of the threshold. Default: off.
    ///
    /// Calls to a backend that hangs do not end, so that without this only a timeout makes them
    /// count. A call is no longer overdue when the head of its response arrives, unless
    /// [`call_time`](Self::call_time) is [`CallTime::ToEnd`]. Needs a
    /// [`slow_rate`](Self::slow_rate). Costs two more atomic writes per call.
    pub fn count_overdue(mut self, yes: bool) -> Self {
        self.settings.count_overdue = yes;
        self
    }

    /// After probes have closed the circuit, increases the share of admitted calls from 10 % to 100
    /// % over this time, so that a backend with cold caches is not overloaded (Envoy's slow start).
    /// The other calls are rejected as [`RECOVERING`](super::RECOVERING). Default: zero, no ramp.
    pub fn recovery_ramp(mut self, time: Duration) -> Self {
        self.settings.recovery_ramp = time;
        self
    }

    /// Seeds the jitter, so that open times are reproducible.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Sets the clock, for tests and simulations.
    ///
    /// ```
    /// use buttress_core::{ManualClock, circuit_breaker::CircuitBreaker};
    ///
    /// let clock = ManualClock::new();
    /// let builder = CircuitBreaker::<ManualClock>::builder("payments");
    /// let breaker = builder.clock(clock.clone()).build()?;
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn clock<D: Clock>(self, clock: D) -> Builder<D> {
        Builder { name: self.name, settings: self.settings, seed: self.seed, clock }
    }

    /// Creates the circuit breaker.
    ///
    /// # Errors
    /// If a value is out of its range, or every trip rule is off. The error names the setting and
    /// the rule that it breaks.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::{ManualClock, circuit_breaker::CircuitBreaker};
    ///
    /// let builder = CircuitBreaker::<ManualClock>::builder("payments");
    /// let error = builder.failure_rate(1.5).build().unwrap_err();
    /// assert_eq!(error.to_string(), "invalid configuration: `failure_rate` must be above 0 and at most 1");
    /// ```
    pub fn build(self) -> Result<CircuitBreaker<C>, InvalidConfig> {
        let config = self.settings.parse()?;
        Ok(CircuitBreaker::with_config(self.name, config, self.seed, self.clock))
    }
}

impl<C> fmt::Debug for Builder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("name", &self.name).field("config", &self.settings.parse()).finish()
    }
}
