//! Calls that wait until their policy lets them start.
//!
//! [`GateLayer::wait`] makes such a layer of any policy that can [schedule](Schedule) calls: a
//! [rate limit](crate::rate_limit), one for each key, one with costs,
//! [`AllOf`](crate::policy::AllOf) several, an [adaptive rate](crate::adaptive_rate).
//!
//! A call gets its start when it is made. A call that would wait for longer than allowed is
//! rejected at once and not after the wait; a call that waits holds nothing of the inner service.
//! The wait is cut by the deadline of the [call that is being served](crate::context). A call that
//! is dropped before its start gives back what it took.
//!
//! Over HTTP/1 with an upload of more than one piece, the call of a caller that has hung up waits
//! to its start: hyper does not look at the connection before.

use crate::{
    clock::TokioClock,
    ending::{Ahead, Begin, Ended, Ending, Finish, NoEnding},
    gate::{self, GateLayer},
    in_flight::InFlight,
    ready_call::ReadyCall,
    shell::inner_service,
    timer::Deadline,
};
use buttress_core::{Class, Clock, Permit, Policy, Reason, Rejection, Schedule, Scheduled, context::CallContext};
use pin_project::{pin_project, pinned_drop};
use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tower_layer::Layer;
use tower_service::Service;

/// The body of a call that waited was larger than what is read of it meanwhile.
pub static BODY_TOO_LARGE: Reason =
    Reason::new("wait_body_too_large", "its body is larger than what is kept of a call that waits", Class::Exhausted);

/// A policy whose calls wait, as a layer. Made by [`GateLayer::wait`].
///
/// ```
/// use buttress::{PlainExt, RateLimit, RateLimitLayer, ending::Plain, wait::WaitLayer};
/// use std::time::Duration;
///
/// let layer: WaitLayer<RateLimit, Plain> = RateLimitLayer::per_second(100).wait(Duration::from_secs(1)).plain();
/// assert_eq!(layer.handle().available(), 100);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct WaitLayer<Pol, E = NoEnding> {
    policy: Pol,
    max_wait: Duration,
    ends: E,
}

impl<Pol, E> GateLayer<Pol, E> {
    /// Lets calls wait for up to `max_wait` instead of rejecting them. [`Duration::MAX`] waits
    /// without limit.
    ///
    /// The policy must be able to [schedule](Schedule) calls. The service is then always ready: it
    /// waits in the future of the call, and needs an inner service that is [`Clone`].
    ///
    /// ```
    /// use buttress::{PlainExt, RateLimitLayer};
    /// use std::{convert::Infallible, time::Duration};
    /// use tokio::time::Instant;
    /// use tower::{ServiceBuilder, ServiceExt};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// let service = ServiceBuilder::new()
    ///     .layer(RateLimitLayer::per_second(10).burst(1).wait(Duration::from_millis(100)).plain())
    ///     .service_fn(|()| async { Ok::<_, Infallible>(Instant::now()) });
    /// let (start, call) = (Instant::now(), || service.clone().oneshot(()));
    /// let (first, second, third) = tokio::join!(call(), call(), call());
    /// assert_eq!(first.unwrap() - start, Duration::ZERO);
    /// assert_eq!(second.unwrap() - start, Duration::from_millis(100));
    /// assert_eq!(third.unwrap_err().to_string(), "rate limit: over the rate; try again in 200.0ms");
    /// # }
    /// ```
    pub fn wait(self, max_wait: Duration) -> WaitLayer<Pol, E> {
        let (policy, ends) = self.into_parts();
        WaitLayer { policy, max_wait, ends }
    }
}

impl<Pol, E> WaitLayer<Pol, E> {
    /// Returns the policy, to observe or control it.
    pub fn handle(&self) -> &Pol {
        &self.policy
    }
}

impl<Pol, E> Ending for WaitLayer<Pol, E> {
    type Now = E;
    type With<Next> = WaitLayer<Pol, Next>;

    fn end<Next>(self, ends: Next) -> WaitLayer<Pol, Next> {
        let Self { policy, max_wait, ends: _ } = self;
        WaitLayer { policy, max_wait, ends }
    }
}

impl<S, Pol: Clone, E: Ended + Clone> Layer<S> for WaitLayer<Pol, E> {
    type Service = Wait<S, Pol, E>;

    fn layer(&self, inner: S) -> Self::Service {
        Wait { inner, layer: self.clone() }
    }
}

/// A service whose calls wait until their policy lets them start.
///
/// It is always ready. A call polls its own clone of the inner service for readiness after its
/// wait.
#[derive(Clone, Debug)]
pub struct Wait<S, Pol, E> {
    inner: S,
    layer: WaitLayer<Pol, E>,
}

inner_service!(Wait<S, Pol, E>);

