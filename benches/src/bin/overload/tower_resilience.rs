//! The algorithms of tower-resilience's adaptive layer, with their defaults. Its service reads the
//! machine's clock, so the simulation calls the algorithms as the service does: each call when it
//! ends, the limit at every admission.

use std::time::Duration;

use buttress_core::Priority;
use tower_resilience_adaptive::{Aimd, ConcurrencyAlgorithm, Gradient2, Vegas};

use crate::arm::{Admission, Limiter, Slots};

struct Adaptive<A> {
    algorithm: A,
    in_flight: usize,
    started: Slots<Duration>,
}

pub(crate) fn gradient2(_: u64) -> Box<dyn Limiter> {
    make(Gradient2::builder().build().expect("it is valid"))
}

pub(crate) fn vegas(_: u64) -> Box<dyn Limiter> {
    make(Vegas::builder().build().expect("it is valid"))
}

pub(crate) fn aimd(_: u64) -> Box<dyn Limiter> {
    make(Aimd::builder().build().expect("it is valid"))
}

fn make<A: ConcurrencyAlgorithm + 'static>(algorithm: A) -> Box<dyn Limiter> {
    Box::new(Adaptive { algorithm, in_flight: 0, started: Slots::default() })
}

impl<A: ConcurrencyAlgorithm> Limiter for Adaptive<A> {
    fn admit(&mut self, now: Duration, id: usize, _: Priority) -> Admission {
        let is_free = self.in_flight < self.algorithm.limit();
        if is_free {
            self.in_flight += 1;
            self.started.put(id, now);
        }
        Admission::new(is_free)
    }

    /// Its place and its latency end with the response's head.
    fn head(&mut self, now: Duration, id: usize) {
        self.end(now, id, true);
    }

    fn end(&mut self, now: Duration, id: usize, is_answered: bool) {
        let Some(started) = self.started.take(id) else { return };
        if is_answered {
            self.algorithm.record_success_with_load(now - started, self.in_flight);
        } else {
            self.algorithm.record_dropped();
        }
        self.in_flight -= 1;
    }

    fn limit(&self) -> Option<usize> {
        Some(self.algorithm.limit())
    }
}
