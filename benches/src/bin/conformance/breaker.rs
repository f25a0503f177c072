//! What the runner knows of an implementation.

use std::time::Duration;

use crate::run::Breaker;
use crate::trace::{Config, Feature, Trace};

pub(crate) struct Implementation {
    /// The name of its crate.
    pub(crate) name: &'static str,
    /// Whether it has a feature: whether its documentation says so.
    pub(crate) has: fn(Feature) -> bool,
    /// Whether it runs on a clock that the runner sets.
    pub(crate) virtual_clock: bool,
    pub(crate) make: fn(&Trace) -> Box<dyn Breaker>,
}

impl Implementation {
    /// The features that the trace requires and the implementation lacks.
    pub(crate) fn lacks(&self, trace: &Trace) -> Vec<Feature> {
        trace.requires.iter().copied().filter(|feature| !self.offers(*feature)).collect()
    }

    pub(crate) fn offers(&self, feature: Feature) -> bool {
        if feature == Feature::ExactTime { self.virtual_clock } else { (self.has)(feature) }
    }
}

impl Config {
    pub(crate) fn open(&self) -> Duration {
        Duration::from_millis(self.open_ms)
    }
}
