//! What a server shows of each request: a span, its time in the histogram, and its place in the last ten seconds.

use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use buttress::{Clock, TokioClock};
use tracing::field::Empty;
use tracing::{Instrument, info_span};

use super::Telemetry;
use super::client::answered;
use super::propagation::continue_from;
use super::traces::TARGET;

/// Middleware, outside of all that may refuse.
pub(crate) async fn observe(State(telemetry): State<Telemetry>, request: Request, next: Next) -> Response {
    // A route and not a path: ids are no labels.
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let route = if is_grpc(&request) { request.uri().path().to_owned() } else { route };
    let span = info_span!(
        target: TARGET,
        "request",
        otel.name = format_args!("{} {route}", request.method()),
        otel.kind = "server",
        otel.status_code = Empty,
        http.response.status_code = Empty,
        rpc.grpc.status_code = Empty,
    );
    continue_from(&span, request.headers());
    let method = request.method().clone();
    let start = TokioClock.now();
    let response = next.run(request).instrument(span.clone()).await;
    let elapsed = TokioClock.now().saturating_duration_since(start);
    answered(&span, &response);
    let failed = failed(&response);
    telemetry.meter().note(start, elapsed, failed);
    count(method.as_str(), route, &response, elapsed);
    response
}

fn count(method: &str, route: String, response: &Response, elapsed: Duration) {
    // The methods of the standard; anything else that a stranger comes up with is one label.
    let method = match method {
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "HEAD" => "HEAD",
        _ => "other",
    };
    let status = response.status().as_u16().to_string();
    let name = "http.server.request.duration";
    metrics::histogram!(name, "method" => method, "route" => route, "status" => status).record(elapsed);
}

fn is_grpc(request: &Request) -> bool {
    let content_type = request.headers().get(http::header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
        && request.extensions().get::<MatchedPath>().is_some_and(|path| path.as_str() != "unknown")
}

fn failed(response: &Response) -> bool {
    let grpc = response.headers().get("grpc-status").is_some_and(|code| code.as_bytes() != b"0");
    response.status().is_server_error() || grpc
}
