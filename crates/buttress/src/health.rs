//! `HealthLayer` answers health probes in front of everything else, so that they are never shed.
//!
//! The layer here knows no protocol: it asks an [`Answer`] whether a request is a probe.
//! `buttress-http` has the one for `/livez`, `/readyz` and `/startupz`.
//!
//! ```
//! use buttress::{Health, health::{CheckConfig, Group, Probe}};
//! use std::time::Duration;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let health = Health::new();
//! let every_minute = CheckConfig { interval: Duration::from_secs(60), ..CheckConfig::default() };
//! let _check = health.check("database", Group::Readiness, every_minute, || async { Ok::<(), std::io::Error>(()) });
//! health.started();
//! # tokio::task::yield_now().await;
//! println!("{}", health.status(Probe::Readiness));
//! # }
//! ```
//!
//! # Where it belongs
//!
//! Outermost on the server. A probe that waits in a bulkhead reports a busy service as a dead one.
//!
//! The layer is always ready. A request that is no probe waits for the inner service in its own
//! future, and gets the error if that fails to become ready: a service whose database is gone still
//! answers `/livez`, and is not restarted for it.

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

/// The health of one service. A cheap handle; clones share it. It begins as starting: neither
/// started nor ready.
#[derive(Clone, Debug, Default)]
pub struct Health(core::Health);

impl Health {
    /// A service that is starting.
    pub fn new() -> Self {
        Self::default()
    }

    /// The service has started. This is final.
    pub fn started(&self) {
        self.0.started();
    }

    /// The service is about to stop: readiness ends now, liveness goes on. This is final. Keep
    /// serving until the load balancer has noticed.
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

    /// All indicators and answers, for people.
    pub fn report(&self) -> Report {
        self.0.report(&TokioClock)
    }
}

/// Reports on one part of a service's health. Dropping it takes that part out of the answer.
#[derive(Debug)]
#[must_use = "dropping an indicator takes it out of the answer"]
pub struct Indicator(core::Indicator);

impl Indicator {
    /// Reports [`Status::Up`].
    pub fn up(&self) {
        self.0.up(&TokioClock);
    }

    /// Reports [`Status::Down`], and why.
    pub fn down(&self, detail: impl Into<String>) {
        self.0.down(detail, &TokioClock);
    }

    /// Reports a status, and why.
    pub fn report(&self, status: Status, detail: Option<String>) {
        self.0.report(status, detail, &TokioClock);
    }
}

/// Knows which requests are probes of a protocol, and how to answer them.
pub trait Answer<Req, Res> {
    /// The answer, or `None` for a request that is not a probe.
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
    /// Chooses no protocol yet: `.http()` of `buttress-http` does, and [`answer`](Self::answer) for
    /// others.
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
        HealthService { inner, layer: self.clone() }
    }
}

/// A service whose probes are answered.
#[derive(Clone, Debug)]
pub struct HealthService<S, A> {
    inner: S,
    layer: HealthLayer<A>,
}

impl<S, A> HealthService<S, A> {
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

impl<S, A, Req> Service<Req> for HealthService<S, A>
where
    S: Service<Req> + Clone,
    A: Answer<Req, S::Response>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, S::Response, S::Future>;

    /// Always ready. The inner service is not asked: if it were pending, failed, or panicked, the
    /// server would send no probe either.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let state = match self.layer.answer.answer(&request, &self.layer.health) {
            Some(response) => State::Probe { response: Some(response) },
            None => State::Inner { call: ReadyCall::new(self.inner.clone(), request) },
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
