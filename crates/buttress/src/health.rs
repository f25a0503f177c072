//! What a service says of itself: `HealthLayer` answers probes in front of everything else, so that they are never shed.
//!
//! The layer here knows no protocol: it asks an [`Answer`] whether a request is a probe. `buttress-http` has the one for
//! `/livez`, `/readyz` and `/startupz`.
//!
//! # Where it belongs
//!
//! Outermost on the server. A probe that waits in a bulkhead says that the service is dead when it is busy.

mod check;

use crate::{TokioClock, ready_call::ReadyCall};
use buttress_core::health as core;
use pin_project_lite::pin_project;
use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};
use tower_layer::Layer;
use tower_service::Service;

pub use buttress_core::health::{Group, Line, Probe, Report, Rules, Status};
pub use check::{Check, CheckConfig};

/// The future of a service behind a [`HealthLayer`].
pub mod future {
    pub use super::ResponseFuture;
}

/// The health of one service. A cheap handle; clones share it. It begins as starting: neither started nor ready.
#[derive(Clone, Debug, Default)]
pub struct Health(core::Health);

impl Health {
    /// A service that is starting.
    pub fn new() -> Self {
        Self::default()
    }

    /// The service has started. It cannot un-start.
    pub fn started(&self) {
        self.0.started();
    }

    /// The service is about to stop: readiness ends now, liveness goes on. Keep serving until nobody sends any more.
    pub fn drain(&self) {
        self.0.drain();
    }

    /// Whether [`drain`](Self::drain) was called.
    pub fn is_draining(&self) -> bool {
        self.0.is_draining()
    }

    /// An indicator of readiness that is set by hand.
    pub fn readiness(&self, name: impl Into<String>) -> Indicator {
        Indicator(self.0.readiness(name))
    }

    /// An indicator of liveness that is set by hand. Nothing outside the process belongs here.
    pub fn liveness(&self, name: impl Into<String>) -> Indicator {
        Indicator(self.0.liveness(name))
    }

    /// An indicator of a dependency that is set by hand. It is shown and changes no answer.
    pub fn dependency(&self, name: impl Into<String>) -> Indicator {
        Indicator(self.0.dependency(name))
    }

    /// An indicator with rules of its own.
    pub fn indicator(&self, name: impl Into<String>, group: Group, rules: Rules) -> Indicator {
        Indicator(self.0.indicator(name, group, rules))
    }

    /// The answer to a probe.
    pub fn status(&self, probe: Probe) -> Status {
        self.0.status(probe, &TokioClock)
    }

    /// Everything that is known, for people.
    pub fn report(&self) -> Report {
        self.0.report(&TokioClock)
    }
}

/// Reports on one part of a service's health. Dropping it takes that part out of the answer.
#[derive(Debug)]
#[must_use = "dropping an indicator takes it out of the answer"]
pub struct Indicator(core::Indicator);

impl Indicator {
    /// It is well.
    pub fn up(&self) {
        self.0.up(&TokioClock);
    }

    /// It is broken, and this is why.
    pub fn down(&self, detail: impl Into<String>) {
        self.0.down(detail, &TokioClock);
    }

    /// One report.
    pub fn report(&self, status: Status, detail: Option<String>) {
        self.0.report(status, detail, &TokioClock);
    }
}

/// Knows which requests are probes of a protocol, and how to answer them.
pub trait Answer<Req, Res> {
    /// The answer, or `None` for a request that is none of ours.
    fn answer(&self, request: &Req, health: &Health) -> Option<Res>;
}

/// Answers probes before the inner service sees them. See the [module](self).
#[derive(Clone, Debug)]
pub struct HealthLayer<A = NoProtocol> {
    health: Health,
    answer: A,
}

/// A [`HealthLayer`] whose protocol is not chosen yet: it makes no service.
#[derive(Clone, Copy, Debug)]
pub struct NoProtocol;

impl HealthLayer {
    /// Chooses no protocol yet: `.http()` of `buttress-http` does, and [`answer`](Self::answer) for others.
    pub const fn new(health: Health) -> Self {
        Self { health, answer: NoProtocol }
    }
}

impl<A> HealthLayer<A> {
    /// Answers in a protocol.
    pub fn answer<B>(self, answer: B) -> HealthLayer<B> {
        HealthLayer { health: self.health, answer }
    }
}

impl<S, A: Clone> Layer<S> for HealthLayer<A> {
    type Service = HealthService<S, A>;

    fn layer(&self, inner: S) -> Self::Service {
        HealthService { inner, inner_ready: false, layer: self.clone() }
    }
}

/// A service whose probes are answered.
#[derive(Debug)]
pub struct HealthService<S, A> {
    inner: S,
    inner_ready: bool,
    layer: HealthLayer<A>,
}

impl<S: Clone, A: Clone> Clone for HealthService<S, A> {
    fn clone(&self) -> Self {
        // Readiness is not inherited: the clone has to be polled itself.
        Self { inner: self.inner.clone(), inner_ready: false, layer: self.layer.clone() }
    }
}

impl<S, A, Req> Service<Req> for HealthService<S, A>
where
    S: Service<Req> + Clone,
    A: Answer<Req, S::Response>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, S::Response, S::Future>;

    /// Always ready: a probe is answered while the inner service is busy, and other requests wait for it in their future.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        match self.inner.poll_ready(cx) {
            Poll::Ready(result) => {
                self.inner_ready = result.is_ok();
                Poll::Ready(result)
            }
            Poll::Pending => {
                self.inner_ready = false;
                Poll::Ready(Ok(()))
            }
        }
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let inner_ready = std::mem::take(&mut self.inner_ready);
        let state = if let Some(response) = self.layer.answer.answer(&request, &self.layer.health) {
            State::Probe { response: Some(response) }
        } else if inner_ready {
            State::Inner { call: ReadyCall::Called { future: self.inner.call(request) } }
        } else {
            // The instance that was polled goes on waiting; the one that stays here is fresh.
            let fresh = self.inner.clone();
            State::Inner { call: ReadyCall::new(std::mem::replace(&mut self.inner, fresh), request) }
        };
        ResponseFuture { state }
    }
}

pin_project! {
    /// The future of a [`HealthService`].
    pub struct ResponseFuture<S, Req, Res, F> {
        #[pin]
        state: State<S, Req, Res, F>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, Req, Res, F> {
        Probe { response: Option<Res> },
        Inner { #[pin] call: ReadyCall<S, Req, F> },
    }
}

impl<S, Req, Res, F> fmt::Debug for ResponseFuture<S, Req, Res, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<S: Service<Req>, Req> Future for ResponseFuture<S, Req, S::Response, S::Future> {
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Probe { response } => Poll::Ready(Ok(response.take().expect("polled after completion"))),
            StateProj::Inner { call } => call.poll(cx),
        }
    }
}
