//! A test for each rule, and for each defect that was found in another implementation.

mod clocks;
mod closed;
mod half_open;
mod handle;
mod locks;
#[cfg(feature = "tracing")]
mod log;
mod model;
mod open;
mod peers;
mod rates;
mod reload;
mod report;
mod streaks;

use super::*;
use crate::{Clock, Failure, FailureKind, Ignored, ManualClock, Outcome, Permit, Policy, Progress, Rejection, Reserve};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

type CircuitBreaker = super::CircuitBreaker<ManualClock>;
type CircuitBreakerPermit = super::CircuitBreakerPermit<ManualClock>;
type Builder = super::Builder<ManualClock>;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const FAILURE: Outcome = Outcome::Failure(Failure::new(FailureKind::Transport));
const OVERLOAD: Outcome = Outcome::Failure(Failure { overload: true, ..Failure::new(FailureKind::Http(429)) });
const GRACEFUL: Outcome = Outcome::Failure(Failure { graceful: true, ..Failure::new(FailureKind::Transport) });

/// Returns a circuit that trips only on `n` consecutive failures. It is open for exactly one second
/// at first, and one probe closes it.
fn consecutive(n: u32) -> Builder {
    let builder = CircuitBreaker::builder("test").seed(1).consecutive_failures(n).failure_rate(None);
    builder.open_time(SECOND..=60 * SECOND).probes(1).close_rule(CloseRule::AllProbes)
}

/// A circuit with a manual clock.
struct Bench {
    breaker: CircuitBreaker,
    clock: ManualClock,
}

impl Bench {
    fn new(configure: impl FnOnce(Builder) -> Builder) -> Self {
        Self::of(configure(CircuitBreaker::builder("test").seed(1)))
    }

    /// Returns a circuit of [`consecutive`].
    fn consecutive(n: u32, configure: impl FnOnce(Builder) -> Builder) -> Self {
        Self::of(configure(consecutive(n)))
    }

    fn of(builder: Builder) -> Self {
        let clock = ManualClock::new();
        Self { breaker: builder.clock(clock.clone()).build().unwrap(), clock }
    }

    fn wait(&self, time: Duration) {
        self.clock.advance(time);
    }

    fn set_back(&self, time: Duration) {
        self.clock.set(self.now() - time);
    }

    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn admit(&self) -> CircuitBreakerPermit {
        self.try_admit().unwrap_or_else(|rejection| panic!("{rejection}"))
    }

    fn try_admit(&self) -> Result<CircuitBreakerPermit, Rejection> {
        self.breaker.admit(&())
    }

    /// Reserves a permit, whose call has not begun.
    fn reserve(&self) -> CircuitBreakerPermit {
        self.breaker.try_reserve().unwrap()
    }

    /// Begins the call of a reserved permit.
    fn confirm(&self, permit: CircuitBreakerPermit) -> Result<CircuitBreakerPermit, Rejection> {
        self.breaker.confirm(permit, &())
    }

    fn settle(&self, mut permit: CircuitBreakerPermit, outcome: Outcome) {
        permit.settle(&outcome);
    }

    fn call(&self, outcome: Outcome) {
        self.settle(self.admit(), outcome);
    }

    fn calls(&self, n: u32, outcome: Outcome) {
        (0..n).for_each(|_| self.call(outcome));
    }

    fn state(&self) -> State {
        self.breaker.state()
    }

    /// Waits until the open time has elapsed, with its jitter.
    fn wait_open(&self) {
        self.wait(self.breaker.snapshot().retry_after.expect("it is open"));
    }
}

/// A clock whose coarse time is 10 ms behind, the length of a long kernel tick, and which counts
/// the readings of its fine time.
#[derive(Clone, Debug, Default)]
struct Lagging {
    time: ManualClock,
    reads: Arc<AtomicU32>,
}

impl Lagging {
    /// Returns how often the fine time was read since the last call.
    fn reads(&self) -> u32 {
        self.reads.swap(0, Ordering::Relaxed)
    }
}

impl Clock for Lagging {
    fn now(&self) -> Instant {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.time.now()
    }

    fn coarse(&self) -> Instant {
        self.time.now() - 10 * MS
    }
}
