//! The interface between the runner and an implementation.

use std::time::Duration;

use crate::trace::{Config, Feature, Operator, Outcome, Part, State, Trace};

pub(crate) struct Implementation {
    /// The name of its crate.
    pub(crate) name: &'static str,
    /// The [`Feature`]s that it has.
    pub(crate) features: &'static [Feature],
    /// Whether it runs on a clock that the runner sets.
    pub(crate) virtual_clock: bool,
    pub(crate) make: fn(&Trace) -> Box<dyn Breaker>,
}

impl Implementation {
    /// The features that the trace requires and the implementation lacks.
    pub(crate) fn lacks(&self, trace: &Trace) -> Vec<Feature> {
        let has = |feature: &Feature| match feature {
            Feature::ExactTime => self.virtual_clock,
            feature => self.features.contains(feature),
        };
        trace.requires.iter().copied().filter(|feature| !has(feature)).collect()
    }
}

pub(crate) trait Breaker {
    /// Sets its clock, if it can be set.
    fn set_time(&mut self, _since_start: Duration) {}

    /// Asks for admission. `None` if the call is rejected.
    fn admit(&mut self) -> Option<Box<dyn Call>>;

    /// The retry-after of the last rejection.
    fn retry_after(&self) -> Option<Duration> {
        None
    }

    /// Changes the configuration at run time. `false` if that is not supported.
    fn reload(&mut self, _config: &Config) -> bool {
        false
    }

    /// Its failure rate, which may be unknown. `None` if it does not expose one.
    fn failure_rate(&mut self) -> Option<Option<f64>> {
        None
    }

    /// Its state. `None` if it does not expose one.
    fn state(&mut self) -> Option<State> {
        None
    }

    /// Applies an operator's action. `false` if that is not supported.
    fn operate(&mut self, _operator: Operator) -> bool {
        false
    }
}

/// A call in flight. Dropping it abandons the call without an outcome.
pub(crate) trait Call {
    /// Whether it is a probe. `None` if the implementation does not tell.
    fn is_probe(&self) -> Option<bool> {
        None
    }

    /// Delivers a part of its response.
    fn progress(&mut self, _part: Part, _now: Duration) {
        unreachable!("only traces that require `progress` use it");
    }

    /// Ends the call. `now` is for implementations whose clock can be set.
    fn end(self: Box<Self>, outcome: Outcome, now: Duration);
}

impl Config {
    pub(crate) fn open(&self) -> Duration {
        Duration::from_millis(self.open_ms)
    }
}
