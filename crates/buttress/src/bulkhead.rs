//! Limits calls in flight, with an optional queue that is limited too.
//!
//! ```
//! use buttress::{BulkheadLayer, PlainExt};
//! use std::time::Duration;
//!
//! // 10 calls in flight. The 11th is rejected at once:
//! let layer = BulkheadLayer::new(10).plain();
//!
//! // 10 calls in flight and 20 in the queue, each for at most 50 ms:
//! let layer = BulkheadLayer::new(10).queue(20, Duration::from_millis(50)).plain();
//! # let _ = layer;
//! ```
//!
//! # When to use it
//!
//! Around a client, so that one slow backend cannot hold all tasks and memory of the caller. Around
//! the handlers of a server, so that calls that would be answered too late are rejected early. A
//! queue absorbs bursts that are shorter than `max_wait`. Without a queue, rejections come at once.
//!
//! # Where it belongs
//!
//! Innermost except for the attempt timeout. Outside retry it would hold its place during the
//! pauses.
//!
//! # Differences
//!
//! * `tower`'s `ConcurrencyLimit` waits without limit. `ConcurrencyLimitLayer` makes its semaphore
//!   in `layer()`, so that behind `axum::serve` it limits one connection;
//!   `GlobalConcurrencyLimitLayer` shares one. `LoadShed` around either rejects calls whenever any
//!   inner service is pending.
//! * `tower-resilience` (0.14.0) can wait, wait for a time, reject, or exert backpressure. It has
//!   no bound on the number of calls that wait. Except with backpressure, a call waits after the
//!   inner service was ready, and holds what that has reserved.
//! * With an HTTP ending (`buttress-http`) a call holds its place until the end of the response's
//!   stream, not only until the head, and until an upgraded connection (WebSocket, CONNECT) closes.
//! * The queue is served in order, as those of `tower` and `tower-resilience` are. A queued call
//!   holds nothing of the inner service.

mod queue;

use crate::{
    ending::NoEnding,
    gate::{Gate, GateLayer},
};
use std::time::Duration;

pub use buttress_core::bulkhead::{Bulkhead, BulkheadPermit, FULL, QUEUE_FULL, QUEUE_TIMEOUT};
pub use queue::{Queued, QueuedLayer};

/// Futures of the services behind a bulkhead.
pub mod future {
    pub use super::queue::ResponseFuture as QueuedFuture;
    pub use crate::gate::ResponseFuture;
}

/// A bulkhead without a queue, as a layer. The [module](self) has an example.
pub type BulkheadLayer<E = NoEnding> = GateLayer<Bulkhead, E>;

/// A service behind a bulkhead without a queue.
pub type BulkheadService<S, E> = Gate<S, Bulkhead, E>;

impl BulkheadLayer {
    /// Creates a bulkhead with at most `limit` calls in flight. 0 rejects all calls until
    /// [`Bulkhead::set_limit`].
    ///
    /// ```
    /// use buttress::BulkheadLayer;
    ///
    /// let layer = BulkheadLayer::new(10);
    /// assert_eq!(layer.handle().limit(), 10);
    /// ```
    pub fn new(limit: usize) -> Self {
        Bulkhead::new(limit).into()
    }

    /// Creates a bulkhead with a name, which its rejections and metrics carry.
    ///
    /// ```
    /// use buttress::{BulkheadLayer, policy::Policy};
    ///
    /// let layer = BulkheadLayer::named("database", 0);
    /// let rejection = layer.handle().admit("a request").unwrap_err();
    /// assert_eq!(rejection.to_string(), "bulkhead `database`: full");
    /// ```
    pub fn named(name: impl Into<buttress_core::Name>, limit: usize) -> Self {
        Bulkhead::named(name, limit).into()
    }
}

impl From<Bulkhead> for BulkheadLayer {
    fn from(bulkhead: Bulkhead) -> Self {
        Self::with_policy(bulkhead)
    }
}

impl<E> BulkheadLayer<E> {
    /// Adds a queue for at most `max_queue` calls, served in order, each for at most `max_wait`.
    ///
    /// A `max_wait` of zero rejects a call that does not get a place at once. [`Duration::MAX`]
    /// waits without limit.
    ///
    /// The service is then always ready: it queues in the future of the call, and needs an inner
    /// service that is [`Clone`].
    ///
    /// ```
    /// use buttress::{BulkheadLayer, PlainExt};
    /// use std::{convert::Infallible, time::Duration};
    /// use tower::{ServiceBuilder, ServiceExt};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// let service = ServiceBuilder::new()
    ///     .layer(BulkheadLayer::new(1).queue(1, Duration::from_secs(1)).plain())
    ///     .service_fn(|_: ()| async {
    ///         tokio::time::sleep(Duration::from_millis(100)).await;
    ///         Ok::<_, Infallible>(())
    ///     });
    /// let call = || service.clone().oneshot(());
    /// let (first, second, third) = tokio::join!(call(), call(), call());
    /// assert!(first.is_ok());
    /// assert!(second.is_ok(), "waited for 100 ms");
    /// assert_eq!(third.unwrap_err().to_string(), "bulkhead: full, and so is its queue");
    /// # }
    /// ```
    pub fn queue(self, max_queue: usize, max_wait: Duration) -> QueuedLayer<E> {
        QueuedLayer::new(self, max_queue, max_wait)
    }
}
