use super::{
    breaker::CircuitBreaker,
    config::Settings,
    event::Counts,
    settings::{CallTime, CloseRule, FailureRate, FailureStreak, OnDrop, Window},
};
use crate::{Clock, InvalidConfig, Name};
use std::{fmt, ops::RangeInclusive, sync::Arc, time::Duration};

/// Builds a [`CircuitBreaker`]. Without a call to any of the trip rules, the defaults of them hold.
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
    pub(super) fn new(name: Name) -> Self {
        Self { name, settings: Settings::default(), seed: None, clock: C::default() }
    }
}

impl<C: Clock> Builder<C> {
    /// Trips after this many failures in a row: a number of at least 1, or `None` to switch the
    /// rule off. The default, [`FailureStreak::Calibrated`], is 5 (Finagle, Envoy, Istio) for a
    /// backend that hardly fails, and more for one with random errors.
    pub fn consecutive_failures(mut self, rule: impl Into<FailureStreak>) -> Self {
        self.settings.consecutive_failures = rule.into();
        self
    }

    /// Trips when at least this share of the calls in the window failed: above 0, up to 1, or
    /// `None` to switch the rule off. The default, [`FailureRate::Calibrated`], is half of the
    /// calls (Hystrix) and more by what chance explains.
    ///
    /// Rates are evaluated when a call fails or is slow, and not when one succeeds. Where successes
    /// complete the [minimum throughput](Self::minimum_throughput), the rate is judged with the
    /// next bad result.
    pub fn failure_rate(mut self, rule: impl Into<FailureRate>) -> Self {
        self.settings.failure_rate = rule.into();
        self
    }

    /// Trips when at least this share of the calls in the window took longer than
    /// [`slow_threshold`](Self::slow_threshold). Above 0, up to 1. Evaluated as the
    /// [`failure_rate`](Self::failure_rate) is. Off by default.
    pub fn slow_rate(mut self, share: impl Into<Option<f64>>) -> Self {
        self.settings.slow_rate = share.into();
        self
    }

    /// Calls that take longer than this to the head of their response are slow, whether they
    /// succeed or not. Above zero. None by default. Where the layer reports no head, the whole call
    /// is timed; see also [`call_time`](Self::call_time). A permit of
    /// [`Reserve::try_reserve`](crate::Reserve::try_reserve) is timed from
    /// [`Policy::confirm`](crate::Policy::confirm) on. Calls are timed to within 10 microseconds
    /// and up to 93 hours.
    pub fn slow_threshold(mut self, threshold: impl Into<Option<Duration>>) -> Self {
        self.settings.slow_threshold = threshold.into();
        self
    }

    /// What is compared with the [`slow_threshold`](Self::slow_threshold): the time to the head of
    /// the response, or to its end. Default: [`CallTime::ToHead`].
    pub fn call_time(mut self, time: CallTime) -> Self {
        self.settings.call_time = time;
        self
    }

    /// Trips when `rule` says so of the results in the window. It is asked after each failure and
    /// each slow call, with at least [`minimum_throughput`](Self::minimum_throughput) calls in the
    /// window. A panic in it counts as no.
    pub fn custom_rule(mut self, rule: impl Fn(&Counts) -> bool + Send + Sync + 'static) -> Self {
        self.settings.custom = Some(Arc::new(rule));
        self
    }

    /// Minimum number of calls in the window before rate rules apply. At least 1. Default 20
    /// (Hystrix).
    pub fn minimum_throughput(mut self, calls: u32) -> Self {
        self.settings.minimum_throughput = calls;
        self
    }

    /// The results over which rates are computed: those of a [`Duration`] from 10 ms to a day, or
    /// the last 1 to 1,000,000 by [`Window::Count`]. Default 10 seconds.
    pub fn window(mut self, window: impl Into<Window>) -> Self {
        self.settings.window = window.into();
        self
    }

    /// How long the circuit stays open: doubling from the start of the range with each relapse up
    /// to its end, with equal jitter (from half of the step to all of it), and never less than the
    /// start. A backend's `Retry-After` lengthens it, up to the end. Above zero. Default 5 to 30
    /// seconds.
    ///
    /// The end decides how late a recovery is seen: on average after 0.4 of it, once an outage has
    /// lasted for a minute or more. With 30 seconds, a backend that stays down gets 6 or 7 probes a
    /// minute. Finagle's end of 300 seconds spares it most of them, and keeps the circuit open for
    /// two minutes after an outage of ten (simulated).
    pub fn open_time(mut self, range: RangeInclusive<Duration>) -> Self {
        self.settings.open_time = range;
        self
    }

    /// How many probes decide. At least 1. Default 3.
    pub fn probes(mut self, probes: u32) -> Self {
        self.settings.probes = probes;
        self
    }

    /// How many probes may be in flight together. Between 1 and the number of probes. Default 1.
    pub fn concurrent_probes(mut self, probes: u32) -> Self {
        self.settings.concurrent_probes = probes;
        self
    }

    /// When probes close the circuit. Default: `CloseRule::Share(0.6)`, which is 2 of 3 probes.
    ///
    /// With [`CloseRule::AllProbes`], random errors keep a circuit open after an outage: where 20 %
    /// of the calls fail, all of 3 probes succeed in half of the rounds, and 2 of 3 in 90 %. The
    /// price is a second probe in each round while a backend is down.
    pub fn close_rule(mut self, rule: CloseRule) -> Self {
        self.settings.close_rule = rule;
        self
    }

    /// A probe is given up and counted as failed after this time without a result or a sign of
    /// life, which is the head or a frame of its response. Above zero. Default 30 seconds.
    pub fn probe_lease(mut self, lease: Duration) -> Self {
        self.settings.probe_lease = lease;
        self
    }

    /// A half-open circuit in which a probe has failed opens again after this time without a result
    /// or a sign of life of a probe. It matters where the [`close_rule`](Self::close_rule) bears
    /// failures. A circuit in which no probe has failed stays half-open until enough of them have
    /// succeeded, however rare calls are. Above zero. Default 60 seconds.
    pub fn max_half_open(mut self, bound: Duration) -> Self {
        self.settings.max_half_open = bound;
        self
    }

    /// How to count a call that was dropped after more than the slow threshold. Default:
    /// [`OnDrop::Slow`].
    pub fn on_drop(mut self, rule: OnDrop) -> Self {
        self.settings.on_drop = rule;
        self
    }

    /// Counts calls as slow while they are still in flight, once they are past the slow threshold,
    /// to within an eighth of it: a backend that hangs ends no calls. The head of a response ends
    /// the count of its call, unless [`call_time`](Self::call_time) is [`CallTime::ToEnd`]. Needs a
    /// [`slow_rate`](Self::slow_rate). Costs two more counters for each call. Default: off.
    pub fn count_overdue(mut self, yes: bool) -> Self {
        self.settings.count_overdue = yes;
        self
    }

    /// After closing, ramps admission from 10 % to 100 % over this time: a backend that comes back
    /// cold is not run over. Default: zero, which is no ramp.
    pub fn recovery_ramp(mut self, time: Duration) -> Self {
        self.settings.recovery_ramp = time;
        self
    }

    /// Makes the jitter repeatable.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Takes another clock, for tests and simulations.
    pub fn clock<D: Clock>(self, clock: D) -> Builder<D> {
        Builder { name: self.name, settings: self.settings, seed: self.seed, clock }
    }

    /// Makes the circuit breaker.
    ///
    /// # Errors
    /// When a value is out of its range, or no rule could ever trip. The error names the setting
    /// and the rule that it breaks.
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
