//! Observes each request on a server: a span, the duration histogram, and the rates of the last 10
//! s.

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use buttress::policy::{Clock, TokioClock};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method};
use tracing::field::Empty;
use tracing::{Instrument, info_span};

use super::Telemetry;
use super::client::answered;
use super::propagation::continue_from;
use super::traces::TARGET;

/// Name of the histogram of request durations, from OpenTelemetry's conventions.
pub(super) const REQUESTS: &str = "http.server.request.duration";

/// gRPC's code of UNIMPLEMENTED.
const UNIMPLEMENTED: &[u8] = b"12";

/// The route label of requests without a route.
const UNKNOWN: &str = "unknown";

/// Middleware, outside of all layers that may reject.
pub(crate) async fn observe(State(telemetry): State<Telemetry>, request: Request, next: Next) -> Response {
    // The label is the route and not the path, because paths contain ids.
    let method = known(request.method());
    let (route, name) = match request.extensions().get::<MatchedPath>() {
        Some(_) if is_grpc(request.headers()) => {
            let called = request.uri().path().trim_start_matches('/').to_owned();
            (called.clone(), called)
        }
        Some(matched) => (matched.as_str().to_owned(), format!("{method} {}", matched.as_str())),
        None => (UNKNOWN.to_owned(), method.to_owned()),
    };
    let span = info_span!(
        target: TARGET,
        "request",
        otel.name = name,
        otel.kind = "server",
        otel.status_code = Empty,
        http.response.status_code = Empty,
        rpc.grpc.status_code = Empty,
    );
    continue_from(&span, request.headers());
    let start = TokioClock.now();
    let response = next.run(request).instrument(span.clone()).await;
    let elapsed = TokioClock.now().saturating_duration_since(start);
    answered(&span, &response);
    let failed = failed(&response);
    telemetry.meter().note(start, elapsed, failed);
    // A client can call an unimplemented method by any name, so the name must not become a label.
    let unknown = response.headers().get("grpc-status").is_some_and(|code| code.as_bytes() == UNIMPLEMENTED);
    let route = if unknown { UNKNOWN.to_owned() } else { route };
    let status = response.status().as_u16().to_string();
    metrics::histogram!(REQUESTS, "method" => method, "route" => route, "status" => status).record(elapsed);
    response
}

/// The standard methods, and "other" for any other, because clients can invent names.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        _ => "other",
    }
}

pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

fn failed(response: &Response) -> bool {
    let grpc = response.headers().get("grpc-status").is_some_and(|code| code.as_bytes() != b"0");
    response.status().is_server_error() || grpc
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn a_label_is_one_of_the_standard_methods() {
        let methods = ["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "INVENTED"];
        let labels = methods.map(|method| known(&Method::from_bytes(method.as_bytes()).unwrap()));
        assert_eq!(labels, ["GET", "POST", "PUT", "DELETE", "HEAD", "other", "other"]);
    }

    #[test]
    fn a_failure_is_a_server_error_or_a_grpc_error() {
        let answer = |status: u16, grpc: Option<&str>| {
            let mut response = Response::builder().status(status);
            if let Some(grpc) = grpc {
                response = response.header("grpc-status", grpc);
            }
            failed(&response.body(Body::empty()).unwrap())
        };
        assert!(!answer(200, None) && !answer(200, Some("0")) && !answer(404, None) && !answer(302, None));
        assert!(answer(500, None) && answer(503, None) && answer(200, Some("14")) && answer(200, Some("2")));
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        let of = |value: &str| is_grpc(&HeaderMap::from_iter([(CONTENT_TYPE, value.parse().unwrap())]));
        assert!(of("application/grpc") && of("application/grpc+proto"));
        assert!(!of("application/json") && !is_grpc(&HeaderMap::new()));
    }
}
