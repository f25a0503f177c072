//! Limits the time of a call or of one attempt, and of the body of its response.
//!
//! ```
//! use buttress::{PlainExt, TimeoutLayer};
//! use std::time::Duration;
//!
//! let whole_call = TimeoutLayer::total(Duration::from_secs(2)).plain(); // outside retry
//! let one_attempt = TimeoutLayer::attempt(Duration::from_millis(500)).named("payments").plain(); // innermost
//! # let _ = (whole_call, one_attempt);
//! ```
//!
//! # When to use it
//!
//! Use both timeouts. Without an attempt timeout, the first attempt can use up the total, and no
//! time is left for a second one. Without a total, the times of the attempts add up. An attempt
//! that timed out is a failure for the breakers around it and may be retried. A call that exceeded
//! its total is not retried: the caller no longer waits.
//!
//! # What is bounded
//!
//! The time from the call to the head of the response. It counts from the first poll of the future
//! that is pending, so that a call that is ready at once needs no timer.
//!
//! An attempt ends at the deadline of its call if that comes first: see
//! [`deadline`](crate::deadline), which also replaces the total timeout where deadlines are handed
//! on.
//!
//! `poll_ready` is not bounded, because a service that is not ready has no call yet. If the inner
//! service can be pending without end, limit the time of `ready().await`, or put a
//! [bulkhead with a queue](crate::bulkhead::QueuedLayer) inside: it is always ready, and its call
//! waits for the inner service in its own future, which the timeout bounds.
//!
//! HTTP endings can bound the body too: see [`body_idle`](TimeoutLayer::body_idle),
//! [`body_total`](TimeoutLayer::body_total) and [`reader_stall`](TimeoutLayer::reader_stall). A
//! server ending limits a stalled reader to 30 s by default, because an HTTP/2 client that does not
//! read would hold a place in the server's bulkhead without end.
//!
//! When a bound on the body expires, the inner body is dropped at once, and the reader gets the
//! [`Rejection`](crate::Rejection) as an error. This frees the places of bulkheads inside the
//! timeout. On a server, put a timeout around the bulkhead; otherwise a reader that stops holds its
//! place.
//!
//! # Differences
//!
//! * `tower`'s `Timeout` boxes its error, and never expires while the inner future uses up tokio's
//!   cooperative budget in each poll. Here the timer fires even then, as that of
//!   `tokio::time::timeout` does, which is in the time limiter of `tower-resilience`.
//! * tonic's own timeouts return `CANCELLED` instead of `DEADLINE_EXCEEDED`.
//!
//! As in `tower` and tokio, the inner future is polled before the timer: a response that is ready
//! wins over an expired timer.

mod layer;
mod service;

pub use layer::{TimeoutLayer, TimeoutStats};
pub use service::Timeout;

use buttress_core::{Reason, TimeoutKind};

/// An attempt took longer than [`TimeoutLayer::attempt`] allows.
pub static ATTEMPT: Reason = Reason::timeout("attempt_timeout", "the attempt took too long", TimeoutKind::Attempt);
/// A call took longer than [`TimeoutLayer::total`] allows.
pub static TOTAL: Reason =
    Reason::timeout("total_timeout", "the call took too long, all attempts included", TimeoutKind::Total);
/// No frame of the body arrived for longer than [`TimeoutLayer::body_idle`] allows.
pub static BODY_IDLE: Reason =
    Reason::timeout("idle_timeout", "no part of the response arrived for too long", TimeoutKind::Idle);
/// The body took longer than [`TimeoutLayer::body_total`] allows.
pub static BODY_TOTAL: Reason =
    Reason::timeout("body_timeout", "the body of the response took too long", TimeoutKind::Body);
/// The reader did not poll the body for longer than [`TimeoutLayer::reader_stall`] allows.
pub static READER_STALLED: Reason =
    Reason::timeout("reader_timeout", "the reader of the response stopped for too long", TimeoutKind::Reader);

/// The future of a [`Timeout`].
pub mod future {
    pub use super::service::ResponseFuture;
}
