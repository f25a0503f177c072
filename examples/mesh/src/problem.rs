//! Errors of the REST services in the format of RFC 9457, `application/problem+json`.
//!
//! Handlers return [`Problem`]. [`render`] is the outermost middleware: it adds the path as
//! `instance`, and converts other error responses (axum's 404, 405 and 413, rejections of the
//! layers) to problems, so that clients parse one format.

use std::time::Duration;

use axum::extract::rejection::{BytesRejection, JsonRejection};
use axum::extract::{FromRequest, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use buttress_durable::DbError;
use buttress_durable::db::DbErrorKind;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::input::FieldError;

/// The media type of RFC 9457.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// Names the service that caused an error, if it is another one. The caller's circuit breaker reads
/// it: a service that sends this header works, and must not be cut off because of its backend.
pub const FAILED_DEPENDENCY: HeaderName = HeaderName::from_static("x-failed-dependency");

/// The header by which Buttress' layers mark a response whose request had no effect. Their clients
/// count it as overload, and may repeat the request.
const REJECTED: HeaderName = HeaderName::from_static("x-buttress-rejected");

/// Base URI of the problem types.
const TYPES: &str = "https://buttress.example/problems/";

#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    /// The problem type, for programs. Must not change once published. `None` if the status is
    /// enough.
    #[serde(rename = "type", serialize_with = "type_uri")]
    kind: Option<&'static str>,
    /// The type as a sentence, for people.
    title: &'static str,
    /// The HTTP status, repeated for logs of the body.
    status: u16,
    /// What went wrong in this case, and what to do about it.
    detail: Box<str>,
    /// The other service that caused the problem.
    #[serde(rename = "dependency", skip_serializing_if = "Option::is_none")]
    caused_by: Option<&'static str>,
    /// `instance`, and members that depend on the type, such as `order_id` and `errors`.
    #[serde(flatten)]
    members: Map<String, Value>,
    /// Headers of the response.
    #[serde(skip)]
    headers: Vec<(HeaderName, HeaderValue)>,
}

fn type_uri<S: Serializer>(kind: &Option<&'static str>, serializer: S) -> Result<S::Ok, S::Error> {
    match kind {
        Some(kind) => serializer.collect_str(&format_args!("{TYPES}{kind}")),
        None => serializer.serialize_str("about:blank"),
    }
}

impl Problem {
    /// A problem with its own type. `kind` is the last segment of the type's URI.
    pub fn new(status: StatusCode, kind: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self { kind: Some(kind), title, ..Self::from_status(status, detail) }
    }

    /// A problem whose status is its type (`about:blank`).
    pub fn from_status(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: None,
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into().into_boxed_str(),
            caused_by: None,
            members: Map::new(),
            headers: Vec::new(),
        }
    }

    /// An internal error. The details are in the log and not in the response.
    pub fn internal() -> Self {
        Self::from_status(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
    }

    /// The problem for an error in a handler. A database that rejects a value is an error of the
    /// caller, and one that is not available says nothing about the request. Details are in the
    /// log and not in the response.
    pub fn failed(service: &'static str, error: &(dyn std::error::Error + 'static)) -> Self {
        match DbError::kind_in(error) {
            Some(DbErrorKind::Data) => {
                tracing::warn!(service, error, "the database rejected a value");
                Self::from_status(StatusCode::UNPROCESSABLE_ENTITY, "a value in the request cannot be stored")
            }
            Some(DbErrorKind::Unavailable | DbErrorKind::Timeout | DbErrorKind::Conflict) => {
                tracing::error!(service, error, "the database is unavailable");
                Self::from_status(StatusCode::SERVICE_UNAVAILABLE, "the service cannot reach its database")
                    .retry_after(Duration::from_secs(1))
            }
            _ => {
                tracing::error!(service, error, "cannot answer");
                Self::internal()
            }
        }
    }

    /// A request whose fields violate rules: 422, with all violations.
    pub fn invalid(kind: &'static str, title: &'static str, errors: &[FieldError]) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, kind, title, "see errors for what to change")
            .with("errors", serde_json::json!(errors))
    }

    #[must_use]
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.members.insert(member.to_owned(), value.into());
        self
    }

    /// Sets `Retry-After`, rounded up to seconds, its unit in HTTP.
    #[must_use]
    pub fn retry_after(self, pause: Duration) -> Self {
        let seconds = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
        self.header(header::RETRY_AFTER, HeaderValue::from(seconds))
    }

    #[must_use]
    pub fn caused_by(mut self, service: &'static str) -> Self {
        self.caused_by = Some(service);
        self.header(FAILED_DEPENDENCY, HeaderValue::from_static(service))
    }

    /// Tells the caller's stack that the request was rejected before it had an effect: it may be
    /// repeated, and is no evidence against this service.
    #[must_use]
    pub fn rejected(self, reason: &'static str) -> Self {
        self.header(REJECTED, HeaderValue::from_static(reason))
    }

    /// Names the scheme by which the caller can authenticate.
    #[must_use]
    pub fn challenge(self, scheme: &'static str) -> Self {
        self.header(header::WWW_AUTHENTICATE, HeaderValue::from_static(scheme))
    }

    fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
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
        response.headers_mut().extend(self.headers.iter().cloned());
        // Read by `render`, which adds the path.
        response.extensions_mut().insert(self);
        response
    }
}

