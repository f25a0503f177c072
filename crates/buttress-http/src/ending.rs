//! The endings of the layers for HTTP and gRPC, written once for every layer.
//!
//! | | outcomes are read from | rejections leave as |
//! |---|---|---|
//! | [`.http_client()`](HttpExt::http_client) | HTTP status, body to its end | [`buttress::Error`] |
//! | [`.grpc_client()`](HttpExt::grpc_client) | `grpc-status` in headers or trailers | [`buttress::Error`] |
//! | [`.http()`](HttpExt::http) | HTTP status, body to its end | 503 with `Retry-After`; 504 for a timeout |
//! | [`.grpc()`](HttpExt::grpc) | `grpc-status` in headers or trailers | a trailers-only response |
//!
//! The HTTP endings recognise gRPC by the content type of the request and treat such a call as the
//! gRPC endings do, so that axum and tonic on one port need one ending.
//!
//! # What you change keeps the rest
//!
//! ```
//! use buttress::{CircuitBreakerLayer, Ending, outcome::{Failure, FailureKind}};
//! use buttress_http::ending::HttpClient;
//!
//! // A backend that answers 200 with a header where it means 500. `None` leaves a response to the usual rules, and
//! // bodies are read to their end all the same.
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
    body::{StreamEnd, judged},
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

/// Ends a layer for HTTP or gRPC. Only for a layer that has no ending yet, so that nothing set is
/// lost.
pub trait HttpExt: Ending<Now = NoEnding> {
    /// For an HTTP server: rejections leave as 503 with `Retry-After`, timeouts as 504, and both as
    /// gRPC has it for a gRPC request.
    fn http(self) -> Self::With<HttpServer> {
        self.end(HttpServer::new())
    }

    /// For a gRPC server: rejections leave as `UNAVAILABLE`, `RESOURCE_EXHAUSTED` or
    /// `DEADLINE_EXCEEDED`.
    fn grpc(self) -> Self::With<GrpcServer> {
        self.end(GrpcServer::new())
    }

    /// For an HTTP client: rejections leave as [`buttress::Error`].
    fn http_client(self) -> Self::With<HttpClient> {
        self.end(HttpClient::new())
    }

    /// For a gRPC client: rejections leave as [`buttress::Error`].
    fn grpc_client(self) -> Self::With<GrpcClient> {
        self.end(GrpcClient::new())
    }
}

impl<L: Ending<Now = NoEnding>> HttpExt for L {}

/// Marks an ending that recognises gRPC by its content type.
#[derive(Clone, Copy, Debug, Default)]
pub struct Http;

/// Marks an ending that speaks gRPC only.
#[derive(Clone, Copy, Debug, Default)]
pub struct Grpc;

/// The usual rules. See [`classify`](mod@crate::classify).
#[derive(Clone, Copy, Debug, Default)]
pub struct Standard;

/// What an ending speaks: [`Http`] or [`Grpc`].
pub trait Speaks: sealed::Speaks + Copy + Send + Sync + 'static {}

impl Speaks for Http {}
impl Speaks for Grpc {}

mod sealed {
    use http::{HeaderMap, header};

    pub trait Speaks {
        fn is_grpc(headers: &HeaderMap) -> bool;
        /// The header by which a repeated request says which attempt it is, and whether its method
        /// says that it is idempotent.
        fn replays() -> super::Replays;
    }

    impl Speaks for super::Http {
        fn is_grpc(headers: &HeaderMap) -> bool {
            // Not gRPC-Web, whose status is in the body: to HTTP it is an answer like any other.
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

/// The head of a request, for a classification of your own.
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
    /// Whether it is a gRPC call.
    pub is_grpc: bool,
}

/// The head of a response, for a classification of your own.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ResponseHead<'a> {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The extensions.
    pub extensions: &'a Extensions,
    /// Whether the request was a gRPC call.
    pub is_grpc: bool,
}

/// Reads the outcome of the head of a response. [`Standard`] leaves it to the usual rules; the
/// others are made by [`Client::classify`] and [`Client::classify_by`], and those of [`Server`].
pub trait ClassifyHead {
    /// What is kept of the request until the response comes.
    type Note: Default;

    /// Looks at the request.
    fn note(&self, request: RequestHead<'_>) -> Self::Note;

    /// The outcome, which is final; `None` leaves it to the usual rules.
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

/// Classifies by a function of the response's head.
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

/// Classifies by a function of the response's head and of what another has read from the request.
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

opaque!(ByHead<F>, ByCall<G, F>);

/// What the end of a call must know of its request.
#[derive(Debug, Default)]
pub struct HttpContext<N = ()> {
    is_grpc: bool,
    /// Their responses have no body.
    is_head: bool,
    /// A response that is a success makes a tunnel of the connection.
    is_connect: bool,
    /// For a classification of the user's own.
    note: N,
    /// On a server, whether the caller broke off its upload, where the policy learns from outcomes.
    upload: Option<Upload>,
    /// Of a request that may be upgraded, where a place must be held until the upgraded connection
    /// closes.
    upgrade: Option<Box<Bridge>>,
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

/// The outcome of a head, and whether it is final.
#[inline]
fn head<B, C: ClassifyHead>(context: &HttpContext<C::Note>, response: &Response<B>, custom: &C) -> (Outcome, bool) {
    let is_grpc = context.is_grpc;
    let (status, headers, extensions) = (response.status(), response.headers(), response.extensions());
    // A rejection of a layer underneath, which left as a response.
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

/// Puts the permit into the body of the response, or settles it where there is none.
#[inline]
fn observe<B: Body, P: Permit, C: ClassifyHead>(
    context: HttpContext<C::Note>,
    mut response: Response<B>,
    permit: &mut InFlight<P>,
    custom: &C,
) -> Response<ObservedBody<B, P>> {
    let (outcome, is_final) = head(&context, &response, custom);
    let outcome = judged(outcome, context.upload.as_ref());
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

/// 1xx, 204 and 304 (RFC 9110, section 6.4.1): hyper drops such a body unread.
fn has_no_body(status: StatusCode) -> bool {
    status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// An upgraded connection holds the permit until it closes: on a server through the bridge that was
/// put into the request, on a client through one that is put into the response. Where there is no
/// bridge the permit stays with the body.
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

/// The outcome of an error of a type that may not be one that can be looked into.
fn error_outcome<E: 'static>(error: &E) -> Outcome {
    match classify::as_chain(error) {
        Some(chain) => classify::error(chain),
        None => buttress::outcome::Failure::new(buttress::outcome::FailureKind::Transport).into(),
    }
}
