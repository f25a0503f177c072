use super::{
    event::Counts,
    settings::{CallTime, CloseRule, FailureRate, FailureStreak, OnDrop, Window},
};
use crate::{Backoff, InvalidConfig, Ratio};
use std::{fmt, ops::RangeInclusive, sync::Arc, time::Duration};

/// The smallest number of calls that can meet [`FailureRate::Calibrated`]: with 8 calls or fewer,
/// `n/2 + 1.5 √n` is more than `n`.
const MIN_CALIBRATED_WINDOW: u32 = 9;

pub(super) type CustomRule = Arc<dyn Fn(&Counts) -> bool + Send + Sync>;

/// The settings of a builder, before they are checked.
#[derive(Clone)]
pub(super) struct Settings {
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
}

impl Default for Settings {
    fn default() -> Self {
        Self {
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
        }
    }
}

impl Settings {
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
            "cannot be off if every other trip rule is off",
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
                    "must not be more than the number of results in the window",
                )?;
                rule(
                    self.failure_rate != FailureRate::Calibrated || n >= MIN_CALIBRATED_WINDOW,
                    "failure_rate",
                    "needs a window of at least 9 calls if it is calibrated; set an exact share",
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

/// A valid configuration. Only [`Settings::parse`] creates one.
#[derive(Clone)]
pub(super) struct Config {
    pub(super) consecutive_failures: FailureStreak,
    pub(super) failure_rate: Option<RateRule>,
    pub(super) slow_rate: Option<Ratio>,
    pub(super) slow_threshold: Option<Duration>,
    pub(super) call_time: CallTime,
    pub(super) custom: Option<CustomRule>,
    pub(super) minimum_throughput: u32,
    /// `None` if no rule needs a window.
    pub(super) window: Option<Window>,
    pub(super) on_drop: OnDrop,
    pub(super) count_overdue: bool,
    pub(super) recovery_ramp: Duration,
    pub(super) recovery: Recovery,
}

/// A [`FailureRate`] that is in its range and not [`Off`](FailureRate::Off).
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
        match Settings::default().parse() {
            Ok(config) => config,
            Err(error) => unreachable!("the defaults are valid: {error}"),
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
