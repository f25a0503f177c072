//! What the runner asks of an implementation.

use std::time::Duration;

use crate::trace::{Config, Feature, Operator, Outcome, Part, State, Trace};

pub(crate) struct Implementation {
    /// Its crate.
    pub(crate) name: &'static str,
    /// Those of [`Feature`] that it has.
    pub(crate) features: &'static [Feature],
    /// Whether it runs on a clock that the runner sets.
    pub(crate) virtual_clock: bool,
    pub(crate) make: fn(&Trace) -> Box<dyn Breaker>,
}

impl Implementation {
    /// What it lacks for the trace.
    pub(crate) fn lacks(&self, trace: &Trace) -> Vec<Feature> {
        let has = |feature: &Feature| match feature {
            Feature::ExactTime => self.virtual_clock,
            feature => self.features.contains(feature),
        };
        trace.requires.iter().copied().filter(|feature| !has(feature)).collect()
    }
}

pub(crate) trait Breaker {
    /// Sets its clock, where it has one that can be set.
    fn set_time(&mut self, _since_start: Duration) {}

    /// `None` when it refuses.
    fn admit(&mut self) -> Option<Box<dyn Call>>;

    /// When the last rejection asks its caller to come back.
    fn retry_after(&self) -> Option<Duration> {
        None
    }

    /// `false` when it cannot do that.
    fn reload(&mut self, _config: &Config) -> bool {
        false
    }

    /// The failure rate that it shows, which may be none; `None` when it cannot be seen.
    fn failure_rate(&mut self) -> Option<Option<f64>> {
        None
    }

    /// `None` when it cannot be seen.
    fn state(&mut self) -> Option<State> {
        None
    }

    /// `false` when it cannot do that.
    fn operate(&mut self, _operator: Operator) -> bool {
        false
    }
}

/// A call in flight. Dropped, it vanishes.
pub(crate) trait Call {
    /// `None` where it is not told.
    fn is_probe(&self) -> Option<bool> {
        None
    }

    /// A part of its response arrives.
    fn progress(&mut self, _part: Part, _now: Duration) {
        unreachable!("only where it is required");
    }

    /// `now` is for those whose clock can be set.
    fn end(self: Box<Self>, outcome: Outcome, now: Duration);
}

impl Config {
    pub(crate) fn open(&self) -> Duration {
        Duration::from_millis(self.open_ms)
    }
}
