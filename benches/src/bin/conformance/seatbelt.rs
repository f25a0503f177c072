//! seatbelt, through its tower side.
//!
//! Its clock can be set only with a feature that makes it slower, and this package also measures
//! its speed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use seatbelt::breaker::{AbandonedPolicy, Breaker as SeatbeltBreaker, HalfOpenMode};
use seatbelt::{RecoveryInfo, ResilienceContext};
use tick::Clock;
use tower::ServiceBuilder;

use crate::breaker::{Breaker, Call, Implementation};
use crate::future::{Backend, Failed, Place, begin, call};
use crate::trace::{Feature, OnDrop, Trace, Window};

pub(crate) const IMPLEMENTATION: Implementation = Implementation {
    name: "seatbelt",
    // The place of a cancelled probe is free only after a pause, so that cancelling callers do not
    // cause a burst of probes. It uses one probe, or a share of the traffic in several stages. It
    // exposes probes, but not all states.
    features: &[
        Feature::FailureRate,
        Feature::HungProbeBypassed,
        Feature::HungProbeReplaced,
        Feature::MinimumThroughput,
        Feature::OneProbe,
        Feature::ProbesPaced,
        Feature::RateAfterSuccess,
        Feature::TimeWindow,
    ],
    virtual_clock: false,
    make,
};

struct Seatbelt<S> {
    service: S,
    probing: Arc<AtomicBool>,
    _runtime: tokio::runtime::Runtime,
}

fn make(trace: &Trace) -> Box<dyn Breaker> {
    let config = &trace.config;
    // Its clock needs a runtime, for timers that no breaker sets.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let guard = runtime.enter();
    let context = ResilienceContext::<Place, Result<(), Failed>>::new(Clock::new_tokio());
    let probing = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&probing);
    let mut layer = SeatbeltBreaker::layer("breaker", &context)
        .recovery_with(|result, _| if result.is_ok() { RecoveryInfo::never() } else { RecoveryInfo::retry() })
        .rejected_input_error(|_, _| Failed)
        .on_probing(move |_, _| told.store(true, Ordering::Relaxed))
        .failure_threshold(config.failure_rate.unwrap_or(1.0) as f32)
        .min_throughput(config.minimum_throughput)
        .break_duration(config.open())
        .half_open_mode(HalfOpenMode::quick())
        .abandoned_policy(match config.on_drop {
            OnDrop::Failure => AbandonedPolicy::as_failures(),
            OnDrop::Ignore | OnDrop::Slow => AbandonedPolicy::ignore(),
        });
    if let Window::TimeMs(time) = config.window {
        layer = layer.sampling_duration(Duration::from_millis(time));
    }
    let service = ServiceBuilder::new().layer(layer).service(Backend);
    drop(guard);
    Box::new(Seatbelt { service, probing, _runtime: runtime })
}

impl<S: tower::Service<Place, Future: 'static>> Breaker for Seatbelt<S> {
    fn admit(&mut self) -> Option<Box<dyn Call>> {
        self.probing.store(false, Ordering::Relaxed);
        let mut call = begin(|place| call(&mut self.service, place))?;
        call.is_probe = Some(self.probing.load(Ordering::Relaxed));
        Some(Box::new(call))
    }
}
