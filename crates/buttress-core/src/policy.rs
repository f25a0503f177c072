//! The traits of policies: whether a call may start, and what its outcome changes.
//!
//! The crate `buttress` has a layer around any [`Policy`], so that a policy of a user needs no
//! Tower code of its own:
//!
//! ```
//! use buttress_core::{Class, Outcome, Permit, Policy, Reason, Rejection};
//! use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
//!
//! static TOO_MANY_FAILURES: Reason =
//!     Reason::new("too_many_failures", "too many failures", Class::Unavailable);
//!
//! /// Rejects all calls after `max` failures.
//! #[derive(Clone)]
//! struct MaxFailures {
//!     max: u64,
//!     failures: Arc<AtomicU64>,
//! }
//!
//! struct FailurePermit(Arc<AtomicU64>);
//!
//! impl<Req: ?Sized> Policy<Req> for MaxFailures {
//!     type Permit = FailurePermit;
//!
//!     fn admit(&self, _: &Req) -> Result<FailurePermit, Rejection> {
//!         if self.failures.load(Ordering::Relaxed) >= self.max {
//!             return Err(Rejection::new("max failures", &TOO_MANY_FAILURES));
//!         }
//!         Ok(FailurePermit(self.failures.clone()))
//!     }
//! }
//!
//! impl Permit for FailurePermit {
//!     fn settle(&mut self, outcome: &Outcome) {
//!         self.0.fetch_add(outcome.is_failure().into(), Ordering::Relaxed);
//!     }
//! }
//!
//! # use buttress_core::{Failure, FailureKind};
//! let policy = MaxFailures { max: 1, failures: Arc::default() };
//! policy.admit("a request").unwrap().settle(&Failure::new(FailureKind::Connect).into());
//! assert_eq!(policy.admit("a request").err().unwrap().reason(), &TOO_MANY_FAILURES);
//! ```

use crate::{Class, Outcome, Reason, Rejection, Waiters, rate_limit::Usage};
use std::time::Duration;

/// The service was called without `poll_ready` before it, or the inner service was not ready.
pub static NOT_READY: Reason = Reason::new("not_ready", "called before it was ready", Class::Unavailable);

/// Decides whether calls with requests of type `Req` may start.
///
/// A policy is a cheap handle to shared state. The state must not be in a Tower service, because
/// axum builds new services for every connection. Only [`admit`](Self::admit) is required.
/// Implement [`peek`](Self::peek) as well if the policy can refuse without the request.
///
/// See the [module](self) for an example.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no policy for requests of type `{Req}`",
    note = "implement `Policy<{Req}>` for it, or for all requests: `impl<Req: ?Sized> Policy<Req> for ..`"
)]
pub trait Policy<Req: ?Sized> {
    /// The permit that an admitted call owns while it is in flight.
    type Permit: Permit;

    /// Admits or rejects a call.
    ///
    /// # Errors
    /// The rejection, if the call may not start.
    fn admit(&self, request: &Req) -> Result<Self::Permit, Rejection>;

    /// Checks whether every call would be refused now, whatever its request. Changes nothing, and
    /// guarantees nothing about the next [`admit`](Self::admit). `poll_ready` calls it, so that a
    /// call that will be rejected does not wait for the inner service. Returns `Ok` by default.
    ///
    /// # Errors
    /// If every call would be refused, with the time after which to check again.
    fn peek(&self) -> Result<(), Refused> {
        Ok(())
    }

    /// Returns the rejection of a call that [`peek`](Self::peek) refused. By default it calls
    /// [`admit`](Self::admit); if that admits the call now, it is [undone](Self::undo), and the
    /// rejection is [`NOT_READY`], because the inner service was not polled ready for it.
    fn refuse(&self, request: &Req, _refused: Refused) -> Rejection {
        match self.admit(request) {
            Err(rejection) => rejection,
            Ok(permit) => {
                self.undo(request, permit);
                Rejection::new("policy", &NOT_READY)
            }
        }
    }

