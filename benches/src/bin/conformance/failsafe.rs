//! failsafe, around a future, with its rule of consecutive failures.
//!
//! Its other rule is not a failure rate over counts but a time-weighted moving average, which does
//! not trip before a window has passed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use failsafe::failure_policy::{ConsecutiveFailures, consecutive_failures};
use failsafe::futures::CircuitBreaker;
use failsafe::{Config, Instrument, StateMachine};

use crate::breaker::Implementation;
use crate::future::{Failed, begin};
use crate::run::{Breaker, Call};
use crate::trace::{Feature, Operator, State, Trace};

pub(crate) const IMPLEMENTATION: Implementation = Implementation { name: "failsafe", has, virtual_clock: false, make };

/// Its reset is not documented to clear results.
fn has(feature: Feature) -> bool {
    matches!(
        feature,
        Feature::Classifier
            | Feature::ConsecutiveFailures
            | Feature::DropIgnored
            | Feature::HungProbeBypassed
            | Feature::HungProbeReplaced
            | Feature::OneProbe
            | Feature::OpenGrowth
            | Feature::ProbesUnlimited
            | Feature::Reset
    )
}

struct Failsafe {
    machine: StateMachine<ConsecutiveFailures<Doubling>, Watch>,
    watch: Watch,
}

/// Open times. Its own exponential backoff counts in whole seconds.
#[derive(Clone, Copy, Debug)]
struct Doubling {
    next: Duration,
    longest: Duration,
}

impl Iterator for Doubling {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let next = self.next.min(self.longest);
        self.next = next * 2;
        Some(next)
    }
}

fn make(trace: &Trace) -> Box<dyn Breaker> {
    let config = &trace.config;
    let failures = config.fixed_streak().unwrap_or(config.minimum_throughput);
    let longest = Duration::from_millis(config.open_max_ms.unwrap_or(config.open_ms));
    let watch = Watch::default();
    let machine = Config::new()
        .failure_policy(consecutive_failures(failures, Doubling { next: config.open(), longest }))
        .instrument(watch.clone())
        .build();
    Box::new(Failsafe { machine, watch })
}

impl Breaker for Failsafe {
    fn admit(&mut self) -> Option<Box<dyn Call>> {
        begin(|place| self.machine.call_with(Failed::is_failure, Box::pin(place.serve())))
            .map(|call| Box::new(call) as _)
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
