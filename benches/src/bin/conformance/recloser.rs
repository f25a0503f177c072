//! recloser, around a future.

use recloser::{AsyncRecloser, Recloser};

use crate::breaker::{Breaker, Call, Implementation};
use crate::future::begin;
use crate::trace::{Feature, Trace, Window};

pub(crate) const IMPLEMENTATION: Implementation = Implementation {
    name: "recloser",
    // It decides with the first result after its window is full, so it has no minimum throughput
    // and needs more than one probe. It does not expose its state.
    features: &[Feature::CountWindow, Feature::FailureRate, Feature::SeveralProbes],
    virtual_clock: false,
    make,
};

fn make(trace: &Trace) -> Box<dyn Breaker> {
    let config = &trace.config;
    let closed = match config.window {
        Window::Count(calls) => calls,
        Window::TimeMs(_) => config.minimum_throughput,
    };
    let recloser = Recloser::custom()
        .error_rate_closed(config.failure_rate.unwrap_or(1.0) as f32)
        .closed_len(closed as usize)
        // The first failure opens it again.
        .error_rate_half_open(f32::MIN_POSITIVE)
        // It decides with the first call beyond this length, which is the last probe.
        .half_open_len(config.probes.saturating_sub(1).max(1) as usize)
        .open_wait(config.open())
        .build();
    Box::new(Guarded(recloser.into()))
}

struct Guarded(AsyncRecloser);

impl Breaker for Guarded {
    fn admit(&mut self) -> Option<Box<dyn Call>> {
        begin(|place| self.0.call(place.serve())).map(|call| Box::new(call) as _)
    }
}