    /// Admits or rejects a call that has a [reserved](Reserve::try_reserve) permit, once its
    /// request is known. Returns the permit by default.
    ///
    /// # Errors
    /// The rejection, if the call may not start.
    fn confirm(&self, permit: Self::Permit, _request: &Req) -> Result<Self::Permit, Rejection> {
        Ok(permit)
    }

    /// Takes back the permit of a call that was admitted and has not started. Drops it by default.
    ///
    /// For what a call uses up by its start, and not while it is in flight: a rate limit gives the
    /// share of the call back. [`AllOf`](crate::AllOf) undoes what one policy has admitted when
    /// another one refuses, and a layer whose calls wait undoes those that are dropped before their
    /// start. `request` is the request of [`admit`](Self::admit).
    fn undo(&self, _request: &Req, permit: Self::Permit) {
        drop(permit);
    }

    /// Returns a permit with which to settle the failure of an inner service to become ready. There
    /// is no request yet.
    ///
    /// * `Some(Err(_))` if a call would be refused now: the failure is then not counted.
    /// * `None`, the default, for a policy that needs the request: the next call fails with the
    ///   same error, and the policy learns from that.
    ///
    /// The permit takes nothing that a call uses up by its start, because none starts. A policy
    /// that learns nothing returns one too, or it would keep the failure from another policy beside
    /// it.
    ///
    /// Not called if permits do not [learn](Permit::LEARNS).
    fn unready(&self) -> Option<Result<Self::Permit, Refused>> {
        None
    }

    /// Returns the list of tasks that are woken when the policy begins to refuse all calls. `None`
    /// by default.
    ///
    /// It must be `None` for a policy that [wakes waiters one by one](Waiters::wake_one): a wake-up
    /// would be lost on a task that takes no permit.
    fn watchers(&self) -> Option<Waiters> {
        None
    }
}

/// A [`Policy`] that can admit calls for later, such as a rate limit.
///
/// ```
/// use buttress_core::{ManualClock, Policy, Schedule, rate_limit::RateLimit};
/// use std::time::Duration;
///
/// let limit = RateLimit::<ManualClock>::per_second(10).burst(1);
/// let _started = limit.schedule("a request", Duration::ZERO).unwrap();
/// let later = limit.schedule("another", Duration::from_secs(1)).unwrap();
/// assert_eq!(later.wait, Duration::from_millis(100));
/// limit.undo("another", later.permit); // its caller has gone
/// ```
#[diagnostic::on_unimplemented(
    message = "the calls of `{Self}` cannot wait",
    label = "cannot wait",
    note = "rate limits can: `RateLimitLayer::per_second(100).wait(max_wait)`; for a bulkhead use `.queue(..)`"
)]
pub trait Schedule<Req: ?Sized>: Policy<Req> {
    /// Admits a call that starts after a wait of at most `max_wait`, or rejects it.
    ///
    /// The caller sleeps for the wait. If the call does not start after it, the caller must
    /// [undo](Policy::undo) it.
    ///
    /// # Errors
    /// The rejection, if the call may not start within `max_wait`.
    fn schedule(&self, request: &Req, max_wait: Duration) -> Result<Scheduled<Self::Permit>, Rejection>;
}

/// A call that may start after a wait. Returned by [`Schedule::schedule`].
#[derive(Clone, Copy, Debug)]
#[must_use = "a call that does not start must be undone"]
pub struct Scheduled<P> {
    /// The permit of the call.
    pub permit: P,
    /// The time from now until the call may start. Zero if it may start at once.
    pub wait: Duration,
}

/// A [`Policy`] whose permits can be taken before the request is known, as backpressure requires.
///
/// ```
/// use buttress_core::{ManualClock, Reserve, bulkhead::Bulkhead};
///
/// let bulkhead = Bulkhead::<ManualClock>::new(1);
/// let reserved = bulkhead.try_reserve().unwrap();
/// assert!(bulkhead.try_reserve().is_err());
/// assert_eq!(bulkhead.rejected(), 0, "no call was rejected");
/// # drop(reserved);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot take a permit before the request is known",
    label = "no backpressure",
    note = "a policy that decides by the request, such as a keyed one, rejects in `call`: leave `.backpressure()` out"
)]
pub trait Reserve {
    /// The same type as [`Policy::Permit`].
    type Permit: Permit;

