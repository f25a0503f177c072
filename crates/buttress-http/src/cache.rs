//! A small cache of responses for HTTP clients and gateways (RFC 9111), with single flight, and
//! with stale responses while the backend is down (RFC 5861).
//!
//! ```
//! use buttress_http::{cache::{CacheLayer, CacheStatus}, prelude::*};
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use std::convert::Infallible;
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let client = ServiceBuilder::new()
//!     .layer(CacheLayer::new("rows"))
//!     .service_fn(|_: Request<Full<Bytes>>| async {
//!         let response = Response::builder().header("cache-control", "max-age=60");
//!         Ok::<_, Infallible>(response.body(Full::new(Bytes::from("content"))).unwrap())
//!     });
//! let get = || Request::get("http://rows/7").body(Full::default()).unwrap();
//! let first = client.clone().oneshot(get()).await.unwrap();
//! let second = client.clone().oneshot(get()).await.unwrap();
//! assert_eq!(first.extensions().get(), Some(&CacheStatus::Miss));
//! assert_eq!(second.headers()["cache-status"], "rows; hit; ttl=60");
//! # }
//! ```
//!
//! With stale responses for ten minutes while the backend fails or its circuit is open, for a
//! backend that says nothing of caches:
//!
//! ```
//! use buttress_http::{cache::{Cache, CacheLayer}, prelude::*};
//! use std::time::Duration;
//! use tower::ServiceBuilder;
//!
//! # async fn backend(_: http::Request<String>) -> Result<http::Response<String>, std::convert::Infallible> { unreachable!() }
//! let cache = Cache::builder("rows")
//!     .default_ttl(Duration::from_secs(5))
//!     .stale_while_revalidate(Duration::from_secs(30))
//!     .stale_if_error(Duration::from_secs(600))
//!     .build()?;
//! let client = ServiceBuilder::new()
//!     .layer(CacheLayer::from(cache.clone()))
//!     .layer(TimeoutLayer::total(Duration::from_secs(2)).http_client())
//!     .layer(CircuitBreakerLayer::new("rows").http_client())
//!     .service_fn(backend);
//! cache.purge(&"/rows/7".parse()?);
//! # let _ = client;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # When to use it
//!
//! In front of a backend whose answers many callers read and few change, to spare it calls, and to
//! go on while it is down. It is in the memory of the process: each instance fills its own.
//!
//! # What it stores
//!
//! It is a *shared* cache. It stores whole responses to GET and HEAD requests without a body, which
//! are neither `private` nor `no-store`, and neither set a cookie nor vary by `*`, up to
//! [`max_body`](Builder::max_body); for the time that `s-maxage`, `max-age` or `Expires` give, or
//! else for [`default_ttl`](Builder::default_ttl) or [`negative_ttl`](Builder::negative_ttl).
//!
//! Requests with `Authorization`, `Proxy-Authorization` or `Cookie` pass by, unless that header is
//! in the [key](Builder::key); so do conditional requests, those for ranges, and those with
//! `no-store`. Besides what is in the key, a response is served only to requests that agree in the
//! headers that its `Vary` names.
//!
//! | a request finds | and gets |
//! |---|---|
//! | a fresh response | this one |
//! | a stale one, within `stale-while-revalidate` | this one, while one call in the background revalidates it |
//! | a stale one, and the call fails within `stale-if-error` | this one |
//! | a stale one with `ETag` or `Last-Modified` | this one, if the backend confirms it with 304 |
//! | none | the response of a call, which concurrent requests share |
//!
//! A response with `no-cache`, `must-revalidate`, `proxy-revalidate` or `s-maxage` is never served
//! stale (RFC 9111, section 4.2.4). `no-cache`, `max-age`, `min-fresh`, `max-stale` and
//! `only-if-cached` of requests count.
//!
//! A request that is not safe, such as POST, passes by; if it succeeds, its URI is
//! [purged](Cache::purge).
//!
//! # What callers see
//!
//! `Age`, [`Cache-Status`](CacheStatus) (RFC 9211), and the [`CacheStatus`] in the extensions.
//! Header lines that are about a connection are not stored. A response that cannot be stored keeps
//! its stream as it is.
//!
//! # Where it belongs
//!
//! On a client inside a fallback and outside all else: a hit needs no permit, no attempt and no
//! time, and a rejection inside is answered from the cache. The service is always ready, and polls
//! the inner one in the future of a call.
//!
//! # Time
//!
//! Ages are measured by tokio's clock, which tests can pause. Wall time is read once, when the
//! cache is made, and counted on from there; it is compared with `Date` and `Expires` alone.
//!
//! # Cost
//!
//! A hit hashes the key, takes a shared lock of one shard of the map, and copies the head; the body
//! is not copied. The map is that of `quick_cache`, whose evictions resist scans.
//!
//! # Differences
//!
//! * `tower` has no cache.
//! * That of `tower-resilience` has no single flight, counts an overwritten entry as evicted, and
//!   takes the time of the system, which tests cannot pause.

mod fetch;
mod freshness;
mod handle;
mod service;
mod status;
mod store;
#[cfg(test)]
mod tests;

pub use handle::{Builder, Cache, Stats};
pub use service::CacheService;
pub use status::CacheStatus;

use buttress::policy::Name;

/// The future of a [`CacheService`].
pub mod future {
    pub use super::service::ResponseFuture;
}

/// A [`Cache`] as a layer. It needs no ending: it is for HTTP clients and gateways alone.
///
/// The [module](self) has examples.
#[derive(Clone, Debug)]
pub struct CacheLayer(Cache);

impl CacheLayer {
    /// Makes a cache with the defaults of [`Cache::builder`].
    pub fn new(name: impl Into<Name>) -> Self {
        Cache::new(name).into()
    }

    /// Returns the cache, to observe it and to purge responses.
    ///
    /// ```
    /// use buttress_http::cache::CacheLayer;
    ///
    /// let layer = CacheLayer::new("rows");
    /// assert_eq!(layer.handle().stats().hits, 0);
    /// ```
    pub fn handle(&self) -> &Cache {
        &self.0
    }
}

impl From<Cache> for CacheLayer {
    fn from(cache: Cache) -> Self {
        Self(cache)
    }
}
