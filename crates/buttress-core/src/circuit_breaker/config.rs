use super::{CircuitBreaker, event::Counts};
use crate::{Backoff, InvalidConfig, Name, Ratio};
use std::{fmt, ops::RangeInclusive, sync::Arc, time::Duration};

/// Over which results rates are computed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Window {
    /// The results of this time, in ten buckets: between nine tenths of it and all of it.
    Time(Duration),
    /// The last so many results. Exact, and threads meet on it: prefer a time window under load.
    Count(u32),
}

/// When probes close the circuit. Either way it is decided as soon as the remaining probes cannot change it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum CloseRule {
    /// All probes succeed. The first failure opens it again.
    AllProbes,
    /// At least this share of the probes succeeds, between 0 (exclusive) and 1.
    Share(f64),
}

/// What a call teaches that was dropped before its end and ran for longer than the slow threshold. Dropped sooner, it teaches nothing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum OnDrop {
    /// Nothing.
    Ignore = 0,
    /// It was slow. A backend that hangs under an outer timeout trips the slow rate.
    #[default]
    Slow = 1,
    /// It was slow and failed. A backend that hangs under an outer timeout trips any rule.
    Failure = 2,
}

pub(super) type CustomRule = Arc<dyn Fn(&Counts) -> bool + Send + Sync>;

/// Builds a [`CircuitBreaker`]. Without a call to any of the trip rules, the defaults of them hold.
///
/// ```
/// use buttress_core::CircuitBreaker;
/// use std::time::Duration;
///
/// let breaker = CircuitBreaker::builder("payments")
///     .consecutive_failures(5)
///     .failure_rate(0.5)
///     .minimum_throughput(20)
///     .open_time(Duration::from_secs(1)..=Duration::from_secs(30))
///     .build()?;
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct Builder {
    pub(super) name: Name,
    pub(super) consecutive_failures: Option<u32>,
    pub(super) failure_rate: Option<f64>,
    pub(super) slow_rate: Option<f64>,
    pub(super) slow_threshold: Option<Duration>,
    pub(super) custom: Option<CustomRule>,
    pub(super) minimum_throughput: u32,
    pub(super) window: Window,
    pub(super) open_time: RangeInclusive<Duration>,
    pub(super) probes: u32,
    pub(super) concurrent_probes: u32,
    pub(super) close_rule: CloseRule,
    pub(super) probe_lease: Duration,
    pub(super) max_half_open: Duration,
    pub(super) on_drop: OnDrop,
    pub(super) count_overdue: bool,
    pub(super) recovery_ramp: Duration,
    pub(super) seed: Option<u64>,
}

impl Builder {
    pub(super) fn new(name: Name) -> Self {
        Self {
            name,
            consecutive_failures: Some(5),
            failure_rate: Some(0.5),
            slow_rate: None,
            slow_threshold: None,
            custom: None,
            minimum_throughput: 20,
            window: Window::Time(Duration::from_secs(10)),
            open_time: Duration::from_secs(5)..=Duration::from_secs(300),
            probes: 3,
            concurrent_probes: 1,
            close_rule: CloseRule::AllProbes,
            probe_lease: Duration::from_secs(30),
            max_half_open: Duration::from_secs(60),
            on_drop: OnDrop::default(),
            count_overdue: false,
            recovery_ramp: Duration::ZERO,
            seed: None,
        }
    }

    /// Trips after so many failures in a row; `None` switches the rule off. At least 1. Default 5 (Finagle, Envoy, Istio).
    pub fn consecutive_failures(mut self, failures: impl Into<Option<u32>>) -> Self {
        self.consecutive_failures = failures.into();
        self
    }

    /// Trips when at least this share of the calls in the window failed; `None` switches the rule off. Above 0, up to 1.
    /// Default 0.5 (Hystrix).
    pub fn failure_rate(mut self, share: impl Into<Option<f64>>) -> Self {
        self.failure_rate = share.into();
        self
    }

    /// Trips when at least this share of the calls in the window took longer than [`slow_threshold`](Self::slow_threshold). Above 0, up to 1. Off by default.
    pub fn slow_rate(mut self, share: impl Into<Option<f64>>) -> Self {
        self.slow_rate = share.into();
        self
    }

    /// Calls that take longer than this are slow, whether they succeed or not. Above zero. None by default.
    pub fn slow_threshold(mut self, threshold: impl Into<Option<Duration>>) -> Self {
        self.slow_threshold = threshold.into();
        self
    }

