//! The order service as the gateway sees it: plain HTTP through a stack of our layers.

use std::net::SocketAddr;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use serde_json::Value;
use tower::ServiceExt;
use uuid::Uuid;

use crate::order::IDEMPOTENCY_KEY;
use crate::service::url;
use crate::stack::HttpChannel;
use crate::upstream::Upstream;

/// What a request carries on to the order service, and what an answer carries back. Everything else, such as cookies and
/// hop-by-hop headers, stays on its own side.
const TO_ORDER: [HeaderName; 2] = [header::CONTENT_TYPE, IDEMPOTENCY_KEY];
const FROM_ORDER: [HeaderName; 3] = [header::CONTENT_TYPE, header::LOCATION, header::RETRY_AFTER];

/// Answers of the order service are small; anything larger is not an answer.
const MAX_ANSWER: usize = 64 * 1024;

#[derive(Clone, Debug)]
pub(super) struct Orders {
    channel: HttpChannel,
    base: String,
}

impl Orders {
    pub(super) fn new(channel: HttpChannel, addr: SocketAddr) -> Self {
        Self { channel, base: url(addr) }
    }

    /// Passes an order on, and its answer back as it is.
    pub(super) async fn place(&self, headers: &HeaderMap, body: Bytes) -> Result<Response, Upstream> {
        let mut request = self.request(Method::POST, "/v1/orders", body)?;
        copy(&TO_ORDER, headers, request.headers_mut());
        // A customer without a key still gets one between us and order: only then may the stack repeat the request.
        if let (false, Ok(key)) =
            (request.headers().contains_key(IDEMPOTENCY_KEY), HeaderValue::try_from(Uuid::now_v7().to_string()))
        {
            request.headers_mut().insert(IDEMPOTENCY_KEY, key);
        }
        let (status, headers, body) = self.send(request).await?;
        let mut response = (status, Body::from(body)).into_response();
        response.headers_mut().remove(header::CONTENT_TYPE);
        copy(&FROM_ORDER, &headers, response.headers_mut());
        Ok(response)
    }

    /// One order. `None` if there is none.
    pub(super) async fn order(&self, id: &str) -> Result<Option<Value>, Upstream> {
        let request = self.request(Method::GET, &format!("/v1/orders/{id}"), Bytes::new())?;
        let (status, _, body) = self.send(request).await?;
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::OK => serde_json::from_slice(&body).map(Some).map_err(|error| broken(error.to_string())),
            _ => Err(broken(format!("status {status}"))),
        }
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, Upstream> {
        Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .body(Full::new(body))
            .map_err(|error| broken(error.to_string()))
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, HeaderMap, Bytes), Upstream> {
        let response =
            self.channel.clone().oneshot(request).await.map_err(|error| Upstream::from_error("order", &error))?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| broken(error.to_string()))?;
        Ok((parts.status, parts.headers, body.to_bytes()))
    }
}

fn copy(names: &[HeaderName], from: &HeaderMap, to: &mut HeaderMap) {
    for name in names {
        if let Some(value) = from.get(name) {
            to.insert(name, value.clone());
        }
    }
}

fn broken(detail: String) -> Upstream {
    Upstream::broken("order", detail)
}
