//! Our breaker, on virtual time.

use std::time::{Duration, Instant};

use buttress_core::circuit_breaker::{CircuitBreakerPermit, State};
use buttress_core::{Admit, CircuitBreaker, Failure, FailureKind, Ignored, Outcome, Permit, Progress};

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

struct Ours {
    breaker: CircuitBreaker,
    start: Instant,
    now: Instant,
    retry_after: Option<Duration>,
}

struct OurCall {
    permit: CircuitBreakerPermit,
    start: Instant,
}

fn make(trace: &Trace) -> Box<dyn Breaker> {
    let breaker = trace::configure!(CircuitBreaker::builder(trace.name.clone()), &trace.config);
    let breaker = breaker.build().expect("the traces' configurations are valid");
    #[expect(clippy::disallowed_methods, reason = "an Instant can only be made by reading the clock once")]
    let start = Instant::now();
    Box::new(Ours { breaker, start, now: start, retry_after: None })
}

impl Breaker for Ours {
    fn set_time(&mut self, since_start: Duration) {
        self.now = self.start + since_start;
    }

    fn admit(&mut self) -> Option<Box<dyn Call>> {
        let permit = self.breaker.admit(&(), &self.now);
        let permit = permit.map_err(|rejection| self.retry_after = rejection.retry_after()).ok()?;
        Some(Box::new(OurCall { permit, start: self.start }))
    }

    fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    fn reload(&mut self, config: &Config) -> bool {
        let builder = trace::configure!(CircuitBreaker::builder("reload"), config);
        self.breaker.reload(&builder, &self.now).is_ok()
    }

    fn failure_rate(&mut self) -> Option<Option<f64>> {
        Some(self.breaker.snapshot(&self.now).failure_rate())
    }

    fn state(&mut self) -> Option<trace::State> {
        Some(state(self.breaker.state(&self.now)))
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

    fn progress(&mut self, part: Part, now: Duration) {
        let progress = if part == Part::Head { Progress::Head } else { Progress::Frame };
        self.permit.progress(progress, &(self.start + now));
    }

    fn end(mut self: Box<Self>, outcome: trace::Outcome, now: Duration) {
        self.permit.settle(&outcome_of(outcome), &(self.start + now));
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
