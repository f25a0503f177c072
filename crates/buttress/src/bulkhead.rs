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
//! Under overload, last in, first out, and no call that has waited for long:
//!
//! ```
//! use buttress::{BulkheadLayer, PlainExt, bulkhead::Discipline, policy::Criticality};
//! use std::time::Duration;
//!
//! let layer = BulkheadLayer::new(10)
//!     .queue(100, Duration::from_millis(50))
//!     .discipline(Discipline::Adaptive)
//!     .reserve(Criticality::CriticalPlus, 0.2)? // while calls queue, 2 of the 10 places
//!     .plain();
//! # let _ = layer;
//! # Ok::<(), buttress::InvalidConfig>(())
//! ```
//!
//! # The queue
//!
//! * A call waits for at most `max_wait`, and not beyond its deadline
//!   ([`CallContext::deadline`](crate::policy::CallContext)). One that comes after its deadline is
//!   not queued.
//! * The more important class of [`CallContext::priority`](crate::policy::CallContext) goes first;
//!   calls without a priority are [`Critical`](crate::policy::Criticality). Within a class, the
//!   [`Discipline`] decides.
//! * A call that finds the queue full takes the place of the least important one in it, if that is
//!   less important than itself.
//! * A caller that hangs up leaves the queue at once. Over HTTP/1 with an upload of more than one
//!   piece it leaves at the end of its wait: hyper does not look at the connection before.
//! * [`QueuedLayer::reserve`] guarantees a class a share of the places while calls queue. It keeps
//!   no place free: below the limit, any class takes any place. For places that others never take,
//!   use a bulkhead for each kind of call.
//! * Without a share, the least important calls get no place while more important ones arrive as
//!   fast as places are released.
//!
//! | discipline | for |
//! |---|---|
//! | [`Fifo`](Discipline::Fifo), the default | callers that wait as long as it takes, and short bursts |
//! | [`Lifo`](Discipline::Lifo) | callers that give up: the newest calls are answered in time |
//! | [`Adaptive`](Discipline::Adaptive) | calls of milliseconds: fair until the queue has stood for 100 ms, then fast |
//!
//! [`Adaptive`](Discipline::Adaptive) rejects calls that have waited for 5 ms, once some call has
//! waited for longer than that during 100 ms. Where calls take seconds, that is after every burst;
//! use another one there.
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
//! * The queue is served in order by default, as those of `tower` and `tower-resilience` are, which
//!   have no other order and no classes. A queued call holds nothing of the inner service.
//! * Netflix's `concurrency-limits` admits a class below its share above the limit. Here the limit
//!   is exact, and the class gets the next place that is released.

mod queue;

use crate::{
    clock::TokioClock,
    ending::NoEnding,
    gate::{Gate, GateLayer},
};
use buttress_core::bulkhead as core;
use std::time::Duration;

pub use buttress_core::bulkhead::{
    Discipline, FULL, INTERVAL, QUEUE_DEADLINE, QUEUE_DELAY, QUEUE_FULL, QUEUE_TIMEOUT, TARGET,
};
pub use queue::{Queued, QueuedLayer};

/// Futures of the services behind a bulkhead.
pub mod future {
    pub use super::queue::ResponseFuture as QueuedFuture;
    pub use crate::gate::ResponseFuture;
}

/// A bulkhead, to observe and resize. A cheap handle; clones and all services of its layers share
/// the places.
///
/// It uses tokio's clock.
pub type Bulkhead = core::Bulkhead<TokioClock>;

/// A place in a bulkhead, held by a call in flight. Dropping it releases the place.
pub type BulkheadPermit = core::BulkheadPermit<TokioClock>;

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
    /// Adds a queue for at most `max_queue` calls, each for at most `max_wait` and not beyond its
    /// deadline. The [module](self#the-queue) has the order in which they are served.
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
