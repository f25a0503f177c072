//! Stops calls to a backend that fails, and probes it until it works again.
//!
//! The rules are in [`buttress_core::circuit_breaker`]. This module makes them a layer.
//!
//! ```
//! use buttress::{CircuitBreaker, CircuitBreakerLayer};
//! use std::time::Duration;
//!
//! // The defaults: see `CircuitBreakerLayer::new`.
//! let layer = CircuitBreakerLayer::new("payments");
//!
//! // Custom settings, and a handle to observe the circuit:
//! let breaker = CircuitBreaker::builder("payments")
//!     .failure_rate(0.3)
//!     .slow_threshold(Duration::from_millis(300))
//!     .slow_rate(0.8)
//!     .open_time(Duration::from_secs(1)..=Duration::from_secs(30))
//!     .build()?;
//! let layer = CircuitBreakerLayer::from(breaker.clone());
//! assert_eq!(breaker.state().to_string(), "closed");
//! # let _ = layer;
//! # Ok::<(), buttress::InvalidConfig>(())
//! ```
//!
//! # When to use it
//!
//! Around every client of a backend that can be down for longer than a request can wait. Use one
//! breaker for each backend, or better for each of its endpoints. One breaker for several backends
//! rejects calls to all of them when one fails.
//!
//! # Where it belongs
//!
//! Inside retry: each attempt is one sample, and an open circuit ends the retries. Outside the
//! attempt timeout: the breaker counts timeouts as failures. The rejections of a bulkhead do not
//! count as failures, whether it is inside or outside.
//!
//! # Differences
//!
//! * `tower` has no circuit breaker.
//! * `tower-resilience` (0.14.0): its default count window never slides, and results carry no
//!   generation. A call that an outer timeout drops is never recorded. A layer made with `build`
//!   makes a state in each `Layer::layer`, so that behind `axum::serve` it protects one connection;
//!   one made with `build_with_handle` shares its state, as every layer of this crate does.

pub mod sharing;

use crate::{
    clock::TokioClock,
    ending::NoEnding,
    gate::{Gate, GateLayer},
};
use buttress_core::{
    Idle, Name, Policy, Refused, Rejection, Reserve, Waiters, circuit_breaker as core,
    report::{Metric, Report, Sink},
};
use std::fmt;
use tokio::sync::broadcast;

pub use buttress_core::circuit_breaker::{
    CallTime, Cause, CloseRule, Counts, Event, FORCED_OPEN, FailureRate, FailureStreak, METRICS, OPEN, OnDrop,
    PROBES_EXHAUSTED, RECOVERING, Snapshot, State, Transition, Window,
};

/// The future of a service behind a circuit breaker.
pub mod future {
    pub use crate::gate::ResponseFuture;
}

/// A circuit, to observe and control. A cheap handle; clones and all services of its layers share
/// the circuit.
///
/// It uses tokio's clock.
pub type CircuitBreaker = core::CircuitBreaker<TokioClock>;

/// Builds a [`CircuitBreaker`].
pub type Builder = core::Builder<TokioClock>;

/// The permit of a call behind a circuit breaker.
pub type CircuitBreakerPermit = core::CircuitBreakerPermit<TokioClock>;

/// A circuit breaker as a layer. The [module](self) has an example.
pub type CircuitBreakerLayer<E = NoEnding> = GateLayer<CircuitBreaker, E>;

/// A service behind a circuit breaker.
pub type CircuitBreakerService<S, E> = Gate<S, CircuitBreaker, E>;

impl CircuitBreakerLayer {
    /// Creates a circuit breaker with the default settings.
    ///
    /// The circuit opens on at least 5 failures in a row, or on more than half of at least 20 calls
    /// in 10 s, in both cases only if the failures are too many to be random: see [`FailureStreak`]
    /// and [`FailureRate`]. It is open for 5 s to 30 s. Then it admits 3 probes, one at a time, of
    /// which 2 must succeed.
    ///
    /// ```
    /// use buttress::{CircuitBreakerLayer, circuit_breaker::State};
    ///
    /// let layer = CircuitBreakerLayer::new("payments");
    /// assert_eq!(layer.handle().state(), State::Closed);
    /// ```
    pub fn new(name: impl Into<Name>) -> Self {
        CircuitBreaker::new(name).into()
    }
}

impl From<CircuitBreaker> for CircuitBreakerLayer {
    fn from(breaker: CircuitBreaker) -> Self {
        Self::with_policy(breaker)
    }
}

