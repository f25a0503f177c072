//! Client of a REST service: HTTP through a stack of Buttress layers.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use serde_json::Value;
use tower::ServiceExt;

use crate::order::IDEMPOTENCY_KEY;
use crate::service::Address;
use crate::stack::HttpChannel;
use crate::upstream::Upstream;

/// Headers that are forwarded with a request and with its response. All others, such as cookies and
/// hop-by-hop headers, are dropped.
const INWARD: [HeaderName; 2] = [header::CONTENT_TYPE, IDEMPOTENCY_KEY];
const OUTWARD: [HeaderName; 3] = [header::CONTENT_TYPE, header::LOCATION, header::RETRY_AFTER];

/// Maximum size of a response body. A larger one is treated as a broken response.
const MAX_ANSWER: usize = 256 * 1024;

#[derive(Clone, Debug)]
pub(super) struct Rest {
    service: &'static str,
    channel: HttpChannel,
    base: String,
}

impl Rest {
    pub(super) fn new(service: &'static str, channel: HttpChannel, addr: &Address) -> Self {
        Self { service, channel, base: addr.url() }
    }

    /// Forwards a request and returns the response unchanged.
    pub(super) async fn forward(
        &self,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Response, Upstream> {
        let mut request = self.request(method, path, body)?;
        copy(&INWARD, headers, request.headers_mut());
        let (status, headers, body) = self.send(request).await?;
        let mut response = (status, Body::from(body)).into_response();
        response.headers_mut().remove(header::CONTENT_TYPE);
        copy(&OUTWARD, &headers, response.headers_mut());
        Ok(response)
    }

    /// Reads a JSON resource. `None` if the answer is 404.
    pub(super) async fn get(&self, path: &str) -> Result<Option<Value>, Upstream> {
        let (status, _, body) = self.send(self.request(Method::GET, path, Bytes::new())?).await?;
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::OK => serde_json::from_slice(&body).map(Some).map_err(|error| self.broken(error.to_string())),
            _ => Err(self.broken(format!("status {status}"))),
        }
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, Upstream> {
        Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .body(Full::new(body))
            .map_err(|error| self.broken(error.to_string()))
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, HeaderMap, Bytes), Upstream> {
        let response =
            self.channel.clone().oneshot(request).await.map_err(|error| Upstream::from_error(self.service, &error))?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| self.broken(error.to_string()))?;
        Ok((parts.status, parts.headers, body.to_bytes()))
    }

    fn broken(&self, detail: String) -> Upstream {
        Upstream::broken(self.service, detail)
    }
}

/// Adds an idempotency key if the request has none. Only requests with a key may be retried by a
/// stack.
pub(super) fn with_key(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    if let (false, Ok(key)) =
        (headers.contains_key(IDEMPOTENCY_KEY), HeaderValue::try_from(uuid::Uuid::now_v7().to_string()))
    {
        headers.insert(IDEMPOTENCY_KEY, key);
    }
    headers
}

fn copy(names: &[HeaderName], from: &HeaderMap, to: &mut HeaderMap) {
    for name in names {
        if let Some(value) = from.get(name) {
            to.insert(name, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::{get, post};
    use tower::ServiceBuilder;
    use tower::util::BoxCloneSyncService;

    use super::*;
    use crate::upstream::Kind;

    /// A client of these routes, without a network.
    fn rest(routes: Router) -> Rest {
        let service = ServiceBuilder::new()
            .map_request(|request: Request<Full<Bytes>>| request.map(Body::new))
            .map_err(|never: std::convert::Infallible| match never {})
            .service(routes);
        Rest::new("order", BoxCloneSyncService::new(service), &"order:8081".parse().unwrap())
    }

    #[tokio::test]
    async fn only_known_headers_pass_in_either_direction() {
        let echo = async |headers: HeaderMap, body: String| {
            let seen = format!("{} {:?} {:?}", body, headers.get(IDEMPOTENCY_KEY), headers.get(header::COOKIE));
            let answer =
                [("content-type", "text/plain"), ("location", "/o1"), ("retry-after", "7"), ("set-cookie", "a=b")];
            (StatusCode::ACCEPTED, answer, seen)
        };
        let rest = rest(Router::new().route("/v1/orders", post(echo)));
        let sent = [(IDEMPOTENCY_KEY, "k1"), (header::COOKIE, "secret"), (header::CONTENT_TYPE, "application/json")];
        let sent = HeaderMap::from_iter(sent.map(|(name, value)| (name, HeaderValue::from_static(value))));
        let response = rest.forward(Method::POST, "/v1/orders", &sent, Bytes::from_static(b"tea")).await.unwrap();
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        let names: Vec<_> = response.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["content-type", "location", "retry-after"]);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "tea Some(\"k1\") None");
    }

    #[tokio::test]
    async fn a_resource_is_there_or_not_or_broken() {
        let rest = rest(
            Router::new()
                .route("/there", get(async || "{\"a\": 1}"))
                .route("/broken", get(async || "{"))
                .route("/failed", get(async || StatusCode::INTERNAL_SERVER_ERROR))
                .route("/created", get(async || (StatusCode::CREATED, "{}")))
                .route("/full", get(async || format!("\"{}\"", "x".repeat(MAX_ANSWER - 2))))
                .route("/large", get(async || format!("\"{}\"", "x".repeat(MAX_ANSWER - 1)))),
        );
        assert_eq!(rest.get("/there").await.unwrap(), Some(serde_json::json!({ "a": 1 })));
        assert_eq!(rest.get("/nowhere").await.unwrap(), None);
        assert!(rest.get("/full").await.unwrap().is_some(), "the largest answer");
        for path in ["/broken", "/failed", "/created", "/large"] {
            let error = rest.get(path).await.unwrap_err();
            assert_eq!((error.service, error.kind), ("order", Kind::Broken), "{path}");
        }
    }

    #[test]
    fn a_key_is_added_where_there_is_none() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        let (one, other) = (with_key(&headers), with_key(&headers));
        assert_eq!(one[header::CONTENT_TYPE], "text/plain");
        assert_ne!(one[IDEMPOTENCY_KEY], other[IDEMPOTENCY_KEY]);
        headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_static("mine"));
        assert_eq!(with_key(&headers)[IDEMPOTENCY_KEY], "mine");
    }
}
