//! Spans of a client stack: one for the call, and one per attempt, which propagates the trace.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use buttress::CircuitBreaker;
use http::{HeaderValue, Request, Response};
use tower::{Layer, Service};
use tracing::field::Empty;
use tracing::instrument::{Instrument, Instrumented};
use tracing::{Span, info_span};

use super::propagation::carry;
use super::server::{CALLER, is_grpc};
use super::traces::TARGET;

/// Layer, outermost in a client stack: one span per call, including retries and pauses.
#[derive(Clone, Debug)]
pub struct CallLayer {
    pub name: &'static str,
    /// Its state is recorded on the span.
    pub breaker: CircuitBreaker,
}

/// Service of [`CallLayer`].
#[derive(Clone, Debug)]
pub struct Call<S> {
    inner: S,
    layer: CallLayer,
}

impl<S> Layer<S> for CallLayer {
    type Service = Call<S>;

    fn layer(&self, inner: S) -> Call<S> {
        Call { inner, layer: self.clone() }
    }
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for Call<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = Instrumented<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let span = info_span!(
            target: TARGET,
            "call",
            otel.name = self.layer.name,
            otel.kind = "internal",
            breaker.state = Empty,
        );
        if !span.is_disabled() {
            span.record("breaker.state", self.layer.breaker.state().as_str());
        }
        let future = span.in_scope(|| self.inner.call(request));
        future.instrument(span)
    }
}

/// Counts the attempts of one call, if it is in the extensions of the request. A call without an
/// attempt was never sent: a layer has rejected it.
#[derive(Clone, Debug, Default)]
pub struct Attempts(Arc<AtomicU32>);

impl Attempts {
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Layer, innermost in a client stack: one span per attempt.
#[derive(Clone, Copy, Debug)]
pub struct AttemptLayer {
    /// The calling service, which the call names to the called one.
    pub caller: &'static str,
    /// The called service.
    pub peer: &'static str,
}

/// Service of [`AttemptLayer`].
#[derive(Clone, Debug)]
pub struct Attempt<S> {
    inner: S,
    layer: AttemptLayer,
}

impl<S> Layer<S> for AttemptLayer {
    type Service = Attempt<S>;

    fn layer(&self, inner: S) -> Attempt<S> {
        Attempt { inner, layer: *self }
    }
}

impl<S, B, R> Service<Request<B>> for Attempt<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: fmt::Display,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = AttemptFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if let Some(Attempts(attempts)) = request.extensions().get() {
            attempts.fetch_add(1, Ordering::Relaxed);
        }
        let path = request.uri().path();
        // OpenTelemetry's conventions ask for a name of low cardinality, and a path may contain an
        // id.
        let name = if is_grpc(request.headers()) { path.trim_start_matches('/') } else { request.method().as_str() };
        let span = info_span!(
            target: TARGET,
            "attempt",
            otel.name = name,
            otel.kind = "client",
            url.path = path,
            otel.status_code = Empty,
            otel.status_description = Empty,
            peer.service = self.layer.peer,
            http.response.status_code = Empty,
            rpc.grpc.status_code = Empty,
        );
        carry(&span, request.headers_mut());
        request.headers_mut().insert(CALLER, HeaderValue::from_static(self.layer.caller));
        let future = span.in_scope(|| self.inner.call(request));
        AttemptFuture { future: Box::pin(future), span }
    }
}

/// Records the result of an attempt. Boxed, like the channels of the mesh.
pub struct AttemptFuture<F> {
    future: Pin<Box<F>>,
    span: Span,
}

impl<F, R, E> Future for AttemptFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    E: fmt::Display,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { future, span } = self.get_mut();
        let polled = span.in_scope(|| future.as_mut().poll(cx));
        match &polled {
            Poll::Pending => {}
            Poll::Ready(Ok(response)) => answered(span, response),
            Poll::Ready(Err(error)) => {
                span.record("otel.status_code", "ERROR");
                span.record("otel.status_description", tracing::field::display(error));
            }
        }
        polled
    }
}

impl<F> fmt::Debug for AttemptFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttemptFuture").field("span", &self.span).finish_non_exhaustive()
    }
}

/// Records a response on a span, on the client or the server. A gRPC status in trailers is not
/// recorded; the errors of the mesh are sent with the head.
pub(super) fn answered<R>(span: &Span, response: &Response<R>) {
    let status = response.status();
    span.record("http.response.status_code", status.as_u16());
    let grpc = response.headers().get("grpc-status").and_then(|code| code.to_str().ok()?.parse::<i32>().ok());
    if let Some(code) = grpc {
        span.record("rpc.grpc.status_code", code);
    }
    if status.is_server_error() || grpc.is_some_and(|code| code != 0) {
        span.record("otel.status_code", "ERROR");
    }
}
