//! The Buttress layers for HTTP and gRPC.
//!
//! One import gives every layer four endings; a layer without one is not a `Layer`:
//!
//! | | outcomes are read from | rejections leave as |
//! |---|---|---|
//! | [`.http_client()`](HttpExt::http_client) | HTTP status, body to its end | [`buttress::Error`] |
//! | [`.grpc_client()`](HttpExt::grpc_client) | `grpc-status` in headers or trailers | [`buttress::Error`] |
//! | [`.http()`](HttpExt::http) | HTTP status, body to its end | 503 with `Retry-After`; 504 for a timeout |
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
//! An outcome is only known when the response has ended: a server that answers 200 and then breaks
//! off, or a gRPC stream that ends with `UNAVAILABLE` in its trailers, has failed. So a permit
//! moves into the response's [body](ObservedBody) and is settled at the trailers, the end, an
//! error, or the drop. See [`ending`].
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
//! The body of the client underneath is inferred there: retry sends a [`ReplayBody`] of most
//! bodies, so that `build_http::<Full<Bytes>>()` does not compile. The body of a response under a
//! timeout has the error [`BoxError`](buttress::BoxError), since the timeout may end it.
//!
//! A stack with a retry takes requests with any body, so `ready()` on one that is not boxed cannot
//! know which request comes. `stack.clone().oneshot(request)` does.
//!
//! # Under axum
//!
//! The layer that is added last to a `Router` is the outermost; in a `ServiceBuilder` it is the
//! first. A `Router` puts a layer around what it holds at that moment, so add layers after all
//! routes and the fallback. See [`HttpProbes`] for health.
//!
//! # Features
//!
//! | feature | what it adds |
//! |---|---|
//! | `hyper` (default) | reads the errors of hyper and h2: what was never sent, and what the server refused to look at; holds places of upgraded connections |
//! | `axum` | retry sends the bodies of axum again, and a queue reads them ahead |
//! | `reqwest` | [`reqwest::ReqwestService`]: the layers around a `reqwest::Client`; its errors are read, and retry sends its bodies again |
//! | `tonic` | the same for tonic, and [`tonic::StatusLayer`] |
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(any(feature = "axum", feature = "tonic"))]
mod ahead;
mod answer;
mod body;
pub mod classify;
pub mod ending;
mod ext;
mod health;
mod hint;
mod per_host;
pub mod replay;
#[cfg(feature = "reqwest")]
pub mod reqwest;
mod timed;
#[cfg(feature = "tonic")]
pub mod tonic;
mod upgrade;
mod upload;

#[cfg(any(feature = "axum", feature = "tonic"))]
pub use ahead::ReadAhead;
pub use body::ObservedBody;
pub use ending::HttpExt;
pub use ext::HttpRetryExt;
pub use health::HttpProbes;
pub use per_host::{PerHost, per_host};
pub use replay::ReplayBody;
pub use timed::TimedBody;

pub use buttress;

/// The layers, and the endings that make them speak HTTP and gRPC.
pub mod prelude {
    pub use crate::{ending::HttpExt, ext::HttpRetryExt};
    pub use buttress::{
        Backoff, Bulkhead, BulkheadLayer, CircuitBreaker, CircuitBreakerLayer, Ending, Health, HealthLayer, PlainExt,
        RetryBudget, RetryLayer, TimeoutLayer,
    };
}
