use crate::replay::{self, ReplayBody};
use buttress::retry::{Protocol, Replay};
use http::{HeaderName, HeaderValue, Method, Request, request::Parts};
use http_body::Body;
use std::fmt;

/// How much of a request's body is kept, unless said otherwise: 64 KiB, as linkerd does.
const DEFAULT_MAX_BODY: u64 = 64 * 1024;

/// How HTTP and gRPC requests are repeated: the head is cloned, and the body is [teed](replay::tee) as it is sent.
///
/// The service underneath gets a [`ReplayBody`]; [`rebox`](crate::HttpRetryExt::rebox) turns it into the body it wants.
#[derive(Clone)]
pub struct HttpRetry<M = Unmapped> {
    pub(crate) max_body: u64,
    pub(crate) idempotent: fn(&Parts) -> bool,
    pub(crate) header: HeaderName,
    pub(crate) map: M,
}

impl HttpRetry {
    /// Requests are idempotent by their method, or by an `Idempotency-Key`. A repeated one says so in `x-retry-attempt`.
    pub fn http() -> Self {
        Self {
            max_body: DEFAULT_MAX_BODY,
            idempotent: http_idempotent,
            header: HeaderName::from_static("x-retry-attempt"),
            map: Unmapped,
        }
    }

    /// Requests are idempotent when you say so. A repeated one says so in `grpc-previous-rpc-attempts` (gRFC A6).
    pub fn grpc() -> Self {
        let header = HeaderName::from_static("grpc-previous-rpc-attempts");
        Self { max_body: DEFAULT_MAX_BODY, idempotent: |_| false, header, map: Unmapped }
    }
}

impl<M> fmt::Debug for HttpRetry<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpRetry")
            .field("max_body", &self.max_body)
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

/// RFC 9110, section 9.2.2, and the `Idempotency-Key` header field.
fn http_idempotent(parts: &Parts) -> bool {
    const METHODS: [Method; 6] =
        [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::OPTIONS, Method::TRACE];
    METHODS.contains(&parts.method) || parts.headers.contains_key("idempotency-key")
}

/// Turns a [`ReplayBody`] into the body that the service underneath wants.
pub trait MapBody<B> {
    /// The body it wants.
    type Body;
    /// Turns it.
    fn map(&self, body: ReplayBody<B>) -> Self::Body;
}

/// The service underneath takes any body.
#[derive(Clone, Copy, Debug)]
pub struct Unmapped;

impl<B> MapBody<B> for Unmapped {
    type Body = ReplayBody<B>;

    fn map(&self, body: ReplayBody<B>) -> ReplayBody<B> {
        body
    }
}

impl<B, T, F: Fn(ReplayBody<B>) -> T> MapBody<B> for F {
    type Body = T;

    fn map(&self, body: ReplayBody<B>) -> T {
        self(body)
    }
}

/// What is kept of a request: its head, and a handle to its body.
pub struct KeptRequest<B, M> {
    head: Parts,
    body: replay::Handle<B>,
    idempotent: bool,
    header: HeaderName,
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

impl<B: Body, M: MapBody<B> + Clone> Protocol<Request<B>> for HttpRetry<M> {
    type Kept = KeptRequest<B, M>;

    fn first(&self, request: Request<B>) -> (Request<M::Body>, Option<Self::Kept>) {
        let (head, body) = request.into_parts();
        let idempotent = (self.idempotent)(&head);
        // One that may not be done twice is only repeated when it never got anywhere, and then nothing of its body was read.
        let (body, handle) = replay::tee(body, if idempotent { self.max_body } else { 0 });
        let kept = KeptRequest {
            head: head.clone(),
            body: handle,
            idempotent,
            header: self.header.clone(),
            map: self.map.clone(),
        };
        (Request::from_parts(head, self.map.map(body)), Some(kept))
    }

    fn deposits(&self, request: &Request<B>) -> bool {
        !request.headers().contains_key(&self.header)
    }
}

impl<B: Body, M: MapBody<B>> Replay for KeptRequest<B, M> {
    type Attempt = Request<M::Body>;

    fn again(&mut self, attempt: u32) -> Option<Request<M::Body>> {
        let body = self.body.replay()?;
        let mut head = self.head.clone();
        head.headers.insert(&self.header, HeaderValue::from(attempt - 1));
        Some(Request::from_parts(head, self.map.map(body)))
    }

    fn is_idempotent(&self) -> bool {
        self.idempotent
    }
}
