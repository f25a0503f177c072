//! The trace format as Rust types; see README.md. All runners of this repository include this file.

mod step;
mod uses;

pub(crate) use step::{Admission, Op, Operator, Outcome, Part, State, Step};

use serde::Deserialize;
use std::{collections::BTreeMap, fmt, fs, io, path::Path};

/// The format version that this file reads.
const FORMAT: u32 = 1;

/// A trace: events of one circuit breaker and the expected results.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Trace {
    format: u32,
    pub(crate) name: String,
    /// The rule that it tests.
    pub(crate) rule: String,
    /// Why the rule matters.
    pub(crate) why: String,
    pub(crate) basis: Basis,
    pub(crate) requires: Vec<Feature>,
    /// A runner on a real clock divides all times by this, for traces that last minutes or hours.
    #[serde(default = "one")]
    pub(crate) divide_by: u32,
    pub(crate) config: Config,
    pub(crate) steps: Vec<Step>,
}

/// Who says so, with one sentence of reason.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Basis {
    /// The implementations to which the trace applies: it follows from what they document.
    Documented(String),
    /// The authors of the trace.
    Judgement(String),
}

/// A feature that an implementation must have for a trace to apply.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Feature {
    CalibratedStreak,
    Classifier,
    CloseEarly,
    CloseShare,
    ConcurrentProbes,
    ConsecutiveFailures,
    CountWindow,
    Disable,
    DropCounts,
    DropCountsByDefault,
    DropIgnored,
    DropShare,
    DropThreshold,
    ExactTime,
    FailureRate,
    FailureRateShown,
    FailureRateUnknown,
    ForceOpen,
    Graceful,
    GradualRecovery,
    HalfOpenBound,
    HungProbeBypassed,
    HungProbeReplaced,
    Ignored,
    LateResultsIgnored,
    MetricsOnly,
    MinimumThroughput,
    OneProbe,
    OpenFor,
    OpenGrowth,
    Overload,
    ProbeCount,
    ProbeLease,
    ProbeRounds,
    ProbeSlotReturned,
    ProbesOnly,
    ProbesPaced,
    ProbesUnlimited,
    Progress,
    RateAfterSuccess,
    Reload,
    ReloadJudged,
    Reset,
    ResetClears,
    RetryAfter,
    RetryAfterHalfOpen,
    SeveralProbes,
    SlowRate,
    SlowStrictly,
    SlowToHead,
    StaleProbesIgnored,
    TimeWindow,
}

/// A configuration in neutral terms. A rule that is absent is off.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) consecutive_failures: Option<Streak>,
    pub(crate) failure_rate: Option<f64>,
    pub(crate) slow_rate: Option<f64>,
    pub(crate) slow_threshold_ms: Option<u64>,
    #[serde(default = "one")]
    pub(crate) minimum_throughput: u32,
    #[serde(default)]
    pub(crate) window: Window,
    pub(crate) open_ms: u64,
    pub(crate) open_max_ms: Option<u64>,
    #[serde(default = "one")]
    pub(crate) probes: u32,
    #[serde(default = "one")]
    pub(crate) concurrent_probes: u32,
    #[serde(default)]
    pub(crate) close_rule: CloseRule,
    #[serde(default = "half_a_minute")]
    pub(crate) lease_ms: u64,
    #[serde(default = "minute")]
    pub(crate) max_half_open_ms: u64,
    #[serde(default)]
    pub(crate) on_drop: OnDrop,
    pub(crate) recovery_ms: Option<u64>,
}