    /// Trips when `rule` says so of the results in the window. It is asked after each failure and each slow call, with at
    /// least [`minimum_throughput`](Self::minimum_throughput) calls in the window. A panic in it counts as no.
    pub fn custom_rule(mut self, rule: impl Fn(&Counts) -> bool + Send + Sync + 'static) -> Self {
        self.custom = Some(Arc::new(rule));
        self
    }

    /// No rate counts before so many calls are in the window. At least 1. Default 20 (Hystrix).
    pub fn minimum_throughput(mut self, calls: u32) -> Self {
        self.minimum_throughput = calls;
        self
    }

    /// Over which results rates are computed: a [`Duration`] of 10 ms to a day, or a [`Window::Count`] of 1 to 1,000,000. Default 10 seconds.
    pub fn window(mut self, window: impl Into<Window>) -> Self {
        self.window = window.into();
        self
    }

    /// How long the circuit stays open: doubling from the start of the range with each relapse up to its end, with equal jitter
    /// (from half of the step to all of it), and never less than the start. A backend's `Retry-After` lengthens it, up to the end.
    /// Above zero. Default 5 to 300 seconds (Finagle).
    pub fn open_time(mut self, range: RangeInclusive<Duration>) -> Self {
        self.open_time = range;
        self
    }

    /// How many probes decide. At least 1. Default 3.
    pub fn probes(mut self, probes: u32) -> Self {
        self.probes = probes;
        self
    }

    /// How many probes may be in flight together. Between 1 and the number of probes. Default 1.
    pub fn concurrent_probes(mut self, probes: u32) -> Self {
        self.concurrent_probes = probes;
        self
    }

    /// When probes close the circuit. Default: [`CloseRule::AllProbes`].
    pub fn close_rule(mut self, rule: CloseRule) -> Self {
        self.close_rule = rule;
        self
    }

    /// A probe that is not back after this is given up and counted as failed. Above zero. Default 30 seconds.
    pub fn probe_lease(mut self, lease: Duration) -> Self {
        self.probe_lease = lease;
        self
    }

    /// A circuit that is half-open for longer than this opens again. Above zero. Default 60 seconds.
    pub fn max_half_open(mut self, bound: Duration) -> Self {
        self.max_half_open = bound;
        self
    }

    /// What a call teaches that was dropped after more than the slow threshold. Default: [`OnDrop::Slow`].
    pub fn on_drop(mut self, rule: OnDrop) -> Self {
        self.on_drop = rule;
        self
    }

    /// Counts calls as slow while they are still in flight, once they are past the slow threshold, to within an eighth of it: a backend that hangs ends no calls.
    /// Needs a [`slow_rate`](Self::slow_rate). Costs two more counters for each call. Default: off.
    pub fn count_overdue(mut self, yes: bool) -> Self {
        self.count_overdue = yes;
        self
    }

    /// For so long after closing, only a share of the calls is admitted, growing from a tenth to all of them: a backend that comes back
    /// cold is not run over. Default: zero, which is no ramp.
    pub fn recovery_ramp(mut self, time: Duration) -> Self {
        self.recovery_ramp = time;
        self
    }

    /// Makes the jitter repeatable.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// # Errors
    /// When a value is out of its range, or no rule could ever trip.
    pub fn build(self) -> Result<CircuitBreaker, InvalidConfig> {
        self.parse().map(|config| CircuitBreaker::with_config(self.name, config, self.seed))
    }