/// Reports changes of state through a channel.
///
/// ```
/// use buttress::circuit_breaker::{CircuitBreaker, Subscribe};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let breaker = CircuitBreaker::new("payments");
/// let mut changes = breaker.subscribe();
/// let log = tokio::spawn(async move {
///     let change = changes.recv().await.unwrap();
///     format!("{} -> {}", change.from, change.to)
/// });
/// breaker.force_open();
/// assert_eq!(log.await.unwrap(), "closed -> forced-open");
/// # }
/// ```
pub trait Subscribe {
    /// Returns a receiver of all changes of state from now on.
    ///
    /// The channel holds 64 changes. A receiver that falls further behind gets
    /// [`Lagged`](broadcast::error::RecvError::Lagged) with the number of changes that it missed.
    /// All receivers share one channel; a dropped receiver costs nothing. Only if the circuit has
    /// an [attachment](core::CircuitBreaker::attachment) of another type, each has a channel of its
    /// own.
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
            let (sender, _) = broadcast::channel(CHANGES);
            let changes = sender.clone();
            self.on_transition(move |transition| {
                // An error means that there is no receiver.
                let _ = changes.send(transition.clone());
            });
            sender
        });
        sender.map_or_else(|| own_channel(self), broadcast::Sender::subscribe)
    }
}

/// Number of changes that the channel of a subscription holds.
const CHANGES: usize = 64;

/// Subscribes through a channel for one receiver, to a circuit whose attachment is of another type.
#[cold]
fn own_channel(breaker: &CircuitBreaker) -> broadcast::Receiver<Transition> {
    let (sender, receiver) = broadcast::channel(CHANGES);
    breaker.on_transition_while(move |transition| sender.send(transition.clone()).is_ok());
    receiver
}

impl<E> CircuitBreakerLayer<E> {
    /// Admits only requests for which `can_probe` returns true as probes of a half-open circuit.
    /// Other requests are rejected until the circuit has closed.
    ///
    /// Use it to exclude large uploads, and requests that must not fail.
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

/// A circuit breaker that selects its probes. Made by
/// [`CircuitBreakerLayer::can_probe`](GateLayer::can_probe).
///
/// ```
/// use buttress::{CircuitBreaker, CircuitBreakerLayer, circuit_breaker::State};
///
/// let layer = CircuitBreakerLayer::new("files").can_probe(|request: &Vec<u8>| request.len() < 1024);
/// let breaker: &CircuitBreaker = layer.handle().breaker();
/// assert_eq!(breaker.state(), State::Closed);
/// ```
#[derive(Clone)]
pub struct CanProbe<F> {
    breaker: CircuitBreaker,
    can_probe: F,
}

impl<F> fmt::Debug for CanProbe<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CanProbe").field("breaker", &self.breaker).finish_non_exhaustive()
    }
}

impl<F> CanProbe<F> {
    /// Returns the circuit.
    pub fn breaker(&self) -> &CircuitBreaker {
        &self.breaker
    }
}

impl<F> Idle for CanProbe<F> {
    fn is_idle(&self) -> bool {
        self.breaker.is_idle()
    }
}

impl<F> Report for CanProbe<F> {
    fn metrics() -> Vec<Metric> {
        CircuitBreaker::metrics()
    }

    fn name(&self) -> Option<&str> {
        Report::name(&self.breaker)
    }

    fn report(&self, sink: &mut dyn Sink) {
        self.breaker.report(sink);
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
            // Dropping the permit frees the probe slot.
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
    use buttress_core::{Failure, FailureKind, Outcome, Permit, Policy};

    /// With one listener for each receiver, 8,000 dropped ones delayed a transition by a second.
    #[test]
    fn receivers_share_a_listener_so_that_dropped_ones_do_not_delay_a_transition() {
        let breaker = CircuitBreaker::new("x");
        for _ in 0..8000 {
            drop(breaker.subscribe());
        }
        let mut receiver = breaker.subscribe();
        let sender: &broadcast::Sender<Transition> = breaker.attachment(|| unreachable!("it was made")).unwrap();
        assert_eq!((sender.receiver_count(), sender.strong_count()), (1, 2), "its own and the listener's");
        breaker.force_open();
        assert_eq!(receiver.try_recv().unwrap().to, State::ForcedOpen);
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn a_circuit_with_an_attachment_of_another_type_can_be_subscribed_to() {
        let breaker = CircuitBreaker::new("x");
        assert_eq!(breaker.attachment(|| 7_u32), Some(&7));
        let mut receivers = [breaker.subscribe(), breaker.subscribe()];
        breaker.force_open();
        for receiver in &mut receivers {
            assert_eq!(receiver.try_recv().unwrap().to, State::ForcedOpen);
            assert!(receiver.try_recv().is_err());
        }
    }

    #[test]
    fn a_receiver_that_is_read_late_has_the_last_64_changes() {
        let breaker = CircuitBreaker::new("x");
        let mut receiver = breaker.subscribe();
        let change_twice = || {
            breaker.force_open();
            breaker.reset();
        };
        (0..32).for_each(|_| change_twice());
        assert!((0..64).all(|_| receiver.try_recv().is_ok()));
        (0..33).for_each(|_| change_twice());
        assert_eq!(receiver.try_recv().unwrap_err(), broadcast::error::TryRecvError::Lagged(2));
        assert_eq!(receiver.len(), 64);
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
