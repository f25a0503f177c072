//! A bound on the time of a call, or of one attempt, and on the body of its response.
//!
//! ```
//! use buttress::{PlainExt, TimeoutLayer};
//! use std::time::Duration;
//!
//! let whole_call = TimeoutLayer::total(Duration::from_secs(2)).plain(); // outside retry
//! let one_attempt = TimeoutLayer::attempt(Duration::from_millis(500)).named("payments").plain(); // innermost
//! # let _ = (whole_call, one_attempt);
//! ```
//!
//! # When to use it
//!
//! Always both: without an attempt timeout nothing is left of the total for a second attempt, and without
//! a total the attempts add up. An attempt that timed out is a failure for the breakers around it and may be retried;
//! after the total the caller does not wait any more.
//!
//! # What is bounded
//!
//! The time from the call to the head of the response. It counts from the first poll of the future
//! that is pending, so that a call that is ready at once needs no timer. `poll_ready` is not
//! bounded: a service that is not ready has no call yet. Put a bound around `ready().await` where
//! the inner service can be pending without end, or a [bulkhead](crate::bulkhead) outside, which
//! rejects then.
//!
//! The body is bounded where that is asked for, by HTTP endings:
//! [`body_idle`](TimeoutLayer::body_idle), [`body_total`](TimeoutLayer::body_total) and
//! [`reader_stall`](TimeoutLayer::reader_stall). A server ending bounds a stalled reader by 30
//! seconds also without being asked, because an HTTP/2 client that does not read would hold a place
//! of the server's bulkhead without end. When a bound on the body runs out, the inner body is
//! dropped at that moment, with everything that it holds, and what reads it gets the [`Rejection`]
//! as an error. A place of a bulkhead is freed then if the bulkhead is inside: on a server, put a
//! timeout around it, or a reader that never comes back holds the place.
//!
//! # Differences
//!
//! * The inner future is polled before the timer, so that an answer that is there wins.
//! * The timer fires although the inner future has spent tokio's cooperative budget.
//! * `tower`'s `Timeout` boxes its error; tonic's own timeouts are `CANCELLED` where `DEADLINE_EXCEEDED` is meant.

use crate::{
    ending::{Begin, BodyBounds, Bound, Ended, Ending, NoEnding},
    timer::Deadline,
};
use buttress_core::{Label, Name, Rejection, TimeoutKind, shard::Counter};
use pin_project::pin_project;
use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tower_layer::Layer;
use tower_service::Service;

const POLICY: &str = "timeout";

/// The future of a service with a timeout.
pub mod future {
    pub use super::ResponseFuture;
}

/// A timeout as a layer, once it has an [ending](crate::ending). See the [module](self).
#[derive(Clone, Debug)]
pub struct TimeoutLayer<E = NoEnding> {
    bound: CallBound,
    ends: E,
}

/// The bound on a call, and what is seldom set.
#[derive(Clone, Debug)]
struct CallBound {
    after: Duration,
    kind: TimeoutKind,
    more: Option<Arc<More>>,
}

#[derive(Clone, Debug, Default)]
struct More {
    bounds: BodyBounds,
    timed_out: Option<Arc<Counter>>,
}

impl TimeoutLayer {
    /// For one attempt, until its response begins. [`Duration::MAX`] never runs out; zero only lets through what is ready at once.
    pub const fn attempt(after: Duration) -> Self {
        Self::new(after, TimeoutKind::Attempt)
    }

    /// For a whole call with all its attempts and the pauses between them, until its response begins.
    pub const fn total(after: Duration) -> Self {
        Self::new(after, TimeoutKind::Total)
    }

    const fn new(after: Duration, kind: TimeoutKind) -> Self {
        Self { bound: CallBound { after, kind, more: None }, ends: NoEnding }
    }
}

impl<E> TimeoutLayer<E> {
    /// Gives it a name, which its rejections carry, and counts the calls that time out: see
    /// [`stats`](Self::stats).
    pub fn named(self, name: impl Into<Name>) -> Self {
        let label = Label::named(POLICY, name.into());
        self.with(|more| {
            more.bounds.label = Some(label);
            more.timed_out = Some(Arc::default());
        })
    }

