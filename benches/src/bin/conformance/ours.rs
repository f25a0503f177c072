//! Our breaker, on virtual time.

use std::time::{Duration, Instant};

use buttress_core::circuit_breaker::{CircuitBreakerPermit, CloseRule, OnDrop, State, Window};
use buttress_core::{Admit, CircuitBreaker, Failure, FailureKind, Ignored, Outcome, Permit};

use crate::breaker::{Breaker, Call, Implementation};
use crate::trace::{self, Feature, Operator, Trace};

pub(crate) const IMPLEMENTATION: Implementation = Implementation {
    name: "buttress",
    features: &[
        Feature::CloseShare,
        Feature::ConcurrentProbes,
        Feature::ConsecutiveFailures,
        Feature::CountWindow,
        Feature::Disable,
        Feature::DropThreshold,
        Feature::FailureRate,
        Feature::ForceOpen,
        Feature::HalfOpenBound,
        Feature::HungProbeReplaced,
        Feature::Ignored,
        Feature::MetricsOnly,
        Feature::MinimumThroughput,
        Feature::OneProbe,
        Feature::OpenFor,
        Feature::Overload,
        Feature::ProbeCount,
        Feature::ProbeLease,
        Feature::ProbeSlotReturned,
        Feature::Reset,
        Feature::ResetClears,
        Feature::SeveralProbes,
        Feature::SlowRate,
        Feature::TimeWindow,
    ],
    virtual_clock: true,
    make,
};

struct Ours {
    breaker: CircuitBreaker,
    start: Instant,
    now: Instant,
}

struct OurCall {
    permit: CircuitBreakerPermit,
    start: Instant,
}

fn make(trace: &Trace) -> Box<dyn Breaker> {
    let config = &trace.config;
    let millis = Duration::from_millis;
    let breaker = CircuitBreaker::builder(trace.name.clone())
        .consecutive_failures(config.consecutive_failures)
        .failure_rate(config.failure_rate)
        .slow_rate(config.slow_rate)
        .slow_threshold(config.slow_threshold_ms.map(millis))
        .minimum_throughput(config.minimum_throughput)
        .window(match config.window {
            trace::Window::TimeMs(time) => Window::Time(millis(time)),
            trace::Window::Count(calls) => Window::Count(calls),
        })
        .open_time(config.open()..=config.open())
        .probes(config.probes)
        .concurrent_probes(config.concurrent_probes)
        .close_rule(match config.close_rule {
            trace::CloseRule::All => CloseRule::AllProbes,
            trace::CloseRule::Share(share) => CloseRule::Share(share),
        })
        .probe_lease(millis(config.lease_ms))
        .max_half_open(millis(config.max_half_open_ms))
        .on_drop(match config.on_drop {
            trace::OnDrop::Ignore => OnDrop::Ignore,
            trace::OnDrop::Slow => OnDrop::Slow,
            trace::OnDrop::Failure => OnDrop::Failure,
        })
        .build()
        .expect("the traces' configurations are valid");
    #[expect(clippy::disallowed_methods, reason = "an Instant can only be made by reading the clock once")]
    let start = Instant::now();
    Box::new(Ours { breaker, start, now: start })
}

impl Breaker for Ours {
    fn set_time(&mut self, since_start: Duration) {
        self.now = self.start + since_start;
    }

    fn admit(&mut self) -> Option<Box<dyn Call>> {
        let permit = self.breaker.admit(&(), &self.now).ok()?;
        Some(Box::new(OurCall { permit, start: self.start }))
    }

    fn state(&mut self) -> Option<trace::State> {
        Some(match self.breaker.state(&self.now) {
            State::Closed | State::Disabled | State::MetricsOnly => trace::State::Closed,
            State::Open | State::ForcedOpen => trace::State::Open,
            State::HalfOpen => trace::State::HalfOpen,
        })
    }

    fn operate(&mut self, operator: Operator) -> bool {
        let (breaker, now) = (&self.breaker, &self.now);
        match operator {
            Operator::ForceOpen => breaker.force_open(now),
            Operator::Disable => breaker.disable(now),
            Operator::MetricsOnly => breaker.metrics_only(now),
            Operator::Reset => breaker.reset(now),
            Operator::OpenFor { ms } => breaker.open_for(Duration::from_millis(ms), now),
        }
        true
    }
}

impl Call for OurCall {
    fn is_probe(&self) -> Option<bool> {
        Some(self.permit.is_probe())
    }

    fn end(mut self: Box<Self>, outcome: trace::Outcome, now: Duration) {
        let outcome = match outcome {
            trace::Outcome::Success => Outcome::Success,
            trace::Outcome::Failure => Failure::new(FailureKind::Http(503)).into(),
            trace::Outcome::Overload => Failure { overload: true, ..Failure::new(FailureKind::Http(429)) }.into(),
            trace::Outcome::Cancelled => Outcome::CANCELLED,
            trace::Outcome::Ignored => Outcome::Ignored(Ignored::Classified),
        };
        self.permit.settle(&outcome, &(self.start + now));
    }
}
