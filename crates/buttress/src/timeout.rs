//! A bound on the time of a call, or of one attempt.
//!
//! ```
//! use buttress::TimeoutLayer;
//! use std::time::Duration;
//!
//! let whole_call = TimeoutLayer::total(Duration::from_secs(2)); // outside retry
//! let one_attempt = TimeoutLayer::attempt(Duration::from_millis(500)); // innermost
//! # let _ = (whole_call, one_attempt);
//! ```
//!
//! # When to use it
//!
//! Always both: without an attempt timeout nothing is left of the total for a second attempt, and without
//! a total the attempts add up. An attempt that timed out is a failure for the breakers around it and may be retried;
//! after the total nobody waits any more.
//!
//! # Differences
//!
//! * No timer is made for a call that is ready at once: it is armed when the inner future is first pending, and counts from that poll.
//! * The inner future is polled before the timer, so that an answer that is there wins.
//! * `tower`'s `Timeout` boxes its error; tonic's own timeouts are `CANCELLED` where `DEADLINE_EXCEEDED` is meant.
//! * A timeout ends with the head of a response: a stream goes on.

use crate::exit::{AsError, Exit};
use buttress_core::{Reason, Rejection, TimeoutKind};
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

/// The future of a service with a timeout.
pub mod future {
    pub use super::ResponseFuture;
}

/// A timeout as a layer. See the [module](self).
#[derive(Clone, Copy, Debug)]
pub struct TimeoutLayer<X = AsError> {
    after: Duration,
    kind: TimeoutKind,
    exit: X,
}

impl TimeoutLayer {
    /// For one attempt, until its response begins. [`Duration::MAX`] never runs out; zero only lets through what is ready at once.
    pub const fn attempt(after: Duration) -> Self {
        Self { after, kind: TimeoutKind::Attempt, exit: AsError }
    }

    /// For a whole call with all its attempts and the pauses between them, until its response begins.
    pub const fn total(after: Duration) -> Self {
        Self { after, kind: TimeoutKind::Total, exit: AsError }
    }
}

impl<X> TimeoutLayer<X> {
    /// Lets timeouts leave in another way.
    pub fn exit<Y>(self, exit: Y) -> TimeoutLayer<Y> {
        TimeoutLayer { after: self.after, kind: self.kind, exit }
    }
}

impl<S, X: Clone> Layer<S> for TimeoutLayer<X> {
    type Service = Timeout<S, X>;

    fn layer(&self, inner: S) -> Self::Service {
        Timeout { inner, layer: self.clone() }
    }
}

/// A service with a timeout.
#[derive(Clone, Copy, Debug)]
pub struct Timeout<S, X = AsError> {
    inner: S,
    layer: TimeoutLayer<X>,
}

impl<S, X, Req> Service<Req> for Timeout<S, X>
where
    S: Service<Req>,
    X: Exit<S::Response, S::Error> + Clone,
{
    type Response = S::Response;
    type Error = X::Error;
    type Future = ResponseFuture<S::Future, X>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), X::Error>> {
        self.inner.poll_ready(cx).map_err(|error| self.layer.exit.inner(error))
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        ResponseFuture { future: self.inner.call(request), timer: None, layer: self.layer.clone() }
    }
}

pin_project! {
    /// The future of a [`Timeout`].
    pub struct ResponseFuture<F, X> {
        #[pin]
        future: F,
        #[pin]
        timer: Option<Sleep>,
        layer: TimeoutLayer<X>,
    }
}

impl<F, X> fmt::Debug for ResponseFuture<F, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<F, X, Res, E> Future for ResponseFuture<F, X>
where
    F: Future<Output = Result<Res, E>>,
    X: Exit<Res, E>,
{
    type Output = Result<Res, X::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let TimeoutLayer { after, kind, exit } = this.layer;
        if let Poll::Ready(result) = this.future.poll(cx) {
            return Poll::Ready(result.map_err(|error| exit.inner(error)));
        }
        if this.timer.is_none() {
            if *after == Duration::MAX {
                return Poll::Pending;
            }
            this.timer.set(Some(sleep(*after)));
        }
        if let Some(timer) = this.timer.as_pin_mut() {
            ready!(timer.poll(cx));
        }
        Poll::Ready(exit.reject(Rejection::new("timeout", Reason::TimedOut(*kind))))
    }
}
