//! recloser, around a future.

use std::time::Duration;

use recloser::{AsyncRecloser, Recloser};

use crate::breaker::Implementation;
use crate::future::{Failed, begin};
use crate::run::{Breaker, Call};
use crate::trace::{CloseRule, Feature, Trace, Window};

pub(crate) const IMPLEMENTATION: Implementation = Implementation { name: "recloser", has, virtual_clock: false, make };

/// It decides with the first result after its window is full, so it has no minimum throughput and
/// needs more than one probe. It does not expose its state.
fn has(feature: Feature) -> bool {
    matches!(
        feature,
        Feature::Classifier
            | Feature::CloseShare
            | Feature::CountWindow
            | Feature::DropIgnored
            | Feature::FailureRate
            | Feature::HungProbeBypassed
            | Feature::HungProbeReplaced
            | Feature::OpenGrowth
            | Feature::ProbesUnlimited
            | Feature::RateAfterSuccess
            | Feature::SeveralProbes
    )
}

fn make(trace: &Trace) -> Box<dyn Breaker> {
    let config = &trace.config;
    let closed = match config.window {
        Window::Count(calls) => calls,
        Window::TimeMs(_) => config.minimum_throughput,
    };
    let longest = Duration::from_millis(config.open_max_ms.unwrap_or(config.open_ms));
    let recloser = Recloser::custom()
        .error_rate_closed(config.failure_rate.unwrap_or(1.0) as f32)
        .closed_len(closed as usize)
        .error_rate_half_open(match config.close_rule {
            // The first failure opens it again.
            CloseRule::All => f32::MIN_POSITIVE,
            CloseRule::Share(share) => 1.0 - share as f32,
        })
        // It decides with the first call beyond this length, which is the last probe.
        .half_open_len(config.probes.saturating_sub(1).max(1) as usize)
        .open_wait(config.open())
        .open_wait_strategy(move |failed: u32, open: Duration| open.saturating_mul(1 << failed.min(16)).min(longest))
        .build();
    Box::new(Guarded(recloser.into()))
}

struct Guarded(AsyncRecloser);

impl Breaker for Guarded {
    fn admit(&mut self) -> Option<Box<dyn Call>> {
        begin(|place| self.0.call_with(Failed::is_failure, place.serve())).map(|call| Box::new(call) as _)
    }
}
