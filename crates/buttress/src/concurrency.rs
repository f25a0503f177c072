//! Limits calls in flight, and adapts the limit to the latency.
//!
//! ```
//! use buttress::{AdaptiveLimit, AdaptiveLimitLayer, PlainExt, concurrency::Vegas};
//!
//! // The defaults: see `AdaptiveLimitLayer::new`.
//! let layer = AdaptiveLimitLayer::new("orders").plain();
//!
//! // Custom settings, and a handle to observe the limit:
//! let limit = AdaptiveLimit::builder("orders").limits(8..=500).initial(50).build()?;
//! let layer = AdaptiveLimitLayer::from(limit.clone()).plain();
//! assert_eq!(limit.limit(), 50);
//!
//! // Another algorithm:
//! let vegas = AdaptiveLimit::builder("orders").algorithm(Vegas::default()).build()?;
//! let layer = AdaptiveLimitLayer::from(vegas).plain();
//! # let _ = layer;
//! # Ok::<(), buttress::InvalidConfig>(())
//! ```
//!
//! # When to use it
//!
//! Around the handlers of a server whose capacity is not known or changes: calls that would wait
//! for others are rejected at once, and those that are admitted are answered nearly as fast as
//! without load. Around a client, to send a backend no more than it can answer. Where the capacity
//! is known, a [bulkhead](crate::bulkhead) is simpler. A backend with few calls, below about 10 in
//! a second, has too few latencies to follow.
//!
//! `docs/overload.md` in the repository compares the algorithms, static limits and other libraries
//! in a simulation, `cargo xtask overload`. In it, the default answers at least 95 % of what the
//! best static limit does at 1.5, 3 and 10 times the capacity, with a 99th percentile of at most
//! 1.5 times the unloaded one, and follows a change of the capacity within 2 s.
//!
//! # Where it belongs
//!
//! On a server, outside what waits: queues, pools and the handlers. In a client, where the
//! [bulkhead](crate::bulkhead) would be: innermost except for the attempt timeout, whose timeouts
//! it counts as dropped calls. Inside retry, each attempt is measured by itself. Calls that a layer
//! inside it rejects say nothing about the backend and are not measured.
//!
//! A queue outside would hide the overload from the callers; inside it would be measured as
//! latency.
//!
//! # Streams
//!
//! With an HTTP ending (`buttress-http`), a latency ends at the head of the response, and a call
//! holds its place to the end of its body. Responses that stream get places beyond those that the
//! algorithm computes, up to the largest limit.
//!
//! # Priorities
//!
//! While the limit rejects calls, it keeps its last places for the more important classes among
//! them, by the priority of [`CallContext`](crate::context): see [`Builder::priority_step`]. Calls
//! of one class are treated alike; a [load shed](crate::load_shed) outside tells levels and tenants
//! apart.
//!
//! # Differences
//!
//! * `tower`'s `ConcurrencyLimit` is static, and so is its queue: none.
//! * `tower-resilience` (0.14.0) waits for a place in `poll_ready` and needs `LoadShed` to reject.
//!   It changes the limit with each call rather than in windows, releases the place with the head,
//!   takes `Err` for overload and any `Ok` for a latency, boxes the future and locks a mutex twice
//!   per call. A layer that is applied per connection shares the algorithm and not the semaphore,
//!   so that behind `axum::serve` each connection has the whole limit.
//! * Netflix's concurrency-limits: see [`Gradient2`] for what differs. Its partitions give
//!   classes shares that have to be chosen; ours have an order, and need no numbers.
//! * Envoy's adaptive concurrency is [`EnvoyGradient`], which is not the default, because it
//!   rejects nearly all calls while it measures, and grows while it is not used.

use crate::{
    clock::TokioClock,
    ending::NoEnding,
    gate::{Gate, GateLayer},
};
use buttress_core::{Name, concurrency as core};

pub use buttress_core::concurrency::{
    Aimd, Decision, EnvoyGradient, EnvoyGradientBuilder, Fixed, Gradient2, Gradient2Builder, LIMITED, LimitAlgorithm,
    Pid, PidBuilder, Snapshot, Statistic, Vegas, Window,
};

/// The future of a service behind an adaptive limit.
pub mod future {
    pub use crate::gate::ResponseFuture;
}

/// An adaptive limit, to observe and reload. A cheap handle; clones and all services of its layers
/// share the limit.
///
/// It uses tokio's clock.
pub type AdaptiveLimit<A = Gradient2> = core::AdaptiveLimit<A, TokioClock>;

/// Builds an [`AdaptiveLimit`].
pub type Builder<A = Gradient2> = core::Builder<A, TokioClock>;

/// The permit of a call behind an adaptive limit.
pub type AdaptiveLimitPermit<A = Gradient2> = core::AdaptiveLimitPermit<A, TokioClock>;

/// An adaptive limit as a layer. The [module](self) has an example.
pub type AdaptiveLimitLayer<E = NoEnding, A = Gradient2> = GateLayer<AdaptiveLimit<A>, E>;

/// A service behind an adaptive limit.
pub type AdaptiveLimitService<S, E, A = Gradient2> = Gate<S, AdaptiveLimit<A>, E>;

impl AdaptiveLimitLayer {
    /// Creates an adaptive limit with the default settings: [`Gradient2`], 20 calls in flight at
    /// the start, and from then on between 4 and 1000. A window takes at least 250 ms and 10 calls.
    ///
    /// ```
    /// use buttress::AdaptiveLimitLayer;
    ///
    /// let layer = AdaptiveLimitLayer::new("orders");
    /// assert_eq!((layer.handle().limit(), layer.handle().bounds()), (20, (4, 1000)));
    /// ```
    pub fn new(name: impl Into<Name>) -> Self {
        AdaptiveLimit::new(name).into()
    }
}

impl<A> From<AdaptiveLimit<A>> for AdaptiveLimitLayer<NoEnding, A> {
    fn from(limit: AdaptiveLimit<A>) -> Self {
        Self::with_policy(limit)
    }
}
