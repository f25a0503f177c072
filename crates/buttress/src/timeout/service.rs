use super::layer::{CallBound, Left, TimeoutLayer};
use crate::{
    ending::{Begin, Bound, Ended},
    per_request::{PerRequest, Same},
    shell::{inner_service, opaque_debug},
    timer::{Deadline, Limit},
};
use buttress_core::Rejection;
use pin_project::pin_project;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

/// A service behind a [`TimeoutLayer`].
///
/// ```
/// use buttress::{PlainExt, TimeoutLayer, ending::Plain, timeout::Timeout};
/// use std::time::Duration;
/// use tower::Layer;
///
/// fn client<S>(inner: S) -> Timeout<S, Plain> {
///     TimeoutLayer::attempt(Duration::from_millis(500)).plain().layer(inner)
/// }
/// # let _ = client(());
/// ```
#[derive(Clone, Debug)]
pub struct Timeout<S, E, Limit = Same> {
    inner: S,
    layer: TimeoutLayer<E, Limit>,
}

inner_service!(Timeout<S, E, Limit>);

impl<S, E: Ended + Clone, Limit: Clone> Layer<S> for TimeoutLayer<E, Limit> {
    type Service = Timeout<S, E, Limit>;

    fn layer(&self, inner: S) -> Self::Service {
        Timeout { inner, layer: self.clone() }
    }
}

impl<S, E, Limit, Req> Service<Req> for Timeout<S, E, Limit>
where
    Limit: PerRequest<Req, Duration>,
    S: Service<Req>,
    E: Begin<Req> + Bound<E::Context, S::Response, S::Error> + Clone,
{
    type Response = E::Bounded;
    type Error = E::Error;
    type Future = ResponseFuture<S::Future, E, E::Context>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E::Error>> {
        self.inner.poll_ready(cx).map_err(|error| self.layer.ends.inner(error))
    }

    #[inline]
    fn call(&mut self, mut request: Req) -> Self::Future {
        let TimeoutLayer { bound, limit, ends } = &self.layer;
        let mut bound = bound.clone();
        if let Some(after) = limit.of(&request) {
            bound.after = after;
        }
        let context = ends.begin::<()>(&mut request);
        let mut deadline = None;
        if let Some(Left { left, is_first, reason }) = bound.deadline() {
            if let Some(reason) = reason {
                let state = State::Refused { rejection: Some(bound.refuse(reason)) };
                return ResponseFuture { state, deadline, context, bound, ends: ends.clone() };
            }
            ends.time_left(&mut request, left);
            deadline = is_first;
        }
        let state = State::Running { future: self.inner.call(request), timer: Deadline::new() };
        ResponseFuture { state, deadline, context, bound, ends: ends.clone() }
    }
}

/// The future of a [`Timeout`].
#[pin_project]
pub struct ResponseFuture<F, E, Cx> {
    #[pin]
    state: State<F>,
    /// The end of an attempt by the deadline of its call, and the time that this left, if it comes
    /// before the attempt's own limit.
    deadline: Option<(std::time::Instant, Duration)>,
    /// Taken when the time expires.
    context: Cx,
    bound: CallBound,
    ends: E,
}

#[pin_project(project = StateProj)]
enum State<F> {
    Running {
        #[pin]
        future: F,
        #[pin]
        timer: Deadline,
    },
    /// The deadline of the call leaves too little time for an attempt.
    Refused { rejection: Option<Rejection> },
}

opaque_debug!(ResponseFuture<F, E, Cx>);

impl<F, E, Cx, Res, Err> Future for ResponseFuture<F, E, Cx>
where
    F: Future<Output = Result<Res, Err>>,
    E: Bound<Cx, Res, Err>,
    Cx: Default,
{
    type Output = Result<E::Bounded, E::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let rejection = match this.state.project() {
            StateProj::Running { future, timer } => {
                let limit = Limit::enter();
                match future.poll(cx) {
                    Poll::Ready(Ok(response)) => {
                        return Poll::Ready(Ok(this.ends.bound(response, this.bound.of_body())));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(this.ends.inner(error))),
                    Poll::Pending => {}
                }
                match *this.deadline {
                    Some((end, _)) => ready!(timer.poll_end_around(Instant::from_std(end), limit.leave(), cx)),
                    None => ready!(timer.poll_expired_around(this.bound.after, limit.leave(), cx)),
                }
                this.bound.expire(this.deadline.map(|(_, left)| left))
            }
            StateProj::Refused { rejection } => rejection.take().expect("a call completes once"),
        };
        Poll::Ready(this.ends.expired(std::mem::take(this.context), rejection))
    }
}
