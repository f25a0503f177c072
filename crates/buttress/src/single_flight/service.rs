use super::{
    CallPanicked,
    layer::{KeyFrom, Shared, SingleFlightLayer},
};
use crate::{
    Error, context,
    ending::{Ended, Share},
    ready_call::ReadyCall,
    shell::{inner_service, opaque_debug},
};
use buttress_core::{
    context::CallContext,
    shard::Ticket,
    single_flight::{Arrival, Entered, Participant},
};
use pin_project::pin_project;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tower_layer::Layer;
use tower_service::Service;

/// A service behind a [`SingleFlightLayer`].
///
/// ```
/// use buttress::{PlainExt, SingleFlightLayer, ending::Plain};
/// use buttress::single_flight::{Each, SingleFlight};
/// use tower::Layer;
///
/// fn client<S>(inner: S) -> SingleFlight<S, Each<fn(&u64) -> u64>, Plain> {
///     let key: fn(&u64) -> u64 = |id| *id;
///     SingleFlightLayer::new(key).plain().layer(inner)
/// }
/// # let _ = client(());
/// ```
#[derive(Clone, Debug)]
pub struct SingleFlight<S, By, E> {
    inner: S,
    layer: SingleFlightLayer<By, E>,
}

inner_service!(SingleFlight<S, By, E>);

impl<S, By: Clone, E: Ended + Clone> Layer<S> for SingleFlightLayer<By, E> {
    type Service = SingleFlight<S, By, E>;

    fn layer(&self, inner: S) -> Self::Service {
        SingleFlight { inner, layer: self.clone() }
    }
}

impl<S, By, E, Req> Service<Req> for SingleFlight<S, By, E>
where
    S: Service<Req, Error: Into<crate::BoxError> + Send, Response: Send, Future: Send + 'static> + Clone,
    By: KeyFrom<Req> + Clone + Send + 'static,
    E: Share<By, S::Response, S::Error> + Clone + Send + 'static,
{
    type Response = E::Response;
    type Error = Error;
    type Future = ResponseFuture<S, Req, S::Future, Participant<By::Key, E::Shared, E::Own>, By, E>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Error::from_inner)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let SingleFlightLayer { by, ends, shared } = &self.layer;
        let ticket = shared.ticket();
        let context = CallContext::current();
        let state = match by.key(&request).map(|key| ticket.flights.enter(key, context, ticket.config.max_waiters)) {
            Some(Entered::Joined(participant)) => {
                ticket.stats.joined.add(1);
                let may_call = !E::ALWAYS || has_more_time(context, &participant);
                let kept = may_call.then(|| (self.inner.clone(), request));
                State::Sharing { participant, kept, context }
            }
            Some(Entered::First(mut participant)) => {
                ticket.stats.made.add(1);
                let future = self.inner.call(request);
                let (by, ends, limits) = (by.clone(), ends.clone(), ticket.config.limits);
                let work = async move {
                    let result = future.await;
                    // Its own statement: a reference to the ending is not held while it waits.
                    let landing = ends.land(&by, result, &limits);
                    landing.await
                };
                // The task that polls it may belong to another caller.
                participant.start(context::with(context, work));
                State::Sharing { participant, kept: None, context }
            }
            Some(Entered::Full) => State::Rejected { error: Some(ticket.reject().into()) },
            Some(Entered::Alone) | None => {
                ticket.stats.unshared.add(1);
                State::Alone { future: self.inner.call(request) }
            }
        };
        ResponseFuture { state, ends: ends.clone(), ticket, by: std::marker::PhantomData }
    }
}

/// Returns whether the call has a deadline, and its new participant a later one or none.
fn has_more_time<K, T, O>(own: CallContext, call: &Participant<K, T, O>) -> bool
where
    K: Send + Sync + 'static,
    T: Clone + Send + 'static,
    O: Send + 'static,
{
    call.deadline().is_some_and(|end| own.deadline.is_none_or(|own| own > end))
}

/// The future of a [`SingleFlight`].
#[pin_project]
pub struct ResponseFuture<S, Req, F, P, By, E> {
    #[pin]
    state: State<S, Req, F, P>,
    ends: E,
    ticket: Ticket<Shared>,
    by: std::marker::PhantomData<fn() -> By>,
}

#[pin_project(project = StateProj)]
enum State<S, Req, F, P> {
    /// Takes part in a call. The request is kept where its result may not be shared.
    Sharing {
        participant: P,
        kept: Option<(S, Req)>,
        context: CallContext,
    },
    /// Makes a call without regard to others, with a service that was ready.
    Alone {
        #[pin]
        future: F,
    },
    /// Makes a call after its result was not shared.
    Again {
        #[pin]
        call: ReadyCall<S, Req, F>,
    },
    Rejected {
        error: Option<Error>,
    },
}

opaque_debug!(ResponseFuture<S, Req, F, P, By, E>);

impl<S, Req, By, E, K> Future for ResponseFuture<S, Req, S::Future, Participant<K, E::Shared, E::Own>, By, E>
where
    S: Service<Req>,
    K: Send + Sync + 'static,
    E: Share<By, S::Response, S::Error>,
{
    type Output = Result<E::Response, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let (participant, kept, context) = match this.state.as_mut().project() {
                StateProj::Sharing { participant, kept, context } => (participant, kept, context),
                StateProj::Alone { future } => return Poll::Ready(this.ends.alone(ready!(future.poll(cx)))),
                StateProj::Again { call } => return Poll::Ready(this.ends.alone(ready!(call.poll(cx)))),
                StateProj::Rejected { error } => {
                    return Poll::Ready(Err(error.take().expect("a future is not polled after its end")));
                }
            };
            let has_more_time = has_more_time(*context, participant);
            match (ready!(participant.poll(cx)), kept.take()) {
                (Arrival::Shared(result), Some((service, request))) if has_more_time && this.ends.is_late(&result) => {
                    this.ticket.stats.unshared.add(1);
                    this.state.set(State::Again { call: ReadyCall::new(service, request) });
                }
                (Arrival::Shared(result), _) => return Poll::Ready(this.ends.shared(result)),
                (Arrival::Own(result), _) => return Poll::Ready(Ok(this.ends.own(result))),
                (Arrival::Unshared, Some((service, request))) => {
                    this.ticket.stats.unshared.add(1);
                    this.state.set(State::Again { call: ReadyCall::new(service, request) });
                }
                (Arrival::Panicked | Arrival::Unshared, _) => return Poll::Ready(Err(Error::from_inner(CallPanicked))),
            }
        }
    }
}
