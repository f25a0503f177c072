//! Every rule by name, and every defect that a peer was found to have.

mod clocks;
mod closed;
mod half_open;
mod handle;
mod model;
mod open;
mod peers;
mod rates;
mod reload;
mod streaks;

use super::{Builder, CircuitBreaker, CircuitBreakerPermit, CloseRule, State};
use crate::{Admit, Failure, FailureKind, Ignored, Outcome, Permit, Policy, Progress, Rejection};
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const FAILURE: Outcome = Outcome::Failure(Failure::new(FailureKind::Transport));
const OVERLOAD: Outcome = Outcome::Failure(Failure { overload: true, ..Failure::new(FailureKind::Http(429)) });
const GRACEFUL: Outcome = Outcome::Failure(Failure { graceful: true, ..Failure::new(FailureKind::Transport) });

/// A circuit and a clock that is turned by hand.
struct Bench {
    breaker: CircuitBreaker,
    now: Instant,
}

impl Bench {
    fn new(configure: impl FnOnce(Builder) -> Builder) -> Self {
        let breaker = configure(CircuitBreaker::builder("test").seed(1)).build().unwrap();
        Self { breaker, now: crate::testing::start() }
    }

    /// Trips on `n` failures in a row and on nothing else; open for exactly a second at first; all
    /// probes decide, and there is one.
    fn consecutive(n: u32, configure: impl FnOnce(Builder) -> Builder) -> Self {
        Self::new(|builder| {
            let builder = builder.consecutive_failures(n).failure_rate(None).open_time(SECOND..=60 * SECOND);
            configure(builder.probes(1).close_rule(CloseRule::AllProbes))
        })
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    fn admit(&self) -> CircuitBreakerPermit {
        self.try_admit().unwrap_or_else(|rejection| panic!("{rejection}"))
    }

    fn try_admit(&self) -> Result<CircuitBreakerPermit, Rejection> {
        self.breaker.admit(&(), &self.now)
    }

    fn settle(&self, mut permit: CircuitBreakerPermit, outcome: Outcome) {
        permit.settle(&outcome, &self.now);
    }

    fn call(&self, outcome: Outcome) {
        self.settle(self.admit(), outcome);
    }

    fn calls(&self, n: u32, outcome: Outcome) {
        (0..n).for_each(|_| self.call(outcome));
    }

    fn state(&self) -> State {
        self.breaker.state(&self.now)
    }

    /// Waits until the open time is over, whatever jitter drew.
    fn wait_open(&mut self) {
        let rest = self.breaker.snapshot(&self.now).retry_after.expect("it is open");
        self.now += rest;
    }
}

/// A clock whose coarse reading is as far behind as a kernel's tick may be, and that counts how
/// often the fine one is read.
struct Lagging(Instant, std::cell::Cell<u32>);

impl Lagging {
    fn new(now: Instant) -> Self {
        Self(now, std::cell::Cell::new(0))
    }

    /// How often the fine one was read since the last time.
    fn reads(&self) -> u32 {
        self.1.take()
    }
}

impl crate::Clock for Lagging {
    fn now(&self) -> Instant {
        self.1.set(self.1.get() + 1);
        self.0
    }

    fn coarse(&self) -> Instant {
        self.0 - 10 * MS
    }
}
