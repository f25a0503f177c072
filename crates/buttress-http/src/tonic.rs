//! For tonic clients: errors of a stack as a [`Status`] with the right code.
//!
//! tonic turns an error it does not know into `UNKNOWN`. [`StatusLayer`], outermost, says what it is: an open circuit is `UNAVAILABLE`, a full
//! bulkhead `RESOURCE_EXHAUSTED`, a timeout `DEADLINE_EXCEEDED`. The typed rejection stays the status' source.
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
use pin_project::pin_project;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
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

/// A service whose errors are a [`Status`].
#[derive(Clone, Debug)]
pub struct WithStatus<S> {
    inner: S,
}

impl<S, Req> Service<Req> for WithStatus<S>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = Status;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.inner.poll_ready(cx).map_err(status)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        ResponseFuture { future: self.inner.call(request) }
    }
}

fn status(error: impl Into<BoxError>) -> Status {
    Error::from_inner(error).into()
}

/// The future of a [`WithStatus`].
#[pin_project]
#[derive(Debug)]
pub struct ResponseFuture<F> {
    #[pin]
    future: F,
}

impl<F: Future<Output = Result<T, E>>, T, E: Into<BoxError>> Future for ResponseFuture<F> {
    type Output = Result<T, Status>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().future.poll(cx).map_err(status)
    }
}
