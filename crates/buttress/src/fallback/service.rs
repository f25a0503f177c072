use super::{
    FULL, TIMEOUT, TOO_LATE,
    action::{Act, Keep},
    layer::{FallbackLayer, Shared},
};
use crate::{
    BoxError,
    bulkhead::BulkheadPermit,
    clock::TokioClock,
    ending::{Begin, Ended, Substitute},
    events,
    shell::{inner_service, opaque_debug},
    timer::{Deadline, Limit},
};
use buttress_core::{Clock, Outcome, Policy, Rejection, context::CallContext, shard::Ticket};
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

/// A service behind a [`FallbackLayer`].
///
/// It is ready when the inner service is. When that fails to become ready, the next call has
/// failed, and the fallback answers it.
///
/// ```
/// use buttress::{FallbackLayer, PlainExt, ending::Plain, fallback::{Fallback, Value}};
/// use tower::Layer;
///
/// fn client<S>(inner: S) -> Fallback<S, Value<&'static str>, Plain> {
///     FallbackLayer::to("nothing").plain().layer(inner)
/// }
/// # let _ = client(());
/// ```
#[derive(Debug)]
pub struct Fallback<S, A, E> {
    inner: S,
    layer: FallbackLayer<A, E>,
    /// The error, converted by the ending, of an inner service that failed to become ready.
    unready: Option<Box<dyn Any + Send + Sync>>,
}

inner_service!(Fallback<S, A, E>);

impl<S: Clone, A, E: Clone> Clone for Fallback<S, A, E> {
    fn clone(&self) -> Self {
        // Readiness belongs to one instance: the clone must be polled itself.
        Self { inner: self.inner.clone(), layer: self.layer.clone(), unready: None }
    }
}

impl<S, A, E: Ended + Clone> Layer<S> for FallbackLayer<A, E> {
    type Service = Fallback<S, A, E>;

    fn layer(&self, inner: S) -> Self::Service {
        Fallback { inner, layer: self.clone(), unready: None }
    }
}

impl<S, A, E, Req> Service<Req> for Fallback<S, A, E>
where
    E: Begin<Req> + Substitute<E::Context, S::Response, S::Error, A::Response> + Clone,
    A: Keep<Req, E> + Act<A::Kept, E, E::Context>,
    S: Service<A::Request>,
{
    type Response = E::Substituted;
    type Error = E::Error;
    type Future =
        ResponseFuture<S::Future, A, A::Kept, E, E::Context, Running<A::Future, S::Response, E::Error>, E::Error>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E::Error>> {
        // A service that failed to become ready must not be polled again.
        if self.unready.is_none()
            && let Err(error) = ready!(self.inner.poll_ready(cx))
        {
            self.unready = Some(Box::new(self.layer.ends.inner(error)));
        }
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, mut request: Req) -> Self::Future {
        let FallbackLayer { ends, shared } = &self.layer;
        let ticket = shared.ticket();
        let context = ends.begin::<()>(&mut request);
        let (request, kept) = ticket.action.keep(ends, request);
        let state = match self.unready.take() {
            None => State::Calling { future: self.inner.call(request) },
            Some(error) => State::Failed { error: error.downcast().ok() },
        };
        ResponseFuture { state, kept: Some(kept), context, ends: ends.clone(), ticket }
    }
}

/// The future of a [`Fallback`].
#[pin_project]
pub struct ResponseFuture<F, A, Stored, E, Cx, Run, OutErr> {
    #[pin]
    state: State<F, Run, OutErr>,
    /// Taken when the fallback starts.
    kept: Option<Stored>,
    context: Cx,
    ends: E,
    ticket: Ticket<Shared<A>>,
}

#[pin_project(project = StateProj)]
enum State<F, Run, OutErr> {
    Calling {
        #[pin]
        future: F,
    },
    /// The inner service failed to become ready.
    Failed { error: Option<Box<OutErr>> },
    /// In a box, so that calls without a fallback do not move it.
    Running { fallback: Pin<Box<Run>> },
}

opaque_debug!(ResponseFuture<F, A, Stored, E, Cx, Run, OutErr>);

/// A fallback that has started.
#[pin_project]
pub struct Running<G, Res, OutErr> {
    #[pin]
    future: G,
    #[pin]
    deadline: Deadline,
    timeout: Duration,
    /// The result of the call, for a fallback that fails. A failed response holds its connection,
    /// so that the number of fallbacks and their time are bounded.
    original: Option<Result<Res, OutErr>>,
    /// `None` for a fallback that takes no time.
    _permit: Option<BulkheadPermit>,
}

opaque_debug!(Running<G, Res, OutErr>);

/// A running fallback, or the result of a call that has none.
type Started<G, Res, Out, OutErr> = Result<Pin<Box<Running<G, Res, OutErr>>>, Result<Out, OutErr>>;

const POLLED_AGAIN: &str = "polled after completion";

impl<F, A, Stored, E, Cx, Res, Err> Future
    for ResponseFuture<F, A, Stored, E, Cx, Running<A::Future, Res, E::Error>, E::Error>
