//! Faults of HTTP and gRPC calls: statuses, broken bodies, and faults that a request asks for.
//! Behind the feature `chaos`.
//!
//! The layer and its faults are those of [`buttress::chaos`]:
//!
//! ```
//! use buttress::chaos::{Chaos, ChaosLayer, Fault, Faults, Injected};
//! use buttress_http::prelude::*;
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), buttress::BoxError> {
//! let chaos = Chaos::new();
//! let handler = service_fn(async |_: Request<()>| Ok::<_, std::io::Error>(Response::new(Full::<Bytes>::from("content"))));
//! let server = ChaosLayer::from(chaos.clone()).http().layer(handler);
//!
//! chaos.set(Faults::builder().errors(1.0).status(500).build()?);
//! let response = server.clone().oneshot(Request::new(())).await?;
//! assert_eq!(response.status(), 500);
//! assert_eq!(response.extensions().get(), Some(&Injected::new(Fault::Error)));
//!
//! chaos.set(Faults::builder().truncations(1.0).build()?);
//! let response = server.oneshot(Request::new(())).await?;
//! assert_eq!(response.into_body().collect().await?.to_bytes(), "con");
//! # Ok(())
//! # }
//! ```

mod body;
mod request;

pub use body::ChaosBody;
pub use request::requested;

use crate::ending::{ClassifyHead, Client, HttpContext, Respond, Server, Speaks};
use buttress::{
    BoxError, Error,
    chaos::{Drawn, Fault, Injected, Injection},
    ending::Inject,
};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Body;

/// Makes the response of a call that fails.
fn failed<B: Body, N>(context: &HttpContext<N>, drawn: &Drawn) -> Response<ChaosBody<B>> {
    let mut response = Response::new(ChaosBody::empty());
    if context.is_grpc() {
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", drawn.grpc_status.into());
        headers.insert("grpc-message", HeaderValue::from_static("injected fault"));
    } else {
        *response.status_mut() = StatusCode::from_u16(drawn.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    }
    response.extensions_mut().insert(Injected::new(Fault::Error));
    response
}

/// Injects the faults of a body, and marks the response with the first of them.
fn broken<B: Body>(mut response: Response<B>, injection: Injection) -> Response<ChaosBody<B>> {
    let drawn = injection.drawn();
    let fault = match () {
        () if drawn.reset => Fault::Reset,
        () if drawn.truncation => Fault::Truncation,
        () if drawn.lost_trailers => Fault::LostTrailers,
        () => Fault::SlowBody,
    };
    response.extensions_mut().insert(Injected::new(fault));
    response.map(|body| ChaosBody::broken(body, injection))
}

impl<S: Speaks, C: ClassifyHead, R, B, Err: Into<BoxError>> Inject<HttpContext<C::Note>, Response<B>, Err>
    for Client<S, C, R>
where
    B: Body<Data: From<Bytes>, Error: Into<BoxError>>,
{
    type Injected = Response<ChaosBody<B>>;

    #[inline]
    fn untouched(&self, response: Response<B>) -> Response<ChaosBody<B>> {
        response.map(ChaosBody::untouched)
    }

    fn fail(&self, context: HttpContext<C::Note>, drawn: &Drawn) -> Result<Response<ChaosBody<B>>, Error> {
        Ok(failed(&context, drawn))
    }

    fn break_body(&self, response: Response<B>, injection: Injection) -> Response<ChaosBody<B>> {
        broken(response, injection)
    }
}

impl<S: Speaks, C: ClassifyHead, R: Respond<B>, B, Err: Send + Sync + 'static>
    Inject<HttpContext<C::Note>, Response<B>, Err> for Server<S, C, R>
where
    B: Body<Data: From<Bytes>, Error: Into<BoxError>>,
{
    type Injected = Response<ChaosBody<B>>;

    #[inline]
    fn untouched(&self, response: Response<B>) -> Response<ChaosBody<B>> {
        response.map(ChaosBody::untouched)
    }

    fn fail(&self, context: HttpContext<C::Note>, drawn: &Drawn) -> Result<Response<ChaosBody<B>>, Err> {
        Ok(failed(&context, drawn))
    }

    fn break_body(&self, response: Response<B>, injection: Injection) -> Response<ChaosBody<B>> {
        broken(response, injection)
    }
}
