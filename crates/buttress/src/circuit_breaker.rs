//! Stops calling what fails, and finds out carefully when it is well again.
//!
//! The rules are in [`buttress_core::circuit_breaker`]; this module puts them behind a layer.
//!
//! ```
//! use buttress::{CircuitBreaker, CircuitBreakerLayer};
//! use std::time::Duration;
//!
//! // A streak of failures that is no chance, at least 5, or more than half of at least 20 calls in 10 seconds:
//! let layer = CircuitBreakerLayer::new("payments");
//!
//! // Your own numbers, and a handle to watch it:
//! let breaker = CircuitBreaker::builder("payments")
//!     .failure_rate(0.3)
//!     .slow_threshold(Duration::from_millis(300))
//!     .slow_rate(0.8)
//!     .open_time(Duration::from_secs(1)..=Duration::from_secs(30))
//!     .build()?;
//! let layer = CircuitBreakerLayer::from(breaker.clone());
//! println!("{}", breaker.state());
//! # let _ = layer;
//! # Ok::<(), buttress::InvalidConfig>(())
//! ```
//!
//! # When to use it
//!
//! Around every client of something that can be down for longer than a request can wait. One breaker for each
//! backend, or better for each endpoint of it; one for several backends punishes all for the fault of one.
//!
//! # Where it belongs
//!
//! Inside retry, so that each attempt is one sample and an open circuit ends the retrying; outside the attempt timeout, so that it
//! sees the timeouts. A bulkhead's rejections do not count as failures, on whichever side it is.
//!
//! # Differences
//!
//! * tower has none.
//! * `tower-resilience`: its default count window never slides, results carry no generation, a call that is dropped by an outer
//!   timeout is never recorded, and every `Layer::layer` makes a state of its own, so that behind `axum::serve` it protects one connection.

pub mod sharing;

use crate::{
    clock::TokioClock,
    ending::NoEnding,
    gate::{Gate, GateLayer},
};
use buttress_core::{Name, Policy, Refused, Rejection, Reserve, Waiters, circuit_breaker as core};
use tokio::sync::broadcast;

pub use buttress_core::circuit_breaker::{
    CallTime, Cause, CloseRule, Counts, Event, FORCED_OPEN, FailureRate, FailureStreak, METRICS, OPEN, OnDrop,
    PROBES_EXHAUSTED, RECOVERING, Snapshot, State, Transition, Window,
};

/// The future of a service behind a circuit breaker.
pub mod future {
    pub use crate::gate::ResponseFuture;
}

/// A circuit, to watch and to drive. A cheap handle; clones share the circuit, and so do all
/// services of its layers. Its time is tokio's.
pub type CircuitBreaker = core::CircuitBreaker<TokioClock>;

/// Builds a [`CircuitBreaker`].
pub type Builder = core::Builder<TokioClock>;

/// The permit of a call behind a circuit breaker.
pub type CircuitBreakerPermit = core::CircuitBreakerPermit<TokioClock>;

/// A circuit breaker as a layer. See the [module](self).
pub type CircuitBreakerLayer<E = NoEnding> = GateLayer<CircuitBreaker, E>;

/// A service behind a circuit breaker.
pub type CircuitBreakerService<S, E> = Gate<S, CircuitBreaker, E>;

impl CircuitBreakerLayer {
    /// With the defaults: a streak of failures that chance does not explain, at least 5, or more
    /// than half of at least 20 calls in 10 seconds, by what chance explains; open for 5 to 30
    /// seconds; 3 probes, one at a time, of which 2 have to succeed.
    pub fn new(name: impl Into<Name>) -> Self {
        CircuitBreaker::new(name).into()
    }
}

impl From<CircuitBreaker> for CircuitBreakerLayer {
    fn from(breaker: CircuitBreaker) -> Self {
        Self::with_policy(breaker)
    }
}

/// Changes of state as a channel.
pub trait Subscribe {
    /// Returns a receiver of every change of state from now on. One that falls more than 64 behind
    /// gets the number that it missed. All receivers share one channel, and a dropped one costs
    /// nothing.
    ///
    /// ```
    /// use buttress::circuit_breaker::{CircuitBreaker, State, Subscribe};
    ///
    /// let breaker = CircuitBreaker::new("payments");
    /// let mut changes = breaker.subscribe();
    /// breaker.force_open();
    /// assert_eq!(changes.try_recv().unwrap().to, State::ForcedOpen);
    /// ```
    fn subscribe(&self) -> broadcast::Receiver<Transition>;
}

