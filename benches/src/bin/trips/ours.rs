//! Our breaker, on a manual clock.

use std::time::{Duration, Instant};

use buttress_core::circuit_breaker::{self, State};
use buttress_core::{Clock, Failure, FailureKind, ManualClock, Outcome, Permit, Policy};

use crate::breaker::Breaker;

type CircuitBreaker = circuit_breaker::CircuitBreaker<ManualClock>;
type Builder = circuit_breaker::Builder<ManualClock>;

struct Ours {
    breaker: CircuitBreaker,
    clock: ManualClock,
    start: Instant,
}

pub(crate) fn default(seed: u64) -> Box<dyn Breaker> {
    make(seed, |builder| builder)
}

pub(crate) fn fixed(seed: u64) -> Box<dyn Breaker> {
    make(seed, |builder| builder.consecutive_failures(5))
}

fn make(seed: u64, configure: fn(Builder) -> Builder) -> Box<dyn Breaker> {
    let clock = ManualClock::new();
    let builder = CircuitBreaker::builder("simulated").seed(seed).clock(clock.clone());
    let start = clock.now();
    Box::new(Ours { breaker: configure(builder).build().expect("it is valid"), clock, start })
}

impl Breaker for Ours {
    fn call(&mut self, now: Duration, fails: bool) -> bool {
        self.clock.set(self.start + now);
        let Ok(mut permit) = self.breaker.admit(&()) else { return false };
        let failure = Failure::new(FailureKind::Http(503));
        permit.settle(&if fails { failure.into() } else { Outcome::Success });
        true
    }

    fn is_closed(&self) -> bool {
        self.breaker.state() == State::Closed
    }
}
