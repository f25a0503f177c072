use super::{GateLayer, ResponseFuture, State};
use crate::{
    InFlight, TokioClock,
    exit::{AsError, Exit},
    observe::{Observe, Plain},
};
use buttress_core::{Admit, Policy, Reason, Rejection};
use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Sleep, sleep};
use tower_layer::Layer;
use tower_service::Service;

/// A [`GateLayer`] whose services take their permit in `poll_ready`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReservingGateLayer<A, O = Plain, X = AsError>(GateLayer<A, O, X>);

impl<A, O, X> ReservingGateLayer<A, O, X> {
    pub(super) const fn new(gate: GateLayer<A, O, X>) -> Self {
        Self(gate)
    }

    /// The policy, to watch or to drive it.
    pub fn handle(&self) -> &A {
        self.0.handle()
    }
}

impl<S, A: Policy + Clone, O: Clone, X: Clone> Layer<S> for ReservingGateLayer<A, O, X> {
    type Service = ReservingGate<S, A, O, X>;

    fn layer(&self, inner: S) -> Self::Service {
        ReservingGate { inner, inner_ready: false, gate: self.0.clone(), permit: None, parked: None }
    }
}

/// A service behind a policy that is asked in `poll_ready`.
///
/// The permit comes first and the inner service's readiness second, so that nothing of the inner service is held
/// while the policy refuses. A permit that is not used is given back on drop.
pub struct ReservingGate<S, A: Policy, O = Plain, X = AsError> {
    inner: S,
    /// Whether the inner service said that it is ready for the next call.
    inner_ready: bool,
    gate: GateLayer<A, O, X>,
    permit: Option<InFlight<A::Permit>>,
    parked: Option<Parked<A>>,
}

impl<S: Clone, A: Policy + Clone, O: Clone, X: Clone> Clone for ReservingGate<S, A, O, X> {
    fn clone(&self) -> Self {
        // A permit belongs to one service: the clone reserves its own.
        Self { inner: self.inner.clone(), inner_ready: false, gate: self.gate.clone(), permit: None, parked: None }
    }
}

impl<S: fmt::Debug, A: Policy, O, X> fmt::Debug for ReservingGate<S, A, O, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReservingGate")
            .field("inner", &self.inner)
            .field("reserved", &self.permit.is_some())
            .finish_non_exhaustive()
    }
}

impl<S, A, O, X, Req, Out> Service<Req> for ReservingGate<S, A, O, X>
where
    S: Service<Req>,
    A: Admit<Req> + Clone,
    X: Exit<Out, S::Error> + Clone,
    O: Observe<S::Response, X::Error, Response<A::Permit> = Out> + Clone,
{
    type Response = Out;
    type Error = X::Error;
    type Future = ResponseFuture<S::Future, A::Permit, O, X>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), X::Error>> {
        if self.permit.is_none() {
            let permit = ready!(poll_reserve(&self.gate.policy, &mut self.parked, cx));
            self.permit = Some(InFlight::new(permit));
        }
        let Self { inner, inner_ready, gate, permit, .. } = self;
        let result = inner.poll_ready(cx).map_err(|error| gate.readiness_failed::<S, Req>(error, permit.take()));
        *inner_ready = matches!(result, Poll::Ready(Ok(())));
        result
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let policy = &self.gate.policy;
        let permit = if std::mem::take(&mut self.inner_ready) { self.permit.take() } else { None };
        let reserved = permit.and_then(InFlight::into_permit).ok_or_else(|| Rejection::new("gate", Reason::NotReady));
        let state = match reserved.and_then(|permit| policy.confirm(permit, &request, &TokioClock)) {
            Ok(permit) => {
                let permit = InFlight::new(permit);
                State::Running { future: self.inner.call(request), permit }
            }
            Err(rejection) => State::Rejected { rejection: Some(rejection) },
        };
        ResponseFuture { state, observe: self.gate.observe.clone(), exit: self.gate.exit.clone() }
    }
}

/// A service that waits: its place among the policy's waiters, and a timer for policies whose refusal ends by itself.
struct Parked<A: Policy> {
    policy: A,
    key: Option<u64>,
    timer: Option<Pin<Box<Sleep>>>,
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

fn poll_reserve<A: Policy + Clone>(
    policy: &A,
    parked: &mut Option<Parked<A>>,
    cx: &mut Context<'_>,
) -> Poll<A::Permit> {
    loop {
        if policy.peek(&TokioClock).is_ok()
            && let Ok(permit) = policy.reserve(&TokioClock)
        {
            *parked = None;
            return Poll::Ready(permit);
        }
        let place = parked.get_or_insert_with(|| Parked {
            policy: policy.clone(),
            key: policy.waiters().map(|waiters| waiters.key()),
            timer: None,
        });
        if let (Some(waiters), Some(key)) = (policy.waiters(), place.key) {
            waiters.register(key, cx.waker());
        }
        // Asked again after registering: what became free in between woke nobody.
        let pause = match policy.peek(&TokioClock) {
            Err(refused) => refused.retry_after.or((place.key.is_none()).then_some(ASK_AGAIN)),
            Ok(()) => match policy.reserve(&TokioClock) {
                Ok(permit) => {
                    *parked = None;
                    return Poll::Ready(permit);
                }
                // It lets somebody in, and not us: a share of the calls, say. Nobody wakes us for the next one.
                Err(rejection) => Some(rejection.retry_after().unwrap_or(ASK_AGAIN)),
            },
        };
        place.timer = pause.map(|pause| Box::pin(sleep(pause.max(Duration::from_millis(1)))));
        match &mut place.timer {
            Some(timer) => ready!(timer.as_mut().poll(cx)),
            None => return Poll::Pending,
        }
    }
}
