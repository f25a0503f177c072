use super::{
    Attempted, BodyFactory, Handle, Readers, ReplayBody, ReplayMemory, RetryOverride, head::KeptHead, made, teed,
};
use crate::{deadline, retried};
use buttress::{
    deadline::Deadline,
    ending::Kept,
    policy::{CallContext, TokioClock},
};
use http::{HeaderName, HeaderValue, Method, Request, request::Parts};
use http_body::Body;
use std::fmt;

/// Default number of bytes kept of a request's body: 64 KiB, as in linkerd2-proxy.
const DEFAULT_MAX_BODY: u64 = 64 * 1024;

/// The rules for repeating requests: which requests, how much of a body is kept, and how it is
/// converted.
///
/// The head of a request is cloned, and its body goes through [`tee`](super::tee) as it is sent.
/// Part of a client ending; set with [`HttpRetryExt`](crate::HttpRetryExt).
#[derive(Clone, Copy)]
pub struct Replays<M = Same, I = ByMethod> {
    pub(crate) max_body: u64,
    pub(crate) memory: &'static ReplayMemory,
    pub(crate) idempotent: I,
    pub(crate) header: Marker,
    pub(crate) remembers_endpoints: bool,
    pub(crate) map: M,
}

/// Without the functions: closures have no `Debug`.
impl<M, I> std::fmt::Debug for Replays<M, I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replays").field("max_body", &self.max_body).finish_non_exhaustive()
    }
}

/// The header of a repeated request that carries the number of previous attempts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Marker {
    /// `x-retry-attempt`.
    Http,
    /// `grpc-previous-rpc-attempts` (gRFC A6).
    Grpc,
}

impl Marker {
    fn name(self) -> HeaderName {
        match self {
            Self::Http => retried::ATTEMPT,
            Self::Grpc => retried::PREVIOUS_ATTEMPTS,
        }
    }
}

impl Replays {
    /// Returns the rules for HTTP: a request is idempotent by its method or an `Idempotency-Key`.
    pub(crate) fn http() -> Self {
        Self::new(ByMethod::Http, Marker::Http)
    }

    /// Returns the rules for gRPC: a request is idempotent by an `Idempotency-Key`.
    pub(crate) fn grpc() -> Self {
        Self::new(ByMethod::Grpc, Marker::Grpc)
    }

    fn new(idempotent: ByMethod, header: Marker) -> Self {
        let memory = ReplayMemory::process();
        Self { max_body: DEFAULT_MAX_BODY, memory, idempotent, header, remembers_endpoints: false, map: Same }
    }
}

impl<M, I> Replays<M, I> {
    pub(crate) fn idempotent<J>(self, idempotent: J) -> Replays<M, J> {
        let Self { max_body, memory, idempotent: _, header, remembers_endpoints, map } = self;
        Replays { max_body, memory, idempotent, header, remembers_endpoints, map }
    }

    pub(crate) fn map<N>(self, map: N) -> Replays<N, I> {
        let Self { max_body, memory, idempotent, header, remembers_endpoints, map: _ } = self;
        Replays { max_body, memory, idempotent, header, remembers_endpoints, map }
    }
}

/// Decides which requests may be processed twice.
///
/// Implemented by [`ByMethod`] and by functions of the head of a request.
pub trait Idempotent {
    /// Returns whether processing the request twice has the same effect as processing it once.
    fn is_idempotent(&self, head: &Parts) -> bool;
}

/// The usual rule for idempotent requests.
///
/// ```
/// use buttress_http::replay::{ByMethod, Idempotent};
/// use http::Request;
///
/// let (put, ()) = Request::put("/orders/7").body(())?.into_parts();
/// assert!(ByMethod::Http.is_idempotent(&put));
///
/// let (post, ()) = Request::post("/orders").body(())?.into_parts();
/// assert!(!ByMethod::Http.is_idempotent(&post));
///
/// let (keyed, ()) = Request::post("/orders").header("idempotency-key", "7").body(())?.into_parts();
/// assert!(ByMethod::Http.is_idempotent(&keyed) && ByMethod::Grpc.is_idempotent(&keyed));
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum ByMethod {
    /// For HTTP: GET, HEAD, PUT, DELETE, OPTIONS, TRACE (RFC 9110, section 9.2.2), and requests
    /// with an `Idempotency-Key`.
    Http,
    /// For gRPC, where every method is POST: requests with an `Idempotency-Key`.
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

/// Converts a [`ReplayBody`] into the body type of the inner service.
///
/// Implemented by [`Same`] and by functions; see
/// [`HttpRetryExt::map_request_body`](crate::HttpRetryExt::map_request_body).
pub trait MapBody<B> {
    /// The body type of the inner service.
    type Body;
    /// Converts the body of one attempt.
    fn map(&self, body: ReplayBody<B>) -> Self::Body;
}

/// Converts bodies as [`Rebody`] does.
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

/// A body that a retry layer can send again.
///
/// The bodies of axum, reqwest and tonic (features `axum`, `reqwest` and `tonic`) can hold any
/// body, so they keep their type. For other bodies the inner service receives a [`ReplayBody`].
///
/// ```
/// use buttress_http::{ReplayBody, replay::Rebody};
/// use bytes::Bytes;
/// use http::HeaderMap;
/// use http_body::{Body, Frame, SizeHint};
/// use std::{convert::Infallible, pin::Pin, task::{Context, Poll}};
///
/// // A body of your own, which a retry layer sends again.
/// struct Numbers(std::ops::Range<u8>);
///
/// impl Body for Numbers {
///     type Data = Bytes;
///     type Error = Infallible;
///
///     fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
///         Poll::Ready(self.0.next().map(|number| Ok(Frame::data(vec![number].into()))))
///     }
/// }
///
/// impl Rebody for Numbers {
///     type Attempt = ReplayBody<Self>;
///
///     fn rebody(body: ReplayBody<Self>) -> ReplayBody<Self> {
///         body
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "retry does not know how to send the body `{Self}` again",
    label = "an unknown body",
    note = "add `.map_request_body(|body| ..)` to the retry layer, after its ending: it converts a `ReplayBody` into the \
            body type of the inner service; the bodies of axum, reqwest and tonic need the features of these names; a \
            body that is not `Unpin` is sent again in a `Box::pin(..)`"
)]
pub trait Rebody: Body + Sized + Unpin {
    /// The body type that the inner service receives.
    type Attempt;
    /// Converts the body of one attempt.
    fn rebody(body: ReplayBody<Self>) -> Self::Attempt;
}

