//! The Buttress layers for HTTP and gRPC.
//!
//! The [`prelude`] adds four endings to the layers of [`buttress`]. Circuit breaker, bulkhead,
//! timeout and policies of yours take each of them, retry those for clients, health those for
//! servers. A layer without an ending does not implement `Layer`.
//!
//! | | outcomes are read from | rejections leave as |
//! |---|---|---|
//! | [`.http_client()`](HttpExt::http_client) | HTTP status, body to its end | [`buttress::Error`] |
//! | [`.grpc_client()`](HttpExt::grpc_client) | `grpc-status` in headers or trailers | [`buttress::Error`] |
//! | [`.http()`](HttpExt::http) | HTTP status, body to its end | 503 with `Retry-After`, 504 for a timeout; [the table](buttress::wire::OnTheWire) |
//! | [`.grpc()`](HttpExt::grpc) | `grpc-status` in headers or trailers | a trailers-only response |
//!
//! ```
//! use buttress_http::prelude::*;
//! use std::time::Duration;
//! use tower::ServiceBuilder;
//!
//! # async fn handler(_: http::Request<String>) -> Result<http::Response<String>, std::convert::Infallible> { unreachable!() }
//! let health = Health::new();
//! let server = ServiceBuilder::new()
//!     .layer(HealthLayer::new(health.clone()).http()) // /livez /readyz /startupz, never shed
//!     .layer(TimeoutLayer::total(Duration::from_secs(5)).http())
//!     .layer(BulkheadLayer::new(64).http())
//!     .service_fn(handler);
//! health.started();
//! # let _ = server;
//! ```
//!
//! The outcome of a call is known when its response has ended: a server that answers 200 and then
//! breaks off has failed, and so has a gRPC stream that ends with `UNAVAILABLE` in its trailers.
//! Therefore a permit moves into the [body](ObservedBody) of the response and is settled at the
//! trailers, the end, an error, or the drop. See [`ending`].
//!
//! # A client in a struct
//!
//! The type of a stack is long. To store it, box it:
//!
//! ```
//! use buttress_http::{buttress, prelude::*};
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
//! use hyper_util::{client::legacy::Client, rt::TokioExecutor};
//! use std::time::Duration;
//! use tower::{ServiceBuilder, util::BoxCloneSyncService};
//!
//! type Body = UnsyncBoxBody<Bytes, buttress::BoxError>;
//!
//! #[derive(Clone)]
//! struct Payments {
//!     http: BoxCloneSyncService<Request<Full<Bytes>>, Response<Body>, buttress::Error>,
//! }
//!
//! impl Payments {
//!     fn new() -> Self {
//!         let stack = ServiceBuilder::new()
//!             .map_response(|response: Response<_>| response.map(BodyExt::boxed_unsync))
//!             .layer(TimeoutLayer::total(Duration::from_secs(2)).http_client())
//!             .layer(RetryLayer::new(3).http_client())
//!             .layer(CircuitBreakerLayer::new("payments").http_client())
//!             .layer(TimeoutLayer::attempt(Duration::from_millis(500)).http_client())
//!             .service(Client::builder(TokioExecutor::new()).build_http());
//!         Self { http: BoxCloneSyncService::new(stack) }
//!     }
//! }
//! # let _ = Payments::new();
//! ```
//!
//! The request body of hyper's client is inferred: a retry layer sends most bodies as a
//! [`ReplayBody`], so `build_http::<Full<Bytes>>()` does not compile. The response body under a
//! timeout layer has the error [`BoxError`](buttress::BoxError), because the timeout may end it.
//!
//! A stack with a retry layer takes requests with any body. `ready()` on a stack that is not boxed
//! does not compile, because the type of the request is unknown; use
//! `stack.clone().oneshot(request)`.
//!
//! # Under axum
//!
//! The last layer added to a `Router` is the outermost; in a `ServiceBuilder` the first one is. A
//! `Router` puts a layer around the routes that it has at that moment, so add layers after all
//! routes and the fallback. [`HttpProbes`] answers health probes.
//!
//! # Features
//!
//! | feature | default | enables |
//! |---|---|---|
//! | `hyper` | yes | classifies the errors of hyper, hyper-util and h2: requests that were not sent, and requests that the server did not process; holds the permits of upgraded connections |
//! | `axum` | no | retry layers send the bodies of axum again; queues of bulkheads read them ahead; server endings detect uploads that the caller broke off; `IntoResponse` for [`buttress::Error`] |
//! | `cache` | no | [`cache`]: stored responses, fresh, revalidated, or stale while the backend is down |
//! | `reqwest` | no | `hyper`, and [`reqwest::ReqwestService`]: the layers around a `reqwest::Client`; classifies its errors; retry layers send its bodies again |
//! | `tonic` | no | `hyper`, and [`tonic::StatusLayer`]; classifies the errors of tonic; reads the `RetryInfo` in the details of a gRPC status; its bodies are handled as those of axum |
//! | `tracing` | yes | changes of state, rejections, retries and timeouts as events of the `tracing` crate |
//! | `chaos` | no | `chaos`: a layer that injects faults, for tests and drills |
//! | `metrics` | no | [`metrics::Exporter`](https://docs.rs/buttress/latest/buttress/metrics/) of `buttress`: what policies count, through the `metrics` facade |
//! | `gossip` | no | circuits that instances share by UDP |
//!
//! The order of layers in a stack is in [`buttress::ordering`]. Rust 1.88 or newer.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(any(feature = "axum", feature = "tonic"))]
mod ahead;
mod answer;
mod body;
#[cfg(feature = "cache")]
pub mod cache;
#[cfg_attr(not(feature = "cache"), allow(dead_code, reason = "single flight reads less of it than the cache"))]
mod cache_control;
#[cfg(feature = "chaos")]
pub mod chaos;
pub mod classify;
mod context;
mod deadline;
pub mod ending;
mod ext;
mod fallback;
mod health;
mod hint;
mod per_host;
mod quota;
pub mod replay;
#[cfg(feature = "reqwest")]
pub mod reqwest;
mod retried;
pub mod single_flight;
mod timed;
#[cfg(feature = "tonic")]
pub mod tonic;
mod upgrade;
mod upload;

