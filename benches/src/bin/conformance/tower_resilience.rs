//! tower-resilience, through its layer and its handle.

use std::time::Duration;

use tower::Layer;
use tower_resilience_circuitbreaker::{
    CircuitBreaker, CircuitBreakerHandle, CircuitBreakerLayer, CircuitState, DefaultClassifier, SlidingWindowType,
};

use crate::breaker::{Breaker, Call, Implementation};
use crate::future::{Backend, at_once, begin, call};
use crate::trace::{Feature, Operator, State, Trace, Window};

pub(crate) const IMPLEMENTATION: Implementation = Implementation {
    name: "tower-resilience-circuitbreaker",
    // Its `force_open` is a manual trip: it probes after the open time, unless the whole breaker is
    // in manual mode, in which it never trips.
    features: &[
        Feature::ConsecutiveFailures,
        Feature::CountWindow,
        Feature::FailureRate,
        Feature::MinimumThroughput,
        Feature::OneProbe,
        Feature::OpenFor,
        Feature::ProbeCount,
        Feature::ProbeSlotReturned,
        Feature::RateAfterSuccess,
        Feature::Reset,
        Feature::ResetClears,
        Feature::SeveralProbes,
        Feature::SlowRate,
        Feature::TimeWindow,
    ],
    virtual_clock: false,
    make,
};

struct TowerResilience {
    service: CircuitBreaker<Backend, DefaultClassifier>,
    handle: CircuitBreakerHandle,
    open_ms: u64,
}

fn make(trace: &Trace) -> Box<dyn Breaker> {
    let config = &trace.config;
    let mut builder = CircuitBreakerLayer::builder()
        .minimum_number_of_calls(config.minimum_throughput as usize)
        .wait_duration_in_open(config.open())
        // It has no separate limit for concurrent probes.
        .permitted_calls_in_half_open(config.probes as usize)
        // 1 is the closest to off.
        .failure_rate_threshold(config.failure_rate.unwrap_or(1.0));
    builder = match config.window {
        Window::Count(calls) => {
            builder.sliding_window_type(SlidingWindowType::CountBased).sliding_window_size(calls as usize)
        }
        Window::TimeMs(time) => builder
            .sliding_window_type(SlidingWindowType::TimeBased)
            .sliding_window_duration(Duration::from_millis(time)),
    };
    if let Some(threshold) = config.slow_threshold_ms {
        builder = builder
            .slow_call_duration_threshold(Duration::from_millis(threshold))
            .slow_call_rate_threshold(config.slow_rate.unwrap_or(1.0));
    }
    // It trips by either rule, not by both.
    if let Some(failures) = config.fixed_streak().filter(|_| !trace.requires(Feature::FailureRate)) {
        builder = builder.consecutive_failures(failures as usize);
    }
    let (layer, handle) = builder.build_with_handle().expect("the traces' configurations are valid");
    Box::new(TowerResilience { service: layer.layer(Backend), handle, open_ms: config.open_ms })
}

impl Breaker for TowerResilience {
    fn admit(&mut self) -> Option<Box<dyn Call>> {
        begin(|place| call(&mut self.service, place)).map(|call| Box::new(call) as _)
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
            Operator::OpenFor { ms } if ms == self.open_ms => at_once(self.handle.force_open()),
            _ => return false,
        }
        true
    }
}