impl<S, Pol, E, Req> Service<Req> for Wait<S, Pol, E>
where
    S: Service<Req> + Clone,
    Pol: Schedule<Req> + Clone,
    E: Begin<Req> + Finish<E::Context, S::Response, S::Error> + Clone,
{
    type Response = E::Response<Pol::Permit>;
    type Error = E::Error;
    type Future = ResponseFuture<S, Req, S::Future, Pol, E, E::Context, E::Ahead>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), E::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Req) -> Self::Future {
        let WaitLayer { policy, max_wait, ends } = &self.layer;
        let context = ends.begin::<Pol::Permit>(&mut request);
        let state = match policy.schedule(&request, within_deadline(*max_wait)) {
            Ok(Scheduled { permit, wait }) => {
                let waiting = (!wait.is_zero()).then(|| {
                    // A policy of a user may return any wait.
                    let start = tokio::time::Instant::from_std(TokioClock.now()).checked_add(wait);
                    let timer = start.map_or_else(Deadline::new, Deadline::ending_at);
                    Waiting { wait, timer, ahead: ends.ahead(&mut request) }
                });
                State::Admitted {
                    waiting,
                    unused: Some((policy.clone(), permit)),
                    permit: InFlight::none(),
                    call: ReadyCall::new(self.inner.clone(), request),
                }
            }
            Err(rejection) => State::Rejected { rejection: Some(rejection) },
        };
        ResponseFuture { state, context, ends: ends.clone() }
    }
}

/// Returns the wait that the deadline of the call leaves.
fn within_deadline(max_wait: Duration) -> Duration {
    match CallContext::current().deadline {
        Some(deadline) => max_wait.min(deadline.saturating_duration_since(TokioClock.now())),
        None => max_wait,
    }
}

/// The future of a [`Wait`] service.
#[pin_project(PinnedDrop)]
pub struct ResponseFuture<S, Req, F, Pol: Policy<Req>, E, Cx, ReadAhead> {
    #[pin]
    state: State<S, Req, F, Pol, Pol::Permit, ReadAhead>,
    /// Taken when the future completes.
    context: Cx,
    ends: E,
}

#[pin_project(project = StateProj)]
enum State<S, Req, F, Pol, P: Permit, ReadAhead> {
    Admitted {
        #[pin]
        waiting: Option<Waiting<ReadAhead>>,
        /// Until the call starts.
        unused: Option<(Pol, P)>,
        /// From its start on.
        permit: InFlight<P>,
        #[pin]
        call: ReadyCall<S, Req, F>,
    },
    Rejected {
        rejection: Option<Rejection>,
    },
}

#[pin_project]
struct Waiting<ReadAhead> {
    wait: Duration,
    #[pin]
    timer: Deadline,
    /// Reads the body of the request in advance, so that its HTTP/2 flow control does not block
    /// other calls on the connection.
    ahead: Option<ReadAhead>,
}

impl<ReadAhead: Ahead> Waiting<ReadAhead> {
    /// Returns `Ready` at the start of the call, or an error if its body is too large to wait.
    fn poll_start(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        let this = self.project();
        if this.timer.poll_expired(*this.wait, cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        match this.ahead.as_mut().map(|ahead| ahead.poll_too_large(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(Err(Rejection::new("wait", &BODY_TOO_LARGE))),
            _ => Poll::Pending,
        }
    }
}

impl<S, Req, Pol, E, Cx, ReadAhead> Future for ResponseFuture<S, Req, S::Future, Pol, E, Cx, ReadAhead>
where
    S: Service<Req>,
    Pol: Policy<Req>,
    E: Finish<Cx, S::Response, S::Error>,
    Cx: Default,
    ReadAhead: Ahead,
{
    type Output = Result<E::Response<Pol::Permit>, E::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Admitted { mut waiting, unused, permit, mut call } => {
                    if let Some(wait) = waiting.as_mut().as_pin_mut() {
                        let start = ready!(wait.poll_start(cx));
                        waiting.set(None);
                        if let Err(rejection) = start {
                            undo(unused, call.request());
                            this.state.set(State::Rejected { rejection: Some(rejection) });
                            continue;
                        }
                    }
                    if unused.is_some() {
                        if let Err(error) = ready!(call.as_mut().poll_ready(cx)) {
                            // The call has not started, which only a policy that learns counts.
                            if Pol::Permit::LEARNS {
                                *permit =
                                    unused.take().map_or_else(InFlight::none, |(_, permit)| InFlight::new(permit));
                            }
                            undo(unused, call.request());
                            return gate::finish(Err(error), this.context, permit, this.ends);
                        }
                        if let Some((_, taken)) = unused.take() {
                            *permit = InFlight::new(taken);
                        }
                        permit.guard(|| call.as_mut().start());
                    }
                    let result = ready!(permit.guard(|| call.poll(cx)));
                    return gate::finish(result, this.context, permit, this.ends);
                }
                StateProj::Rejected { rejection } => return gate::reject(rejection, this.context, this.ends),
            }
        }
    }
}

/// Gives back what a call took that does not start.
fn undo<Req, Pol: Policy<Req>>(unused: &mut Option<(Pol, Pol::Permit)>, request: Option<&Req>) {
    if let (Some((policy, permit)), Some(request)) = (unused.take(), request) {
        policy.undo(request, permit);
    }
}

#[pinned_drop]
impl<S, Req, F, Pol: Policy<Req>, E, Cx, ReadAhead> PinnedDrop for ResponseFuture<S, Req, F, Pol, E, Cx, ReadAhead> {
    fn drop(self: Pin<&mut Self>) {
        if let StateProj::Admitted { unused, call, .. } = self.project().state.project() {
            undo(unused, call.request());
        }
    }
}

impl<S, Req, F, Pol: Policy<Req>, E, Cx, ReadAhead> fmt::Debug for ResponseFuture<S, Req, F, Pol, E, Cx, ReadAhead> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
