//! The Buttress layers for HTTP and gRPC.
//!
//! One import gives every layer four endings:
//!
//! | | outcomes read from | rejections leave as |
//! |---|---|---|
//! | [`.http_client()`](ClientExt::http_client) | HTTP status, body to its end | [`buttress::Error`] |
//! | [`.grpc_client()`](ClientExt::grpc_client) | `grpc-status` in headers or trailers | [`buttress::Error`] |
//! | [`.http()`](ServerExt::http) | HTTP status, body to its end | 503 or 504 with `Retry-After` |
//! | [`.grpc()`](ServerExt::grpc) | `grpc-status` in headers or trailers | a trailers-only response |
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
//! Around a client, an outcome is only known when the response has ended: a server that answers 200 and then breaks off,
//! or a gRPC stream that ends with `UNAVAILABLE` in its trailers, has failed. So a permit moves into the response's
//! [body](ObservedBody) and is settled at the trailers, the end, an error, or the drop.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod body;
pub mod classify;
mod exit;
mod ext;
mod health;
mod hint;
mod observe;
pub mod replay;
mod retry;
#[cfg(feature = "tonic")]
pub mod tonic;

pub use body::ObservedBody;
pub use exit::{AsGrpc, AsHttp};
pub use ext::{ClientExt, HttpRetryExt, ServerExt};
pub use health::HttpProbes;
pub use observe::{Grpc, Http};
pub use replay::ReplayBody;
pub use retry::{HttpRetry, KeptRequest, MapBody, Unmapped};

pub use buttress;

/// The layers, and the endings that make them speak HTTP and gRPC.
pub mod prelude {
    pub use crate::ext::{ClientExt, HttpRetryExt, ServerExt};
    pub use buttress::{
        Backoff, Bulkhead, BulkheadLayer, CircuitBreaker, CircuitBreakerLayer, Health, HealthLayer, RetryBudget,
        RetryLayer, TimeoutLayer,
    };
}
