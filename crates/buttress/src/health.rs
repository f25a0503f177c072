//! Answers health probes before the layers inside it, so that none of them rejects a probe.
//!
//! The layer does not depend on a protocol: an [`Answer`] tells whether a request is a probe.
//! `buttress-http` implements it for `/livez`, `/readyz` and `/startupz`.
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
//! # tokio::time::sleep(Duration::from_millis(5)).await;
//! assert!(health.status(Probe::Readiness).is_serving());
//! # }
//! ```
//!
//! # Where it belongs
//!
//! Outermost on the server. A probe that waits in a bulkhead reports a busy service as failed.
//!
//! The layer is always ready. A request that is not a probe waits for the inner service in its own
//! future, and gets the error if the inner service fails to become ready. So a service whose
//! database is down still answers `/livez` and is not restarted.

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

/// The future of a [`HealthService`].
pub mod future {
    pub use super::ResponseFuture;
}

/// The health of one service. A cheap handle; clones share it.
///
/// It starts as neither started nor ready. It uses tokio's clock.
pub type Health = core::Health<TokioClock>;

/// Reports the status of one part of a service. Dropping it removes that part from the health.
pub type Indicator = core::Indicator<TokioClock>;

/// Recognizes the probes of a protocol and answers them. Required by [`HealthLayer`].
///
/// ```
/// use buttress::{Ending, Health, HealthLayer, ending::Ended, health::{Answer, Probe}};
/// use std::convert::Infallible;
/// use tower::{ServiceBuilder, ServiceExt};
///
/// /// A line protocol whose probe is `PING`.
/// #[derive(Clone)]
/// struct Lines;
///
/// impl Ended for Lines {}
///
/// impl Answer<&'static str, String> for Lines {
///     type Response = String;
///
///     fn answer(&self, line: &&'static str, health: &Health) -> Option<String> {
///         (*line == "PING").then(|| health.status(Probe::Readiness).to_string())
///     }
///
///     fn pass(&self, response: String) -> String {
///         response
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let health = Health::new();
/// let service = ServiceBuilder::new()
///     .layer(HealthLayer::new(health.clone()).end(Lines))
///     .service_fn(|line: &'static str| async move { Ok::<_, Infallible>(line.to_owned()) });
/// assert_eq!(service.clone().oneshot("PING").await.unwrap(), "out-of-service");
/// health.started();
/// assert_eq!(service.oneshot("PING").await.unwrap(), "up");
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "the ending `{Self}` does not answer health probes",
    note = "health is for servers: end the layer with `.http()` or `.grpc()`"
)]
pub trait Answer<Req, Res> {
    /// The response to the caller: `Res`, or a type that holds an answer or `Res`.
    type Response;

    /// Returns the answer, or `None` if the request is not a probe.
    fn answer(&self, request: &Req, health: &Health) -> Option<Self::Response>;

    /// Converts a response of the inner service.
    fn pass(&self, response: Res) -> Self::Response;
}

/// Answers probes before the inner service gets them. It implements [`Layer`] once it has an
/// [ending](crate::ending).
///
/// The [module](self) describes where it belongs; [`Answer`] has an example.
#[derive(Clone, Debug)]
pub struct HealthLayer<E = NoEnding> {
    health: Health,
    ends: E,
}

impl HealthLayer {
    /// Creates a layer that answers probes from `health`.
    ///
    /// ```
    /// use buttress::{Health, HealthLayer};
    ///
    /// let health = Health::new();
    /// let layer = HealthLayer::new(health.clone());
    /// health.started(); // keep the handle to report start-up, indicators and shutdown
    /// # let _ = layer;
    /// ```
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

/// A service behind a [`HealthLayer`].
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

    /// Returns `Ready`. Polling the inner service here would make probes fail while it is pending,
    /// fails or panics.
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
