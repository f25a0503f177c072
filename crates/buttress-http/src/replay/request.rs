use super::{Handle, ReplayBody, tee};
use buttress::ending::Kept;
use http::{HeaderName, HeaderValue, Method, Request, request::Parts};
use http_body::Body;
use std::fmt;

/// How much of a request's body is kept, unless set otherwise: 64 KiB, as linkerd2-proxy does.
const DEFAULT_MAX_BODY: u64 = 64 * 1024;

/// How requests are repeated: the head is cloned, and the body is [teed](tee) as it is sent.
#[derive(Clone, Copy, Debug)]
pub struct Replays<M = Same, I = ByMethod> {
    pub(crate) max_body: u64,
    pub(crate) idempotent: I,
    pub(crate) header: Marker,
    pub(crate) map: M,
}

/// The header by which a repeated request says which attempt it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Marker {
    Http,
    /// gRFC A6.
    Grpc,
}

impl Marker {
    fn name(self) -> HeaderName {
        match self {
            Self::Http => HeaderName::from_static("x-retry-attempt"),
            Self::Grpc => HeaderName::from_static("grpc-previous-rpc-attempts"),
        }
    }
}

impl Replays {
    /// Requests are idempotent by their method, or by an `Idempotency-Key`.
    pub(crate) fn http() -> Self {
        Self { max_body: DEFAULT_MAX_BODY, idempotent: ByMethod::Http, header: Marker::Http, map: Same }
    }

    /// Requests are idempotent when you say so.
    pub(crate) fn grpc() -> Self {
        Self { max_body: DEFAULT_MAX_BODY, idempotent: ByMethod::Grpc, header: Marker::Grpc, map: Same }
    }
}

/// Says which requests may be done twice. Implemented by [`ByMethod`] and by functions of the head
/// of a request.
pub trait Idempotent {
    /// Whether doing it twice is the same as doing it once.
    fn is_idempotent(&self, head: &Parts) -> bool;
}

/// The usual rule. For HTTP: by the method (RFC 9110, section 9.2.2), or an `Idempotency-Key`. For
/// gRPC, where the method is always POST: by an `Idempotency-Key` only.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum ByMethod {
    /// For HTTP.
    Http,
    /// For gRPC.
    Grpc,
}

impl Idempotent for ByMethod {
    fn is_idempotent(&self, head: &Parts) -> bool {
        const METHODS: [Method; 6] =
            [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::OPTIONS, Method::TRACE];
        matches!(self, Self::Http) && METHODS.contains(&head.method) || head.headers.contains_key("idempotency-key")
    }
}

impl<F: Fn(&Parts) -> bool> Idempotent for F {
    fn is_idempotent(&self, head: &Parts) -> bool {
        self(head)
    }
}

/// Converts a [`ReplayBody`] into the body that the service underneath takes.
pub trait MapBody<B> {
    /// The body it takes.
    type Body;
    /// Converts it.
    fn map(&self, body: ReplayBody<B>) -> Self::Body;
}

/// The service underneath takes what [`Rebody`] makes of the body.
#[derive(Clone, Copy, Debug, Default)]
pub struct Same;

impl<B: Rebody> MapBody<B> for Same {
    type Body = B::Attempt;

    fn map(&self, body: ReplayBody<B>) -> B::Attempt {
        B::rebody(body)
    }
}

impl<B, T, F: Fn(ReplayBody<B>) -> T> MapBody<B> for F {
    type Body = T;

    fn map(&self, body: ReplayBody<B>) -> T {
        self(body)
    }
}

/// A body that retry knows how to send again. Bodies that can hold any other body, as those of axum,
/// reqwest and tonic (features `axum`, `reqwest` and `tonic`), keep their type; of others the
/// service underneath gets a [`ReplayBody`].
#[diagnostic::on_unimplemented(
    message = "retry does not know how to send the body `{Self}` again",
    label = "an unknown body",
    note = "add `.map_request_body(|body| ..)` to the retry layer, after its ending: it converts a `ReplayBody` into the \
            body that the service underneath takes; the bodies of axum, reqwest and tonic are known with the features of these \
            names"
)]
pub trait Rebody: Body + Sized {
    /// The body of an attempt.
    type Attempt;
    /// Converts it.
    fn rebody(body: ReplayBody<Self>) -> Self::Attempt;
}