    /// Takes a permit for a service in `poll_ready`. If there is none, no call was rejected: the
    /// policy counts nothing and calls no listener.
    ///
    /// # Errors
    /// If there is no permit, with the time after which to try again.
    fn try_reserve(&self) -> Result<Self::Permit, Refused>;

    /// Returns whether a reserved permit is still valid for a call. For example, a permit of a
    /// circuit is not valid if the circuit has opened since. True by default.
    fn holds(&self, _permit: &Self::Permit) -> bool {
        true
    }

    /// Returns the list of services that wait for a permit. If it is `None`, the default, a service
    /// tries again after [`Refused::retry_after`].
    fn waiters(&self) -> Option<Waiters> {
        None
    }
}

/// The error of [`Policy::peek`] and [`Reserve::try_reserve`]: a call would be refused.
///
/// ```
/// use buttress_core::{ManualClock, Refused, bulkhead::Bulkhead};
///
/// let bulkhead = Bulkhead::<ManualClock>::new(0);
/// assert_eq!(bulkhead.peek(), Err(Refused { retry_after: None }));
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refused {
    /// The time after which to try again; `None` if it is unknown, so that only a wake-up helps.
    pub retry_after: Option<Duration>,
}

/// A policy that a keyed policy can evict.
///
/// ```
/// use buttress_core::{Idle, ManualClock, Policy, bulkhead::Bulkhead};
///
/// let bulkhead = Bulkhead::<ManualClock>::new(8);
/// let permit = bulkhead.admit("a request").unwrap();
/// assert!(!bulkhead.is_idle());
/// drop(permit);
/// assert!(bulkhead.is_idle());
/// ```
pub trait Idle {
    /// Returns whether a new policy could replace this one without a visible difference: no permit
    /// is held, and no call would be refused.
    fn is_idle(&self) -> bool;
}

/// A guard that an admitted call owns while it is in flight, to the end of its response's body.
///
/// It is settled at most once, in place, because moving it costs more than settling it. If it is
/// dropped before, the call was cancelled. Dropping it releases everything it holds.
///
/// ```
/// use buttress_core::circuit_breaker::CircuitBreaker;
/// use buttress_core::{ManualClock, Outcome, Permit, Policy};
///
/// let breaker = CircuitBreaker::<ManualClock>::new("payments");
/// let mut permit = breaker.admit("a request").unwrap();
/// permit.settle(&Outcome::Success);
/// assert_eq!(breaker.snapshot().counts.succeeded, 1);
/// ```
#[must_use = "dropping a permit releases it"]
pub trait Permit: Send + 'static {
    /// Whether the call must hold the permit until the body of its response has ended, even if its
    /// outcome is known before. False by default.
    const HOLDS_UNTIL_BODY_END: bool = false;

    /// Whether the policy uses the outcomes of calls. If not, a layer need not classify them. True
    /// by default.
    const LEARNS: bool = true;

    /// Reports the outcome of the call. Called at most once; after it, the permit is only dropped.
    fn settle(&mut self, outcome: &Outcome);

    /// Reports that a part of the response of an unsettled call has arrived. Does nothing by
    /// default.
    ///
    /// A circuit breaker renews the lease of a probe with it, and measures the time to the head of
    /// the response.
    fn progress(&mut self, _progress: Progress) {}

    /// Calls `visit` with each quota from which the call was admitted, for protocols that tell
    /// callers. None by default.
    fn usages(&self, _visit: &mut dyn FnMut(&Usage)) {}
}

/// The part of a response that has arrived.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Progress {
    /// The head of the response, which is not classified as a failure.
    Head,
    /// A frame of the response's body.
    Frame,
}

/// The permit of a policy that neither counts calls in flight nor learns from outcomes.
impl Permit for () {
    const LEARNS: bool = false;

    fn settle(&mut self, _: &Outcome) {}
}
