//! Our breaker, on virtual time.

use std::time::{Duration, Instant};

use buttress_core::circuit_breaker::{self, State};
use buttress_core::{Clock, Failure, FailureKind, Ignored, ManualClock, Outcome, Permit, Policy, Progress};

use crate::breaker::{Breaker, Call, Implementation};
use crate::trace::{self, Config, Feature, Operator, Part, Trace};

pub(crate) const IMPLEMENTATION: Implementation =
    Implementation { name: "buttress-core", features: &FEATURES, virtual_clock: true, make };

pub(crate) const FEATURES: [Feature; 30] = [
    Feature::CalibratedStreak,
    Feature::CloseShare,
    Feature::ConcurrentProbes,
    Feature::ConsecutiveFailures,
    Feature::CountWindow,
    Feature::Disable,
    Feature::DropThreshold,
    Feature::FailureRate,
    Feature::FailureRateShown,
    Feature::ForceOpen,
    Feature::Graceful,
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
    Feature::Progress,
    Feature::Reload,
    Feature::Reset,
    Feature::ResetClears,
    Feature::RetryAfter,
    Feature::SeveralProbes,
    Feature::SlowRate,
    Feature::TimeWindow,
];

type CircuitBreaker = circuit_breaker::CircuitBreaker<ManualClock>;

struct Ours {
    breaker: CircuitBreaker,
    clock: ManualClock,
    start: Instant,
    retry_after: Option<Duration>,
}

struct OurCall {
    permit: circuit_breaker::CircuitBreakerPermit<ManualClock>,
    clock: ManualClock,
    start: Instant,
}

fn make(trace: &Trace) -> Box<dyn Breaker> {
    let breaker = trace::configure!(CircuitBreaker::builder(trace.name.clone()), &trace.config);
    let clock = ManualClock::new();
    let breaker = breaker.clock(clock.clone()).build().expect("the traces' configurations are valid");
    let start = clock.now();
    Box::new(Ours { breaker, clock, start, retry_after: None })
}

impl Breaker for Ours {
    fn set_time(&mut self, since_start: Duration) {
        self.clock.set(self.start + since_start);
    }

    fn admit(&mut self) -> Option<Box<dyn Call>> {
        let permit = self.breaker.admit(&());
        let permit = permit.map_err(|rejection| self.retry_after = rejection.retry_after()).ok()?;
        Some(Box::new(OurCall { permit, clock: self.clock.clone(), start: self.start }))
    }

    fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    fn reload(&mut self, config: &Config) -> bool {
        let builder = trace::configure!(CircuitBreaker::builder("reload"), config);
        self.breaker.reload(&builder).is_ok()
    }

    fn failure_rate(&mut self) -> Option<Option<f64>> {
        Some(self.breaker.snapshot().failure_rate())
    }

    fn state(&mut self) -> Option<trace::State> {
        Some(state(self.breaker.state()))
    }

    fn operate(&mut self, operator: Operator) -> bool {
        let breaker = &self.breaker;
        match operator {
            Operator::ForceOpen => breaker.force_open(),
            Operator::Disable => breaker.disable(),
            Operator::MetricsOnly => breaker.metrics_only(),
            Operator::Reset => breaker.reset(),
            Operator::OpenFor { ms } => breaker.open_for(Duration::from_millis(ms)),
        }
        true
    }
}

impl Call for OurCall {
    fn is_probe(&self) -> Option<bool> {
        Some(self.permit.is_probe())
    }

    fn progress(&mut self, part: Part, now: Duration) {
        let progress = if part == Part::Head { Progress::Head } else { Progress::Frame };
        self.clock.set(self.start + now);
        self.permit.progress(progress);
    }

    fn end(mut self: Box<Self>, outcome: trace::Outcome, now: Duration) {
        self.clock.set(self.start + now);
        self.permit.settle(&outcome_of(outcome));
    }
}

pub(crate) fn outcome_of(outcome: trace::Outcome) -> Outcome {
    let failure = Failure::new(FailureKind::Http(503));
    match outcome {
        trace::Outcome::Success => Outcome::Success,
        trace::Outcome::Failure => failure.into(),
        trace::Outcome::Overload => Failure { overload: true, ..Failure::new(FailureKind::Http(429)) }.into(),
        trace::Outcome::Graceful => Failure { graceful: true, ..failure }.into(),
        trace::Outcome::Cancelled => Outcome::CANCELLED,
        trace::Outcome::Ignored => Outcome::Ignored(Ignored::Classified),
    }
}

pub(crate) fn state(state: State) -> trace::State {
    match state {
        State::Closed | State::Disabled | State::MetricsOnly => trace::State::Closed,
        State::Open | State::ForcedOpen => trace::State::Open,
        State::HalfOpen => trace::State::HalfOpen,
    }
}
