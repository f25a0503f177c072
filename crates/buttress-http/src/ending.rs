//! The HTTP and gRPC endings of the layers.
//!
//! An ending says how a layer reads outcomes and how its rejections leave:
//!
//! | | outcomes are read from | rejections leave as |
//! |---|---|---|
//! | [`.http_client()`](HttpExt::http_client) | HTTP status, body to its end | [`buttress::Error`] |
//! | [`.grpc_client()`](HttpExt::grpc_client) | `grpc-status` in headers or trailers | [`buttress::Error`] |
//! | [`.http()`](HttpExt::http) | HTTP status, body to its end | 503 with `Retry-After`, 504 for a timeout; [the table](buttress::wire::OnTheWire) |
//! | [`.grpc()`](HttpExt::grpc) | `grpc-status` in headers or trailers | a trailers-only response |
//!
//! The HTTP endings detect gRPC by the content type of the request (`application/grpc`, without
//! gRPC-Web) and handle such a call as the gRPC endings do, so a server with axum and tonic on one
//! port needs one ending.
//!
//! # Customise an ending
//!
//! A custom classification or response replaces only that part of an ending. Bodies are still read
//! to their end, and a `None` leaves a response to the usual rules
//! ([`classify`](mod@crate::classify)).
//!
//! ```
//! use buttress::{CircuitBreakerLayer, Ending, outcome::{Failure, FailureKind}};
//! use buttress_http::ending::HttpClient;
//!
//! // A backend that reports its errors in a header of a response with status 200.
//! let ending = HttpClient::new().classify(|head| {
//!     head.headers.contains_key("x-error").then(|| Failure::new(FailureKind::Application).into())
//! });
//! let layer = CircuitBreakerLayer::new("legacy").end(ending);
//! # let _ = layer;
//! ```

mod client;
mod server;

pub use client::{Client, GrpcClient, HttpClient};
pub use server::{GrpcServer, HttpServer, Respond, Server};

