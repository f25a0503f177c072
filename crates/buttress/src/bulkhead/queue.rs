use super::{Bulkhead, BulkheadPermit, Discipline};
use crate::{
    clock::TokioClock,
    ending::{Ahead, Begin, Ended, Ending, Finish, NoEnding},
    gate::{self, GateLayer},
    in_flight::InFlight,
    ready_call::ReadyCall,
    shell::{inner_service, opaque_debug},
    timer::Deadline,
};
use buttress_core::{
    Clock, Criticality, InvalidConfig, Reason, Rejection,
    bulkhead::{self, Acquire, QUEUE_DEADLINE, QUEUE_FULL, QUEUE_TIMEOUT},
};
use pin_project::pin_project;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tower_layer::Layer;
use tower_service::Service;

/// A bulkhead with a queue, as a layer. Made by [`BulkheadLayer::queue`](super::BulkheadLayer).
///
/// ```
/// use buttress::{BulkheadLayer, PlainExt, bulkhead::QueuedLayer, ending::Plain};
/// use std::time::Duration;
///
/// let layer: QueuedLayer<Plain> = BulkheadLayer::new(10).queue(20, Duration::from_millis(50)).plain();
/// assert_eq!(layer.handle().waiting(), 0);
/// ```
#[derive(Clone, Debug)]
pub struct QueuedLayer<E = NoEnding> {
    bulkhead: Bulkhead,
    max_queue: usize,
    max_wait: Duration,
    ends: E,
}

impl<E> QueuedLayer<E> {
    pub(super) fn new(gate: GateLayer<Bulkhead, E>, max_queue: usize, max_wait: Duration) -> Self {
        let (bulkhead, ends) = gate.into_parts();
        Self { bulkhead, max_queue, max_wait, ends }
    }

    /// Sets the order in which calls of one class leave the queue. [`Discipline::Fifo`] by default.
    ///
    /// The discipline belongs to the handle: layers that share a bulkhead share it.
    ///
    /// ```
    /// use buttress::{BulkheadLayer, bulkhead::Discipline};
    /// use std::time::Duration;
    ///
    /// let layer = BulkheadLayer::new(10).queue(100, Duration::from_millis(50)).discipline(Discipline::Lifo);
    /// assert_eq!(layer.handle().discipline(), Discipline::Lifo);
    /// ```
    pub fn discipline(self, discipline: Discipline) -> Self {
        self.bulkhead.set_discipline(discipline);
        self
    }

    /// Guarantees a class a share of the places while calls queue, between 0 and 1. A place that is
    /// released then goes to a class that has fewer calls in flight than its share before it goes
    /// to any other. The [module](super#the-queue) has the rules.
    ///
    /// The shares belong to the handle: layers that share a bulkhead share them.
    ///
    /// # Errors
    /// If `share` is not between 0 and 1, or if the shares of all classes add up to more than 1.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress::{BulkheadLayer, policy::Criticality};
    /// use std::time::Duration;
    ///
    /// let layer = BulkheadLayer::new(10)
    ///     .queue(100, Duration::from_millis(50))
    ///     .reserve(Criticality::CriticalPlus, 0.2)?
    ///     .reserve(Criticality::Sheddable, 0.1)?;
    /// assert_eq!(layer.handle().in_flight_of(Criticality::Sheddable), Some(0));
    /// assert!(layer.reserve(Criticality::Critical, 0.8).is_err());
    /// # Ok::<(), buttress::InvalidConfig>(())
    /// ```
    pub fn reserve(self, class: Criticality, share: f64) -> Result<Self, InvalidConfig> {
        self.bulkhead.reserve(class, share)?;
        Ok(self)
    }

    /// Returns the bulkhead, to observe or resize it.
    pub fn handle(&self) -> &Bulkhead {
        &self.bulkhead
    }
}

impl<E> Ending for QueuedLayer<E> {
    type Now = E;
    type With<Next> = QueuedLayer<Next>;

    fn end<Next>(self, ends: Next) -> QueuedLayer<Next> {
        let Self { bulkhead, max_queue, max_wait, ends: _ } = self;
        QueuedLayer { bulkhead, max_queue, max_wait, ends }
    }
}

impl<S, E: Ended + Clone> Layer<S> for QueuedLayer<E> {
    type Service = Queued<S, E>;

    fn layer(&self, inner: S) -> Self::Service {
        Queued { inner, layer: self.clone() }
    }
}

/// A service behind a bulkhead with a queue.
///
/// It is always ready. A call polls its own clone of the inner service for readiness after it got a
/// place, so that a queued call holds no connection and no slot of another layer.
#[derive(Clone, Debug)]
pub struct Queued<S, E> {
    inner: S,
    layer: QueuedLayer<E>,
}

