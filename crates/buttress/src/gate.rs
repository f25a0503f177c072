//! Admission, call, outcome: the plumbing of every protective layer, written once.
//!
//! A [`GateLayer`] is a [policy](Policy) with an [observer](crate::observe) and an [exit](crate::exit). Your own policy
//! becomes a layer the same way ours do:
//!
//! ```
//! use buttress::{Admit, Clock, Policy, Reason, Refused, Rejection, gate::GateLayer};
//!
//! /// Lets requests in while the lights are on.
//! #[derive(Clone)]
//! struct Lights(std::sync::Arc<std::sync::atomic::AtomicBool>);
//!
//! impl Policy for Lights {
//!     type Permit = ();
//!     fn reserve(&self, clock: &impl Clock) -> Result<(), Rejection> {
//!         self.peek(clock).map_err(|_| Rejection::new("lights", Reason::Refused))
//!     }
//!     fn peek(&self, _: &impl Clock) -> Result<(), Refused> {
//!         let on = self.0.load(std::sync::atomic::Ordering::Relaxed);
//!         if on { Ok(()) } else { Err(Refused { retry_after: None }) }
//!     }
//! }
//! impl<Req: ?Sized> Admit<Req> for Lights {}
//!
//! let layer = GateLayer::with_policy(Lights(Default::default()));
//! # let _ = layer;
//! ```

mod reserving;

pub use reserving::{ReservingGate, ReservingGateLayer};

use crate::{
    InFlight, TokioClock,
    exit::{AsError, Exit, ExitError},
    observe::{Observe, Plain, finish},
};
use buttress_core::{Admit, Permit, Policy, Reason, Rejection};
use pin_project_lite::pin_project;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};
use tower_layer::Layer;
use tower_service::Service;

/// A policy as a layer. Its state is in the policy's handle, so that all services made by the layer, and by its clones, share it.
#[derive(Clone, Copy, Debug, Default)]
pub struct GateLayer<A, O = Plain, X = AsError> {
    policy: A,
    observe: O,
    exit: X,
}

impl<A> GateLayer<A> {
    /// A layer that asks `policy`, for services that are not HTTP, and whose rejections leave as [`Error`](crate::Error).
    pub const fn with_policy(policy: A) -> Self {
        Self { policy, observe: Plain, exit: AsError }
    }
}

impl<A, O, X> GateLayer<A, O, X> {
    /// The policy, to watch or to drive it.
    pub fn handle(&self) -> &A {
        &self.policy
    }

    /// Reads outcomes in another way.
    pub fn observe<P>(self, observe: P) -> GateLayer<A, P, X> {
        GateLayer { policy: self.policy, observe, exit: self.exit }
    }

    /// Lets rejections leave in another way.
    pub fn exit<Y>(self, exit: Y) -> GateLayer<A, O, Y> {
        GateLayer { policy: self.policy, observe: self.observe, exit }
    }

    /// Puts something around the policy, or something else in its place.
    pub fn map_policy<B>(self, map: impl FnOnce(A) -> B) -> GateLayer<B, O, X> {
        GateLayer { policy: map(self.policy), observe: self.observe, exit: self.exit }
    }

    /// Takes the permit in `poll_ready`, which is pending while the policy refuses and wakes when that changes. For stacks that look
    /// at readiness: under a balancer, another endpoint is chosen. Nothing is rejected then.
    ///
    /// Not for axum, which never looks at readiness.
    ///
    /// A policy that needs the request to decide, such as a [keyed](crate::keyed) one, does not compile here.
    pub fn backpressure(self) -> ReservingGateLayer<A, O, X>
    where
        A: Policy,
    {
        const { assert!(A::RESERVES, "this policy decides by the request, which `poll_ready` does not know") };
        ReservingGateLayer::new(self)
    }

    #[cfg(feature = "bulkhead")]
    pub(crate) fn into_parts(self) -> (A, O, X) {
        (self.policy, self.observe, self.exit)
    }

    /// That the inner service fails to become ready is evidence like a failed call, and nothing is held by it any more.
    fn readiness_failed<S, Req>(&self, error: S::Error, permit: Option<InFlight<A::Permit>>) -> X::Error
    where
        S: Service<Req>,
        A: Policy,
        X: ExitError<S::Error>,
        O: Observe<S::Response, X::Error>,
    {
        let error = self.exit.inner(error);
        if let Some(mut permit) = permit {
            self.observe.error(&error, &mut permit);
        }
        error
    }
}