where
    F: Future<Output = Result<Res, Err>>,
    A: Act<Stored, E, Cx>,
    E: Substitute<Cx, Res, Err, A::Response>,
{
    type Output = Result<E::Substituted, E::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let original = match this.state.as_mut().project() {
            StateProj::Calling { future } => match ready!(future.poll(cx)) {
                Ok(response) => match this.ends.head(this.context, &response) {
                    Outcome::Success => return Poll::Ready(Ok(this.ends.original(response))),
                    outcome => (outcome, Ok(response)),
                },
                Err(error) => {
                    let error = this.ends.inner(error);
                    (this.ends.outcome(&error), Err(error))
                }
            },
            StateProj::Failed { error } => {
                let error = *error.take().expect(POLLED_AGAIN);
                (this.ends.outcome(&error), Err(error))
            }
            StateProj::Running { fallback } => {
                return poll_running(fallback.as_mut(), this.ends, this.context, this.ticket, cx);
            }
        };
        let (outcome, original) = original;
        let kept = this.kept.take().expect(POLLED_AGAIN);
        match start(kept, &outcome, original, this.ends, this.ticket) {
            Err(result) => Poll::Ready(result),
            Ok(mut fallback) => {
                let polled = poll_running(fallback.as_mut(), this.ends, this.context, this.ticket, cx);
                if polled.is_pending() {
                    this.state.set(State::Running { fallback });
                }
                polled
            }
        }
    }
}

/// Starts the fallback, or returns the result of a call that has none.
#[cold]
#[inline(never)]
fn start<A, Stored, E, Cx, Res, Err>(
    kept: Stored,
    outcome: &Outcome,
    original: Result<Res, E::Error>,
    ends: &E,
    shared: &Shared<A>,
) -> Started<A::Future, Res, E::Substituted, E::Error>
where
    A: Act<Stored, E, Cx>,
    E: Substitute<Cx, Res, Err, A::Response>,
{
    if !shared.covers(outcome) {
        return Err(original.map(|response| ends.original(response)));
    }
    let config = &shared.config;
    let (permit, timeout) = match admit(A::IS_IMMEDIATE, shared) {
        Ok(bounds) => bounds,
        Err(rejection) => {
            events::rejected(&rejection);
            shared.stats.rejected.add(1);
            return Err(give_up(original, rejection.into(), ends));
        }
    };
    let Some(future) = shared.action.act(kept, outcome) else {
        shared.stats.unrepeatable.add(1);
        return Err(original.map(|response| ends.original(response)));
    };
    events::falling_back(config.name.as_deref(), outcome);
    Ok(Box::pin(Running { future, deadline: Deadline::new(), timeout, original: Some(original), _permit: permit }))
}

/// Returns a place for a fallback and its time.
fn admit<A>(is_immediate: bool, shared: &Shared<A>) -> Result<(Option<BulkheadPermit>, Duration), Rejection> {
    if is_immediate {
        return Ok((None, Duration::MAX));
    }
    let config = &shared.config;
    let left = CallContext::current().deadline.map(|deadline| deadline.saturating_duration_since(TokioClock.now()));
    if left.is_some_and(|left| left.is_zero()) {
        return Err(Rejection::labelled(config.label.clone(), &TOO_LATE));
    }
    match config.running.admit(&()) {
        Ok(permit) => Ok((Some(permit), left.map_or(config.timeout, |left| left.min(config.timeout)))),
        Err(_) => Err(Rejection::labelled(config.label.clone(), &FULL)),
    }
}

#[inline(never)]
fn poll_running<A, Stored, E, Cx, Res, Err>(
    fallback: Pin<&mut Running<A::Future, Res, E::Error>>,
    ends: &E,
    context: &Cx,
    shared: &Shared<A>,
    cx: &mut Context<'_>,
) -> Poll<Result<E::Substituted, E::Error>>
where
    A: Act<Stored, E, Cx>,
    E: Substitute<Cx, Res, Err, A::Response>,
{
    let this = fallback.project();
    let limit = Limit::enter();
    let failure: BoxError = match this.future.poll(cx) {
        Poll::Ready(Ok(response)) if shared.action.is_answer(ends, context, &response) => {
            shared.stats.used.add(1);
            return Poll::Ready(Ok(ends.substitute(response, shared.config.name.as_ref())));
        }
        Poll::Ready(Ok(_)) => "its response is a failure".into(),
        Poll::Ready(Err(error)) => error.into(),
        Poll::Pending => {
            ready!(this.deadline.poll_expired_around(*this.timeout, limit.leave(), cx));
            let rejection = Rejection::timed_out(shared.config.label.clone(), &TIMEOUT, *this.timeout);
            events::timed_out(&rejection);
            rejection.into()
        }
    };
    shared.stats.failed.add(1);
    events::fallback_failed(shared.config.name.as_deref(), &*failure);
    Poll::Ready(give_up(this.original.take().expect(POLLED_AGAIN), failure, ends))
}

/// Returns the result of a call whose fallback failed.
fn give_up<E, Cx, Res, Err, Alt>(
    original: Result<Res, E::Error>,
    fallback: BoxError,
    ends: &E,
) -> Result<E::Substituted, E::Error>
where
    E: Substitute<Cx, Res, Err, Alt>,
{
    match original {
        Ok(response) => Ok(ends.original(response)),
        Err(error) => Err(ends.failed(error, fallback)),
    }
}