inner_service!(Queued<S, E>);

impl<S, E, Req> Service<Req> for Queued<S, E>
where
    S: Service<Req> + Clone,
    E: Begin<Req> + Finish<E::Context, S::Response, S::Error> + Clone,
{
    type Response = E::Response<BulkheadPermit>;
    type Error = E::Error;
    type Future = ResponseFuture<S, Req, S::Future, E, E::Context, E::Ahead>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), E::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Req) -> Self::Future {
        let QueuedLayer { bulkhead, max_queue, max_wait, ends } = &self.layer;
        let context = ends.begin::<BulkheadPermit>(&mut request);
        let state = match bulkhead.acquire_or_queue(*max_queue) {
            Ok(Acquire::Taken(permit)) => {
                State::Running { call: ReadyCall::new(self.inner.clone(), request), permit: InFlight::new(permit) }
            }
            Ok(Acquire::Queued(place)) => State::Queued {
                place,
                max_wait: *max_wait,
                timeout: None,
                timer: Deadline::new(),
                ahead: ends.ahead(&mut request),
                bulkhead: bulkhead.clone(),
                call: Some(ReadyCall::new(self.inner.clone(), request)),
            },
            Err(rejection) => State::Rejected { rejection: Some(rejection) },
        };
        ResponseFuture { state, context, ends: ends.clone() }
    }
}

type Place = bulkhead::Place<TokioClock>;

/// Cuts the time that a call may wait from now on by its deadline. Returns why it then gives up.
fn cut(max_wait: &mut Duration, place: &Place) -> &'static Reason {
    let left = place.deadline().map(|deadline| deadline.saturating_duration_since(TokioClock.now()));
    match left {
        Some(left) if left < *max_wait => {
            *max_wait = left;
            &QUEUE_DEADLINE
        }
        _ => &QUEUE_TIMEOUT,
    }
}

/// The future of a [`Queued`] service.
#[pin_project]
pub struct ResponseFuture<S, Req, F, E, Cx, ReadAhead> {
    #[pin]
    state: State<S, Req, F, ReadAhead>,
    /// Taken when the future completes.
    context: Cx,
    ends: E,
}

#[pin_project(project = StateProj)]
enum State<S, Req, F, ReadAhead> {
    Queued {
        place: Place,
        max_wait: Duration,
        /// Why the call gives up at the end of `max_wait`, which is cut by its deadline when it is
        /// pending for the first time.
        timeout: Option<&'static Reason>,
        #[pin]
        timer: Deadline,
        /// Reads the body of the request in advance, so that its HTTP/2 flow control does not block
        /// other calls on the connection.
        ahead: Option<ReadAhead>,
        bulkhead: Bulkhead,
        call: Option<ReadyCall<S, Req, F>>,
    },
    Running {
        #[pin]
        call: ReadyCall<S, Req, F>,
        permit: InFlight<BulkheadPermit>,
    },
    Rejected {
        rejection: Option<Rejection>,
    },
}

opaque_debug!(ResponseFuture<S, Req, F, E, Cx, ReadAhead>);

impl<S, Req, E, Cx, ReadAhead> Future for ResponseFuture<S, Req, S::Future, E, Cx, ReadAhead>
where
    S: Service<Req>,
    E: Finish<Cx, S::Response, S::Error>,
    Cx: Default,
    ReadAhead: Ahead,
{
    type Output = Result<E::Response<BulkheadPermit>, E::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Queued { place, max_wait, timeout, timer, ahead, bulkhead, call } => {
                    match place.poll_acquire(cx) {
                        Poll::Ready(Ok(permit)) => {
                            let call = call.take().expect("the call is taken once");
                            State::Running { call, permit: InFlight::new(permit) }
                        }
                        Poll::Ready(Err(rejection)) => State::Rejected { rejection: Some(rejection) },
                        Poll::Pending => {
                            let too_large = ahead.as_mut().is_some_and(|ahead| ahead.poll_too_large(cx).is_ready());
                            let reason = if too_large {
                                &QUEUE_FULL
                            } else {
                                let timeout = *timeout.get_or_insert_with(|| cut(max_wait, place));
                                ready!(timer.poll_expired(*max_wait, cx));
                                timeout
                            };
                            State::Rejected { rejection: Some(bulkhead.reject(reason)) }
                        }
                    }
                }
                StateProj::Running { call, permit } => {
                    let result = ready!(permit.guard(|| call.poll(cx)));
                    return gate::finish(result, this.context, permit, this.ends);
                }
                StateProj::Rejected { rejection } => return gate::reject(rejection, this.context, this.ends),
            };
            this.state.set(next);
        }
    }
}
