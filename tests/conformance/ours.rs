//! Our breaker: what all ways to call it have in common, and the core alone.

use crate::{
    run::{Breaker, Call},
    trace::{self, Config, Feature, Operator, Part, Trace},
};
use buttress_core::{
    Clock, Failure, FailureKind, Ignored, ManualClock, Outcome, Permit, Policy, Progress,
    circuit_breaker::{CircuitBreaker, CircuitBreakerPermit, State},
};
use std::time::Duration;

/// Features that this circuit breaker does not have on purpose. Traces that require one are for
/// other implementations.
const LACKS: [Feature; 6] = [
    // A dropped call counts by default only where a slow rate is set, and then as slow.
    Feature::DropCountsByDefault,
    // A dropped call counts by itself, not by the share of those that were dropped.
    Feature::DropShare,
    // The next probe is admitted when the previous one is settled or its lease has expired.
    Feature::HungProbeBypassed,
    // The slot of a cancelled probe is free at once.
    Feature::ProbesPaced,
    // A half-open circuit admits its probes only.
    Feature::ProbesUnlimited,
    // Rates are evaluated after failed and slow calls only, so that a success costs nothing.
    Feature::RateAfterSuccess,
];

pub(crate) fn has(feature: Feature) -> bool {
    !LACKS.contains(&feature)
}

/// A circuit, and the way in which calls are made through it.
pub(crate) struct Ours<C, A> {
    breaker: CircuitBreaker<C>,
    admit: A,
    retry_after: Option<Duration>,
    set_time: Box<dyn Fn(Duration)>,
}

impl<C, A: FnMut() -> Result<Box<dyn Call>, Option<Duration>>> Ours<C, A> {
    /// `admit` asks for admission. Its error is the retry-after of the rejection.
    pub(crate) fn new(breaker: CircuitBreaker<C>, admit: A) -> Self {
        Self { breaker, admit, retry_after: None, set_time: Box::new(|_| {}) }
    }
}

/// The core alone, on virtual time.
pub(crate) fn make(trace: &Trace) -> Box<dyn Breaker> {
    let clock = ManualClock::new();
    let start = clock.now();
    let builder = trace::configure!(CircuitBreaker::<ManualClock>::builder(trace.name.clone()), &trace.config);
    let breaker = builder.clock(clock.clone()).build().expect("the traces' configurations are valid");
    let circuit = breaker.clone();
    let mut ours = Ours::new(breaker, move || match circuit.admit(&()) {
        Ok(permit) => Ok(Box::new(permit) as _),
        Err(rejection) => Err(rejection.retry_after()),
    });
    ours.set_time = Box::new(move |since_start| clock.set(start + since_start));
    Box::new(ours)
}

impl<C, A> Breaker for Ours<C, A>
where
    C: Clock + Default,
    A: FnMut() -> Result<Box<dyn Call>, Option<Duration>>,
{
    fn set_time(&mut self, since_start: Duration) {
        (self.set_time)(since_start);
    }

    fn admit(&mut self) -> Option<Box<dyn Call>> {
        (self.admit)().map_err(|retry_after| self.retry_after = retry_after).ok()
    }

    fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    fn reload(&mut self, config: &Config) -> bool {
        self.breaker.reload(&trace::configure!(CircuitBreaker::<C>::builder("reload"), config)).is_ok()
    }

    fn failure_rate(&mut self) -> Option<Option<f64>> {
        Some(self.breaker.snapshot().failure_rate())
    }

    fn state(&mut self) -> Option<trace::State> {
        Some(match self.breaker.state() {
            State::Closed | State::Disabled | State::MetricsOnly => trace::State::Closed,
            State::Open | State::ForcedOpen => trace::State::Open,
            State::HalfOpen => trace::State::HalfOpen,
        })
    }

    fn operate(&mut self, operator: Operator) -> bool {
        match operator {
            Operator::ForceOpen => self.breaker.force_open(),
            Operator::Disable => self.breaker.disable(),
            Operator::MetricsOnly => self.breaker.metrics_only(),
            Operator::Reset => self.breaker.reset(),
            Operator::OpenFor { ms } => self.breaker.open_for(Duration::from_millis(ms)),
        }
        true
    }
}

impl Call for CircuitBreakerPermit<ManualClock> {
    fn is_probe(&self) -> Option<bool> {
        Some(self.is_probe())
    }

    fn progress(&mut self, part: Part) {
        Permit::progress(self, if part == Part::Head { Progress::Head } else { Progress::Frame });
    }

    fn end(mut self: Box<Self>, outcome: trace::Outcome) {
        self.settle(&outcome_of(outcome));
    }
}

pub(crate) fn outcome_of(outcome: trace::Outcome) -> Outcome {
    let failure = Failure::new(FailureKind::Http(503));
    match outcome {
        trace::Outcome::Success | trace::Outcome::Benign => Outcome::Success,
        trace::Outcome::Failure => failure.into(),
        trace::Outcome::Overload => Failure { overload: true, ..Failure::new(FailureKind::Http(429)) }.into(),
        trace::Outcome::Graceful => Failure { graceful: true, ..failure }.into(),
        trace::Outcome::Cancelled => Outcome::CANCELLED,
        trace::Outcome::Ignored => Outcome::Ignored(Ignored::Classified),
    }
}