/// The gRPC status for an error in a handler, by the rules of [`Problem::failed`]. UNAVAILABLE lets
/// the caller repeat the call, which is safe because of the keys.
pub fn grpc_failed(service: &'static str, error: &(dyn std::error::Error + 'static)) -> tonic::Status {
    match DbError::kind_in(error) {
        Some(DbErrorKind::Data) => {
            tracing::warn!(service, error, "the database rejected a value");
            tonic::Status::invalid_argument("a value in the request cannot be stored")
        }
        _ => {
            tracing::error!(service, error, "database failed");
            tonic::Status::unavailable(format!("the {service} database failed"))
        }
    }
}

/// Middleware, outermost in a REST service: turns every error into a problem with its `instance`.
pub async fn render(request: Request, next: Next) -> Response {
    let instance = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let problem = match response.extensions_mut().remove::<Problem>() {
        Some(problem) => problem,
        // Created by another service and forwarded.
        None if is_problem(&response) => return response,
        None => Problem::from_status(status, explain(status)),
    };
    let mut rendered = problem.with("instance", instance).into_response();
    // Keeps headers such as `Allow` and `Retry-After`; drops those that described the old body.
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

/// Detail text for an error response without a problem: from axum and from the layers.
fn explain(status: StatusCode) -> &'static str {
    match status {
        StatusCode::METHOD_NOT_ALLOWED => "this path exists, with other methods: see the Allow header",
        StatusCode::REQUEST_TIMEOUT => "the body was not sent in time",
        StatusCode::PAYLOAD_TOO_LARGE => "the body is too large",
        StatusCode::TOO_MANY_REQUESTS => "too many requests; slow down",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded; try again later",
        StatusCode::GATEWAY_TIMEOUT => "the request timed out",
        _ => "the request was refused",
    }
}

/// The answer for an unknown path.
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

    #[test]
    fn a_pause_is_rounded_up_to_whole_seconds_and_whole_ones_stay() {
        let pause = |millis| {
            let problem = Problem::internal().retry_after(Duration::from_millis(millis));
            problem.into_response().headers()[header::RETRY_AFTER].to_str().unwrap().to_owned()
        };
        assert_eq!([0, 1, 1_000, 1_001, 2_000].map(pause), ["0", "1", "1", "2", "2"]);
        assert!(!Problem::internal().into_response().headers().contains_key(header::RETRY_AFTER));
    }

    #[tokio::test]
    async fn a_problem_has_the_members_of_the_standard() {
        let problem =
            Problem::new(StatusCode::CONFLICT, "out-of-stock", "Not enough", "one line").with("order_id", "o1");
        let response = problem.clone().into_response();
        assert_eq!(response.status(), StatusCode::CONFLICT);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        let body: Value = serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
        let expected = serde_json::json!({
            "type": "https://buttress.example/problems/out-of-stock",
            "title": "Not enough",
            "status": 409,
            "detail": "one line",
            "order_id": "o1",
        });
        assert_eq!(body, expected);
        let plain = serde_json::to_value(Problem::from_status(StatusCode::BAD_GATEWAY, "why")).unwrap();
        let expected =
            serde_json::json!({ "type": "about:blank", "title": "Bad Gateway", "status": 502, "detail": "why" });
        assert_eq!(plain, expected);
    }

    #[test]
    fn an_internal_error_keeps_its_details_to_itself() {
        let problem = Problem::failed("order", &std::io::Error::other("hunter2"));
        assert_eq!((problem.status(), &*problem.detail), (StatusCode::INTERNAL_SERVER_ERROR, "internal error"));
    }

    #[test]
    fn a_value_that_a_database_rejects_is_the_callers_and_an_absent_database_is_no_fault_of_the_request() {
        let told = |error: sqlx::Error| {
            let response = Problem::failed("order", &DbError::from(error)).into_response();
            (response.status().as_u16(), response.headers().contains_key(header::RETRY_AFTER))
        };
        assert_eq!(told(sqlx::Error::Encode("a zero byte".into())), (422, false));
        assert_eq!(told(sqlx::Error::PoolTimedOut), (503, true));
        assert_eq!(told(sqlx::Error::ColumnNotFound("x".into())), (500, false));
        let grpc = |error: sqlx::Error| grpc_failed("payment", &DbError::from(error));
        let (data, absent) = (grpc(sqlx::Error::Encode("hunter2".into())), grpc(sqlx::Error::PoolTimedOut));
        assert_eq!((data.code(), absent.code()), (tonic::Code::InvalidArgument, tonic::Code::Unavailable));
        assert!(!data.message().contains("hunter2"));
        assert_eq!(absent.message(), "the payment database failed");
    }

    #[test]
    fn refusals_of_the_layers_are_explained() {
        let words = [
            (405, "other methods"),
            (408, "not sent in time"),
            (413, "too large"),
            (429, "slow down"),
            (503, "overloaded"),
            (504, "timed out"),
            (400, "refused"),
        ];
        for (status, words) in words {
            assert!(explain(StatusCode::from_u16(status).unwrap()).contains(words), "{status}");
        }
    }
}