    /// The longest time between two frames of the body of a response, while it is asked for one.
    /// For HTTP endings. None by default: a stream of events may be silent for long.
    pub fn body_idle(self, idle: Duration) -> Self {
        self.with(|more| more.bounds.idle = Some(idle))
    }

    /// The longest time from the head of a response to the end of its body. For HTTP endings. None
    /// by default.
    pub fn body_total(self, total: Duration) -> Self {
        self.with(|more| more.bounds.total = Some(total))
    }

    /// The longest time in which the body of a response is not asked for more, because its reader
    /// has stopped. For HTTP endings. Default: 30 seconds for servers, none for clients.
    /// [`Duration::MAX`] never runs out.
    pub fn reader_stall(self, stalled: Duration) -> Self {
        self.with(|more| more.bounds.stalled = Some(stalled))
    }

    /// The counters of a [named](Self::named) timeout. Shared by all services of this layer.
    pub fn stats(&self) -> Option<TimeoutStats> {
        self.bound.more.as_ref()?.timed_out.clone().map(TimeoutStats)
    }

    fn with(self, change: impl FnOnce(&mut More)) -> Self {
        let Self { bound: CallBound { after, kind, more }, ends } = self;
        let mut more = more.map(Arc::unwrap_or_clone).unwrap_or_default();
        change(&mut more);
        Self { bound: CallBound { after, kind, more: Some(Arc::new(more)) }, ends }
    }
}

/// Counters of a [`TimeoutLayer`], since it got its name.
#[derive(Clone, Debug)]
pub struct TimeoutStats(Arc<Counter>);

impl TimeoutStats {
    /// Calls that timed out before their response began.
    pub fn timed_out(&self) -> u64 {
        self.0.sum()
    }
}

impl CallBound {
    #[cold]
    fn expire(&self) -> Rejection {
        let label = self.more.as_ref().and_then(|more| more.bounds.label.clone()).unwrap_or(Label::new(POLICY));
        if let Some(timed_out) = self.more.as_ref().and_then(|more| more.timed_out.as_ref()) {
            timed_out.add(1);
        }
        let rejection = Rejection::timed_out(label, self.kind, self.after);
        crate::events::timed_out(&rejection);
        rejection
    }
}

impl<E> Ending for TimeoutLayer<E> {
    type Now = E;
    type With<F> = TimeoutLayer<F>;

    fn end<F>(self, ends: F) -> TimeoutLayer<F> {
        TimeoutLayer { bound: self.bound, ends }
    }
}

impl<S, E: Ended + Clone> Layer<S> for TimeoutLayer<E> {
    type Service = Timeout<S, E>;

    fn layer(&self, inner: S) -> Self::Service {
        Timeout { inner, layer: self.clone() }
    }
}

/// A service with a timeout.
#[derive(Clone, Debug)]
pub struct Timeout<S, E> {
    inner: S,
    layer: TimeoutLayer<E>,
}

impl<S, E> Timeout<S, E> {
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

impl<S, E, Req> Service<Req> for Timeout<S, E>
where
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
        let TimeoutLayer { bound, ends } = &self.layer;
        let context = ends.begin::<()>(&mut request);
        ResponseFuture {
            future: self.inner.call(request),
            timer: Deadline::new(),
            context,
            bound: bound.clone(),
            ends: ends.clone(),
        }
    }
}

/// The future of a [`Timeout`].
#[pin_project]
pub struct ResponseFuture<F, E, Cx> {
    #[pin]
    future: F,
    #[pin]
    timer: Deadline,
    /// Leaves with the rejection.
    context: Cx,
    bound: CallBound,
    ends: E,
}

impl<F, E, Cx> fmt::Debug for ResponseFuture<F, E, Cx> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

/// The bounds on the body of a layer that sets none.
const NO_BOUNDS: &BodyBounds = &BodyBounds { idle: None, total: None, stalled: None, label: None };

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
        match this.future.poll(cx) {
            Poll::Ready(Ok(response)) => {
                let bounds = this.bound.more.as_ref().map_or(NO_BOUNDS, |more| &more.bounds);
                return Poll::Ready(Ok(this.ends.bound(response, bounds)));
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Err(this.ends.inner(error))),
            Poll::Pending => ready!(this.timer.poll_expired(this.bound.after, cx)),
        }
        Poll::Ready(this.ends.expired(std::mem::take(this.context), this.bound.expire()))
    }
}
