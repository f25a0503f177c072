use buttress::{
    Health,
    health::{Answer, Probe},
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};

/// Answers `GET` and `HEAD` of `/livez`, `/readyz` and `/startupz`: 200 when the service is well,
/// else 503, with the status in a word as the body. All other requests go to the service.
///
/// With `?verbose` all indicators are listed, for requests that [`verbose_for`](Self::verbose_for)
/// allows. By default it allows none, since the names and details of dependencies are not public.
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

impl<In, Out: From<String>> Answer<Request<In>, Response<Out>> for HttpProbes {
    fn answer(&self, request: &Request<In>, health: &Health) -> Option<Response<Out>> {
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
        let body = if *request.method() == Method::HEAD { String::new() } else { text };
        let mut response = Response::new(Out::from(body));
        *response.status_mut() = if status.is_serving() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response.headers_mut().insert("x-health", HeaderValue::from_static(status.as_str()));
        Some(response)
    }
}
