//! The errors of a tonic client's stack as a [`Status`] with the right code.
//!
//! tonic turns an unknown error into `UNKNOWN`. [`StatusLayer`] maps an open circuit to
//! `UNAVAILABLE`, a full bulkhead to `RESOURCE_EXHAUSTED` and a timeout to `DEADLINE_EXCEEDED`,
//! also in the middle of a stream. The typed rejection is the source of the status.
//!
//! ```
//! use buttress_http::{prelude::*, tonic::StatusLayer};
//! use tower::ServiceBuilder;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let channel = tonic::transport::Endpoint::from_static("http://127.0.0.1:50051").connect_lazy();
//! let stack = ServiceBuilder::new()
//!     .layer(StatusLayer)
//!     .layer(RetryLayer::new(3).grpc_client())
//!     .layer(CircuitBreakerLayer::new("greeter").grpc_client())
//!     .service(channel);
//! // GreeterClient::new(stack)
//! # fn is_client(_: impl tonic::client::GrpcService<tonic::body::Body>) {}
//! # is_client(stack);
//! # }
//! ```

use buttress::{BoxError, Error};
use http::Response;
use http_body::Body;
use http_body_util::{BodyExt, combinators::MapErr};
use pin_project::pin_project;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tonic::Status;
use tower_layer::Layer;
use tower_service::Service;

/// A layer that turns the errors of a client stack into a [`Status`].
///
/// Place it outermost. See the [module](self).
///
/// ```
/// use buttress_http::{prelude::*, tonic::StatusLayer};
/// use http::{Request, Response};
/// use tonic::{Code, Status};
/// use tower::{ServiceBuilder, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let stack = ServiceBuilder::new()
///     .layer(StatusLayer)
///     .layer(BulkheadLayer::new(0).grpc_client())
///     .service_fn(async |_: Request<()>| Ok::<_, Status>(Response::new(String::new())));
/// let status = stack.oneshot(Request::new(())).await.unwrap_err();
/// assert_eq!(status.code(), Code::ResourceExhausted);
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct StatusLayer;

impl<S> Layer<S> for StatusLayer {
    type Service = WithStatus<S>;

    fn layer(&self, inner: S) -> WithStatus<S> {
        WithStatus { inner }
    }
}

/// A response body whose errors are a [`Status`].
pub type StatusBody<B> = MapErr<B, fn(<B as Body>::Error) -> Status>;

/// A service whose errors, also those of its response bodies, are a [`Status`]. Made by
/// [`StatusLayer`].
///
/// ```
/// use buttress_http::tonic::{StatusLayer, WithStatus};
/// use tonic::transport::Channel;
/// use tower::Layer;
///
/// /// A client whose type has a name.
/// struct Greeter {
///     channel: WithStatus<Channel>,
/// }
///
/// impl Greeter {
///     fn new(channel: Channel) -> Self {
///         Self { channel: StatusLayer.layer(channel) }
///     }
/// }
/// ```
#[derive(Clone, Debug)]
pub struct WithStatus<S> {
    inner: S,
}

impl<S, Req, B> Service<Req> for WithStatus<S>
where
    S: Service<Req, Response = Response<B>, Error: Into<BoxError>>,
    B: Body<Error: Into<BoxError>>,
{
    type Response = Response<StatusBody<B>>;
    type Error = Status;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.inner.poll_ready(cx).map_err(status)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        ResponseFuture { future: self.inner.call(request) }
    }
}

fn status<E: Into<BoxError>>(error: E) -> Status {
    Error::from_inner(error).into()
}

/// The future of a [`WithStatus`].
#[pin_project]
#[derive(Debug)]
pub struct ResponseFuture<F> {
    #[pin]
    future: F,
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Error: Into<BoxError>>,
    E: Into<BoxError>,
{
    type Output = Result<Response<StatusBody<B>>, Status>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = ready!(self.project().future.poll(cx));
        // A function pointer, because the type of the body must have a name.
        let to_status: fn(B::Error) -> Status = status;
        Poll::Ready(result.map(|response| response.map(|body| body.map_err(to_status))).map_err(status))
    }
}
