//! Traces of a rate limit: their format and how they are run. README.md has the format.

use crate::trace::Basis;
use serde::Deserialize;
use std::{collections::HashMap, fmt, fs, io, path::Path, time::Duration};

/// A trace: events of one rate limit and the expected results.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RateTrace {
    format: u32,
    pub(crate) name: String,
    #[allow(dead_code, reason = "only the test shows it")]
    pub(crate) rule: String,
    #[allow(dead_code, reason = "for the reader of the file")]
    why: String,
    #[allow(dead_code, reason = "only the report shows it")]
    pub(crate) basis: Basis,
    pub(crate) requires: Vec<RateFeature>,
    pub(crate) config: RateConfig,
    pub(crate) steps: Vec<RateStep>,
}

/// A feature that an implementation must have for a trace to apply.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RateFeature {
    /// A burst that is not the limit.
    Burst,
    /// A burst below the limit.
    BurstBelowLimit,
    /// Calls that cost more than one.
    Cost,
    /// A clock that the runner sets.
    ExactTime,
    Reload,
    /// Reservations: a call is admitted for a later start.
    Reserve,
    RetryAfter,
    /// What was taken for a call that did not start can be given back.
    Undo,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RateConfig {
    pub(crate) limit: u32,
    pub(crate) period_ms: u64,
    pub(crate) burst: u32,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RateStep {
    pub(crate) at_ms: u64,
    #[serde(flatten)]
    op: Op,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
enum Op {
    /// Of `calls` calls one after the other, exactly `admitted` are admitted.
    Calls {
        calls: u32,
        admitted: u32,
    },
    /// A call of a cost, which is named `call` if it is admitted.
    Take {
        cost: u32,
        expect: Taken,
        retry_ms: Option<u64>,
        call: Option<String>,
    },
    /// A call of cost 1 that may wait for up to `max_ms` and starts after `wait_ms`. Without
    /// `wait_ms` it is rejected.
    Reserve {
        max_ms: u64,
        wait_ms: Option<u64>,
        call: Option<String>,
    },
    /// The call did not start.
    Undo {
        call: String,
    },
    Reload {
        config: RateConfig,
    },
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Taken {
    Admitted,
    Rejected,
    /// Never admitted.
    Refused,
}

/// An implementation, made for the configuration of one trace. The default methods are those of one
/// that lacks the feature.
pub(crate) trait Limiter {
    /// Sets its clock, if it can be set.
    fn set_time(&mut self, _since_start: Duration) {}

    /// Takes `cost`. With a rejection comes the time after which to try again, if it says so.
    fn take(&mut self, cost: u32) -> (Taken, Option<Duration>);

    fn take_named(&mut self, cost: u32, _name: &str) -> (Taken, Option<Duration>) {
        self.take(cost)
    }

    /// Returns the wait of a call that may wait for up to `max`. `None`: it is rejected.
    fn reserve(&mut self, _max: Duration, _name: &str) -> Option<Duration> {
        None
    }

    fn undo(&mut self, _name: &str) {}

    fn reload(&mut self, _config: RateConfig) {}
}

impl RateTrace {
    /// Reads all traces in `directory`, by name.
    pub(crate) fn read_all(directory: &Path) -> io::Result<Vec<Self>> {
        let mut traces = Vec::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let invalid = |problem: String| io::Error::other(format!("{}: {problem}", path.display()));
            let trace: Self = serde_json::from_slice(&fs::read(&path)?).map_err(|error| invalid(error.to_string()))?;
            if trace.format != 1 || path.file_stem().is_none_or(|stem| stem != trace.name.as_str()) {
                return Err(invalid("has another format or another name".into()));
            }
            if !trace.steps.is_sorted_by_key(|step| step.at_ms) {
                return Err(invalid("its steps are not in the order of their times".into()));
            }
            traces.push(trace);
        }
        traces.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(traces)
    }

    /// Executes a step.
    ///
    /// # Errors
    /// How the implementation deviates from what the trace expects.
    pub(crate) fn step(&self, number: usize, limiter: &mut dyn Limiter) -> Result<(), String> {
        let step = &self.steps[number];
        limiter.set_time(Duration::from_millis(step.at_ms));
        match &step.op {
            Op::Calls { calls, admitted } => {
                let actual = (0..*calls).filter(|_| limiter.take(1).0 == Taken::Admitted).count();
                same("admitted calls", *admitted as usize, actual)
            }
            Op::Take { cost, expect, retry_ms, call } => {
                let (taken, retry) = match call {
                    Some(call) => limiter.take_named(*cost, call),
                    None => limiter.take(*cost),
                };
                same("the answer", *expect, taken)?;
                match retry_ms {
                    Some(millis) => same("retry-after", Some(Duration::from_millis(*millis)), retry),
                    None => Ok(()),
                }
            }
            Op::Reserve { max_ms, wait_ms, call } => {
                let wait = limiter.reserve(Duration::from_millis(*max_ms), call.as_deref().unwrap_or(""));
                same("the wait", wait_ms.map(Duration::from_millis), wait)
            }
            Op::Undo { call } => {
                limiter.undo(call);
                Ok(())
            }
            Op::Reload { config } => {
                limiter.reload(*config);
                Ok(())
            }
        }
    }
}

fn same<T: fmt::Debug + PartialEq>(what: &str, expected: T, actual: T) -> Result<(), String> {
    if expected == actual { Ok(()) } else { Err(format!("{what}: expected {expected:?}, but it is {actual:?}")) }
}

/// Our rate limit, on virtual time.
pub(crate) struct Ours {
    limit: buttress_core::rate_limit::RateLimit<buttress_core::ManualClock>,
    clock: buttress_core::ManualClock,
    start: std::time::Instant,
    calls: HashMap<String, buttress_core::rate_limit::RatePermit>,
}

pub(crate) fn ours(config: RateConfig) -> Box<dyn Limiter> {
    use buttress_core::{Clock, ManualClock, rate_limit::RateLimit};
    let clock = ManualClock::new();
    let builder = RateLimit::<ManualClock>::builder(quota(config)).clock(clock.clone());
    let limit = builder.build().expect("the traces' configurations are valid");
    Box::new(Ours { limit, start: clock.now(), clock, calls: HashMap::new() })
}

fn quota(config: RateConfig) -> buttress_core::rate_limit::Quota {
    let RateConfig { limit, period_ms, burst } = config;
    buttress_core::rate_limit::Quota { limit, period: Duration::from_millis(period_ms), burst }
}

impl Limiter for Ours {
    fn set_time(&mut self, since_start: Duration) {
        self.clock.set(self.start + since_start);
    }

    fn take(&mut self, cost: u32) -> (Taken, Option<Duration>) {
        self.take_named(cost, "")
    }

    fn take_named(&mut self, cost: u32, name: &str) -> (Taken, Option<Duration>) {
        match self.limit.try_take(cost) {
            Ok(permit) => {
                self.calls.insert(name.to_owned(), permit);
                (Taken::Admitted, None)
            }
            Err(rejection) if rejection.reason() == &buttress_core::rate_limit::TOO_LARGE => (Taken::Refused, None),
            Err(rejection) => (Taken::Rejected, rejection.retry_after()),
        }
    }

    fn reserve(&mut self, max: Duration, name: &str) -> Option<Duration> {
        let scheduled = self.limit.reserve(1, max).ok()?;
        self.calls.insert(name.to_owned(), scheduled.permit);
        Some(scheduled.wait)
    }

    fn undo(&mut self, name: &str) {
        self.calls.remove(name).map(|permit| self.limit.give_back(permit));
    }

    fn reload(&mut self, config: RateConfig) {
        self.limit.reload(quota(config)).expect("the traces' configurations are valid");
    }
}
