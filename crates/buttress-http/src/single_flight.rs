//! Single flight for HTTP clients and gateways: equal requests that are under way at the same time
//! share one call.
//!
//! ```
//! use buttress_http::{HttpKey, prelude::*};
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use std::{convert::Infallible, sync::atomic::{AtomicU32, Ordering}, time::Duration};
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! static CALLS: AtomicU32 = AtomicU32::new(0);
//! let client = ServiceBuilder::new()
//!     .layer(SingleFlightLayer::with_key(HttpKey::new()).http_client())
//!     .service_fn(|_: Request<Full<Bytes>>| async {
//!         CALLS.fetch_add(1, Ordering::Relaxed);
//!         tokio::time::sleep(Duration::from_millis(20)).await;
//!         Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("content"))))
//!     });
//! let get = || Request::get("http://rows/7").body(Full::default()).unwrap();
//! let (one, other) = tokio::join!(client.clone().oneshot(get()), client.clone().oneshot(get()));
//! assert!(one.is_ok() && other.is_ok());
//! assert_eq!(CALLS.load(Ordering::Relaxed), 1);
//! # }
//! ```
//!
//! A gateway whose answers depend on the tenant and on the credentials, which the key must have
//! then, with bodies of up to 64 KiB:
//!
//! ```
//! use buttress_http::{HttpKey, prelude::*};
//! use http::{HeaderName, header};
//!
//! let key = HttpKey::new().header(HeaderName::from_static("x-tenant")).header(header::AUTHORIZATION);
//! let layer = SingleFlightLayer::with_key(key).max_body(64 * 1024).http_client();
//! # let _ = layer;
//! ```
//!
//! [`buttress::single_flight`] says what callers share, and where the layer belongs.
//!
//! # Which requests are shared
//!
//! GET and HEAD without a body. The key has the method, the URI, `Host`, `Accept`,
//! `Accept-Encoding`, `Accept-Language`, and the headers that [`HttpKey::header`] adds. **Add every
//! header by which the backend chooses its answer**, such as a tenant's or a user's.
//!
//! A request is not shared if it has a header with credentials (`Authorization`,
//! `Proxy-Authorization`, `Cookie`), a condition or a range (`If-*`, `Range`) that is not in the
//! key, or if it asks for an upgrade, or for an answer that was made for it: with `no-cache`
//! or `no-store` in `Cache-Control`.
//!
//! # Which responses are shared
//!
//! Complete ones: the body is read before the callers get the head, up to
//! [`max_body`](buttress::SingleFlightLayer::max_body) (1 MiB), and for
//! [`max_body_wait`](buttress::SingleFlightLayer::max_body_wait) (500 ms) from the head on. One
//! that is larger or takes longer goes to the first caller as it comes, and the others make calls
//! of their own; so do they, as soon as the head shows it, where it
//!
//! * forbids reuse: `Cache-Control` with `no-store`, `no-cache` or `private`, unless the
//!   [key says all](HttpKey::ignore_cache_control);
//! * has `Set-Cookie`;
//! * [varies](https://www.rfc-editor.org/rfc/rfc9111#section-4.1) by a header that is not in the
//!   key;
//! * is a stream of events, a part (206), an upgrade, or longer than may be shared.
//!
//! A body that breaks off does so for all callers: each gets the head, what was read, and the
//! error.

mod body;
mod landing;
#[cfg(test)]
mod tests;

#[cfg(feature = "cache")]
pub(crate) use body::Content;
pub use body::SharedBody;
pub use landing::{HttpLanding, Whole};

use crate::cache_control::{RequestControl, ResponseControl, Vary};
use buttress::single_flight::KeyFrom;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body::Body;
use smallvec::SmallVec;
use std::sync::Arc;

/// Reads the keys of HTTP requests for a [`SingleFlightLayer`](buttress::SingleFlightLayer) and for
/// the cache.
///
/// The [module](self) says which requests have a key.
///
/// ```
/// use buttress::single_flight::KeyFrom;
/// use buttress_http::HttpKey;
/// use http::{Request, header};
///
/// let key = HttpKey::new();
/// let get = |name, value| Request::get("http://rows/7").header(name, value).body(String::new()).unwrap();
/// assert!(key.key(&get(header::ACCEPT, "text/html")) != key.key(&get(header::ACCEPT, "application/json")));
/// assert!(key.key(&get(header::COOKIE, "session=1")).is_none());
/// assert!(key.header(header::COOKIE).key(&get(header::COOKIE, "session=1")).is_some());
/// ```
#[derive(Clone, Debug)]
pub struct HttpKey {
    names: Arc<[HeaderName]>,
    ignores_cache_control: bool,
}

/// The key of an HTTP request: its method, its URI, and values of headers. Made by [`HttpKey`].
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct RequestKey {
    method: Method,
    uri: Uri,
    /// The lines of the headers in the key, each with the index of its name.
    lines: SmallVec<[(u8, HeaderValue); 4]>,
}

