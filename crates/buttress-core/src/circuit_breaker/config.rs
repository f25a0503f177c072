use super::{CircuitBreaker, event::Counts};
use crate::{Backoff, InvalidConfig, Name, Ratio};
use std::{fmt, ops::RangeInclusive, sync::Arc, time::Duration};

/// The results over which rates are computed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Window {
    /// The results of this time, in ten buckets: between nine tenths of it and all of it.
    Time(Duration),
    /// This many of the last results. Exact, and threads contend for it: prefer a time window under
    /// load.
    Count(u32),
}

/// Which failures in a row, without a success in between, trip the circuit. Overload does not
/// count.
///
/// Numbers convert into [`Fixed`](Self::Fixed), and `None` into [`Off`](Self::Off).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum FailureStreak {
    /// At least 5, and so many that chance explains them less than once in 10^9 calls: with `p` as
    /// the failure rate of the window without the streak, `ln(1e-9) / ln(p)` of them, at most 100.
    /// That is 5 up to an error rate of 1 %, 7 at 5 %, 13 at 20 % and 23 at 40 %.
    ///
    /// A fixed number cannot be right for both a healthy backend and one with random errors: 5 in a
    /// row come by chance after some 4,000 calls of which 20 % fail, which is every 4 seconds at
    /// 1,000 calls a second. With fewer than 10 other results in the window, no rate is known, and
    /// 5 are enough.
    ///
    /// The rate is that of a sample. With some 100 calls in the window, as at 10 calls a second,
    /// chance trips it about once in 10^7 calls.
    #[default]
    Calibrated,
    /// This many. At least 1. For endpoints that hardly ever fail at random.
    Fixed(u32),
    /// No number of them.
    Off,
}

impl From<u32> for FailureStreak {
    fn from(failures: u32) -> Self {
        Self::Fixed(failures)
    }
}

impl From<Option<u32>> for FailureStreak {
    fn from(failures: Option<u32>) -> Self {
        failures.map_or(Self::Off, Self::Fixed)
    }
}

/// At which share of failures among the calls in the window the circuit trips, from the [minimum
/// throughput](Builder::minimum_throughput) on.
///
/// Numbers convert into [`Exact`](Self::Exact), and `None` into [`Off`](Self::Off).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum FailureRate {
    /// Half of the calls, and more by so much that chance does not explain it: of `n` calls,
    /// `n/2 + 1.5 √n` failed. Those are 17 of 20 calls, 65 of 100, 548 of 1,000 and 5,150 of
    /// 10,000.
    ///
    /// An exact half cannot be judged from few calls: of 20 calls to a backend that fails 40 % of
    /// them, half fail with a probability of 24 %. The number of failures among `n` calls to a
    /// backend that fails half of them has a standard deviation of `√n / 2`, so this is three of
    /// them above the mean. Chance goes beyond that in at most `exp(-2 · 1.5²)` = 1.1 % of all
    /// windows (Hoeffding's bound for any `n`), and in 0.13 % where `n` is large. With 40 % of
    /// errors it is 0.005 % of windows of 20 calls and 0.00004 % of those of 100, and a circuit of
    /// the default window trips by chance about once in 10 hours at 2 calls a second, and once in
    /// 300 hours at 10 (simulated).
    ///
    /// What is above a half is found as soon as it is certain: with 20 calls where 90 % fail, 57
    /// where 70 % do, and 225 where 60 % do. A backend that fails no more than half of its calls
    /// hardly ever trips it: give an exact share where that is too many, and where the window holds
    /// fewer than 9 calls, which are never enough.
    #[default]
    Calibrated,
    /// This share, however few calls it is computed from. Above 0, up to 1.
    Exact(f64),
    /// No share of them.
    Off,
}

impl From<f64> for FailureRate {
    fn from(share: f64) -> Self {
        Self::Exact(share)
    }
}

impl From<Option<f64>> for FailureRate {
    fn from(share: Option<f64>) -> Self {
        share.map_or(Self::Off, Self::Exact)
    }
}

/// What the time of a call is, which is compared with the [slow
/// threshold](Builder::slow_threshold).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum CallTime {
    /// The time to the head of its response, or to the first part of it that was reported. A stream
    /// that lasts for minutes is not slow.
    #[default]
    ToHead,
    /// The time to the end of its response.
    ToEnd,
}

/// When probes close the circuit. Either way it is decided as soon as the remaining probes cannot
/// change it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum CloseRule {
    /// All probes succeed. The first failure opens it again.
    AllProbes,
    /// At least this share of the probes succeeds, between 0 (exclusive) and 1.
    Share(f64),
}

/// How to count a call that was dropped after the slow threshold and before its end (or the head of
/// its response). A call that was dropped sooner is not counted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum OnDrop {
    /// Not at all.
    Ignore = 0,
    /// As slow. A backend that hangs under an outer timeout trips the slow rate.
    #[default]
    Slow = 1,
    /// As slow and failed. A backend that hangs under an outer timeout trips any rule.
    Failure = 2,
}

