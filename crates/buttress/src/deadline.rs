//! Ends calls at a deadline, which they hand on to the calls that are made for them.
//!
//! ```
//! use buttress::{DeadlineLayer, PlainExt, context};
//! use std::{convert::Infallible, time::Duration};
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let service = ServiceBuilder::new()
//!     .layer(DeadlineLayer::new(Duration::from_secs(2)).plain())
//!     .service_fn(async |_: ()| Ok::<_, Infallible>(context::current().deadline));
//! assert!(service.oneshot(()).await.unwrap().is_some());
//! # }
//! ```
//!
//! On a server the deadline comes from the caller. With limits of its own, and without rejections
//! at first:
//!
//! ```
//! use buttress::{Deadlines, DeadlineLayer, deadline::Mode};
//! use std::time::Duration;
//!
//! let deadlines = Deadlines::builder().name("orders").mode(Mode::Observe).build()?;
//! let layer = DeadlineLayer::server()
//!     .deadlines(deadlines.clone())
//!     .default_limit(Duration::from_secs(10)) // for callers that send no deadline
//!     .max_limit(Duration::from_secs(30));
//! deadlines.set_mode(Mode::Enforce); // while it runs
//! # let _ = layer;
//! # Ok::<(), buttress::InvalidConfig>(())
//! ```
//!
//! [`buttress_core::deadline`] has the rules by which a late call is rejected.
//!
//! # When to use it
//!
//! Wherever a call is made for another one. On a client in place of
//! [`TimeoutLayer::total`](crate::TimeoutLayer::total): it is the total time of the call, and the
//! server behind it learns how much of it is left. On a server beside that timeout, which also
//! bounds readers that stall. Without deadlines a server works for callers that have given up, and
//! a call through five services may take five timeouts. An
//! [attempt](crate::TimeoutLayer::attempt) timeout goes with it, and takes no longer than what is
//! left.
//!
//! # What is bounded
//!
//! The time from the call to the head of the response, and for gRPC also the body to its trailers.
//! Bodies of HTTP responses end at the deadline with
//! [`through_body`](DeadlineLayer::through_body). A call that is ready at once needs no timer.
//!
//! # On the wire
//!
//! With the endings of `buttress-http`, a client sends the time that is left: as `grpc-timeout` in
//! gRPC, as `x-request-timeout-ms` in HTTP. A server reads both, and Envoy's
//! `x-envoy-expected-rq-timeout-ms`; the shortest one counts. Headers that are no times, or are
//! there twice, are as none. A client reads them too: what tonic's `Request::set_timeout` sets
//! shortens the deadline. A header is written when the call enters this layer, for each attempt of
//! a retry inside, and when a call enters an [attempt timeout](crate::TimeoutLayer::attempt)
//! inside. Without the latter, a wait in a queue between this layer and the transport is not
//! subtracted.
//!
//! # Where it belongs
//!
//! On a client inside a fallback and outside rate limit, throttle and retry: waits, pauses and
//! attempts share the time. Inside retry, each attempt would get a limit of its own.
//!
//! On a server outside of everything but health: the time that a header grants counts from the
//! moment at which it is read. Next to [`ContextLayer`](crate::ContextLayer) on either side of it;
//! each of the two hands on what the other one has set, and each works alone.
//!
//! # Differences
//!
//! * `tower` and `tower-resilience` (0.14.0) have time limits of single calls, and no deadlines
//!   that are handed on.
//! * tonic reads and writes `grpc-timeout`, does not hand on what is left of it, and answers with
//!   `CANCELLED` instead of `DEADLINE_EXCEEDED`. Its channel inside this layer has a timer of its
//!   own for the header; `StatusLayer` of `buttress-http` makes the right code of its error.
//! * Finagle's `DeadlineFilter` has the same bound on rejections, and observes by default.

mod carry;
mod layer;
mod service;

pub use buttress_core::deadline::{Deadline, EXCEEDED, EXPIRED, MIN_USEFUL, Mode, TOO_SHORT};
pub use carry::{Asked, CarryDeadline};
pub use layer::DeadlineLayer;
pub use service::DeadlineService;

use crate::clock::TokioClock;
use buttress_core::deadline as core;

/// The future of a [`DeadlineService`].
pub mod future {
    pub use super::service::ResponseFuture;
}

/// Decides whether calls start within their deadlines, and counts those that do not end within
/// them. A cheap handle; clones share the counts.
///
/// It uses tokio's clock.
pub type Deadlines = core::Deadlines<TokioClock>;

/// Builds [`Deadlines`].
pub type Builder = core::Builder<TokioClock>;
