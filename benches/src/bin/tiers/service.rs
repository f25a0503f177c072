//! A tier, and what makes one of a stack.

use std::convert::Infallible;
use std::task::{Context, Poll};

use buttress::wire::OnTheWire;
use bytes::Bytes;
use http::{StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use tower::util::{BoxCloneSyncService, Oneshot};
use tower::{BoxError, ServiceExt};

pub(crate) type Request = http::Request<Empty<Bytes>>;
pub(crate) type Response = http::Response<Empty<Bytes>>;
pub(crate) type Service = BoxCloneSyncService<Request, Response, BoxError>;

/// The stacks around each call: of the client that makes it, and of the server that gets it.
#[derive(Clone, Copy)]
pub(crate) struct Arm {
    pub(crate) name: &'static str,
    pub(crate) color: &'static str,
    pub(crate) client: fn(Wire) -> Service,
    pub(crate) server: fn(Service) -> Service,
}

impl Arm {
    /// Builds `tiers` services in a row, of which the last one calls `backend`, and returns the
    /// client of a user.
    pub(crate) fn stack(&self, tiers: usize, backend: Service) -> Service {
        // The backend is a tier, too.
        let mut next = (self.client)(Wire((self.server)(backend)));
        for _ in 1..tiers {
            next = (self.client)(Wire((self.server)(handler(next))));
        }
        next
    }
}

/// Between a client and a server. Takes requests with any body.
#[derive(Clone)]
pub(crate) struct Wire(Service);

impl<B> tower::Service<http::Request<B>> for Wire {
    type Response = Response;
    type Error = BoxError;
    type Future = Oneshot<Service, Request>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let mut over = request.map(|_| Empty::new());
        // Nothing but the head crosses a connection.
        *over.extensions_mut() = http::Extensions::new();
        self.0.clone().oneshot(over)
    }
}

/// Makes a service of a stack, which reads each response to its end.
pub(crate) fn service<S, B>(stack: S) -> Service
where
    S: tower::Service<Request, Response = http::Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError> + Send + Sync + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let read = |response: http::Response<B>| async {
        let (parts, body) = response.into_parts();
        body.collect().await.map_err(Into::into)?;
        Ok(http::Response::from_parts(parts, Empty::new()))
    };
    BoxCloneSyncService::new(stack.map_err(Into::into).and_then(read))
}

pub(crate) fn respond(status: StatusCode) -> Response {
    let mut response = Response::new(Empty::new());
    *response.status_mut() = status;
    response
}

pub(crate) fn get() -> Request {
    http::Request::get("/").body(Empty::new()).expect("a valid request")
}

/// A handler that needs the next tier for its answer, and passes a failure on.
fn handler(next: Service) -> Service {
    service(tower::service_fn(move |_: Request| {
        let next = next.clone();
        async move {
            let answer = match next.oneshot(get()).await {
                Ok(response) if response.status().is_success() => respond(StatusCode::OK),
                Ok(_) => respond(StatusCode::BAD_GATEWAY),
                Err(error) => of_error(&*error),
            };
            Ok::<_, Infallible>(answer)
        }
    }))
}

/// As `IntoResponse` of [`buttress::Error`] does.
fn of_error(error: &(dyn std::error::Error + 'static)) -> Response {
    let Some(rejection) = buttress::error::find_rejection(error) else { return respond(StatusCode::BAD_GATEWAY) };
    let mut response = respond(StatusCode::from_u16(rejection.http_status()).unwrap_or(StatusCode::BAD_GATEWAY));
    if response.status() == StatusCode::TOO_MANY_REQUESTS {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    if let Some(after) = rejection.http_retry_after() {
        response.headers_mut().insert(header::RETRY_AFTER, after.into());
    }
    response
}
