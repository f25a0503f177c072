//! Middleware that reads the body of a request before the request takes a place in a bulkhead.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::UploadTimedOut;

/// Reads the whole body, at most `limit` bytes of it. A body that is too large is answered 413, one
/// that is too slow 408, and one that breaks off 400; gRPC calls get `RESOURCE_EXHAUSTED`,
/// `DEADLINE_EXCEEDED` and `CANCELLED`.
///
/// For requests whose handlers need the whole body anyway. Trailers of a request are dropped.
pub async fn read(State(limit): State<usize>, request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let grpc = is_grpc(&request);
    let (parts, body) = request.into_parts();
    match Limited::new(body, limit).collect().await {
        Ok(body) => next.run(Request::from_parts(parts, Body::from(body.to_bytes()))).await,
        Err(error) => refusal(&*error, grpc),
    }
}

fn is_grpc(request: &Request) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

fn refusal(error: &(dyn std::error::Error + 'static), grpc: bool) -> Response {
    let (status, code) = if is::<LengthLimitError>(error) {
        (StatusCode::PAYLOAD_TOO_LARGE, tonic::Code::ResourceExhausted)
    } else if is::<UploadTimedOut>(error) {
        (StatusCode::REQUEST_TIMEOUT, tonic::Code::DeadlineExceeded)
    } else {
        (StatusCode::BAD_REQUEST, tonic::Code::Cancelled)
    };
    if grpc {
        return tonic::Status::new(code, "the request body was too large, too slow, or broken off").into_http();
    }
    let mut response = status.into_response();
    // The rest of the body is still in the connection.
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Whether an error or one of its sources is an `E`.
fn is<E: std::error::Error + 'static>(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<E>())
}
