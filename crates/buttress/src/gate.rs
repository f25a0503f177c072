//! Admission, call, outcome: the plumbing of every protective layer, written once.
//!
//! A [`GateLayer`] is a [policy](Policy) with an [ending](crate::ending). The module
//! [`policy`](crate::policy) shows how a policy of your own becomes a layer.
//!
//! # Readiness
//!
//! A gate is as ready as its inner service. While the policy would reject every call, the gate is
//! ready at once, so that the caller gets the rejection now and not after a hung connection. A gate
//! that waits for its inner service wakes when a circuit opens, and not when a bulkhead fills. When
//! the inner service fails to become ready, that is evidence for the policy. It counts no rejection,
//! and no call where the policy rejects.

mod reserving;

pub use reserving::{ReservingGate, ReservingGateLayer};

use crate::{
    ending::{Begin, Ended, Ending, Finish, NoEnding},
    events,
    in_flight::InFlight,
    shell::{inner_service, opaque_debug},
};
use buttress_core::{Permit, Policy, Refused, Rejection, Reserve, policy::NOT_READY};
use pin_project::pin_project;
use std::{
    any::Any,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tower_layer::Layer;
use tower_service::Service;
use waiting::Waiting;

mod waiting;

/// A policy as a layer, once it has an [ending](crate::ending). Its state is in the policy's
/// handle, so that all services made by the layer, and by its clones, share it.
#[derive(Clone, Copy, Debug, Default)]
pub struct GateLayer<Pol, E = NoEnding> {
    policy: Pol,
    ends: E,
}

impl<Pol> GateLayer<Pol> {
    /// A layer that asks `policy`.
    pub const fn with_policy(policy: Pol) -> Self {
        Self { policy, ends: NoEnding }
    }
}

impl<Pol, E> GateLayer<Pol, E> {
    /// The policy, to watch or to drive it.
    pub fn handle(&self) -> &Pol {
        &self.policy
    }

    /// Puts something around the policy, or something else in its place.
    pub fn map_policy<Other>(self, map: impl FnOnce(Pol) -> Other) -> GateLayer<Other, E> {
        GateLayer { policy: map(self.policy), ends: self.ends }
    }

    /// Takes the permit in `poll_ready`, which is pending while the policy refuses and wakes when
    /// that changes. For stacks that look at readiness: under a balancer, another endpoint is
    /// chosen. What is rejected then is only a call whose service was ready before the policy began
    /// to refuse, such as a circuit that opened in between; after it, `poll_ready` is pending
    /// again.
    ///
    /// Not for axum, which never looks at readiness.
    ///
    /// A policy that needs the request to decide, such as a [keyed](crate::keyed) one, cannot
    /// [reserve](Reserve), and does not compile here.
    pub fn backpressure(self) -> ReservingGateLayer<Pol, E>
    where
        Pol: Reserve,
    {
        ReservingGateLayer::new(self)
    }

    pub(crate) fn into_parts(self) -> (Pol, E) {
        (self.policy, self.ends)
    }
}

impl<Pol, E> Ending for GateLayer<Pol, E> {
    type Now = E;
    type With<Next> = GateLayer<Pol, Next>;

    fn end<Next>(self, ends: Next) -> GateLayer<Pol, Next> {
        GateLayer { policy: self.policy, ends }
    }
}

impl<S, Pol: Clone, E: Ended + Clone> Layer<S> for GateLayer<Pol, E> {
    type Service = Gate<S, Pol, E>;

    fn layer(&self, inner: S) -> Self::Service {
        Gate { inner, readiness: Readiness::UNKNOWN, gate: self.clone(), unready: None }
    }
}

/// A service behind a policy that is asked when it is called. See the [module](self) for its
/// readiness.
#[derive(Debug)]
pub struct Gate<S, Pol, E> {
    inner: S,
    readiness: Readiness,
    gate: GateLayer<Pol, E>,
    unready: Option<Box<Unready>>,
}

inner_service!(Gate<S, Pol, E>);

/// What the last `poll_ready` found, in one word.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Readiness(u64);

impl Readiness {
    /// Nothing, or the inner service was not ready.
    const UNKNOWN: Self = Self(0);
    /// The inner service is ready for the next call.
    const READY: Self = Self(1);
    /// The policy would refuse the call, and does not say for how long.
    const REFUSED: Self = Self(u64::MAX);

    /// The policy would refuse the call for so many nanoseconds.
    fn refused(Refused { retry_after }: Refused) -> Self {
        let nanos = |after: Duration| u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        retry_after.map_or(Self::REFUSED, |after| Self(nanos(after).clamp(2, u64::MAX - 1)))
    }

    fn refusal(self) -> Option<Refused> {
        let retry_after = (self != Self::REFUSED).then(|| Duration::from_nanos(self.0));
        (self.0 > Self::READY.0).then_some(Refused { retry_after })
    }
}

/// What a gate needs while its inner service is not ready. It is boxed: gates are moved and cloned
/// with every call.
#[derive(Debug)]
enum Unready {
    /// Its place among those that the policy wakes.
    Waiting(Waiting),
    /// The error of the inner service, which the ending has converted. It is kept where the policy
    /// cannot learn from it before the request is known.
    Failed(Box<dyn Any + Send + Sync>),
}

impl<S: Clone, Pol: Clone, E: Clone> Clone for Gate<S, Pol, E> {
    fn clone(&self) -> Self {
        // Readiness is not inherited: the clone has to be polled itself.
        Self { inner: self.inner.clone(), readiness: Readiness::UNKNOWN, gate: self.gate.clone(), unready: None }
    }
}

/// Passes an error on, after it has settled the permit of its call.
fn settle_error<P, E, Cx, Res, Err>(ends: &E, error: Err, mut permit: InFlight<P>) -> E::Error
where
    P: Permit,
    E: Finish<Cx, Res, Err>,
{
    let error = ends.inner(error);
    permit.settle(&ends.outcome(&error));
    error
}

impl<S, Pol, E, Req> Service<Req> for Gate<S, Pol, E>
where
    S: Service<Req>,
    Pol: Policy<Req> + Clone,
    E: Begin<Req> + Finish<E::Context, S::Response, S::Error> + Clone,
{
    type Response = E::Response<Pol::Permit>;
    type Error = E::Error;
    type Future = ResponseFuture<S::Future, Pol::Permit, E, E::Context, E::Error>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E::Error>> {
        let Self { inner, readiness, gate, unready } = self;
        // What will be rejected must not hold a slot of the inner service meanwhile.
        if let Err(refused) = gate.policy.peek() {
            *readiness = Readiness::refused(refused);
            return Poll::Ready(Ok(()));
        }
        *readiness = Readiness::UNKNOWN;
        match inner.poll_ready(cx) {
            Poll::Ready(Ok(())) => {
                *readiness = Readiness::READY;
                if unready.is_some() {
                    *unready = None;
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => {
                *unready = None;
                match if Pol::Permit::LEARNS { gate.policy.unready() } else { Some(Err(NO_EVIDENCE)) } {
                    // Where the policy would reject a call, there is no call, and so no evidence.
                    Some(permit) => {
                        let permit = permit.map_or_else(|_| InFlight::none(), InFlight::new);
                        Poll::Ready(Err(settle_error(&gate.ends, error, permit)))
                    }
                    // The policy learns only from calls whose request it knows, so the error fails
                    // the next one.
                    None => {
                        *unready = Some(Box::new(Unready::Failed(Box::new(gate.ends.inner(error)))));
                        Poll::Ready(Ok(()))
                    }
                }
            }
            Poll::Pending => match would_refuse::<Pol, Req>(unready, &gate.policy, cx) {
                Some(refused) => {
                    *readiness = Readiness::refused(refused);
                    Poll::Ready(Ok(()))
                }
                None => Poll::Pending,
            },
        }
    }

    #[inline]
    fn call(&mut self, mut request: Req) -> Self::Future {
        let readiness = std::mem::replace(&mut self.readiness, Readiness::UNKNOWN);
        let GateLayer { policy, ends } = &self.gate;
        let context = ends.begin::<Pol::Permit>(&mut request);
        if let Some(refused) = readiness.refusal() {
            let state = State::Rejected { rejection: Some(policy.refuse(&request, refused)) };
            return ResponseFuture { state, context, ends: ends.clone() };
        }
        let state = match policy.admit(&request) {
            // The guard comes before the call: if that panics, the permit is given back, and the
            // call has failed.
            Ok(permit) if readiness == Readiness::READY => {
                let mut permit = InFlight::new(permit);
                let inner = &mut self.inner;
                State::Running { future: permit.guard(|| inner.call(request)), permit }
            }
            Ok(permit) => self.call_unready(InFlight::new(permit)),
            Err(rejection) => State::Rejected { rejection: Some(rejection) },
        };
        ResponseFuture { state, context, ends: self.gate.ends.clone() }
    }
}

impl<S, Pol, E> Gate<S, Pol, E> {
    /// A call that the policy admits, and for which the inner service is not ready: that failed, or
    /// the policy would have refused when it was asked for readiness.
    #[cold]
    fn call_unready<F, P, OutErr, Cx, Res, Err>(&mut self, mut permit: InFlight<P>) -> State<F, P, OutErr>
    where
        P: Permit,
        OutErr: Send + Sync + 'static,
        E: Finish<Cx, Res, Err, Error = OutErr>,
    {
        if let Some(Unready::Failed(error)) = self.unready.take().map(|unready| *unready)
            && let Ok(error) = error.downcast::<OutErr>()
        {
            permit.settle(&self.gate.ends.outcome(&error));
            return State::Failed { error: Some(error) };
        }
        State::Rejected { rejection: Some(Rejection::new("gate", &NOT_READY)) }
    }
}

/// The refusal that a call would get now. If there is none, the task wakes when that may have
/// changed.
#[cold]
fn would_refuse<Pol, Req>(unready: &mut Option<Box<Unready>>, policy: &Pol, cx: &mut Context<'_>) -> Option<Refused>
where
    Pol: Policy<Req>,
{
    if !matches!(unready.as_deref(), Some(Unready::Waiting(_))) {
        *unready = policy.watchers().map(|waiters| Box::new(Unready::Waiting(Waiting::new(waiters))));
    }
    if let Some(Unready::Waiting(waiting)) = unready.as_deref() {
        waiting.register(cx);
    }
    // Asked after registering: what changed in between woke no task.
    policy.peek().err()
}

/// The future of a [`Gate`].
#[pin_project]
pub struct ResponseFuture<F, P: Permit, E, Cx, OutErr> {
    #[pin]
    state: State<F, P, OutErr>,
    /// Leaves with the result.
    context: Cx,
    ends: E,
}

#[pin_project(project = StateProj)]
enum State<F, P: Permit, OutErr> {
    Running {
        #[pin]
        future: F,
        permit: InFlight<P>,
    },
    Rejected {
        rejection: Option<Rejection>,
    },
    /// The inner service could not become ready.
    Failed {
        error: Option<Box<OutErr>>,
    },
}

opaque_debug!(ResponseFuture<F, P: Permit, E, Cx, OutErr>);

impl<F, P, E, Cx, Res, Err> Future for ResponseFuture<F, P, E, Cx, E::Error>
where
    F: Future<Output = Result<Res, Err>>,
    P: Permit,
    E: Finish<Cx, Res, Err>,
    Cx: Default,
{
    type Output = Result<E::Response<P>, E::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.state.project() {
            StateProj::Running { future, permit } => {
                let result = ready!(permit.guard(|| future.poll(cx)));
                finish(result, this.context, permit, this.ends)
            }
            StateProj::Rejected { rejection } => reject(rejection, this.context, this.ends),
            StateProj::Failed { error } => Poll::Ready(Err(*error.take().expect(POLLED_AGAIN))),
        }
    }
}

/// In place of a permit for evidence, where the policy uses none.
const NO_EVIDENCE: Refused = Refused { retry_after: None };

const POLLED_AGAIN: &str = "polled after completion";

/// The end of a call: settles its permit, and lets its result out.
///
/// Failures go out by a way of their own: where the two meet again, a response that fits into a
/// register is moved in as many pieces as an error.
#[inline(always)]
pub(crate) fn finish<Res, Err, P, E, Cx>(
    result: Result<Res, Err>,
    context: &mut Cx,
    permit: &mut InFlight<P>,
    ends: &E,
) -> Poll<Result<E::Response<P>, E::Error>>
where
    P: Permit,
    E: Finish<Cx, Res, Err>,
    Cx: Default,
{
    match result {
        Ok(response) => Poll::Ready(Ok(ends.response(std::mem::take(context), response, permit))),
        Err(error) => fail(error, permit, ends),
    }
}

#[cold]
#[inline(never)]
fn fail<Res, Err, P, E, Cx>(error: Err, permit: &mut InFlight<P>, ends: &E) -> Poll<Result<E::Response<P>, E::Error>>
where
    P: Permit,
    E: Finish<Cx, Res, Err>,
{
    Poll::Ready(Err(settle_error(ends, error, permit.take())))
}

/// Out of the way of the calls that are let through.
#[inline(never)]
pub(crate) fn reject<Res, Err, P, E, Cx>(
    rejection: &mut Option<Rejection>,
    context: &mut Cx,
    ends: &E,
) -> Poll<Result<E::Response<P>, E::Error>>
where
    P: Permit,
    E: Finish<Cx, Res, Err>,
    Cx: Default,
{
    // Looked at where it lies: a value whose address is taken is moved in parts, and read back as a
    // whole.
    events::rejected(rejection.as_ref().expect(POLLED_AGAIN));
    Poll::Ready(ends.reject(std::mem::take(context), rejection.take().expect(POLLED_AGAIN)))
}
