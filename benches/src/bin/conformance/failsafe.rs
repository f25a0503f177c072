//! failsafe, around a future, with its rule of consecutive failures.
//!
//! Its other rule is not a failure rate over counts but a time-weighted moving average, which does
//! not trip before a window has passed.

use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use failsafe::failure_policy::{ConsecutiveFailures, consecutive_failures};
use failsafe::futures::CircuitBreaker;
use failsafe::{Config, Instrument, StateMachine};

use crate::breaker::{Breaker, Call, Implementation};
use crate::future::begin;
use crate::trace::{Feature, Operator, State, Trace};

pub(crate) const IMPLEMENTATION: Implementation = Implementation {
    name: "failsafe",
    // Its reset is not documented to clear results.
    features: &[
        Feature::ConsecutiveFailures,
        Feature::HungProbeBypassed,
        Feature::HungProbeReplaced,
        Feature::OneProbe,
        Feature::Reset,
    ],
    virtual_clock: false,
    make,
};

struct Failsafe {
    machine: StateMachine<ConsecutiveFailures<iter::Repeat<Duration>>, Watch>,
    watch: Watch,
}

fn make(trace: &Trace) -> Box<dyn Breaker> {
    let config = &trace.config;
    let failures = config.fixed_streak().unwrap_or(config.minimum_throughput);
    let watch = Watch::default();
    let machine = Config::new()
        .failure_policy(consecutive_failures(failures, iter::repeat(config.open())))
        .instrument(watch.clone())
        .build();
    Box::new(Failsafe { machine, watch })
}

impl Breaker for Failsafe {
    fn admit(&mut self) -> Option<Box<dyn Call>> {
        begin(|place| self.machine.call(Box::pin(place.serve()))).map(|call| Box::new(call) as _)
    }

    fn state(&mut self) -> Option<State> {
        Some(match self.watch.0.load(Ordering::Relaxed) {
            CLOSED => State::Closed,
            OPEN => State::Open,
            _ => State::HalfOpen,
        })
    }

    fn operate(&mut self, operator: Operator) -> bool {
        let can = operator == Operator::Reset;
        if can {
            self.machine.reset();
        }
        can
    }
}

const CLOSED: u8 = 0;
const OPEN: u8 = 1;
const HALF_OPEN: u8 = 2;

#[derive(Clone, Debug, Default)]
struct Watch(Arc<AtomicU8>);

impl Instrument for Watch {
    fn on_call_rejected(&self) {}

    fn on_open(&self) {
        self.0.store(OPEN, Ordering::Relaxed);
    }

    fn on_half_open(&self) {
        self.0.store(HALF_OPEN, Ordering::Relaxed);
    }

    fn on_closed(&self) {
        self.0.store(CLOSED, Ordering::Relaxed);
    }
}
