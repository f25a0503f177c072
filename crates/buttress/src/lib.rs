//! The data plane of a service mesh as Tower layers: circuit breaker, bulkhead, retry, timeout and health for any
//! [`Service`](tower_service::Service) and any protocol.
//!
//! ```
//! use buttress::{BulkheadLayer, CircuitBreakerLayer, RetryLayer, TimeoutLayer};
//! use std::time::Duration;
//! use tower::ServiceBuilder;
//!
//! # async fn call(_: String) -> Result<String, std::io::Error> { Ok(String::new()) }
//! let service = ServiceBuilder::new()
//!     .layer(TimeoutLayer::total(Duration::from_secs(2)))
//!     .layer(RetryLayer::new(3))
//!     .layer(CircuitBreakerLayer::new("payments"))
//!     .layer(BulkheadLayer::new(10))
//!     .layer(TimeoutLayer::attempt(Duration::from_millis(500)))
//!     .service_fn(call);
//! # let _ = service;
//! ```
//!
//! For HTTP and gRPC add the crate `buttress-http`: it reads outcomes up to the end of the stream and answers for servers.
//!
//! # How the pieces fit
//!
//! A protective layer asks a *policy* whether a call may start and tells it what became of the call. The plumbing of that is
//! written once, in [`gate`]; a layer is a policy behind a [`GateLayer`](gate::GateLayer). What a result means is read by an
//! [observer](observe), and how a refusal leaves is the choice of an [exit]: as the one flat [`Error`] of this family, or
//! as a response.
//!
//! The state of a policy lives in a handle inside the layer, behind an `Arc`. `Layer::layer` may be called for every
//! connection, as axum does, and all its services share one circuit, one bulkhead, one budget.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "bulkhead")]
pub mod bulkhead;
#[cfg(feature = "circuit-breaker")]
pub mod circuit_breaker;
mod clock;
pub mod error;
pub mod exit;
pub mod gate;
#[cfg(feature = "health")]
pub mod health;
mod in_flight;
pub mod keyed;
#[cfg(all(feature = "metrics", any(feature = "bulkhead", feature = "circuit-breaker", feature = "retry")))]
pub mod metrics;
pub mod observe;
#[cfg(any(feature = "bulkhead", feature = "health"))]
mod ready_call;
#[cfg(feature = "retry")]
pub mod retry;
#[cfg(feature = "timeout")]
pub mod timeout;
#[cfg(feature = "tonic")]
mod tonic;

#[cfg(feature = "bulkhead")]
pub use bulkhead::{Bulkhead, BulkheadLayer};
#[cfg(feature = "circuit-breaker")]
pub use circuit_breaker::{CircuitBreaker, CircuitBreakerLayer};
pub use clock::TokioClock;
pub use error::{BoxError, Error};
#[cfg(feature = "health")]
pub use health::{Health, HealthLayer};
pub use in_flight::InFlight;
#[cfg(feature = "retry")]
pub use retry::{RetryBudget, RetryLayer};
#[cfg(feature = "timeout")]
pub use timeout::TimeoutLayer;

pub use buttress_core::{
    Admit, Backoff, Clock, Failure, FailureKind, Ignored, InvalidConfig, Label, Name, Outcome, Permit, Policy,
    Progress, Reason, Refused, Rejection, Sent, TimeoutKind, Waiters,
};
