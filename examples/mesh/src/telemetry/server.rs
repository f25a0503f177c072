//! Observes each request on a server: a span, a line in the log, the duration histogram, and the
//! rates of the last 10 s.

use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use buttress::context;
use buttress::policy::{Clock, TokioClock};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, Method, StatusCode};
use tracing::field::Empty;
use tracing::{Instrument, info_span};

use super::Telemetry;
use super::client::answered;
use super::line::ORDER;
use super::propagation::{Callers, continue_from};
use super::traces::TARGET;
use crate::launch::Name;
use crate::stack::word;

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
        order.id = Empty,
        // Known here: the layer that decides it is outside.
        priority = word(context::current().priority.unwrap_or_default().criticality()),
    );
    continue_from(&span, request.headers(), telemetry.callers());
    if let Some(order) = order_in(&route, request.uri().path()) {
        span.record(ORDER, order);
    }
    let caller = caller(&telemetry, request.headers());
    let start = TokioClock.now();
    let response = next.run(request).instrument(span.clone()).await;
    let elapsed = TokioClock.now().saturating_duration_since(start);
    answered(&span, &response);
    span.in_scope(|| {
        telemetry.access(&Access { method, route: &route, caller, elapsed, now: start + elapsed }, &response)
    });
    let failed = failed(&response);
    telemetry.meter().note(start, elapsed, failed);
    // A client can call an unimplemented method by any name, so the name must not become a label.
    let unknown = response.headers().get("grpc-status").is_some_and(|code| code.as_bytes() == UNIMPLEMENTED);
    let route = if unknown { UNKNOWN.to_owned() } else { route };
    let status = response.status().as_u16().to_string();
    metrics::histogram!(REQUESTS, "method" => method, "route" => route, "status" => status).record(elapsed);
    response
}

/// Header in which a service of the mesh names itself to the services that it calls.
pub(super) const CALLER: HeaderName = HeaderName::from_static("x-caller");

/// The services of the mesh, which are the callers that a log line names.
fn caller(telemetry: &Telemetry, headers: &HeaderMap) -> &'static str {
    let named = headers.get(CALLER).filter(|_| telemetry.callers() == Callers::Trusted);
    let known = |name: &Name| named.is_some_and(|named| named == name.as_str());
    // A customer, or a client that calls a service directly.
    Name::ALL.into_iter().find(known).map_or("outside", Name::as_str)
}

/// The order id in a path such as `/v1/orders/{id}`. Text that is not an id is not logged as one.
fn order_in<'a>(route: &str, path: &'a str) -> Option<&'a str> {
    let place = route.split('/').position(|segment| segment == "{id}" || segment == "{order_id}")?;
    path.split('/').nth(place).filter(|id| uuid::Uuid::parse_str(id).is_ok())
}

/// One request, as the log shows it.
struct Access<'a> {
    method: &'static str,
    route: &'a str,
    caller: &'static str,
    elapsed: Duration,
    now: Instant,
}

impl Telemetry {
    /// Writes the line of a request. A rejection for overload is frequent when it happens, so it is
    /// a warning once in 10 s, with the number of those that are not shown.
    fn access(&self, access: &Access<'_>, response: &Response) {
        let Access { method, route, caller, elapsed, now } = *access;
        let status = response.status().as_u16();
        let grpc = grpc_status(response);
        let ms = (elapsed.as_secs_f64() * 100_000.0).round() / 100.0;
        if is_refusal(response) {
            if let Some(left_out) = self.refusals().passes(now) {
                tracing::warn!(method, route, status, grpc, ms, caller, left_out, "requests are refused");
                return;
            }
            tracing::debug!(method, route, status, grpc, ms, caller, "refused");
        } else {
            tracing::info!(method, route, status, grpc, ms, caller, "request");
        }
    }
}

/// Whether a layer, or the service, has refused the request: too many requests, or unavailable.
fn is_refusal(response: &Response) -> bool {
    let refused = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&response.status());
    // RESOURCE_EXHAUSTED and UNAVAILABLE.
    refused || matches!(grpc_status(response), Some(8 | 14))
}

fn grpc_status(response: &Response) -> Option<i64> {
    response.headers().get("grpc-status")?.to_str().ok()?.parse().ok()
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
    fn an_order_is_read_from_its_path_only_if_it_is_an_id() {
        let id = "0192f0c1-2b3c-7d4e-8f5a-6b7c8d9e0f1a";
        let path = format!("/v1/orders/{id}/events");
        assert_eq!(order_in("/v1/orders/{id}/events", &path), Some(id));
        assert_eq!(order_in("/v1/orders/{id}", "/v1/orders/x%0aforged"), None);
        assert_eq!(order_in("/v1/orders", &path), None);
    }

    #[test]
    fn a_refusal_is_a_full_or_closed_service_and_not_a_failure() {
        let of = |status: u16, grpc: Option<&str>| {
            let mut response = Response::builder().status(status);
            if let Some(grpc) = grpc {
                response = response.header("grpc-status", grpc);
            }
            is_refusal(&response.body(Body::empty()).unwrap())
        };
        assert!(of(503, None) && of(429, None) && of(200, Some("14")) && of(200, Some("8")));
        assert!(!of(500, None) && !of(504, None) && !of(200, Some("2")) && !of(200, Some("0")) && !of(201, None));
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        let of = |value: &str| is_grpc(&HeaderMap::from_iter([(CONTENT_TYPE, value.parse().unwrap())]));
        assert!(of("application/grpc") && of("application/grpc+proto"));
        assert!(!of("application/json") && !is_grpc(&HeaderMap::new()));
    }
}
