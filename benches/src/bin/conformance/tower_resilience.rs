//! tower-resilience, through its layer and its handle.

use std::time::Duration;

use tower::Layer;
use tower_resilience_circuitbreaker::{
    CircuitBreaker, CircuitBreakerHandle, CircuitBreakerLayer, CircuitState, FnClassifier, SlidingWindowType,
};

use crate::breaker::Implementation;
use crate::future::{Backend, Failed, at_once, begin, call};
use crate::run::{Breaker, Call};
use crate::trace::{Feature, Operator, State, Trace, Window};

pub(crate) const IMPLEMENTATION: Implementation =
    Implementation { name: "tower-resilience-circuitbreaker", has, virtual_clock: false, make };

fn has(feature: Feature) -> bool {
    matches!(
        feature,
        Feature::Classifier
            | Feature::ConsecutiveFailures
            | Feature::CountWindow
            | Feature::DropIgnored
            | Feature::FailureRate
            | Feature::FailureRateShown
            // In manual mode, which is chosen when it is built.
            | Feature::ForceOpen
            | Feature::MetricsOnly
            | Feature::MinimumThroughput
            | Feature::OneProbe
            // Without manual mode, `force_open` is a trip by hand for the configured time.
            | Feature::OpenFor
            | Feature::ProbeCount
            | Feature::ProbeSlotReturned
            | Feature::ProbesOnly
            | Feature::RateAfterSuccess
            | Feature::Reset
            | Feature::ResetClears
            | Feature::SeveralProbes
            | Feature::SlowRate
            | Feature::SlowToHead
            | Feature::TimeWindow
    )
}

type Classify = fn(&Result<(), Failed>) -> bool;

struct TowerResilience {
    service: CircuitBreaker<Backend, FnClassifier<Classify>>,
    handle: CircuitBreakerHandle<FnClassifier<Classify>>,
    open_ms: u64,
    manual: bool,
}

fn make(trace: &Trace) -> Box<dyn Breaker> {
    let config = &trace.config;
    let classify: Classify = |result| result.is_err_and(|failed| failed.is_failure());
    let mut builder = CircuitBreakerLayer::builder()
        .minimum_number_of_calls(config.minimum_throughput as usize)
        .wait_duration_in_open(config.open())
        // It has no separate limit for concurrent probes.
        .permitted_calls_in_half_open(config.probes as usize)
        // 1 is the closest to off.
        .failure_rate_threshold(config.failure_rate.unwrap_or(1.0))
        .failure_classifier(classify);
    match config.window {
        Window::Count(calls) => builder = builder.sliding_window_size(calls as usize),
        Window::TimeMs(time) if trace.requires(Feature::TimeWindow) => {
            builder = builder
                .sliding_window_type(SlidingWindowType::TimeBased)
                .sliding_window_duration(Duration::from_millis(time));
        }
        // Its default, a count window.
        Window::TimeMs(_) => {}
    }
    if let Some(threshold) = config.slow_threshold_ms {
        builder = builder
            .slow_call_duration_threshold(Duration::from_millis(threshold))
            .slow_call_rate_threshold(config.slow_rate.unwrap_or(1.0));
    }
    // It trips by either rule, not by both.
    if let Some(failures) = config.fixed_streak().filter(|_| !trace.requires(Feature::FailureRate)) {
        builder = builder.consecutive_failures(failures as usize);
    }
    let manual = trace.requires(Feature::ForceOpen) || trace.requires(Feature::MetricsOnly);
    if manual {
        builder = builder.manual_mode();
    }
    let (layer, handle) = builder.build_with_handle().expect("the traces' configurations are valid");
    Box::new(TowerResilience { service: layer.layer(Backend), handle, open_ms: config.open_ms, manual })
}

impl Breaker for TowerResilience {
    fn admit(&mut self) -> Option<Box<dyn Call>> {
        begin(|place| call(&mut self.service, place)).map(|call| Box::new(call) as _)
    }

    fn failure_rate(&mut self) -> Option<Option<f64>> {
        Some(Some(at_once(self.handle.metrics()).failure_rate))
    }

    fn state(&mut self) -> Option<State> {
        Some(match self.handle.state() {
            CircuitState::Closed => State::Closed,
            CircuitState::Open => State::Open,
            CircuitState::HalfOpen => State::HalfOpen,
        })
    }

    fn operate(&mut self, operator: Operator) -> bool {
        match operator {
            Operator::Reset => at_once(self.handle.reset()),
            Operator::ForceOpen if self.manual => at_once(self.handle.force_open()),
            Operator::OpenFor { ms } if !self.manual && ms == self.open_ms => at_once(self.handle.force_open()),
            Operator::MetricsOnly => return self.manual,
            _ => return false,
        }
        true
    }
}