impl<S, A: Clone, O: Clone, X: Clone> Layer<S> for GateLayer<A, O, X> {
    type Service = Gate<S, A, O, X>;

    fn layer(&self, inner: S) -> Self::Service {
        Gate { inner, inner_ready: false, gate: self.clone() }
    }
}

/// A service behind a policy that is asked when it is called.
///
/// `poll_ready` drives the inner service. While that is pending and the policy would refuse anyway, the gate is ready at once, so
/// that the caller gets the rejection now and not after a hung connection.
#[derive(Debug)]
pub struct Gate<S, A, O = Plain, X = AsError> {
    inner: S,
    /// Whether the inner service said that it is ready for the next call.
    inner_ready: bool,
    gate: GateLayer<A, O, X>,
}

impl<S: Clone, A: Clone, O: Clone, X: Clone> Clone for Gate<S, A, O, X> {
    fn clone(&self) -> Self {
        // Readiness is not inherited: the clone has to be polled itself.
        Self { inner: self.inner.clone(), inner_ready: false, gate: self.gate.clone() }
    }
}

impl<S, A, O, X, Req, Out> Service<Req> for Gate<S, A, O, X>
where
    S: Service<Req>,
    A: Admit<Req>,
    X: Exit<Out, S::Error> + Clone,
    O: Observe<S::Response, X::Error, Response<A::Permit> = Out> + Clone,
{
    type Response = Out;
    type Error = X::Error;
    type Future = ResponseFuture<S::Future, A::Permit, O, X>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), X::Error>> {
        let Self { inner, inner_ready, gate } = self;
        let result = inner.poll_ready(cx).map_err(|error| {
            let permit = gate.policy.reserve(&TokioClock).ok().map(InFlight::new);
            gate.readiness_failed::<S, Req>(error, permit)
        });
        *inner_ready = matches!(result, Poll::Ready(Ok(())));
        if result.is_pending() && gate.policy.peek(&TokioClock).is_err() {
            return Poll::Ready(Ok(()));
        }
        result
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let inner_ready = std::mem::take(&mut self.inner_ready);
        let state = match self.gate.policy.admit(&request, &TokioClock) {
            // The guard comes before the call: if that panics, the permit is given back.
            Ok(permit) if inner_ready => {
                let permit = InFlight::new(permit);
                State::Running { future: self.inner.call(request), permit }
            }
            // The policy admits again what it would have refused when the inner service was not ready.
            Ok(permit) => {
                drop(InFlight::new(permit));
                State::Rejected { rejection: Some(Rejection::new("gate", Reason::NotReady)) }
            }
            Err(rejection) => State::Rejected { rejection: Some(rejection) },
        };
        ResponseFuture { state, observe: self.gate.observe.clone(), exit: self.gate.exit.clone() }
    }
}

pin_project! {
    /// The future of a [`Gate`].
    pub struct ResponseFuture<F, P: Permit, O, X> {
        #[pin]
        state: State<F, P>,
        observe: O,
        exit: X,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, P: Permit> {
        Running { #[pin] future: F, permit: InFlight<P> },
        Rejected { rejection: Option<Rejection> },
    }
}

impl<F, P: Permit, O, X> std::fmt::Debug for ResponseFuture<F, P, O, X> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<F, P, O, X, Res, E, Out> Future for ResponseFuture<F, P, O, X>
where
    F: Future<Output = Result<Res, E>>,
    P: Permit,
    X: Exit<Out, E>,
    O: Observe<Res, X::Error, Response<P> = Out>,
{
    type Output = Result<Out, X::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.state.project() {
            StateProj::Running { future, permit } => finish(future.poll(cx), permit, this.observe, this.exit),
            StateProj::Rejected { rejection } => reject(rejection, this.exit),
        }
    }
}

/// Out of the way of the calls that are let through.
#[inline(never)]
fn reject<Res, E, X: Exit<Res, E>>(rejection: &mut Option<Rejection>, exit: &X) -> Poll<Result<Res, X::Error>> {
    Poll::Ready(exit.reject(rejection.take().expect("polled after completion")))
}