macro_rules! rebodied {
    ($([$($generics:tt)*] $body:ty;)*) => {$(
        impl<$($generics)*> Rebody for $body where $body: Body + Unpin {
            type Attempt = ReplayBody<Self>;

            fn rebody(body: ReplayBody<Self>) -> ReplayBody<Self> {
                body
            }
        }
    )*};
}

rebodied! {
    [] String;
    [B: Body] std::pin::Pin<Box<B>>;
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

#[cfg(feature = "chaos")]
rebodied! {
    [B: Body] crate::chaos::ChaosBody<B>;
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
        // reqwest can clone its own empty body, which it needs to follow a redirect.
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

/// A request that is kept to be repeated: its head, and a handle to its body.
pub struct KeptRequest<B, M> {
    head: KeptHead,
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
    /// Returns the first attempt, and the request kept for further ones.
    ///
    /// The body of every request is kept up to the cap, not only of idempotent ones: a request that
    /// the backend did not process is repeated whatever its method.
    pub(crate) fn first<B: Body + 'static>(&self, request: Request<B>) -> (Request<M::Body>, KeptRequest<B, M>)
    where
        M: MapBody<B>,
    {
        let (head, body) = request.into_parts();
        let is_idempotent = self.is_idempotent(&head);
        self.split(head, body, Readers::Latest, is_idempotent)
    }

    /// Returns the first of several attempts at once, and the request kept for further ones if it
    /// may be processed twice. One that is known to exceed the cap is not kept.
    pub(crate) fn first_of_several<B: Body + 'static>(
        &self,
        request: Request<B>,
    ) -> (Request<M::Body>, Option<KeptRequest<B, M>>)
    where
        M: MapBody<B>,
    {
        let (head, body) = request.into_parts();
        let fits = body.size_hint().lower() <= self.max_body || factory::<B>(&head).is_some();
        if !fits || !self.is_idempotent(&head) {
            return (self.only(Request::from_parts(head, body)), None);
        }
        let (first, kept) = self.split(head, body, Readers::All, true);
        (first, Some(kept))
    }

    /// What the request says of itself wins over the rule.
    fn is_idempotent(&self, head: &Parts) -> bool {
        let own = RetryOverride::of(&head.extensions).and_then(|own| own.idempotent);
        own.unwrap_or_else(|| self.idempotent.is_idempotent(head))
    }

    fn split<B: Body + 'static>(
        &self,
        mut head: Parts,
        body: B,
        readers: Readers,
        idempotent: bool,
    ) -> (Request<M::Body>, KeptRequest<B, M>)
    where
        M: MapBody<B>,
    {
        if self.remembers_endpoints {
            head.extensions.get_or_insert_default::<Attempted>();
        }
        let (body, handle) = match factory::<B>(&head) {
            Some(factory) => made(body, factory.clone()),
            None => teed(body, self.max_body, self.memory, readers),
        };
        let (header, map) = (self.header, self.map.clone());
        let kept = KeptRequest { idempotent, head: KeptHead::of(&head), body: handle, header, map };
        (Request::from_parts(head, self.map.map(body)), kept)
    }

    /// Returns the only attempt of a request that will not be repeated.
    pub(crate) fn only<B: Body>(&self, request: Request<B>) -> Request<M::Body>
    where
        M: MapBody<B>,
    {
        request.map(|body| {
            let body = if body.is_end_stream() { ReplayBody::default() } else { ReplayBody::once(body) };
            self.map.map(body)
        })
    }
}

fn factory<B: 'static>(head: &Parts) -> Option<&BodyFactory<B>> {
    head.extensions.get()
}

impl<B: Body, M: MapBody<B>> Kept for KeptRequest<B, M> {
    type Attempt = Request<M::Body>;

    fn again(&mut self, attempt: u32) -> Option<Request<M::Body>> {
        let body = self.body.replay()?;
        let previous = (self.header.name(), HeaderValue::from(attempt - 1));
        Some(self.head.request(self.map.map(body), previous))
    }

    /// Writes how much time is left: the header was written for the first attempt.
    fn refresh(&self, attempt: &mut Request<M::Body>) {
        if let Some(deadline) = CallContext::current().deadline {
            deadline::shorten(attempt.headers_mut(), Deadline(deadline).left_on(&TokioClock));
        }
    }

    fn is_idempotent(&self) -> bool {
        self.idempotent
    }

    fn is_untouched(&self) -> bool {
        self.body.is_untouched()
    }
}