/// Number of consecutive failures that trip it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(untagged)]
pub(crate) enum Streak {
    Fixed(u32),
    Rule(StreakRule),
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StreakRule {
    /// At least 5, and more than chance explains once in 10^9 calls at the failure rate of the
    /// other results in the window.
    Calibrated,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Window {
    TimeMs(u64),
    Count(u32),
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CloseRule {
    #[default]
    All,
    Share(f64),
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnDrop {
    #[default]
    Ignore,
    Slow,
    Failure,
    /// As failures, while at least this share of the calls in the window was dropped.
    Share(f64),
    /// What the implementation does by default.
    Default,
}

impl Trace {
    /// Maximum number of failing calls that `trip` makes.
    pub(crate) const TRIP_LIMIT: u32 = 100;

    pub(crate) fn requires(&self, feature: Feature) -> bool {
        self.requires.contains(&feature)
    }

    /// Reads all traces in `directory`, by name.
    pub(crate) fn read_all(directory: &Path) -> io::Result<BTreeMap<String, Self>> {
        let mut traces = BTreeMap::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let trace = Self::read(&path)?;
                traces.insert(trace.name.clone(), trace);
            }
        }
        Ok(traces)
    }

    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let invalid = |problem: String| io::Error::other(format!("{}: {problem}", path.display()));
        let trace: Self = serde_json::from_slice(&fs::read(path)?).map_err(|error| invalid(error.to_string()))?;
        if path.file_stem().is_none_or(|stem| stem != trace.name.as_str()) {
            return Err(invalid(format!("is named `{}` inside", trace.name)));
        }
        trace.check().map_err(invalid)?;
        Ok(trace)
    }

    /// Checks what the types do not.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("format {} is not {FORMAT}", self.format));
        }
        if !self.steps.is_sorted_by_key(|step| step.at_ms) {
            return Err("its steps are not in the order of their times".into());
        }
        if !self.requires.is_sorted_by(|a, b| a < b) {
            return Err("its requirements are not in order, or repeat one".into());
        }
        match self.uses().into_iter().find(|feature| !self.requires(*feature)) {
            Some(feature) => Err(format!("it uses `{feature}` and does not require it")),
            None => Ok(()),
        }
    }
}

impl Config {
    /// The number of consecutive failures for an implementation without the calibrated rule: the
    /// minimum of that rule.
    pub(crate) fn fixed_streak(&self) -> Option<u32> {
        self.consecutive_failures.map(|streak| match streak {
            Streak::Fixed(failures) => failures,
            Streak::Rule(StreakRule::Calibrated) => 5,
        })
    }
}

impl Default for Window {
    fn default() -> Self {
        Self::TimeMs(10_000)
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{self:?}");
        for (i, c) in name.char_indices() {
            if c.is_uppercase() && i > 0 {
                f.write_str("-")?;
            }
            write!(f, "{}", c.to_ascii_lowercase())?;
        }
        Ok(())
    }
}

fn one() -> u32 {
    1
}

fn half_a_minute() -> u64 {
    30_000
}

fn minute() -> u64 {
    60_000
}

/// Converts a trace's configuration to ours. The builders of the core and of the layer have the
/// same methods.
macro_rules! configure {
    ($builder:expr, $config:expr) => {{
        use buttress_core::circuit_breaker::{CloseRule, FailureStreak, OnDrop, Window};
        use std::time::Duration;
        use $crate::trace;

        let (config, millis): (&trace::Config, _) = ($config, Duration::from_millis);
        $builder
            .consecutive_failures(match config.consecutive_failures {
                None => FailureStreak::Off,
                Some(trace::Streak::Fixed(failures)) => FailureStreak::Fixed(failures),
                Some(trace::Streak::Rule(trace::StreakRule::Calibrated)) => FailureStreak::Calibrated,
            })
            .failure_rate(config.failure_rate)
            .slow_rate(config.slow_rate)
            .slow_threshold(config.slow_threshold_ms.map(millis))
            .minimum_throughput(config.minimum_throughput)
            .window(match config.window {
                trace::Window::TimeMs(time) => Window::Time(millis(time)),
                trace::Window::Count(calls) => Window::Count(calls),
            })
            .open_time(millis(config.open_ms)..=millis(config.open_max_ms.unwrap_or(config.open_ms)))
            .recovery_ramp(millis(config.recovery_ms.unwrap_or(0)))
            .probes(config.probes)
            .concurrent_probes(config.concurrent_probes)
            .close_rule(match config.close_rule {
                trace::CloseRule::All => CloseRule::AllProbes,
                trace::CloseRule::Share(share) => CloseRule::Share(share),
            })
            .probe_lease(millis(config.lease_ms))
            .max_half_open(millis(config.max_half_open_ms))
            .on_drop(match config.on_drop {
                trace::OnDrop::Ignore => OnDrop::Ignore,
                trace::OnDrop::Slow => OnDrop::Slow,
                trace::OnDrop::Failure => OnDrop::Failure,
                trace::OnDrop::Default => OnDrop::default(),
                trace::OnDrop::Share(_) => unreachable!("ours does not count a share of the dropped calls"),
            })
    }};
}
pub(crate) use configure;
