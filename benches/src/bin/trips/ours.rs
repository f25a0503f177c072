//! Our breaker, whose core takes the time as an argument.

use std::time::{Duration, Instant};

use buttress_core::circuit_breaker::{Builder, State};
use buttress_core::{Admit, CircuitBreaker, Failure, FailureKind, Outcome, Permit};

use crate::subject::Breaker;

struct Ours {
    breaker: CircuitBreaker,
    start: Instant,
    now: Instant,
}

pub(crate) fn default(seed: u64) -> Box<dyn Breaker> {
    make(seed, |builder| builder)
}

pub(crate) fn fixed(seed: u64) -> Box<dyn Breaker> {
    make(seed, |builder| builder.consecutive_failures(5))
}

fn make(seed: u64, configure: fn(Builder) -> Builder) -> Box<dyn Breaker> {
    let breaker = configure(CircuitBreaker::builder("simulated").seed(seed)).build().expect("it is valid");
    #[expect(clippy::disallowed_methods, reason = "an Instant can only be made by reading the clock once")]
    let start = Instant::now();
    Box::new(Ours { breaker, start, now: start })
}

impl Breaker for Ours {
    fn call(&mut self, now: Duration, fails: bool) -> bool {
        self.now = self.start + now;
        let Ok(mut permit) = self.breaker.admit(&(), &self.now) else { return false };
        let failure = Failure::new(FailureKind::Http(503));
        permit.settle(&if fails { failure.into() } else { Outcome::Success }, &self.now);
        true
    }

    fn is_closed(&self) -> bool {
        self.breaker.state(&self.now) == State::Closed
    }
}
