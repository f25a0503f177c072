use crate::{
    InFlight,
    exit::{AsError, Exit},
    gate::GateLayer,
    observe::{Observe, Plain, finish},
    ready_call::ReadyCall,
};
use buttress_core::{
    Bulkhead, Reason, Rejection,
    bulkhead::{Acquire, BulkheadPermit, Place},
};
use pin_project_lite::pin_project;
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

/// A bulkhead with a queue, as a layer: see [`BulkheadLayer::queue`](super::BulkheadLayer).
#[derive(Clone, Debug)]
pub struct QueuedLayer<O = Plain, X = AsError> {
    bulkhead: Bulkhead,
    max_queue: usize,
    max_wait: Duration,
    observe: O,
    exit: X,
}

impl<O, X> QueuedLayer<O, X> {
    pub(super) fn new(gate: GateLayer<Bulkhead, O, X>, max_queue: usize, max_wait: Duration) -> Self {
        let (bulkhead, observe, exit) = gate.into_parts();
        Self { bulkhead, max_queue, max_wait, observe, exit }
    }

    /// The bulkhead, to watch or to resize it.
    pub fn handle(&self) -> &Bulkhead {
        &self.bulkhead
    }

    /// Reads outcomes in another way. The observer decides how long a place is held.
    pub fn observe<P>(self, observe: P) -> QueuedLayer<P, X> {
        let Self { bulkhead, max_queue, max_wait, observe: _, exit } = self;
        QueuedLayer { bulkhead, max_queue, max_wait, observe, exit }
    }

    /// Lets rejections leave in another way.
    pub fn exit<Y>(self, exit: Y) -> QueuedLayer<O, Y> {
        let Self { bulkhead, max_queue, max_wait, observe, exit: _ } = self;
        QueuedLayer { bulkhead, max_queue, max_wait, observe, exit }
    }
}

impl<S, O: Clone, X: Clone> Layer<S> for QueuedLayer<O, X> {
    type Service = Queued<S, O, X>;

    fn layer(&self, inner: S) -> Self::Service {
        Queued { inner, layer: self.clone() }
    }
}

/// A service behind a bulkhead with a queue.
///
/// It is ready at once, and drives a clone of the inner service to readiness once it has a place: a call that waits in the
/// queue must not hold a connection or a slot of somebody else.
#[derive(Clone, Debug)]
pub struct Queued<S, O = Plain, X = AsError> {
    inner: S,
    layer: QueuedLayer<O, X>,
}

impl<S, O, X, Req, Out> Service<Req> for Queued<S, O, X>
where
    S: Service<Req> + Clone,
    X: Exit<Out, S::Error> + Clone,
    O: Observe<S::Response, X::Error, Response<BulkheadPermit> = Out> + Clone,
{
    type Response = Out;
    type Error = X::Error;
    type Future = ResponseFuture<S, Req, S::Future, O, X>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), X::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let QueuedLayer { bulkhead, max_queue, max_wait, observe, exit } = &self.layer;
        let call = |service: &S| ReadyCall::new(service.clone(), request);
        let state = match bulkhead.acquire_or_queue(*max_queue) {
            Ok(Acquire::Taken(permit)) => State::Running { call: call(&self.inner), permit: InFlight::new(permit) },
            Ok(Acquire::Queued(place)) => State::Queued {
                place,
                timer: None,
                max_wait: *max_wait,
                bulkhead: bulkhead.clone(),
                call: Some(call(&self.inner)),
            },
            Err(rejection) => State::Rejected { rejection: Some(rejection) },
        };
        ResponseFuture { state, observe: observe.clone(), exit: exit.clone() }
    }
}

pin_project! {
    /// The future of a [`Queued`] service.
    pub struct ResponseFuture<S, Req, F, O, X> {
        #[pin]
        state: State<S, Req, F>,
        observe: O,
        exit: X,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, Req, F> {
        Queued { place: Place, #[pin] timer: Option<Sleep>, max_wait: Duration, bulkhead: Bulkhead, call: Option<ReadyCall<S, Req, F>> },
        Running { #[pin] call: ReadyCall<S, Req, F>, permit: InFlight<BulkheadPermit> },
        Rejected { rejection: Option<Rejection> },
    }
}

impl<S, Req, F, O, X> fmt::Debug for ResponseFuture<S, Req, F, O, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<S, Req, O, X, Out> Future for ResponseFuture<S, Req, S::Future, O, X>
where
    S: Service<Req>,
    X: Exit<Out, S::Error>,
    O: Observe<S::Response, X::Error, Response<BulkheadPermit> = Out>,
{
    type Output = Result<Out, X::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Queued { place, mut timer, max_wait, bulkhead, call } => match place.poll_acquire(cx) {
                    Poll::Ready(permit) => {
                        let call = call.take().expect("the call leaves only with its place");
                        State::Running { call, permit: InFlight::new(permit) }
                    }
                    Poll::Pending => {
                        if timer.is_none() {
                            timer.set(Some(sleep(*max_wait)));
                        }
                        if let Some(timer) = timer.as_pin_mut() {
                            ready!(timer.poll(cx));
                        }
                        State::Rejected { rejection: Some(bulkhead.reject(Reason::QueueTimeout)) }
                    }
                },
                StateProj::Running { call, permit } => {
                    return finish(call.poll(cx), permit, this.observe, this.exit);
                }
                StateProj::Rejected { rejection } => {
                    return Poll::Ready(this.exit.reject(rejection.take().expect("polled after completion")));
                }
            };
            this.state.set(next);
        }
    }
}
