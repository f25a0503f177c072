//! Errors of the REST services, as RFC 9457 asks: `application/problem+json`.
//!
//! Handlers return [`Problem`]. [`render`] sits outside everything else and does the rest: it adds the path as
//! `instance`, and turns error responses of others (axum's 404, 405 and 413, rejections of our own layers) into
//! problems too. So a client parses one format, whoever refused it.

use std::time::Duration;

use axum::extract::rejection::{BytesRejection, JsonRejection};
use axum::extract::{FromRequest, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// The media type of RFC 9457.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// Names the service that is to blame when it is another one. The caller's circuit breaker reads it: a service that
/// says so is itself well, and must not be cut off for the fault of those behind it.
pub const FAILED_DEPENDENCY: HeaderName = HeaderName::from_static("x-failed-dependency");

/// Where the types of our problems are explained.
const TYPES: &str = "https://buttress.example/problems/";

#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    /// What kind of problem: for programs. Never changes once published. `None` if the status says it all.
    #[serde(rename = "type", serialize_with = "type_uri")]
    kind: Option<&'static str>,
    /// The same for people: one sentence for each type.
    title: &'static str,
    /// The HTTP status again, for logs that lost it.
    status: u16,
    /// What went wrong this time, and what to do about it.
    detail: String,
    /// Another service that is to blame.
    #[serde(rename = "dependency", skip_serializing_if = "Option::is_none")]
    caused_by: Option<&'static str>,
    /// `instance`, and more members that depend on the type: `order_id`, `errors`.
    #[serde(flatten)]
    members: Map<String, Value>,
    /// Rounded up to seconds in the header, because that is all that HTTP has.
    #[serde(skip)]
    retry_after: Option<Duration>,
}

fn type_uri<S: Serializer>(kind: &Option<&'static str>, serializer: S) -> Result<S::Ok, S::Error> {
    match kind {
        Some(kind) => serializer.collect_str(&format_args!("{TYPES}{kind}")),
        None => serializer.serialize_str("about:blank"),
    }
}

impl Problem {
    /// A problem of a type of its own: `kind` is its name in the type's URI.
    pub fn new(status: StatusCode, kind: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self { kind: Some(kind), title, ..Self::from_status(status, detail) }
    }

    /// A problem that its status explains.
    pub fn from_status(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: None,
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into(),
            caused_by: None,
            members: Map::new(),
            retry_after: None,
        }
    }

    /// Something of ours broke. The details went to the log; the client gets none.
    pub fn internal() -> Self {
        Self::from_status(StatusCode::INTERNAL_SERVER_ERROR, "something went wrong on our side")
    }

    /// Something of ours broke, and this is for the log.
    pub fn failed(service: &'static str, error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(service, error, "cannot answer");
        Self::internal()
    }

    #[must_use]
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.members.insert(member.to_owned(), value.into());
        self
    }

    #[must_use]
    pub fn retry_after(mut self, pause: Duration) -> Self {
        self.retry_after = Some(pause);
        self
    }

    #[must_use]
    pub fn caused_by(mut self, service: &'static str) -> Self {
        self.caused_by = Some(service);
        self
    }

    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (self.status(), [(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response();
        if let Some(pause) = self.retry_after {
            let seconds = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(service) = self.caused_by {
            response.headers_mut().insert(FAILED_DEPENDENCY, HeaderValue::from_static(service));
        }
        // For `render`, which knows the path.
        response.extensions_mut().insert(self);
        response
    }
}

/// The outermost middleware of a REST service: every error leaves as a problem with its `instance`.
pub async fn render(request: Request, next: Next) -> Response {
    let instance = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let problem = match response.extensions_mut().remove::<Problem>() {
        Some(problem) => problem,
        // Made by another service and passed on.
        None if is_problem(&response) => return response,
        None => Problem::from_status(status, explain(status)),
    };
    let mut rendered = problem.with("instance", instance).into_response();
    // `Allow`, `Retry-After` and the like are still true; what described the old body is not.
    for (name, value) in response.headers() {
        if ![header::CONTENT_TYPE, header::CONTENT_LENGTH].contains(name) {
            rendered.headers_mut().insert(name, value.clone());
        }
    }
    rendered
}

fn is_problem(response: &Response) -> bool {
    response.headers().get(header::CONTENT_TYPE).is_some_and(|value| value == CONTENT_TYPE)
}

/// What to say of a refusal that came without a word: those of axum and of our own layers.
fn explain(status: StatusCode) -> &'static str {
    match status {
        StatusCode::METHOD_NOT_ALLOWED => "this path exists, with other methods: see the Allow header",
        StatusCode::PAYLOAD_TOO_LARGE => "the body is too large",
        StatusCode::TOO_MANY_REQUESTS => "too many requests; slow down",
        StatusCode::SERVICE_UNAVAILABLE => "too much to do right now; try again later",
        StatusCode::GATEWAY_TIMEOUT => "this took too long",
        _ => "the request was refused",
    }
}

/// The answer for a path that nobody serves.
pub async fn not_found() -> Problem {
    Problem::from_status(StatusCode::NOT_FOUND, "there is nothing at this path")
}

/// `axum::Json` whose rejections are problems.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match axum::Json::from_request(request, state).await {
            Ok(axum::Json(value)) => Ok(Self(value)),
            Err(rejection) => Err(rejection.into()),
        }
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self::from_status(rejection.status(), rejection.body_text())
    }
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Self {
        Self::from_status(rejection.status(), rejection.body_text())
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::routing::get;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn ask(path: &str) -> (Response<()>, Value) {
        let shed = || async { (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "7")], "busy") };
        let passed_on = || async { (StatusCode::CONFLICT, [(header::CONTENT_TYPE, CONTENT_TYPE)], "{\"status\":409}") };
        let blame = || async {
            Problem::internal().with("order_id", "o1").caused_by("payment").retry_after(Duration::from_millis(1200))
        };
        let app = Router::new()
            .route("/shed", get(shed))
            .route("/passed-on", get(passed_on))
            .route("/blame", get(blame))
            .fallback(not_found)
            .layer(axum::middleware::from_fn(render));
        let response = app.oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
        (Response::from_parts(parts, ()), body)
    }

    #[tokio::test]
    async fn an_error_of_others_becomes_a_problem_and_keeps_its_headers() {
        let (response, body) = ask("/shed").await;
        assert_eq!(response.headers()[header::CONTENT_TYPE], CONTENT_TYPE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "7");
        assert_eq!((&body["type"], &body["instance"]), (&"about:blank".into(), &"/shed".into()));
    }

    #[tokio::test]
    async fn a_problem_of_another_service_is_passed_on_as_it_is() {
        let (response, body) = ask("/passed-on").await;
        assert_eq!((response.status(), body), (StatusCode::CONFLICT, serde_json::json!({ "status": 409 })));
    }

    #[tokio::test]
    async fn members_blame_and_pauses_reach_the_client() {
        let (response, body) = ask("/blame").await;
        assert_eq!(response.headers()[header::RETRY_AFTER], "2", "seconds, rounded up");
        assert_eq!(response.headers()[FAILED_DEPENDENCY], "payment");
        assert_eq!((&body["order_id"], &body["dependency"]), (&"o1".into(), &"payment".into()));
    }

    #[tokio::test]
    async fn an_unknown_path_is_a_problem() {
        assert_eq!(ask("/nowhere").await.1["status"], 404);
    }
}