/// The fewest calls with which [`FailureRate::Calibrated`] can be met: all of 9 failed.
const CERTAIN_FROM: u32 = 9;

pub(super) type CustomRule = Arc<dyn Fn(&Counts) -> bool + Send + Sync>;

/// Builds a [`CircuitBreaker`]. Without a call to any of the trip rules, the defaults of them hold.
///
/// ```
/// use buttress_core::CircuitBreaker;
/// use std::time::Duration;
///
/// let breaker = CircuitBreaker::builder("payments")
///     .failure_rate(0.3)
///     .minimum_throughput(20)
///     .open_time(Duration::from_secs(1)..=Duration::from_secs(30))
///     .build()?;
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct Builder {
    pub(super) name: Name,
    pub(super) consecutive_failures: FailureStreak,
    pub(super) failure_rate: FailureRate,
    pub(super) slow_rate: Option<f64>,
    pub(super) slow_threshold: Option<Duration>,
    pub(super) call_time: CallTime,
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
            consecutive_failures: FailureStreak::Calibrated,
            failure_rate: FailureRate::Calibrated,
            slow_rate: None,
            slow_threshold: None,
            call_time: CallTime::default(),
            custom: None,
            minimum_throughput: 20,
            window: Window::Time(Duration::from_secs(10)),
            open_time: Duration::from_secs(5)..=Duration::from_secs(30),
            probes: 3,
            concurrent_probes: 1,
            close_rule: CloseRule::Share(0.6),
            probe_lease: Duration::from_secs(30),
            max_half_open: Duration::from_secs(60),
            on_drop: OnDrop::default(),
            count_overdue: false,
            recovery_ramp: Duration::ZERO,
            seed: None,
        }
    }

    /// Trips after this many failures in a row: a number of at least 1, or `None` to switch the
    /// rule off. The default, [`FailureStreak::Calibrated`], is 5 (Finagle, Envoy, Istio) for a
    /// backend that hardly fails, and more for one with random errors.
    pub fn consecutive_failures(mut self, rule: impl Into<FailureStreak>) -> Self {
        self.consecutive_failures = rule.into();
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
        self.failure_rate = rule.into();
        self
    }

    /// Trips when at least this share of the calls in the window took longer than
    /// [`slow_threshold`](Self::slow_threshold). Above 0, up to 1. Evaluated as the
    /// [`failure_rate`](Self::failure_rate) is. Off by default.
    pub fn slow_rate(mut self, share: impl Into<Option<f64>>) -> Self {
        self.slow_rate = share.into();
        self
    }

    /// Calls that take longer than this to the head of their response are slow, whether they
    /// succeed or not. Above zero. None by default. Where the layer reports no head, the whole call
    /// is timed; see also [`call_time`](Self::call_time). A permit of
    /// [`Policy::reserve`](crate::Policy::reserve) is timed from
    /// [`Admit::confirm`](crate::Admit::confirm) on. Calls are timed to within 10 microseconds and
    /// up to 93 hours.
    pub fn slow_threshold(mut self, threshold: impl Into<Option<Duration>>) -> Self {
        self.slow_threshold = threshold.into();
        self
    }

    /// What is compared with the [`slow_threshold`](Self::slow_threshold): the time to the head of
    /// the response, or to its end. Default: [`CallTime::ToHead`].
    pub fn call_time(mut self, time: CallTime) -> Self {
        self.call_time = time;
        self
    }

    /// Trips when `rule` says so of the results in the window. It is asked after each failure and
    /// each slow call, with at least [`minimum_throughput`](Self::minimum_throughput) calls in the
    /// window. A panic in it counts as no.
    pub fn custom_rule(mut self, rule: impl Fn(&Counts) -> bool + Send + Sync + 'static) -> Self {
        self.custom = Some(Arc::new(rule));
        self
    }

    /// Minimum number of calls in the window before rate rules apply. At least 1. Default 20
    /// (Hystrix).
    pub fn minimum_throughput(mut self, calls: u32) -> Self {
        self.minimum_throughput = calls;
        self
    }

    /// The results over which rates are computed: those of a [`Duration`] from 10 ms to a day, or
    /// the last 1 to 1,000,000 by [`Window::Count`]. Default 10 seconds.
    pub fn window(mut self, window: impl Into<Window>) -> Self {
        self.window = window.into();
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

    /// When probes close the circuit. Default: `CloseRule::Share(0.6)`, which is 2 of 3 probes.
    ///
    /// With [`CloseRule::AllProbes`], random errors keep a circuit open after an outage: where 20 %
    /// of the calls fail, all of 3 probes succeed in half of the rounds, and 2 of 3 in 90 %. The
    /// price is a second probe in each round while a backend is down.
    pub fn close_rule(mut self, rule: CloseRule) -> Self {
        self.close_rule = rule;
        self
    }

    /// A probe is given up and counted as failed after this time without a result or a sign of
    /// life, which is the head or a frame of its response. Above zero. Default 30 seconds.
    pub fn probe_lease(mut self, lease: Duration) -> Self {
        self.probe_lease = lease;
        self
    }

    /// A half-open circuit in which a probe has failed opens again after this time without a result
    /// or a sign of life of a probe. It matters where the [`close_rule`](Self::close_rule) bears
    /// failures. A circuit in which no probe has failed stays half-open until enough of them have
    /// succeeded, however rare calls are. Above zero. Default 60 seconds.
    pub fn max_half_open(mut self, bound: Duration) -> Self {
        self.max_half_open = bound;
        self
    }

    /// How to count a call that was dropped after more than the slow threshold. Default:
    /// [`OnDrop::Slow`].
    pub fn on_drop(mut self, rule: OnDrop) -> Self {
        self.on_drop = rule;
        self
    }

    /// Counts calls as slow while they are still in flight, once they are past the slow threshold,
    /// to within an eighth of it: a backend that hangs ends no calls. The head of a response ends
    /// the count of its call, unless [`call_time`](Self::call_time) is [`CallTime::ToEnd`]. Needs a
    /// [`slow_rate`](Self::slow_rate). Costs two more counters for each call. Default: off.
    pub fn count_overdue(mut self, yes: bool) -> Self {
        self.count_overdue = yes;
        self
    }

    /// After closing, ramps admission from 10 % to 100 % over this time: a backend that comes back
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
            self.consecutive_failures != FailureStreak::Fixed(0),
            "consecutive_failures",
            "must be at least 1, or None to switch it off",
        )?;
        let failure_rate = match self.failure_rate {
            FailureRate::Calibrated => Some(RateRule::Calibrated),
            FailureRate::Exact(value) => share(Some(value), "failure_rate")?.map(RateRule::Exact),
            FailureRate::Off => None,
        };
        let slow_rate = share(self.slow_rate, "slow_rate")?;
        rule(self.slow_threshold != Some(Duration::ZERO), "slow_threshold", "must be above zero")?;
        rule(slow_rate.is_none() || self.slow_threshold.is_some(), "slow_rate", "needs a slow_threshold")?;
        rule(!self.count_overdue || slow_rate.is_some(), "count_overdue", "needs a slow_rate")?;
        let rates = failure_rate.is_some() || slow_rate.is_some() || self.custom.is_some();
        rule(
            rates || self.consecutive_failures != FailureStreak::Off,
            "consecutive_failures",
            "cannot be off when every other rule is off too: nothing would ever trip",
        )?;
        let needs_window = rates || self.consecutive_failures == FailureStreak::Calibrated;
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
                    !needs_window || self.minimum_throughput <= n,
                    "minimum_throughput",
                    "must not be more than the window holds, or no rate would ever count",
                )?;
                rule(
                    self.failure_rate != FailureRate::Calibrated || n >= CERTAIN_FROM,
                    "failure_rate",
                    "needs a window of at least 9 calls to be calibrated; give an exact share",
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
            call_time: self.call_time,
            custom: self.custom.clone(),
            minimum_throughput: self.minimum_throughput,
            window: needs_window.then_some(self.window),
            on_drop: self.on_drop,
            count_overdue: self.count_overdue,
            recovery_ramp: self.recovery_ramp,
            recovery: Recovery {
                open_time: Backoff::equal_jitter(min, max),
                probes: self.probes,
                concurrent_probes: self.concurrent_probes,
                successes_needed,
                probe_lease: self.probe_lease,
                max_half_open: self.max_half_open,
            },
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
    pub(super) consecutive_failures: FailureStreak,
    pub(super) failure_rate: Option<RateRule>,
    pub(super) slow_rate: Option<Ratio>,
    pub(super) slow_threshold: Option<Duration>,
    pub(super) call_time: CallTime,
    pub(super) custom: Option<CustomRule>,
    pub(super) minimum_throughput: u32,
    /// None when no rule needs one.
    pub(super) window: Option<Window>,
    pub(super) on_drop: OnDrop,
    pub(super) count_overdue: bool,
    pub(super) recovery_ramp: Duration,
    pub(super) recovery: Recovery,
}

/// A [`FailureRate`] that is in its range and not off.
#[derive(Clone, Copy, Debug)]
pub(super) enum RateRule {
    Calibrated,
    Exact(Ratio),
}

/// How long a circuit is open, and how it closes.
#[derive(Clone, Debug)]
pub(super) struct Recovery {
    pub(super) open_time: Backoff,
    pub(super) probes: u32,
    pub(super) concurrent_probes: u32,
    pub(super) successes_needed: u32,
    pub(super) probe_lease: Duration,
    pub(super) max_half_open: Duration,
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
            .field("call_time", &self.call_time)
            .field("custom", &self.custom.is_some())
            .field("minimum_throughput", &self.minimum_throughput)
            .field("window", &self.window)
            .field("on_drop", &self.on_drop)
            .field("count_overdue", &self.count_overdue)
            .field("recovery_ramp", &self.recovery_ramp)
            .field("recovery", &self.recovery)
            .finish()
    }
}
