//! Admission: whether a call may start, and what its outcome changes.

use crate::{Class, Outcome, Reason, Rejection, Waiters};
use std::time::Duration;

/// `call` came without the `poll_ready` before it, or the inner service was not ready.
pub static NOT_READY: Reason = Reason::new("not_ready", "called before it was ready", Class::Unavailable);

/// Decides whether calls with requests of type `Req` may start.
///
/// A policy is a cheap handle: its state lives behind it, never in a Tower service, because axum
/// makes services anew for every connection. Only [`admit`](Self::admit) has to be written, and
/// [`peek`](Self::peek) where a policy can tell without the request that it would refuse.
pub trait Policy<Req: ?Sized> {
    /// Owned by an admitted call while it is in flight.
    type Permit: Permit;

    /// Decides whether a call may start.
    ///
    /// # Errors
    /// The rejection of a call that may not start.
    fn admit(&self, request: &Req) -> Result<Self::Permit, Rejection>;

    /// Returns whether every call would be refused now, whatever its request. Takes nothing, counts
    /// nothing and promises nothing. `poll_ready` asks it, so that a call that will be rejected
    /// does not wait for the inner service. By default, no call would be.
    ///
    /// # Errors
    /// When every call would be refused, with the time after which it is worth asking again.
    fn peek(&self) -> Result<(), Refused> {
        Ok(())
    }

    /// Returns the rejection of a call that [`peek`](Self::peek) said would be refused. By default
    /// the policy is asked again; if it admits now, the call is rejected as [`NOT_READY`], because
    /// the inner service was not made ready for it.
    fn refuse(&self, request: &Req, _refused: Refused) -> Rejection {
        match self.admit(request) {
            Err(rejection) => rejection,
            // Dropping the permit gives it back.
            Ok(_permit) => Rejection::new("policy", &NOT_READY),
        }
    }

    /// Decides again about a permit that was [reserved](Reserve::try_reserve), now that the request
    /// is known. By default it stays good.
    ///
    /// # Errors
    /// The rejection of a call that may not start.
    fn confirm(&self, permit: Self::Permit, _request: &Req) -> Result<Self::Permit, Rejection> {
        Ok(permit)
    }

    /// Returns a permit for the evidence that the inner service failed to become ready, which is
    /// found before there is a request; an error where a call would be refused, so that there is no
    /// evidence. `None`, the default, for a policy that needs the request: the next call fails with
    /// the error, and the policy learns from that. Not asked where permits do not
    /// [learn](Permit::LEARNS).
    fn unready(&self) -> Option<Result<Self::Permit, Refused>> {
        None
    }

    /// Returns the list of tasks that are woken when the policy begins to refuse all calls. `None`,
    /// the default, for a policy that wakes none, and for one that [wakes them one by
    /// one](Waiters::wake_one): a wake-up would go to a task that takes no permit.
    fn watchers(&self) -> Option<Waiters> {
        None
    }
}

/// A [`Policy`] whose permits can be taken before the request is known. Required for backpressure.
pub trait Reserve {
    /// The same type as [`Policy::Permit`].
    type Permit: Permit;

    /// Takes a permit for a service that waits for its turn. Where there is none, no call was
    /// rejected: nothing is counted, and no listener is called.
    ///
    /// # Errors
    /// When there is no permit, with the time after which it is worth asking again.
    fn try_reserve(&self) -> Result<Self::Permit, Refused>;

    /// Returns whether a permit that was reserved is still good for a call. That of a circuit that
    /// has opened since is not. By default it is.
    fn holds(&self, _permit: &Self::Permit) -> bool {
        true
    }

    /// Returns the list of services that wait for a permit. A policy without one, which is the
    /// default, is asked again when [`Refused::retry_after`] has passed.
    fn waiters(&self) -> Option<Waiters> {
        None
    }
}

/// Returned by [`Policy::peek`] and [`Reserve::try_reserve`]: a call would be refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refused {
    /// The time after which it is worth asking again; `None` where only a wake-up can tell.
    pub retry_after: Option<Duration>,
}

/// A policy that a keyed policy can evict.
pub trait Idle {
    /// Returns whether nothing is lost with this policy: a new one would decide alike, because this
    /// one refuses no call and has none in flight.
    fn is_idle(&self) -> bool;
}

/// Owned by a call while it is in flight, up to the end of its response's stream.
///
/// Settled at most once. Dropped unsettled, the call was cancelled, and the permit gives back what
/// it held. It is settled in place, because moving it costs more than settling it.
#[must_use = "a permit that is dropped at once lets the next call in"]
pub trait Permit: Send + 'static {
    /// Whether the permit stands for a place that is taken until the body of the response has
    /// ended, even when the outcome is known before.
    const HOLDS_UNTIL_BODY_END: bool = false;

    /// Whether the policy uses the outcomes of calls. Where it does not, outcomes need not be read.
    const LEARNS: bool = true;

    /// Reports the outcome of the call. Called at most once, after which the permit is only
    /// dropped.
    fn settle(&mut self, outcome: &Outcome);

    /// Reports a sign of life of an unsettled call: a part of its response arrived. Does nothing by
    /// default.
    ///
    /// A circuit breaker renews a probe's lease by it, and takes the time of a call to the head of
    /// its response.
    fn progress(&mut self, _progress: Progress) {}
}

/// The part of a response that arrived.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Progress {
    /// The head of the response, which reports no failure so far.
    Head,
    /// A frame of the response's body.
    Frame,
}

/// The permit of a policy that neither counts calls in flight nor learns from outcomes.
impl Permit for () {
    const LEARNS: bool = false;

    fn settle(&mut self, _: &Outcome) {}
}