    pub(super) fn parse(&self) -> Result<Config, InvalidConfig> {
        let rule = |ok: bool, field, rule| if ok { Ok(()) } else { Err(InvalidConfig::new(field, rule)) };
        let share = |value: Option<f64>, field| match value.map(Ratio::new) {
            None => Ok(None),
            Some(Some(share)) if !share.is_zero() => Ok(Some(share)),
            _ => Err(InvalidConfig::new(field, "must be above 0 and at most 1")),
        };
        rule(
            self.consecutive_failures != Some(0),
            "consecutive_failures",
            "must be at least 1, or None to switch it off",
        )?;
        let failure_rate = share(self.failure_rate, "failure_rate")?;
        let slow_rate = share(self.slow_rate, "slow_rate")?;
        rule(self.slow_threshold != Some(Duration::ZERO), "slow_threshold", "must be above zero")?;
        rule(slow_rate.is_none() || self.slow_threshold.is_some(), "slow_rate", "needs a slow_threshold")?;
        rule(!self.count_overdue || slow_rate.is_some(), "count_overdue", "needs a slow_rate")?;
        let rates = failure_rate.is_some() || slow_rate.is_some() || self.custom.is_some();
        rule(
            rates || self.consecutive_failures.is_some(),
            "consecutive_failures",
            "cannot be off when every other rule is off too: nothing would ever trip",
        )?;
        rule(self.minimum_throughput >= 1, "minimum_throughput", "must be at least 1")?;
        match self.window {
            Window::Time(time) => {
                rule(
                    (Duration::from_millis(10)..=Duration::from_secs(86_400)).contains(&time),
                    "window",
                    "must be between 10 milliseconds and a day",
                )?;
            }
            Window::Count(n) => {
                rule((1..=1_000_000).contains(&n), "window", "must be between 1 and 1,000,000 calls")?;
                rule(
                    !rates || self.minimum_throughput <= n,
                    "minimum_throughput",
                    "must not be more than the window holds, or no rate would ever count",
                )?;
            }
        }
        let (min, max) = (*self.open_time.start(), *self.open_time.end());
        rule(!min.is_zero(), "open_time", "must be above zero")?;
        rule(min <= max, "open_time", "must not end before it starts")?;
        rule(self.probes >= 1, "probes", "must be at least 1")?;
        rule(
            (1..=self.probes).contains(&self.concurrent_probes),
            "concurrent_probes",
            "must be between 1 and the number of probes",
        )?;
        rule(!self.probe_lease.is_zero(), "probe_lease", "must be above zero")?;
        rule(!self.max_half_open.is_zero(), "max_half_open", "must be above zero")?;
        let successes_needed = match self.close_rule {
            CloseRule::AllProbes => self.probes,
            CloseRule::Share(value) => match share(Some(value), "close_rule")? {
                Some(share) => share.of(self.probes),
                None => self.probes,
            },
        };
        Ok(Config {
            consecutive_failures: self.consecutive_failures,
            failure_rate,
            slow_rate,
            slow_threshold: self.slow_threshold,
            custom: self.custom.clone(),
            minimum_throughput: self.minimum_throughput,
            window: rates.then_some(self.window),
            open_time: Backoff::equal_jitter(min, max),
            probes: self.probes,
            concurrent_probes: self.concurrent_probes,
            successes_needed,
            probe_lease: self.probe_lease,
            max_half_open: self.max_half_open,
            on_drop: self.on_drop,
            count_overdue: self.count_overdue,
            recovery_ramp: self.recovery_ramp,
        })
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("name", &self.name).field("config", &self.parse()).finish()
    }
}

impl From<Duration> for Window {
    fn from(time: Duration) -> Self {
        Self::Time(time)
    }
}

/// A configuration that holds together: only [`Builder::build`] makes one.
#[derive(Clone)]
pub(super) struct Config {
    pub(super) consecutive_failures: Option<u32>,
    pub(super) failure_rate: Option<Ratio>,
    pub(super) slow_rate: Option<Ratio>,
    pub(super) slow_threshold: Option<Duration>,
    pub(super) custom: Option<CustomRule>,
    pub(super) minimum_throughput: u32,
    /// None when no rule needs one.
    pub(super) window: Option<Window>,
    pub(super) open_time: Backoff,
    pub(super) probes: u32,
    pub(super) concurrent_probes: u32,
    pub(super) successes_needed: u32,
    pub(super) probe_lease: Duration,
    pub(super) max_half_open: Duration,
    pub(super) on_drop: OnDrop,
    pub(super) count_overdue: bool,
    pub(super) recovery_ramp: Duration,
}

impl Default for Config {
    fn default() -> Self {
        match Builder::new(Name::from("default")).parse() {
            Ok(config) => config,
            Err(error) => unreachable!("the defaults keep the rules: {error}"),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("consecutive_failures", &self.consecutive_failures)
            .field("failure_rate", &self.failure_rate)
            .field("slow_rate", &self.slow_rate)
            .field("slow_threshold", &self.slow_threshold)
            .field("custom", &self.custom.is_some())
            .field("minimum_throughput", &self.minimum_throughput)
            .field("window", &self.window)
            .field("open_time", &self.open_time)
            .field("probes", &self.probes)
            .field("concurrent_probes", &self.concurrent_probes)
            .field("successes_needed", &self.successes_needed)
            .field("probe_lease", &self.probe_lease)
            .field("max_half_open", &self.max_half_open)
            .field("on_drop", &self.on_drop)
            .field("count_overdue", &self.count_overdue)
            .field("recovery_ramp", &self.recovery_ramp)
            .finish()
    }
}
