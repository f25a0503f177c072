//! For tonic clients: errors of a stack as a [`Status`] with the right code.
//!
//! tonic turns an error it does not know into `UNKNOWN`. [`StatusLayer`], outermost, says what it
//! is: an open circuit is `UNAVAILABLE`, a full bulkhead `RESOURCE_EXHAUSTED`, a timeout
//! `DEADLINE_EXCEEDED`, also one in the middle of a stream. The typed rejection stays the status'
//! source.
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

/// Turns the errors of a client stack into a [`Status`]. See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct StatusLayer;

impl<S> Layer<S> for StatusLayer {
    type Service = WithStatus<S>;

    fn layer(&self, inner: S) -> WithStatus<S> {
        WithStatus { inner }
    }
}

/// The body of a response whose errors are a [`Status`].
pub type StatusBody<B> = MapErr<B, fn(<B as Body>::Error) -> Status>;

/// A service whose errors are a [`Status`], also those in the bodies of its responses.
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
        // As a function pointer, so that the type of the body has a name.
        let to_status: fn(B::Error) -> Status = status;
        Poll::Ready(result.map(|response| response.map(|body| body.map_err(to_status))).map_err(status))
    }
}
