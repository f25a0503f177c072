//! A bound on the time of a call, or of one attempt, and on the body of its response.
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
//! Always both: without an attempt timeout nothing is left of the total for a second attempt, and without
//! a total the attempts add up. An attempt that timed out is a failure for the breakers around it and may be retried;
//! after the total the caller does not wait any more.
//!
//! # What is bounded
//!
//! The time from the call to the head of the response. It counts from the first poll of the future
//! that is pending, so that a call that is ready at once needs no timer. `poll_ready` is not
//! bounded: a service that is not ready has no call yet. Put a bound around `ready().await` where
//! the inner service can be pending without end, or a [bulkhead](crate::bulkhead) outside, which
//! rejects then.
//!
//! The body is bounded where that is asked for, by HTTP endings:
//! [`body_idle`](TimeoutLayer::body_idle), [`body_total`](TimeoutLayer::body_total) and
//! [`reader_stall`](TimeoutLayer::reader_stall). A server ending bounds a stalled reader by 30
//! seconds also without being asked, because an HTTP/2 client that does not read would hold a place
//! of the server's bulkhead without end. When a bound on the body runs out, the inner body is
//! dropped at that moment, with everything that it holds, and what reads it gets the [`Rejection`]
//! as an error. A place of a bulkhead is freed then if the bulkhead is inside: on a server, put a
//! timeout around it, or a reader that never comes back holds the place.
//!
//! # Differences
//!
//! * The inner future is polled before the timer, so that an answer that is there wins.
//! * The timer fires although the inner future has spent tokio's cooperative budget.
//! * `tower`'s `Timeout` boxes its error; tonic's own timeouts are `CANCELLED` where `DEADLINE_EXCEEDED` is meant.

mod layer;
mod service;

pub use layer::{TimeoutLayer, TimeoutStats};
pub use service::Timeout;

use buttress_core::{Reason, TimeoutKind};

/// The attempt took longer than [`TimeoutLayer::attempt`] allows.
pub static ATTEMPT: Reason = Reason::timeout("attempt_timeout", "the attempt took too long", TimeoutKind::Attempt);
/// The call took longer than [`TimeoutLayer::total`] allows.
pub static TOTAL: Reason =
    Reason::timeout("total_timeout", "the call took too long, all attempts included", TimeoutKind::Total);
/// The body paused for longer than [`TimeoutLayer::body_idle`] allows.
pub static BODY_IDLE: Reason =
    Reason::timeout("idle_timeout", "no part of the response came for too long", TimeoutKind::Idle);
/// The body took longer than [`TimeoutLayer::body_total`] allows.
pub static BODY_TOTAL: Reason =
    Reason::timeout("body_timeout", "the body of the response took too long", TimeoutKind::Body);
/// The reader of the body paused for longer than [`TimeoutLayer::reader_stall`] allows.
pub static READER_STALLED: Reason =
    Reason::timeout("reader_timeout", "the reader of the response stopped for too long", TimeoutKind::Reader);

/// The future of a service with a timeout.
pub mod future {
    pub use super::service::ResponseFuture;
}
