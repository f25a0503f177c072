//! `HealthLayer` answers health probes in front of everything else, so that they are never shed.
//!
//! The layer here knows no protocol: it asks an [`Answer`] whether a request is a probe.
//! `buttress-http` has the one for `/livez`, `/readyz` and `/startupz`.
//!
//! ```
//! use buttress::health::{CheckConfig, Group, Health, HealthExt, Probe};
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
    clock::TokioClock,
    ending::{Ended, Ending, NoEnding},
    ready_call::ReadyCall,
    shell::{inner_service, opaque_debug},
};
use buttress_core::health as core;
use pin_project::pin_project;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};
use tower_layer::Layer;
use tower_service::Service;

pub use buttress_core::health::{Group, Line, Probe, Report, Rules, Status};
pub use check::{Check, CheckConfig, HealthExt};

/// The future of a service behind a [`HealthLayer`].
pub mod future {
    pub use super::ResponseFuture;
}

/// The health of one service. A cheap handle; clones share it. It begins as starting: neither
/// started nor ready. Its time is tokio's.
pub type Health = core::Health<TokioClock>;

/// Reports on one part of a service's health. Dropping it takes that part out of the answer.
pub type Indicator = core::Indicator<TokioClock>;

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
    type With<Next> = HealthLayer<Next>;

    fn end<Next>(self, ends: Next) -> HealthLayer<Next> {
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

inner_service!(HealthService<S, E>);

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

opaque_debug!(ResponseFuture<S, Req, E, Res, F>);

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