#[cfg(any(feature = "axum", feature = "tonic"))]
pub use ahead::ReadAhead;
pub use body::ObservedBody;
pub use context::ContextBody;
pub use ending::HttpExt;
pub use ext::HttpRetryExt;
pub use health::{HttpProbes, is_probe};
pub use per_host::{PerHost, per_host};
pub use replay::ReplayBody;
pub use single_flight::{HttpKey, SharedBody};
pub use timed::TimedBody;

pub use buttress;

/// Compiles the example of the README.
#[cfg(all(doctest, feature = "hyper"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// The layers, and the traits that give them HTTP and gRPC endings.
///
/// ```
/// use buttress_http::prelude::*;
///
/// let layer = CircuitBreakerLayer::new("payments").http_client();
/// # let _ = layer;
/// ```
pub mod prelude {
    pub use crate::{ending::HttpExt, ext::HttpRetryExt, replay::RetryOverride};
    pub use buttress::{
        AdaptiveLimit, AdaptiveLimitLayer, AdaptiveRate, AdaptiveRateLayer, Backoff, Bulkhead, BulkheadLayer,
        CircuitBreaker, CircuitBreakerLayer, ContextLayer, DeadlineLayer, Deadlines, Ending, FallbackLayer, Health,
        HealthLayer, HedgeLayer, LoadShed, LoadShedLayer, PlainExt, RateLimit, RateLimitLayer, RetryBudget, RetryLayer,
        SingleFlightLayer, Throttle, ThrottleLayer, TimeoutLayer, health::HealthExt,
    };
    #[cfg(feature = "chaos")]
    pub use buttress::{Chaos, ChaosLayer};
}
