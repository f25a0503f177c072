use crate::{
    ObservedBody,
    answer::AnswerBody,
    ending::{Server, Speaks},
};
use buttress::{
    Health,
    ending::Ended,
    health::{Answer, Probe},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body;

/// The ending of a health layer that answers the probes `/livez`, `/readyz` and `/startupz`.
///
/// Answers `GET` and `HEAD` with 200 if the service is healthy and with 503 if it is not. The body
/// is the status in one word. All other requests go to the inner service.
///
/// With `?verbose` the body lists all indicators, for requests that
/// [`verbose_for`](Self::verbose_for) allows. The default allows none, because the names and
/// details of dependencies are not public.
///
/// ```
/// use buttress::health::{Group, Rules};
/// use buttress_http::{HttpProbes, prelude::*};
/// use http::{Request, Response};
/// use http_body_util::BodyExt;
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let health = Health::new();
/// health.started();
/// let database = health.indicator("database", Group::Readiness, Rules::AT_ONCE);
/// database.down("password wrong");
///
/// // Only requests from inside the cluster carry this header.
/// let probes = HttpProbes::new().verbose_for(|headers| headers.contains_key("x-internal"));
/// let handler = service_fn(async |_: Request<()>| Ok::<_, std::io::Error>(Response::new(String::new())));
/// let server = HealthLayer::new(health).end(probes).layer(handler);
///
/// let response = server.clone().oneshot(Request::get("/readyz?verbose").body(())?).await?;
/// assert_eq!(response.status(), 503);
/// assert_eq!(response.into_body().collect().await?.to_bytes(), "down\n");
///
/// let request = Request::get("/readyz?verbose").header("x-internal", "1").body(())?;
/// let text = server.oneshot(request).await?.into_body().collect().await?.to_bytes();
/// assert_eq!(text, "down\nReadiness database: down (password wrong)\n");
/// # Ok(())
/// # }
/// ```
///
/// # Under axum
///
/// The probes are not routes, so a `Router` passes them to its layers as requests to its fallback.
/// Add the layer with `.layer(..)` to the outermost `Router`, after all routes and the fallback. A
/// fallback that is set later receives the probes and may answer them with 200.
/// `.route_layer(..)` never receives them, nor does a layer of a nested `Router`.
#[derive(Clone, Copy, Debug)]
pub struct HttpProbes {
    verbose: fn(&HeaderMap) -> bool,
}

impl HttpProbes {
    /// Makes an ending that answers with the status only.
    pub const fn new() -> Self {
        Self { verbose: |_| false }
    }

    /// Lists all indicators in the body, for requests with `?verbose` whose headers `allowed`
    /// accepts.
    pub const fn verbose_for(self, allowed: fn(&HeaderMap) -> bool) -> Self {
        Self { verbose: allowed }
    }
}

impl Default for HttpProbes {
    fn default() -> Self {
        Self::new()
    }
}

impl Ended for HttpProbes {}

/// Returns whether a request is a probe of health: one of [`HttpProbes`], or a call of gRPC's
/// health service (`grpc.health.v1.Health`). For layers that must not reject probes.
///
/// ```
/// use buttress_http::{is_probe, prelude::*};
/// use http::Request;
///
/// let layer = LoadShedLayer::new("orders").exempt(is_probe::<String>).http();
/// assert!(is_probe(&Request::post("/grpc.health.v1.Health/Check").body(()).unwrap()));
/// # let _ = layer;
/// ```
pub fn is_probe<B>(request: &Request<B>) -> bool {
    let path = request.uri().path();
    matches!(path, "/livez" | "/readyz" | "/startupz") || path.starts_with("/grpc.health.v1.Health/")
}

impl<In, B: Body<Data: From<Bytes>>> Answer<Request<In>, Response<B>> for HttpProbes {
    type Response = Response<ObservedBody<B, ()>>;

    fn answer(&self, request: &Request<In>, health: &Health) -> Option<Self::Response> {
        let probe = match request.uri().path() {
            "/livez" => Probe::Liveness,
            "/readyz" => Probe::Readiness,
            "/startupz" => Probe::Startup,
            _ => return None,
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return None;
        }
        let status = health.status(probe);
        let verbose = request.uri().query() == Some("verbose") && (self.verbose)(request.headers());
        let mut text = format!("{status}\n");
        if verbose {
            for line in health.report().indicators {
                let detail = line.detail.map(|detail| format!(" ({detail})")).unwrap_or_default();
                text += &format!("{:?} {}: {}{detail}\n", line.group, line.name, line.status);
            }
        }
        let content = (*request.method() != Method::HEAD).then(|| Bytes::from(text).into());
        let mut response = Response::new(ObservedBody::answer(AnswerBody::own(content)));
        *response.status_mut() = if status.is_serving() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response.headers_mut().insert("x-health", HeaderValue::from_static(status.as_str()));
        Some(response)
    }

    fn pass(&self, response: Response<B>) -> Self::Response {
        response.map(ObservedBody::unobserved)
    }
}

/// The server endings answer the probes as [`HttpProbes::new`] does.
impl<S: Speaks, C, R, In, B: Body<Data: From<Bytes>>> Answer<Request<In>, Response<B>> for Server<S, C, R> {
    type Response = Response<ObservedBody<B, ()>>;

    fn answer(&self, request: &Request<In>, health: &Health) -> Option<Self::Response> {
        HttpProbes::new().answer(request, health)
    }

    fn pass(&self, response: Response<B>) -> Self::Response {
        response.map(ObservedBody::unobserved)
    }
}