/// Headers that choose the answer for one caller. A request that has one which is not in the key is
/// not shared.
pub(crate) const PERSONAL: [HeaderName; 3] = [header::AUTHORIZATION, header::PROXY_AUTHORIZATION, header::COOKIE];

/// Conditions and ranges (RFC 9110, sections 13 and 14).
pub(crate) const CONDITIONAL: [HeaderName; 6] = [
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
    header::RANGE,
];

impl HttpKey {
    /// Makes a key of the method, the URI, `Host`, `Accept`, `Accept-Encoding` and
    /// `Accept-Language`.
    pub fn new() -> Self {
        let names = [header::HOST, header::ACCEPT, header::ACCEPT_ENCODING, header::ACCEPT_LANGUAGE];
        Self { names: names.into(), ignores_cache_control: false }
    }

    /// Adds a header to the key. At most 255 headers are in a key; more are ignored, and requests
    /// that have them are not shared where they are personal or conditional.
    pub fn header(self, name: HeaderName) -> Self {
        if self.has(&name) || self.names.len() > usize::from(u8::MAX) {
            return self;
        }
        Self { names: self.names.iter().cloned().chain([name]).collect(), ..self }
    }

    /// Shares responses also if their `Cache-Control` forbids to reuse them: for backends that send
    /// `no-store` with every response, and keys that have everything that responses depend on. Only
    /// single flight follows this, and never the cache.
    ///
    /// ```
    /// use buttress_http::{HttpKey, prelude::*};
    ///
    /// let layer = SingleFlightLayer::with_key(HttpKey::new().ignore_cache_control()).http_client();
    /// # let _ = layer;
    /// ```
    pub fn ignore_cache_control(self) -> Self {
        Self { ignores_cache_control: true, ..self }
    }

    pub(crate) fn has(&self, name: &HeaderName) -> bool {
        self.names.contains(name)
    }

    /// Returns whether a request could be answered by the response to another one.
    pub(crate) fn takes<B: Body>(&self, request: &Request<B>) -> bool {
        let headers = request.headers();
        let is_free_of = |names: &[HeaderName]| names.iter().all(|name| !headers.contains_key(name) || self.has(name));
        matches!(*request.method(), Method::GET | Method::HEAD)
            && is_free_of(&PERSONAL)
            && is_free_of(&CONDITIONAL)
            && !headers.contains_key(header::UPGRADE)
            && request.body().is_end_stream()
    }

    /// Returns the key of the request, whatever it has.
    pub(crate) fn of<B>(&self, request: &Request<B>) -> RequestKey {
        let lines =
            self.names.iter().zip(0..=u8::MAX).flat_map(|(name, index)| {
                request.headers().get_all(name).iter().map(move |value| (index, value.clone()))
            });
        RequestKey { method: request.method().clone(), uri: request.uri().clone(), lines: lines.collect() }
    }

    /// Returns whether a response is for every request with the key of its own, as far as its head
    /// says.
    fn shares<B>(&self, response: &Response<B>) -> bool {
        let headers = response.headers();
        let control = ResponseControl::of(headers);
        let forbids = control.no_store || control.no_cache || control.private;
        let varies = match Vary::of(headers) {
            Vary::Any => true,
            Vary::Names(names) => !names.iter().all(|name| self.has(name)),
        };
        (!forbids || self.ignores_cache_control)
            && !varies
            && !headers.contains_key(header::SET_COOKIE)
            && !response.status().is_informational()
            && response.status() != StatusCode::PARTIAL_CONTENT
            && !is_stream(headers)
    }
}

#[cfg(feature = "cache")]
impl RequestKey {
    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Returns the memory that it takes, in bytes.
    pub(crate) fn length(&self) -> usize {
        let lines = self.lines.iter().map(|(_, value)| value.len() + size_of::<HeaderValue>());
        size_of::<Self>() + self.uri.path().len() + self.uri.query().map_or(0, str::len) + lines.sum::<usize>()
    }
}

impl Default for HttpKey {
    fn default() -> Self {
        Self::new()
    }
}

impl<B: Body> KeyFrom<Request<B>> for HttpKey {
    type Key = RequestKey;

    fn key(&self, request: &Request<B>) -> Option<RequestKey> {
        let is_shared = self.takes(request) && {
            let control = RequestControl::of(request.headers());
            !control.no_cache && !control.no_store
        };
        is_shared.then(|| self.of(request))
    }
}

/// Returns whether the content type is that of a stream without end.
pub(crate) fn is_stream(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| {
        let kind = kind.as_bytes().to_ascii_lowercase();
        [b"text/event-stream".as_slice(), b"application/grpc", b"multipart/x-mixed-replace"]
            .iter()
            .any(|stream| kind.starts_with(stream))
    })
}
