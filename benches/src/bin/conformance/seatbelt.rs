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

use crate::breaker::Implementation;
use crate::future::{Backend, Failed, Place, begin, call};
use crate::run::{Breaker, Call};
use crate::trace::{Feature, OnDrop, Operator, Outcome, Trace, Window};

pub(crate) const IMPLEMENTATION: Implementation = Implementation { name: "seatbelt", has, virtual_clock: false, make };

/// The place of a cancelled probe is free only after a pause, so that cancelling callers do not
/// cause a burst of probes. It uses one probe, or a share of the traffic in several stages. It
/// exposes probes, but not all states.
fn has(feature: Feature) -> bool {
    matches!(
        feature,
        Feature::Classifier
            // By the condition that enables it, which is asked at each call.
            | Feature::Disable
            | Feature::DropCounts
            | Feature::DropCountsByDefault
            | Feature::DropIgnored
            | Feature::DropShare
            | Feature::FailureRate
            | Feature::GradualRecovery
            | Feature::HungProbeBypassed
            | Feature::HungProbeReplaced
            | Feature::MinimumThroughput
            | Feature::OneProbe
            | Feature::ProbesOnly
            | Feature::ProbesPaced
            | Feature::RateAfterSuccess
            | Feature::StaleProbesIgnored
            | Feature::TimeWindow
    )
}

/// Its number of stages until a circuit has recovered gradually.
const STAGES: u32 = 6;

struct Seatbelt<S> {
    service: S,
    probing: Arc<AtomicBool>,
    enabled: Arc<AtomicBool>,
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
    let enabled = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&enabled);
    let mut layer = SeatbeltBreaker::layer("breaker", &context)
        .recovery_with(|result, _| match result {
            Err(failed) if failed.is_failure() => RecoveryInfo::retry(),
            _ => RecoveryInfo::never(),
        })
        .rejected_input_error(|_, _| Failed(Outcome::Failure))
        .on_probing(move |_, _| told.store(true, Ordering::Relaxed))
        .failure_threshold(config.failure_rate.unwrap_or(1.0) as f32)
        .min_throughput(config.minimum_throughput)
        .break_duration(config.open())
        .half_open_mode(match config.recovery_ms {
            None => HalfOpenMode::quick(),
            Some(time) => HalfOpenMode::progressive(Duration::from_millis(time) / STAGES),
        })
        .enable_if(move |_| asked.load(Ordering::Relaxed))
        .abandoned_policy(match config.on_drop {
            OnDrop::Default => AbandonedPolicy::default(),
            OnDrop::Failure => AbandonedPolicy::as_failures(),
            OnDrop::Ignore | OnDrop::Slow => AbandonedPolicy::ignore(),
            OnDrop::Share(share) => AbandonedPolicy::rate_threshold(share as f32),
        });
    if let Window::TimeMs(time) = config.window {
        layer = layer.sampling_duration(Duration::from_millis(time));
    }
    let service = ServiceBuilder::new().layer(layer).service(Backend);
    drop(guard);
    Box::new(Seatbelt { service, probing, enabled, _runtime: runtime })
}

impl<S: tower::Service<Place, Future: 'static>> Breaker for Seatbelt<S> {
    fn admit(&mut self) -> Option<Box<dyn Call>> {
        self.probing.store(false, Ordering::Relaxed);
        let mut call = begin(|place| call(&mut self.service, place))?;
        call.is_probe = Some(self.probing.load(Ordering::Relaxed));
        Some(Box::new(call))
    }

    fn operate(&mut self, operator: Operator) -> bool {
        let can = operator == Operator::Disable;
        if can {
            self.enabled.store(false, Ordering::Relaxed);
        }
        can
    }
}
