//! A bound on calls in flight, with a bounded queue or none.
//!
//! ```
//! use buttress::{BulkheadLayer, PlainExt};
//! use std::time::Duration;
//!
//! // 10 in flight; the 11th is refused at once:
//! let layer = BulkheadLayer::new(10).plain();
//!
//! // 10 in flight and 20 waiting, each for 50 ms at most:
//! let layer = BulkheadLayer::new(10).queue(20, Duration::from_millis(50)).plain();
//! # let _ = layer;
//! ```
//!
//! # When to use it
//!
//! Around a client, so that one slow backend cannot hold all of your tasks and memory; around a server's handler, so
//! that it is refused early what would be answered too late. A queue smooths bursts that are shorter than
//! `max_wait`; without one, refusals come sooner and cost less.
//!
//! # Where it belongs
//!
//! Innermost but for the attempt timeout: outside retry it would hold its place during the pauses.
//!
//! # Differences
//!
//! * `tower`'s `ConcurrencyLimit` waits without bound and makes its semaphore in `layer()`, so that behind `axum::serve` it limits
//!   one connection; `LoadShed` around it sheds for any inner service that is pending.
//! * A place is held to the end of the response's stream with an HTTP ending (`buttress-http`), not
//!   to its head, and to the close of an upgraded connection (WebSocket, CONNECT).
//! * Nobody is overtaken in the queue, and a queued call holds nothing of the inner service.

mod queue;

use crate::{
    ending::NoEnding,
    gate::{Gate, GateLayer},
};
use std::time::Duration;

pub use buttress_core::bulkhead::{Bulkhead, BulkheadPermit, FULL, QUEUE_FULL, QUEUE_TIMEOUT};
pub use queue::{Queued, QueuedLayer};

/// The futures of services behind a bulkhead.
pub mod future {
    pub use super::queue::ResponseFuture as QueuedFuture;
    pub use crate::gate::ResponseFuture;
}

/// A bulkhead that refuses at once, as a layer. See the [module](self).
pub type BulkheadLayer<E = NoEnding> = GateLayer<Bulkhead, E>;

/// A service behind a bulkhead that refuses at once.
pub type BulkheadService<S, E> = Gate<S, Bulkhead, E>;

impl BulkheadLayer {
    /// At most `limit` calls in flight; 0 lets nothing through until [`Bulkhead::set_limit`].
    pub fn new(limit: usize) -> Self {
        Bulkhead::new(limit).into()
    }

    /// The same, with a name that its rejections carry.
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
    /// Lets at most `max_queue` calls wait for a place, in order, each for `max_wait` at most. A
    /// `max_wait` of zero rejects a call that does not get a place at once, and [`Duration::MAX`]
    /// waits without bound.
    ///
    /// The service is ready at once then: it queues when it is called, and needs an inner service that is [`Clone`].
    pub fn queue(self, max_queue: usize, max_wait: Duration) -> QueuedLayer<E> {
        QueuedLayer::new(self, max_queue, max_wait)
    }
}