impl Subscribe for CircuitBreaker {
    fn subscribe(&self) -> broadcast::Receiver<Transition> {
        let sender = self.attachment(|| {
            let (sender, _) = broadcast::channel(64);
            let changes = sender.clone();
            self.on_transition(move |transition| {
                // Without a receiver there is none to inform.
                let _ = changes.send(transition.clone());
            });
            sender
        });
        sender.expect("nothing else is attached to a circuit of this crate").subscribe()
    }
}

impl<E> CircuitBreakerLayer<E> {
    /// Lets only such requests be probes of a half-open circuit: not the upload of a gigabyte, and not what must not be done in vain. The others
    /// are refused until the circuit has closed.
    ///
    /// ```
    /// # use buttress::CircuitBreakerLayer;
    /// let layer = CircuitBreakerLayer::new("files").can_probe(|request: &Vec<u8>| request.len() < 1024);
    /// # let _ = layer;
    /// ```
    pub fn can_probe<F>(self, can_probe: F) -> GateLayer<CanProbe<F>, E> {
        self.map_policy(|breaker| CanProbe { breaker, can_probe })
    }
}

/// A circuit breaker whose probes are chosen: see [`CircuitBreakerLayer::can_probe`](GateLayer::can_probe).
#[derive(Clone, Debug)]
pub struct CanProbe<F> {
    breaker: CircuitBreaker,
    can_probe: F,
}

impl<F> CanProbe<F> {
    /// The circuit.
    pub fn breaker(&self) -> &CircuitBreaker {
        &self.breaker
    }
}

impl<F> Reserve for CanProbe<F> {
    type Permit = CircuitBreakerPermit;

    fn try_reserve(&self) -> Result<CircuitBreakerPermit, Refused> {
        self.breaker.try_reserve()
    }

    fn holds(&self, permit: &CircuitBreakerPermit) -> bool {
        self.breaker.holds(permit)
    }

    fn waiters(&self) -> Option<Waiters> {
        self.breaker.waiters()
    }
}

impl<Req: ?Sized, F: Fn(&Req) -> bool> Policy<Req> for CanProbe<F> {
    type Permit = CircuitBreakerPermit;

    fn admit(&self, request: &Req) -> Result<CircuitBreakerPermit, Rejection> {
        self.breaker.admit_if(|| (self.can_probe)(request))
    }

    fn peek(&self) -> Result<(), Refused> {
        self.breaker.peek()
    }

    fn refuse(&self, request: &Req, refused: Refused) -> Rejection {
        self.breaker.refuse(request, refused)
    }

    fn confirm(&self, permit: CircuitBreakerPermit, request: &Req) -> Result<CircuitBreakerPermit, Rejection> {
        if permit.is_probe() && !(self.can_probe)(request) {
            // Dropping the permit gives the slot back.
            return Err(self.breaker.reject(&PROBES_EXHAUSTED));
        }
        self.breaker.confirm(permit, request)
    }

    fn unready(&self) -> Option<Result<CircuitBreakerPermit, Refused>> {
        Some(self.breaker.try_reserve())
    }

    fn watchers(&self) -> Option<Waiters> {
        self.breaker.waiters()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TokioClock;
    use buttress_core::{Clock, Failure, FailureKind, Outcome, Permit, Policy};
    use std::time::Duration;

    #[test]
    fn receivers_that_were_dropped_do_not_delay_a_transition() {
        let breaker = CircuitBreaker::new("x");
        for _ in 0..8000 {
            drop(breaker.subscribe());
        }
        let mut receiver = breaker.subscribe();
        // Each listener would be called, and 8,000 that leave were a quadratic second.
        let start = TokioClock.now();
        breaker.force_open();
        assert!(TokioClock.now() - start < Duration::from_millis(100));
        assert_eq!(receiver.try_recv().unwrap().to, State::ForcedOpen);
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn a_transition_says_what_failed_last() {
        let breaker = CircuitBreaker::builder("x").consecutive_failures(1).build().unwrap();
        let mut receiver = breaker.subscribe();
        let failure = Failure::new(FailureKind::Http(503));
        breaker.admit(&()).unwrap().settle(&Outcome::Failure(failure));
        assert_eq!(receiver.try_recv().unwrap().last_failure, Some(failure));
        breaker.reset();
        assert_eq!(receiver.try_recv().unwrap().last_failure, None);
    }
}
