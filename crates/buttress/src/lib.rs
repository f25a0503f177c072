//! Resilience as Tower layers: circuit breaker, bulkhead, rate limit, retry, timeout and health for
//! any [`Service`](tower_service::Service) and any protocol.
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
//! For HTTP and gRPC add the crate `buttress-http`. It reads the outcome of a call up to the end of
//! the response's stream, and turns rejections into responses on servers.
//!
//! # How the pieces fit
//!
//! A protective layer asks a *policy* whether a call may start and reports the outcome of the call
//! to it. Circuit breakers, bulkheads without a queue, rate limits, keyed policies and policies of
//! yours share one implementation of this, in [`gate`]: the layer is the policy behind a
//! [`GateLayer`](gate::GateLayer). Retry, timeout, health and the queue of a bulkhead call the
//! inner service later, more than once or not at all, and have services of their own. The [ending]
//! of a layer defines its protocol: how outcomes are read, and whether a rejection is returned as
//! the [`Error`] of this crate or as a response.
//!
//! The state of a policy is in a handle inside the layer, behind an `Arc`. axum calls
//! `Layer::layer` for every connection; all services that a layer makes share one circuit, one
//! bulkhead, one budget.
//!
//! | module | contents |
//! |---|---|
//! | [`circuit_breaker`], [`bulkhead`], [`concurrency`], [`rate_limit`], [`adaptive_rate`], [`retry`], [`hedge`], [`timeout`], [`health`] | the layers |
//! | [`wait`] | calls that wait until their policy lets them start |
//! | [`fallback`] | answers in place of failed calls |
//! | [`single_flight`] | equal calls that share one |
//! | [`load_shed`], [`throttle`] | overload: of this server, and of a backend |
//! | [`context`], [`deadline`] | the priority and the deadline of a call, and what it hands on |
//! | [`keyed`] | one policy for each host, route or tenant |
//! | [`ending`], [`outcome`] | how outcomes are read and rejections are returned |
//! | [`policy`] | what a custom policy needs |
//! | [`ordering`] | the order of layers in a stack, and what each wrong order breaks |
//! | [`metrics`], [`wire`] | metrics of policies; rejections as HTTP and gRPC statuses |
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `tracing` | yes | changes of state, rejections, retries and timeouts as `tracing` events |
//! | `chaos` | no | `chaos`, a layer that injects faults |
//! | `metrics` | no | [`metrics::Exporter`], for the `metrics` facade |
//! | `gossip` | no | [`Gossip`](circuit_breaker::sharing::Gossip): instances share circuits over UDP |
//! | `axum` | no | `IntoResponse` for [`Error`] |
//! | `tonic` | no | `From<Error>` for `tonic::Status` |
//!
//! # Testing your stack
//!
//! All layers take the time from tokio. With tokio's feature `test-util`, a test that pauses
//! tokio's clock pauses the stack, and minutes pass without waiting. `seed` makes jitter
//! repeatable.
//!
//! ```
//! use buttress::{CircuitBreaker, CircuitBreakerLayer, PlainExt, circuit_breaker::State};
//! use std::{io, time::Duration};
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! // #[tokio::test(start_paused = true)]
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() { the_circuit_opens_and_closes().await }
//! async fn the_circuit_opens_and_closes() {
//!     let breaker = CircuitBreaker::builder("payments").consecutive_failures(1).seed(7).build().unwrap();
//!     let service = ServiceBuilder::new()
//!         .layer(CircuitBreakerLayer::from(breaker.clone()).plain())
//!         .service_fn(|up: bool| async move { if up { Ok(()) } else { Err(io::Error::other("down")) } });
//!
//!     service.clone().oneshot(false).await.unwrap_err();
//!     assert_eq!(breaker.state(), State::Open);
//!
//!     tokio::time::advance(Duration::from_secs(10)).await; // the circuit is open for about 5 seconds
//!     for _probe in 0..3 {
//!         service.clone().oneshot(true).await.unwrap();
//!     }
//!     assert_eq!(breaker.state(), State::Closed);
//! }
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod adaptive_rate;
#[cfg(feature = "axum")]
mod axum;
pub mod bulkhead;
#[cfg(feature = "chaos")]
pub mod chaos;
pub mod circuit_breaker;
mod clock;
pub mod concurrency;
pub mod context;
pub mod deadline;
pub mod ending;
pub mod error;
mod events;
pub mod fallback;
pub mod gate;
pub mod health;
pub mod hedge;
mod in_flight;
pub mod keyed;
pub mod load_shed;
#[cfg(feature = "metrics")]
pub mod metrics;
pub mod per_request;
#[doc = include_str!("ordering.md")]
pub mod ordering {}
pub mod policy;
pub mod rate_limit;
#[doc(hidden)]
pub mod ready_call;
pub mod retry;
mod shell;
pub mod single_flight;
pub mod throttle;
pub mod timeout;
pub mod timer;
#[cfg(feature = "tonic")]
mod tonic;
pub mod wait;
pub mod wire;

/// Outcomes of calls, as a classifier reports them.
pub mod outcome {
    pub use buttress_core::outcome::*;
}

pub use adaptive_rate::{AdaptiveRate, AdaptiveRateLayer};
pub use bulkhead::{Bulkhead, BulkheadLayer};
#[cfg(feature = "chaos")]
pub use chaos::{Chaos, ChaosLayer};
pub use circuit_breaker::{CircuitBreaker, CircuitBreakerLayer};
pub use concurrency::{AdaptiveLimit, AdaptiveLimitLayer};
pub use context::ContextLayer;
pub use deadline::{DeadlineLayer, Deadlines};
pub use ending::{Ending, PlainExt};
pub use error::{BoxError, Error};
pub use fallback::FallbackLayer;
pub use health::{Health, HealthLayer};
pub use hedge::HedgeLayer;
pub use load_shed::{LoadShed, LoadShedLayer};
pub use rate_limit::{RateLimit, RateLimitLayer};
pub use retry::{RetryBudget, RetryLayer};
pub use single_flight::SingleFlightLayer;
pub use throttle::{Throttle, ThrottleLayer};
pub use timeout::TimeoutLayer;

pub use buttress_core::{Backoff, InvalidConfig, Reason, Rejection};

/// The metrics of everything in this crate that reports some. A new layer adds its line.
#[cfg(feature = "metrics")]
const METRICS: &[fn() -> Vec<policy::Metric>] = {
    use policy::Report;
    &[
        AdaptiveRate::metrics,
        <AdaptiveLimit>::metrics,
        Bulkhead::metrics,
        #[cfg(feature = "chaos")]
        Chaos::metrics,
        CircuitBreaker::metrics,
        Deadlines::metrics,
        Health::metrics,
        hedge::HedgeStats::metrics,
        LoadShed::metrics,
        RateLimit::metrics,
        RetryBudget::metrics,
        Throttle::metrics,
        fallback::FallbackStats::metrics,
        keyed::own_metrics,
        policy::Counted::<()>::metrics,
        retry::RetryStats::metrics,
        single_flight::SingleFlightStats::metrics,
        timeout::TimeoutStats::metrics,
    ]
};

/// Runs the example of README.md as a doctest.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
