use super::{GateLayer, ResponseFuture, State, settle_error, waiting::Waiting};
use crate::{
    ending::{Begin, Ended, Ending, Finish, NoEnding},
    in_flight::InFlight,
    shell::inner_service,
    timer::Timer,
};
use buttress_core::{Policy, Rejection, Reserve, policy::NOT_READY};
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tower_layer::Layer;
use tower_service::Service;

/// A [`GateLayer`] whose services take their permit in `poll_ready`. Made by
/// [`GateLayer::backpressure`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ReservingGateLayer<Pol, E = NoEnding>(GateLayer<Pol, E>);

impl<Pol, E> ReservingGateLayer<Pol, E> {
    pub(super) const fn new(gate: GateLayer<Pol, E>) -> Self {
        Self(gate)
    }

    /// Returns the policy, to observe or control it.
    pub fn handle(&self) -> &Pol {
        self.0.handle()
    }
}

impl<Pol, E> Ending for ReservingGateLayer<Pol, E> {
    type Now = E;
    type With<Next> = ReservingGateLayer<Pol, Next>;

    fn end<Next>(self, ends: Next) -> ReservingGateLayer<Pol, Next> {
        ReservingGateLayer(self.0.end(ends))
    }
}

impl<S, Pol: Reserve + Clone, E: Ended + Clone> Layer<S> for ReservingGateLayer<Pol, E> {
    type Service = ReservingGate<S, Pol, E>;

    fn layer(&self, inner: S) -> Self::Service {
        ReservingGate { inner, inner_ready: false, gate: self.0.clone(), permit: None, parked: None }
    }
}

/// A service behind a policy that decides in `poll_ready`.
///
/// `poll_ready` takes the permit first and polls the inner service second, so that a waiting
/// service holds nothing of the inner service. An unused permit is returned on drop. A stale
/// permit, from before the circuit opened, is returned by the next `poll_ready`. The measured time
/// of a call begins with `call`.
pub struct ReservingGate<S, Pol: Reserve, E> {
    inner: S,
    /// Whether the inner service is ready for the next call.
    inner_ready: bool,
    gate: GateLayer<Pol, E>,
    permit: Option<InFlight<Pol::Permit>>,
    parked: Option<Parked>,
}

inner_service!(ReservingGate<S, Pol: Reserve, E>);

impl<S: Clone, Pol: Reserve + Clone, E: Clone> Clone for ReservingGate<S, Pol, E> {
    fn clone(&self) -> Self {
        // A permit belongs to one instance: the clone reserves its own.
        Self { inner: self.inner.clone(), inner_ready: false, gate: self.gate.clone(), permit: None, parked: None }
    }
}

impl<S: fmt::Debug, Pol: Reserve, E> fmt::Debug for ReservingGate<S, Pol, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReservingGate")
            .field("inner", &self.inner)
            .field("reserved", &self.permit.is_some())
            .finish_non_exhaustive()
    }
}

impl<S, Pol, E, Req> Service<Req> for ReservingGate<S, Pol, E>
where
    S: Service<Req>,
    Pol: Policy<Req> + Reserve<Permit = <Pol as Policy<Req>>::Permit> + Clone,
    E: Begin<Req> + Finish<E::Context, S::Response, S::Error> + Clone,
{
    type Response = E::Response<<Pol as Reserve>::Permit>;
    type Error = E::Error;
    type Future = ResponseFuture<S::Future, <Pol as Reserve>::Permit, E, E::Context, E::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E::Error>> {
        let Self { inner, inner_ready, gate, permit, parked } = self;
        if permit.as_ref().and_then(InFlight::get).is_some_and(|permit| !gate.policy.holds(permit)) {
            *permit = None;
        }
        if permit.is_none() {
            *permit = Some(InFlight::new(ready!(poll_reserve(&gate.policy, parked, cx))));
        }
        let result = inner
            .poll_ready(cx)
            .map_err(|error| settle_error(&gate.ends, error, permit.take().unwrap_or_else(InFlight::none)));
        *inner_ready = matches!(result, Poll::Ready(Ok(())));
        result
    }

    fn call(&mut self, mut request: Req) -> Self::Future {
        let GateLayer { policy, ends } = &self.gate;
        let context = ends.begin::<<Pol as Reserve>::Permit>(&mut request);
        let permit = if std::mem::take(&mut self.inner_ready) { self.permit.take() } else { None };
        let reserved = permit.and_then(InFlight::into_permit).ok_or_else(|| Rejection::new("gate", &NOT_READY));
        let state = match reserved.and_then(|permit| policy.confirm(permit, &request)) {
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

/// State of a service that waits for a permit.
struct Parked {
    /// An entry in the policy's list of waiters. `None` if the policy has no list.
    waiting: Option<Waiting>,
    /// Polls the policy again after `retry_after` or one of the intervals below.
    timer: Option<Pin<Box<Timer>>>,
}

/// Interval at which to ask a policy that has no list of waiters and gives no `retry_after`.
/// Without it the service would wait without end.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Interval at which to ask a policy that wakes its waiters. The waiter that was woken may be a
/// service that is neither polled nor dropped, and then wakes no other.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

fn poll_reserve<Pol: Reserve>(policy: &Pol, parked: &mut Option<Parked>, cx: &mut Context<'_>) -> Poll<Pol::Permit> {
    loop {
        if let Ok(permit) = policy.try_reserve() {
            served(parked);
            return Poll::Ready(permit);
        }
        let place = parked.get_or_insert_with(|| Parked { waiting: policy.waiters().map(Waiting::new), timer: None });
        if let Some(waiting) = &place.waiting {
            waiting.register(cx);
        }
        // Ask again after registering: a permit that was returned before the registration woke no
        // task.
        let refused = match policy.try_reserve() {
            Ok(permit) => {
                served(parked);
                return Poll::Ready(permit);
            }
            Err(refused) => refused,
        };
        let pause =
            refused.retry_after.unwrap_or(if place.waiting.is_none() { POLL_INTERVAL } else { RECHECK_INTERVAL });
        let mut timer = Box::pin(Timer::after(pause.max(Duration::from_millis(1))));
        let expired = timer.as_mut().poll_expired(cx);
        place.timer = Some(timer);
        ready!(expired);
    }
}

/// Removes the service from the list of waiters after it got a permit.
fn served(parked: &mut Option<Parked>) {
    if let Some(waiting) = parked.take().and_then(|place| place.waiting) {
        waiting.served();
    }
}