macro_rules! rebodied {
    ($([$($generics:tt)*] $body:ty;)*) => {$(
        impl<$($generics)*> Rebody for $body where $body: Body {
            type Attempt = ReplayBody<Self>;

            fn rebody(body: ReplayBody<Self>) -> ReplayBody<Self> {
                body
            }
        }
    )*};
}

rebodied! {
    [] String;
    [D] http_body_util::Full<D>;
    [D] http_body_util::Empty<D>;
    [D, E] http_body_util::combinators::BoxBody<D, E>;
    [D, E] http_body_util::combinators::UnsyncBoxBody<D, E>;
    [D, E] http_body_util::channel::Channel<D, E>;
    [L, R] http_body_util::Either<L, R>;
    [S] http_body_util::StreamBody<S>;
    [B, F] http_body_util::combinators::MapErr<B, F>;
    [B, F] http_body_util::combinators::MapFrame<B, F>;
    [B] http_body_util::Limited<B>;
    [B] ReplayBody<B>;
    [B: Body, P: buttress::policy::Permit] crate::ObservedBody<B, P>;
    [B: Body] crate::TimedBody<B>;
}

#[cfg(feature = "hyper")]
rebodied! {
    [] hyper::body::Incoming;
}

#[cfg(feature = "axum")]
impl Rebody for axum_core::body::Body {
    type Attempt = Self;

    fn rebody(body: ReplayBody<Self>) -> Self {
        Self::new(body)
    }
}

#[cfg(feature = "reqwest")]
impl Rebody for reqwest::Body {
    type Attempt = Self;

    fn rebody(body: ReplayBody<Self>) -> Self {
        // reqwest repeats an empty body of its own itself, when it follows a redirect.
        if body.is_end_stream() { Self::default() } else { Self::wrap(body) }
    }
}

#[cfg(feature = "tonic")]
impl Rebody for tonic::body::Body {
    type Attempt = Self;

    fn rebody(body: ReplayBody<Self>) -> Self {
        Self::new(body)
    }
}

/// What is kept of a request: its head, and a handle to its body.
pub struct KeptRequest<B, M> {
    head: Parts,
    body: Handle<B>,
    idempotent: bool,
    header: Marker,
    map: M,
}

impl<B, M> fmt::Debug for KeptRequest<B, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptRequest")
            .field("method", &self.head.method)
            .field("uri", &self.head.uri)
            .field("idempotent", &self.idempotent)
            .finish()
    }
}

impl<M: Clone, I: Idempotent> Replays<M, I> {
    /// Every body is kept, up to the cap: also a request that may not be done twice is repeated
    /// when the backend did not process it.
    pub(crate) fn first<B: Body>(&self, request: Request<B>) -> (Request<M::Body>, KeptRequest<B, M>)
    where
        M: MapBody<B>,
    {
        let (head, body) = request.into_parts();
        let (body, handle) = tee(body, self.max_body);
        let kept = KeptRequest {
            idempotent: self.idempotent.is_idempotent(&head),
            head: head.clone(),
            body: handle,
            header: self.header,
            map: self.map.clone(),
        };
        (Request::from_parts(head, self.map.map(body)), kept)
    }

    pub(crate) fn only<B: Body>(&self, request: Request<B>) -> Request<M::Body>
    where
        M: MapBody<B>,
    {
        request.map(|body| self.map.map(tee(body, 0).0))
    }

    /// Not a retry of a caller further up.
    pub(crate) fn deposits<B>(&self, request: &Request<B>) -> bool {
        !request.headers().contains_key(self.header.name())
    }
}

impl<B: Body, M: MapBody<B>> Kept for KeptRequest<B, M> {
    type Attempt = Request<M::Body>;

    fn again(&mut self, attempt: u32) -> Option<Request<M::Body>> {
        let body = self.body.replay()?;
        let mut head = self.head.clone();
        head.headers.insert(self.header.name(), HeaderValue::from(attempt - 1));
        Some(Request::from_parts(head, self.map.map(body)))
    }

    fn is_idempotent(&self) -> bool {
        self.idempotent
    }

    fn is_untouched(&self) -> bool {
        self.body.is_untouched()
    }
}