use crate::{
    ObservedBody,
    body::{StreamEnd, unless_upload_broke},
    classify,
    replay::Replays,
    upgrade::Bridge,
    upload::Upload,
};
use buttress::{
    Rejection,
    ending::{Ending, NoEnding},
    outcome::Outcome,
    policy::{InFlight, Permit, Progress},
};
use http::{Extensions, HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body::Body;

/// Gives a layer an ending for HTTP or gRPC.
///
/// Implemented for layers without an ending only: a second ending would discard the settings of the
/// first.
///
/// ```
/// use buttress_http::prelude::*;
/// use http::{Request, Response};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let handler = service_fn(async |_: Request<()>| Ok::<_, std::io::Error>(Response::new(String::new())));
/// let full = BulkheadLayer::new(0);
///
/// // The server ending rejects with a response.
/// let response = full.clone().http().layer(handler).oneshot(Request::new(())).await?;
/// assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &"1".parse()?));
///
/// // The client ending rejects with an error.
/// let error = full.http_client().layer(handler).oneshot(Request::new(())).await.unwrap_err();
/// assert!(error.rejection().is_some());
/// # Ok(())
/// # }
/// ```
pub trait HttpExt: Ending<Now = NoEnding> {
    /// Adds the ending for an HTTP server.
    ///
    /// Rejections leave as 503 with `Retry-After`, timeouts as 504, and rejections with a reason of
    /// your own by its class (see [`OnTheWire`](buttress::wire::OnTheWire)). If the request is a
    /// gRPC call, they leave as gRPC responses.
    ///
    /// The response has no content. If the call was not processed, the header
    /// `x-buttress-rejected` has the word of the [`Reason`](buttress::Reason), such as
    /// `bulkhead_full`. An ending with [`respond`](Server::respond) adds content.
    ///
    /// ```
    /// use buttress_http::prelude::*;
    /// use tower::ServiceBuilder;
    ///
    /// let layers = ServiceBuilder::new()
    ///     .layer(HealthLayer::new(Health::new()).http())
    ///     .layer(BulkheadLayer::new(64).http());
    /// # let _ = layers;
    /// ```
    fn http(self) -> Self::With<HttpServer> {
        self.end(HttpServer::new())
    }

    /// Adds the ending for a gRPC server.
    ///
    /// Rejections leave as trailers-only responses with `UNAVAILABLE`, `RESOURCE_EXHAUSTED` or
    /// `DEADLINE_EXCEEDED`, and rejections with a reason of your own by its class (see
    /// [`OnTheWire`](buttress::wire::OnTheWire)).
    ///
    /// ```
    /// use buttress_http::prelude::*;
    /// use http::{Request, Response};
    /// use tower::{Layer, ServiceExt, service_fn};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    /// let handler = service_fn(async |_: Request<()>| Ok::<_, std::io::Error>(Response::new(String::new())));
    /// let server = BulkheadLayer::new(0).grpc().layer(handler);
    /// let response = server.oneshot(Request::new(())).await?;
    /// assert_eq!(response.headers()["grpc-status"], "8"); // RESOURCE_EXHAUSTED
    /// # Ok(())
    /// # }
    /// ```
    fn grpc(self) -> Self::With<GrpcServer> {
        self.end(GrpcServer::new())
    }

    /// Adds the ending for an HTTP client. Rejections leave as [`buttress::Error`].
    ///
    /// ```
    /// use buttress_http::prelude::*;
    /// use http::{Request, Response};
    /// use tower::{Layer, ServiceExt, service_fn};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let breaker = CircuitBreaker::builder("payments").consecutive_failures(1).build().unwrap();
    /// let backend = service_fn(async |_: Request<()>| {
    ///     Ok::<_, std::io::Error>(Response::builder().status(500).body(String::new()).unwrap())
    /// });
    /// let client = CircuitBreakerLayer::from(breaker).http_client().layer(backend);
    /// assert_eq!(client.clone().oneshot(Request::new(())).await.unwrap().status(), 500);
    /// let error = client.oneshot(Request::new(())).await.unwrap_err();
    /// assert!(error.rejection().is_some(), "the status of 500 opened the circuit");
    /// # }
    /// ```
    fn http_client(self) -> Self::With<HttpClient> {
        self.end(HttpClient::new())
    }

    /// Adds the ending for a gRPC client. Rejections leave as [`buttress::Error`].
    ///
    /// ```
    /// use buttress_http::prelude::*;
    /// use std::time::Duration;
    /// use tower::ServiceBuilder;
    ///
    /// let layers = ServiceBuilder::new()
    ///     .layer(RetryLayer::new(3).grpc_client())
    ///     .layer(CircuitBreakerLayer::new("greeter").grpc_client())
    ///     .layer(TimeoutLayer::attempt(Duration::from_millis(500)).grpc_client());
    /// # let _ = layers;
    /// ```
    fn grpc_client(self) -> Self::With<GrpcClient> {
        self.end(GrpcClient::new())
    }
}

impl<L: Ending<Now = NoEnding>> HttpExt for L {}

/// The protocol of an ending that handles HTTP, and calls with the content type of gRPC as gRPC.
#[derive(Clone, Copy, Debug, Default)]
pub struct Http;

/// The protocol of an ending that handles every call as gRPC.
#[derive(Clone, Copy, Debug, Default)]
pub struct Grpc;

/// The usual rules and responses. See [`classify`](mod@crate::classify).
#[derive(Clone, Copy, Debug, Default)]
pub struct Standard;

/// The protocol of an ending: [`Http`] or [`Grpc`]. Sealed.
pub trait Speaks: sealed::Speaks + Copy + Send + Sync + 'static {}

impl Speaks for Http {}
impl Speaks for Grpc {}

mod sealed {
    use http::{HeaderMap, header};

    pub trait Speaks {
        fn is_grpc(headers: &HeaderMap) -> bool;
        /// The usual rules for repeating requests: which are idempotent, and which header carries
        /// the number of the attempt.
        fn replays() -> super::Replays;
    }

    impl Speaks for super::Http {
        fn is_grpc(headers: &HeaderMap) -> bool {
            // gRPC-Web is excluded: its status is in the body, so its response is classified by its
            // HTTP status.
            let grpc = |kind: &http::HeaderValue| {
                let rest = kind.as_bytes().strip_prefix(b"application/grpc");
                rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
            };
            headers.get(header::CONTENT_TYPE).is_some_and(grpc)
        }

        fn replays() -> super::Replays {
            super::Replays::http()
        }
    }

    impl Speaks for super::Grpc {
        fn is_grpc(_: &HeaderMap) -> bool {
            true
        }

        fn replays() -> super::Replays {
            super::Replays::grpc()
        }
    }
}

/// The head of a request, as a custom classification sees it.
///
/// ```
/// use buttress_http::ending::RequestHead;
///
/// /// A note for `classify_by`.
/// fn is_search(request: RequestHead<'_>) -> bool {
///     request.uri.path().starts_with("/search")
/// }
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a Method,
    /// The URI.
    pub uri: &'a Uri,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The extensions.
    pub extensions: &'a Extensions,
    /// Whether the call is handled as gRPC.
    pub is_grpc: bool,
}

