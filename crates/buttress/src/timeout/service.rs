use super::layer::{Bounds, CallBound, TimeoutLayer, Within};
use crate::{
    ending::{Begin, Bound, Ended},
    per_request::{PerRequest, Same},
    shell::{inner_service, opaque_debug},
    timer::{Deadline, Limit},
};
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
        let after = limit.of(&request).unwrap_or(bound.after);
        let context = ends.begin::<()>(&mut request);
        // Each is made in place: a value that is stored in parts and moved as a whole stalls the
        // processor.
        let Some(deadline) = bound.deadline() else {
            let (bound, ends) = (bound.clone_with(after), ends.clone());
            return ResponseFuture {
                future: Some(self.inner.call(request)),
                timer: Deadline::new(),
                context,
                bound,
                ends,
            };
        };
        match bound.within(after, deadline) {
            Within::Own { left } => {
                ends.time_left(&mut request, left);
                let (bound, ends) = (bound.clone_with(after), ends.clone());
                let future = Some(self.inner.call(request));
                ResponseFuture { future, timer: Deadline::new(), context, bound, ends }
            }
            Within::Deadline { left, own, end } => {
                ends.time_left(&mut request, left);
                let (bound, ends) = (bound.clone_as(own, Bounds::Deadline), ends.clone());
                let timer = Deadline::ending_at(Instant::from_std(end));
                ResponseFuture { future: Some(self.inner.call(request)), timer, context, bound, ends }
            }
            Within::Nothing(why) => {
                let (bound, ends) = (bound.clone_as(after, why), ends.clone());
                ResponseFuture { future: None, timer: Deadline::new(), context, bound, ends }
            }
        }
    }
}

/// The future of a [`Timeout`].
#[pin_project]
pub struct ResponseFuture<F, E, Cx> {
    /// `None` if the deadline of the call leaves too little time for an attempt.
    #[pin]
    future: Option<F>,
    #[pin]
    timer: Deadline,
    /// Taken when the time expires.
    context: Cx,
    bound: CallBound,
    ends: E,
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
        if let Some(future) = this.future.as_pin_mut() {
            let limit = Limit::enter();
            match future.poll(cx) {
                Poll::Ready(Ok(response)) => {
                    return Poll::Ready(Ok(this.ends.bound(response, this.bound.of_body())));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(this.ends.inner(error))),
                Poll::Pending => ready!(this.timer.poll_expired_around(this.bound.after, limit.leave(), cx)),
            }
        }
        Poll::Ready(this.ends.expired(std::mem::take(this.context), this.bound.expire()))
    }
}
