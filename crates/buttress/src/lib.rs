//! The data plane of a service mesh as Tower layers: circuit breaker, bulkhead, retry, timeout and health for any
//! [`Service`](tower_service::Service) and any protocol.
//!
//! ```
//! use buttress::{BulkheadLayer, CircuitBreakerLayer, PlainExt, RetryLayer, TimeoutLayer};
//! use std::time::Duration;
//! use tower::ServiceBuilder;
//!
//! # async fn call(_: String) -> Result<String, std::io::Error> { Ok(String::new()) }
//! let service = ServiceBuilder::new()
//!     .layer(TimeoutLayer::total(Duration::from_secs(2)).plain())
//!     .layer(RetryLayer::new(3).plain())
//!     .layer(CircuitBreakerLayer::new("payments").plain())
//!     .layer(BulkheadLayer::new(10).plain())
//!     .layer(TimeoutLayer::attempt(Duration::from_millis(500)).plain())
//!     .service_fn(call);
//! # let _ = service;
//! ```
//!
//! For HTTP and gRPC add the crate `buttress-http`: it reads outcomes up to the end of the stream and answers for servers.
//!
//! # How the pieces fit
//!
//! A protective layer asks a *policy* whether a call may start and tells it the outcome of the
//! call. The plumbing of that is written once, in [`gate`]; a layer is a policy behind a
//! [`GateLayer`](gate::GateLayer). Its [ending] says what the layer speaks: how outcomes are read,
//! and whether a rejection leaves as the one flat [`Error`] of this family or as a response.
//!
//! The state of a policy lives in a handle inside the layer, behind an `Arc`. `Layer::layer` may be
//! called for every connection, as axum does, and all its services share one circuit, one bulkhead,
//! one budget.
//!
//! | module | what is in it |
//! |---|---|
//! | [`circuit_breaker`], [`bulkhead`], [`retry`], [`timeout`], [`health`] | the layers |
//! | [`keyed`] | one policy for each host, route or tenant |
//! | [`ending`], [`outcome`] | how results are read and rejections leave |
//! | [`policy`] | what a policy of your own needs |
//! | [`metrics`], [`wire`] | how policies are seen, and rejections said |
//!
//! # Features
//!
//! | feature | what it adds |
//! |---|---|
//! | `tracing` (default) | changes of state, rejections, retries and timeouts as events of the `tracing` crate |
//! | `metrics` | [`metrics::Exporter`], for the `metrics` facade |
//! | `gossip` | circuits that instances share by UDP |
//! | `axum` | `IntoResponse` for [`Error`] |
//! | `tonic` | `From<Error>` for `tonic::Status` |
//!
//! # Tests of your own stack
//!
//! All time here is tokio's, so a paused clock (its feature `test-util`) pauses a stack, and
//! minutes pass at once. `seed` makes jitter repeatable.
//!
//! ```
//! use buttress::{CircuitBreaker, CircuitBreakerLayer, PlainExt, circuit_breaker::State};
//! use std::{io, time::Duration};
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! // #[tokio::test(start_paused = true)]
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() { it_opens_and_closes().await }
//! async fn it_opens_and_closes() {
//!     let breaker = CircuitBreaker::builder("payments").consecutive_failures(1).seed(7).build().unwrap();
//!     let service = ServiceBuilder::new()
//!         .layer(CircuitBreakerLayer::from(breaker.clone()).plain())
//!         .service_fn(|up: bool| async move { if up { Ok(()) } else { Err(io::Error::other("down")) } });
//!
//!     service.clone().oneshot(false).await.unwrap_err();
//!     assert_eq!(breaker.state(), State::Open);
//!
//!     tokio::time::advance(Duration::from_secs(10)).await; // it stays open for some 5 seconds
//!     for _probe in 0..3 {
//!         service.clone().oneshot(true).await.unwrap();
//!     }
//!     assert_eq!(breaker.state(), State::Closed);
//! }
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "axum")]
mod axum;
pub mod bulkhead;
pub mod circuit_breaker;
mod clock;
pub mod ending;
pub mod error;
mod events;
pub mod gate;
pub mod health;
mod in_flight;
pub mod keyed;
#[cfg(feature = "metrics")]
pub mod metrics;
pub mod per_request;
pub mod policy;
mod ready_call;
pub mod retry;
mod shell;
pub mod timeout;
pub mod timer;
#[cfg(feature = "tonic")]
mod tonic;
pub mod wire;

/// What became of a call: the vocabulary of classifiers.
pub mod outcome {
    pub use buttress_core::outcome::*;
}

pub use bulkhead::{Bulkhead, BulkheadLayer};
pub use circuit_breaker::{CircuitBreaker, CircuitBreakerLayer};
pub use ending::{Ending, PlainExt};
pub use error::{BoxError, Error};
pub use health::{Health, HealthLayer};
pub use retry::{RetryBudget, RetryLayer};
pub use timeout::TimeoutLayer;

pub use buttress_core::{Backoff, InvalidConfig, Reason, Rejection};
