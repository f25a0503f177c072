//! Single flight: concurrent calls with an equal key share one call to the inner service.
//!
//! ```
//! use buttress::{PlainExt, SingleFlightLayer};
//! use std::{convert::Infallible, sync::atomic::{AtomicU32, Ordering}, time::Duration};
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! static CALLS: AtomicU32 = AtomicU32::new(0);
//! let service = ServiceBuilder::new()
//!     .layer(SingleFlightLayer::new(|user: &u64| *user).plain())
//!     .service_fn(|user: u64| async move {
//!         CALLS.fetch_add(1, Ordering::Relaxed);
//!         tokio::time::sleep(Duration::from_millis(20)).await;
//!         Ok::<_, Infallible>(format!("user {user}"))
//!     });
//! let (one, other) = tokio::join!(service.clone().oneshot(7), service.clone().oneshot(7));
//! assert_eq!((one.unwrap(), other.unwrap()), ("user 7".to_owned(), "user 7".to_owned()));
//! assert_eq!(CALLS.load(Ordering::Relaxed), 1);
//! # }
//! ```
//!
//! Some requests are not shared, and fewer callers may wait:
//!
//! ```
//! use buttress::{PlainExt, SingleFlightLayer};
//!
//! enum Query {
//!     Read(u64),
//!     Write(u64),
//! }
//!
//! let layer = SingleFlightLayer::filtered(|query: &Query| match query {
//!     Query::Read(row) => Some(*row),
//!     Query::Write(_) => None,
//! });
//! let stats = layer.stats();
//! let layer = layer.named("rows").max_waiters(500).plain();
//! assert_eq!(stats.joined(), 0);
//! # let _ = layer;
//! ```
//!
//! [`buttress_core::single_flight`] describes the algorithm.
//!
//! # When to use it
//!
//! Around reads that many callers make at once: of a hot row, of a page whose cache entry has just
//! expired, of a token that all need. The calls must be safe, and their result must depend on the
//! key alone: *everything* in a request that the answer depends on belongs into the key, above all
//! who asks.
//!
//! For HTTP, `buttress_http::HttpKey` is the key, `.http_client()` the ending, and the rules are in
//! its documentation.
//!
//! # What callers share
//!
//! * **The result**, which is cloned for each. An error is shared as
//!   [`SharedError`](crate::ending::SharedError), whose source is the error; a rejection is copied.
//! * **The call.** It is polled by whichever of its callers is alive, so that it goes on when the
//!   first one is dropped or times out. It is dropped with the last one. No task is spawned.
//! * **Its context.** The call runs with the [context](crate::context) of the first caller. A
//!   caller with a higher priority does not join it, and makes one that later callers join: the
//!   first may be shed where the second would not. A caller with a later deadline joins; if the
//!   call is then rejected because of its deadline, that caller makes a call of its own.
//! * **A panic**, which unwinds through the caller whose poll ran into it. The others get the error
//!   [`CallPanicked`].
//!
//! A caller whose timeout or deadline, in a layer around this one, expires leaves alone.
//!
//! At most [`max_waiters`](SingleFlightLayer::max_waiters) callers join a call. More are rejected
//! with [`TOO_MANY_WAITERS`]: to let them through would send a backend that is slow the load from
//! which this layer protects it.
//!
//! # Where it belongs
//!
//! On a client inside the total timeout, and outside retry, circuit breaker and bulkhead: one
//! retry, one permit and one outcome for one call. A caller that joins needs no permit.
//!
//! # Cost
//!
//! A call that joins hashes its key, takes two locks for some nanoseconds each, and clones the
//! inner service only if its request is kept. It allocates when the list of wakers grows, and what
//! the clones of the key and of the result do. The first call of a key allocates its state, its
//! future, which is boxed, and the list.
//!
//! Each wake-up of the call wakes all its callers, because one of them alone might not be polled.
//!
//! # Differences
//!
//! * `tower` has no such layer.
//! * `tower-resilience`'s coalescing lets waiters poll in a loop that never sleeps, and fails all
//!   of them when the first caller is dropped.

mod layer;
mod service;
#[cfg(test)]
mod tests;

pub use layer::{Each, Filtered, KeyFrom, SingleFlightLayer, SingleFlightStats};
pub use service::SingleFlight;

pub use buttress_core::single_flight::{Arrival, Entered, Flights, Landed, Participant};

use buttress_core::{Class, Reason};

/// The future of a [`SingleFlight`].
pub mod future {
    pub use super::service::ResponseFuture;
}

/// As many callers as may wait for one call.
pub static TOO_MANY_WAITERS: Reason =
    Reason::new("single_flight_full", "too many callers wait for the same call", Class::Exhausted);

/// The error of a caller that shared a call which panicked in the task of another.
///
/// ```
/// use buttress::{Error, error::outcome, single_flight::CallPanicked};
///
/// assert!(outcome(&Error::from_inner(CallPanicked)).is_failure());
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the call that was shared with another caller panicked")]
pub struct CallPanicked;
