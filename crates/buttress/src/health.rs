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

use crate::{
    TokioClock,
    ending::{Ended, Ending, NoEnding},
    ready_call::ReadyCall,
};
use buttress_core::health as core;
use pin_project::pin_project;
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

/// Knows which requests are probes of a protocol, and how to answer them; asked for by
/// [`HealthLayer`].
#[diagnostic::on_unimplemented(
    message = "the ending `{Self}` does not answer health probes",
    note = "health is for servers: end the layer with `.http()` or `.grpc()`"
)]
pub trait Answer<Req, Res> {
    /// What the caller gets: `Res`, or a type that holds an answer or `Res`.
    type Response;

    /// The answer, or `None` for a request that is not a probe.
    fn answer(&self, request: &Req, health: &Health) -> Option<Self::Response>;

    /// Passes a response of the inner service on.
    fn pass(&self, response: Res) -> Self::Response;
}

/// Answers probes before the inner service sees them, once it has an [ending](crate::ending). See
/// the [module](self).
#[derive(Clone, Debug)]
pub struct HealthLayer<E = NoEnding> {
    health: Health,
    ends: E,
}

impl HealthLayer {
    /// A layer that answers for `health`.
    pub const fn new(health: Health) -> Self {
        Self { health, ends: NoEnding }
    }
}

impl<E> Ending for HealthLayer<E> {
    type Now = E;
    type With<F> = HealthLayer<F>;

    fn end<F>(self, ends: F) -> HealthLayer<F> {
        HealthLayer { health: self.health, ends }
    }
}

impl<S, E: Ended + Clone> Layer<S> for HealthLayer<E> {
    type Service = HealthService<S, E>;

    fn layer(&self, inner: S) -> Self::Service {
        HealthService { inner, layer: self.clone() }
    }
}

/// A service whose probes are answered.
#[derive(Clone, Debug)]
pub struct HealthService<S, E> {
    inner: S,
    layer: HealthLayer<E>,
}

impl<S, E> HealthService<S, E> {
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

impl<S, E, Req> Service<Req> for HealthService<S, E>
where
    S: Service<Req> + Clone,
    E: Answer<Req, S::Response> + Clone,
{
    type Response = E::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, E, E::Response, S::Future>;

    /// Always ready. The inner service is not asked: if it were pending, failed, or panicked, the
    /// server would send no probe either.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let HealthLayer { health, ends } = &self.layer;
        let state = match ends.answer(&request, health) {
            Some(response) => State::Probe { response: Some(response) },
            None => State::Inner { call: ReadyCall::new(self.inner.clone(), request) },
        };
        ResponseFuture { state, ends: ends.clone() }
    }
}

/// The future of a [`HealthService`].
#[pin_project]
pub struct ResponseFuture<S, Req, E, Res, F> {
    #[pin]
    state: State<S, Req, Res, F>,
    ends: E,
}

#[pin_project(project = StateProj)]
enum State<S, Req, Res, F> {
    Probe {
        response: Option<Res>,
    },
    Inner {
        #[pin]
        call: ReadyCall<S, Req, F>,
    },
}

impl<S, Req, E, Res, F> fmt::Debug for ResponseFuture<S, Req, E, Res, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<S, Req, E> Future for ResponseFuture<S, Req, E, E::Response, S::Future>
where
    S: Service<Req>,
    E: Answer<Req, S::Response>,
{
    type Output = Result<E::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.state.project() {
            StateProj::Probe { response } => Poll::Ready(Ok(response.take().expect("polled after completion"))),
            StateProj::Inner { call } => call.poll(cx).map_ok(|response| this.ends.pass(response)),
        }
    }
}