/// The head of a response, as a custom classification sees it.
///
/// ```
/// use buttress::outcome::{Failure, FailureKind, Outcome};
/// use buttress_http::ending::ResponseHead;
///
/// /// A function for `classify`.
/// fn maintenance_page(head: &ResponseHead<'_>) -> Option<Outcome> {
///     let is_html = head.headers.get("content-type").is_some_and(|kind| kind == "text/html");
///     is_html.then(|| Failure::new(FailureKind::Application).into())
/// }
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ResponseHead<'a> {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The extensions.
    pub extensions: &'a Extensions,
    /// Whether the call is handled as gRPC.
    pub is_grpc: bool,
}

/// Reads an outcome from the head of a response.
///
/// [`Standard`] leaves every response to the usual rules. [`Client::classify`],
/// [`Client::classify_by`], [`Server::classify`] and [`Server::classify_by`] make the other
/// implementations.
pub trait ClassifyHead {
    /// The part of the request that is kept until the response arrives.
    type Note: Default;

    /// Reads the request before it is sent to the inner service.
    fn note(&self, request: RequestHead<'_>) -> Self::Note;

    /// Returns the outcome, which is final, or `None` to leave it to the usual rules.
    fn classify(&self, note: &Self::Note, head: &ResponseHead<'_>) -> Option<Outcome>;
}

impl ClassifyHead for Standard {
    type Note = ();

    #[inline(always)]
    fn note(&self, _: RequestHead<'_>) {}

    #[inline(always)]
    fn classify(&self, (): &(), _: &ResponseHead<'_>) -> Option<Outcome> {
        None
    }
}

/// Classifies by a function of the response's head. Made by [`Client::classify`] and
/// [`Server::classify`].
#[derive(Clone, Copy)]
pub struct ByHead<F>(F);

impl<F: Fn(&ResponseHead<'_>) -> Option<Outcome>> ClassifyHead for ByHead<F> {
    type Note = ();

    #[inline(always)]
    fn note(&self, _: RequestHead<'_>) {}

    fn classify(&self, (): &(), head: &ResponseHead<'_>) -> Option<Outcome> {
        (self.0)(head)
    }
}

/// Classifies by a function of the response's head and of a note that another function took from
/// the request. Made by [`Client::classify_by`] and [`Server::classify_by`].
#[derive(Clone, Copy)]
pub struct ByCall<G, F> {
    note: G,
    classify: F,
}

impl<N, G, F> ClassifyHead for ByCall<G, F>
where
    N: Default,
    G: Fn(RequestHead<'_>) -> N,
    F: Fn(&N, &ResponseHead<'_>) -> Option<Outcome>,
{
    type Note = N;

    fn note(&self, request: RequestHead<'_>) -> N {
        (self.note)(request)
    }

    fn classify(&self, note: &N, head: &ResponseHead<'_>) -> Option<Outcome> {
        (self.classify)(note, head)
    }
}

macro_rules! opaque {
    ($($name:ident<$($param:ident),*>),*) => {$(
        impl<$($param),*> std::fmt::Debug for $name<$($param),*> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    )*};
}

// Closures have no `Debug`.
opaque!(ByHead<F>, ByCall<G, F>, Server<S, C, R>);

/// The state of a request that an ending needs when the response arrives.
#[derive(Debug, Default)]
pub struct HttpContext<N = ()> {
    is_grpc: bool,
    /// Responses to HEAD have no body.
    is_head: bool,
    /// A successful response to CONNECT turns the connection into a tunnel.
    is_connect: bool,
    /// The note of a custom classification.
    note: N,
    /// On a server whose policy learns from outcomes: whether the caller broke off its upload.
    upload: Option<Upload>,
    /// For a request that can be upgraded, if the permit must be held until the upgraded connection
    /// closes.
    upgrade: Option<Box<Bridge>>,
}

#[cfg(feature = "chaos")]
impl<N> HttpContext<N> {
    pub(crate) fn is_grpc(&self) -> bool {
        self.is_grpc
    }
}

#[inline]
fn begin<S: Speaks, P: Permit, B, C: ClassifyHead>(request: &mut Request<B>, classify: &C) -> HttpContext<C::Note> {
    let (method, uri, headers) = (request.method(), request.uri(), request.headers());
    let is_grpc = S::is_grpc(headers);
    HttpContext {
        is_grpc,
        is_head: method == Method::HEAD,
        is_connect: method == Method::CONNECT,
        note: classify.note(RequestHead { method, uri, headers, extensions: request.extensions(), is_grpc }),
        upload: None,
        upgrade: match P::HOLDS_UNTIL_BODY_END {
            true => Bridge::into_extensions(request.extensions_mut()).map(Box::new),
            false => None,
        },
    }
}

/// Returns the outcome of a head, and whether it is final.
#[inline]
fn head<B, C: ClassifyHead>(context: &HttpContext<C::Note>, response: &Response<B>, custom: &C) -> (Outcome, bool) {
    let is_grpc = context.is_grpc;
    let (status, headers, extensions) = (response.status(), response.headers(), response.extensions());
    // An inner layer rejected the call, and its rejection left as a response.
    if let Some(rejection) = extensions.get::<Rejection>() {
        return (rejection.outcome(), true);
    }
    if let Some(outcome) = custom.classify(&context.note, &ResponseHead { status, headers, extensions, is_grpc }) {
        return (outcome, true);
    }
    if is_grpc {
        return match classify::grpc_headers(headers) {
            Some(outcome) => (outcome, true),
            None if !status.is_success() => (classify::grpc_without_status_over_http(status, headers), true),
            None => (Outcome::Success, false),
        };
    }
    let outcome = classify::http_status(status, headers);
    (outcome, outcome.is_failure())
}

/// Moves the permit into the body of the response. Settles it now if the outcome is final and the
/// policy does not hold permits until the end of the body.
#[inline]
fn observe<B: Body, P: Permit, C: ClassifyHead>(
    context: HttpContext<C::Note>,
    mut response: Response<B>,
    permit: &mut InFlight<P>,
    custom: &C,
) -> Response<ObservedBody<B, P>> {
    let (outcome, is_final) = head(&context, &response, custom);
    let outcome = unless_upload_broke(outcome, context.upload.as_ref());
    permit.progress(Progress::Head);
    let status = response.status();
    let is_upgraded = status == StatusCode::SWITCHING_PROTOCOLS || (context.is_connect && status.is_success());
    if is_upgraded && P::HOLDS_UNTIL_BODY_END {
        hold_to_close(context.upgrade, &mut response, permit, outcome);
    }
    let is_decided = is_final || is_upgraded || context.is_head || has_no_body(status);
    if is_decided && !P::HOLDS_UNTIL_BODY_END {
        permit.settle(&outcome);
    }
    let ending = if is_decided && P::HOLDS_UNTIL_BODY_END && P::LEARNS {
        StreamEnd::Decided(Box::new(outcome))
    } else if context.is_grpc && !is_decided {
        StreamEnd::Grpc
    } else {
        StreamEnd::Http
    };
    response.map(|body| ObservedBody::new(body, permit.take(), ending, context.upload))
}

/// Responses with status 1xx, 204 and 304 have no body (RFC 9110, section 6.4.1). hyper drops it
/// unread, which must not delay the outcome.
fn has_no_body(status: StatusCode) -> bool {
    status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Holds the permit until an upgraded connection closes.
///
/// A server uses the bridge that `begin` put into the request; a client puts one into the response.
/// Without a bridge the permit stays with the body.
fn hold_to_close<B, P: Permit>(
    bridge: Option<Box<Bridge>>,
    response: &mut Response<B>,
    permit: &mut InFlight<P>,
    outcome: Outcome,
) {
    if let Some(bridge) = bridge.or_else(|| Bridge::into_extensions(response.extensions_mut()).map(Box::new)) {
        bridge.hold(permit.take(), outcome);
    }
}

/// Returns the outcome of an error of any type. An unknown type counts as a transport failure.
fn error_outcome<E: 'static>(error: &E) -> Outcome {
    match classify::as_chain(error) {
        Some(chain) => classify::error(chain),
        None => buttress::outcome::Failure::new(buttress::outcome::FailureKind::Transport).into(),
    }
}
