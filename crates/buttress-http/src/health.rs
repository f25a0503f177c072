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

/// Answers `GET` and `HEAD` of `/livez`, `/readyz` and `/startupz`: 200 when the service is well,
/// else 503, with the status in a word as the body. All other requests go to the service.
///
/// With `?verbose` all indicators are listed, for requests that [`verbose_for`](Self::verbose_for)
/// allows. By default it allows none, since the names and details of dependencies are not public.
///
/// # Under axum
///
/// The probes are no routes: a `Router` has to hand them to its layers as requests to its fallback.
/// Add the layer with `.layer(..)` to the outermost `Router`, after all routes and the fallback. A
/// fallback that is set later takes the probes and answers them, perhaps with 200.
/// `.route_layer(..)` never sees them, nor does a layer of a `Router` that is nested.
#[derive(Clone, Copy, Debug)]
pub struct HttpProbes {
    verbose: fn(&HeaderMap) -> bool,
}

impl HttpProbes {
    /// Answers with the status only.
    pub const fn new() -> Self {
        Self { verbose: |_| false }
    }

    /// Lists all indicators for requests with such headers.
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

/// The probes that the server endings answer.
impl<S: Speaks, C, R, In, B: Body<Data: From<Bytes>>> Answer<Request<In>, Response<B>> for Server<S, C, R> {
    type Response = Response<ObservedBody<B, ()>>;

    fn answer(&self, request: &Request<In>, health: &Health) -> Option<Self::Response> {
        HttpProbes::new().answer(request, health)
    }

    fn pass(&self, response: Response<B>) -> Self::Response {
        response.map(ObservedBody::unobserved)
    }
}
