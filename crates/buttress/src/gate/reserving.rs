use super::{GateLayer, ResponseFuture, State, readiness_failed};
use crate::{
    InFlight, TokioClock,
    ending::{Begin, Ended, Ending, Finish, NoEnding},
    timer::Timer,
};
use buttress_core::{Admit, Policy, Reason, Rejection};
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tower_layer::Layer;
use tower_service::Service;

/// A [`GateLayer`] whose services take their permit in `poll_ready`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReservingGateLayer<A, E = NoEnding>(GateLayer<A, E>);

impl<A, E> ReservingGateLayer<A, E> {
    pub(super) const fn new(gate: GateLayer<A, E>) -> Self {
        Self(gate)
    }

    /// The policy, to watch or to drive it.
    pub fn handle(&self) -> &A {
        self.0.handle()
    }
}

impl<A, E> Ending for ReservingGateLayer<A, E> {
    type Now = E;
    type With<F> = ReservingGateLayer<A, F>;

    fn end<F>(self, ends: F) -> ReservingGateLayer<A, F> {
        ReservingGateLayer(self.0.end(ends))
    }
}

impl<S, A: Policy + Clone, E: Ended + Clone> Layer<S> for ReservingGateLayer<A, E> {
    type Service = ReservingGate<S, A, E>;

    fn layer(&self, inner: S) -> Self::Service {
        ReservingGate { inner, inner_ready: false, gate: self.0.clone(), permit: None, parked: None }
    }
}

/// A service behind a policy that is asked in `poll_ready`.
///
/// The permit comes first and the inner service's readiness second, so that nothing of the inner
/// service is held while the policy refuses. A permit that is not used is given back on drop, and
/// one that went stale, because the circuit has opened since, is given up when `poll_ready` is
/// called again. The call is timed, and not the time between readiness and the call.
pub struct ReservingGate<S, A: Policy, E> {
    inner: S,
    /// Whether the inner service said that it is ready for the next call.
    inner_ready: bool,
    gate: GateLayer<A, E>,
    permit: Option<InFlight<A::Permit>>,
    parked: Option<Parked<A>>,
}

impl<S, A: Policy, E> ReservingGate<S, A, E> {
    /// The inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: Clone, A: Policy + Clone, E: Clone> Clone for ReservingGate<S, A, E> {
    fn clone(&self) -> Self {
        // A permit belongs to one service: the clone reserves its own.
        Self { inner: self.inner.clone(), inner_ready: false, gate: self.gate.clone(), permit: None, parked: None }
    }
}

impl<S: fmt::Debug, A: Policy, E> fmt::Debug for ReservingGate<S, A, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReservingGate")
            .field("inner", &self.inner)
            .field("reserved", &self.permit.is_some())
            .finish_non_exhaustive()
    }
}

impl<S, A, E, Req> Service<Req> for ReservingGate<S, A, E>
where
    S: Service<Req>,
    A: Admit<Req> + Clone,
    E: Begin<Req> + Finish<E::Context, S::Response, S::Error> + Clone,
{
    type Response = E::Response<A::Permit>;
    type Error = E::Error;
    type Future = ResponseFuture<S::Future, A::Permit, E, E::Context, E::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E::Error>> {
        let Self { inner, inner_ready, gate, permit, parked } = self;
        if permit.as_ref().and_then(InFlight::get).is_some_and(|permit| !gate.policy.holds(permit, &TokioClock)) {
            *permit = None;
        }
        if permit.is_none() {
            *permit = Some(InFlight::new(ready!(poll_reserve(&gate.policy, parked, cx))));
        }
        let result = inner.poll_ready(cx).map_err(|error| readiness_failed(gate, error, permit.take()));
        *inner_ready = matches!(result, Poll::Ready(Ok(())));
        result
    }

    fn call(&mut self, mut request: Req) -> Self::Future {
        let GateLayer { policy, ends } = &self.gate;
        let context = ends.begin::<A::Permit>(&mut request);
        let permit = if std::mem::take(&mut self.inner_ready) { self.permit.take() } else { None };
        let reserved = permit.and_then(InFlight::into_permit).ok_or_else(|| Rejection::new("gate", Reason::NotReady));
        let state = match reserved.and_then(|permit| policy.confirm(permit, &request, &TokioClock)) {
            Ok(permit) => {
                let mut permit = InFlight::new(permit);
                let inner = &mut self.inner;
                State::Running { future: permit.guard(|| inner.call(request)), permit }
            }
            Err(rejection) => State::Rejected { rejection: Some(rejection) },
        };
        ResponseFuture { state, context, ends: ends.clone() }
    }
}

/// A service that waits: its place among the policy's waiters, and a timer for policies whose refusal ends by itself.
struct Parked<A: Policy> {
    policy: A,
    key: Option<u64>,
    timer: Option<Pin<Box<Timer>>>,
}

impl<A: Policy> Drop for Parked<A> {
    fn drop(&mut self) {
        if let (Some(waiters), Some(key)) = (self.policy.waiters(), self.key) {
            waiters.deregister(key);
        }
    }
}

/// How long to wait for a policy that can neither wake nor say when: it is better to ask again than to hang.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// How long a waiter relies on the wake-ups of a policy that has some. The next in line may be a
/// service that is neither polled nor dropped.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

fn poll_reserve<A: Policy + Clone>(
    policy: &A,
    parked: &mut Option<Parked<A>>,
    cx: &mut Context<'_>,
) -> Poll<A::Permit> {
    loop {
        if let Ok(permit) = policy.try_reserve(&TokioClock) {
            return Poll::Ready(served(permit, parked));
        }
        let place = parked.get_or_insert_with(|| Parked {
            policy: policy.clone(),
            key: policy.waiters().map(|waiters| waiters.key()),
            timer: None,
        });
        if let (Some(waiters), Some(key)) = (policy.waiters(), place.key) {
            waiters.register(key, cx.waker());
        }
        // Asked again after registering: what became free in between woke no task.
        let refused = match policy.try_reserve(&TokioClock) {
            Ok(permit) => return Poll::Ready(served(permit, parked)),
            Err(refused) => refused,
        };
        let pause = refused.retry_after.unwrap_or(if place.key.is_none() { ASK_AGAIN } else { LOOK_AGAIN });
        let mut timer = Box::pin(Timer::after(pause.max(Duration::from_millis(1))));
        let expired = timer.as_mut().poll_expired(cx);
        place.timer = Some(timer);
        ready!(expired);
    }
}

/// Leaves the line with a permit.
fn served<A: Policy>(permit: A::Permit, parked: &mut Option<Parked<A>>) -> A::Permit {
    if let Some(mut place) = parked.take()
        && let (Some(waiters), Some(key)) = (place.policy.waiters(), place.key.take())
    {
        waiters.served(key);
    }
    permit
}
