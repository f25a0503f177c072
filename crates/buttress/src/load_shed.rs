//! Rejects calls while a server is overloaded, the least important ones first.
//!
//! ```
//! use buttress::{Bulkhead, BulkheadLayer, LoadShed, LoadShedLayer, PlainExt};
//! use buttress::load_shed::{SchedulerDelay, SystemLoad};
//! use std::time::Duration;
//! use tower::ServiceBuilder;
//!
//! struct Request {
//!     tenant: String,
//!     is_probe: bool,
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # async fn handler(_: Request) -> Result<(), std::convert::Infallible> { Ok(()) }
//! let bulkhead = Bulkhead::new(64);
//! let system = SystemLoad::start();
//! let shed = LoadShed::builder("orders")
//!     .monitor(SchedulerDelay::start())          // tasks wait too long for a thread
//!     .monitor_at(0.9, bulkhead.clone())         // nine tenths of the places are taken
//!     .monitor_at(0.9, system.cpu()?)
//!     .monitor_at(0.9, system.memory()?)
//!     .build()?;
//! let server = ServiceBuilder::new()
//!     .layer(
//!         LoadShedLayer::from(shed)
//!             .exempt(|request: &Request| request.is_probe)
//!             .fair_by(|request: &Request| request.tenant.clone())
//!             .plain(),
//!     )
//!     .layer(BulkheadLayer::from(bulkhead).queue(64, Duration::from_millis(50)).plain())
//!     .service_fn(handler);
//! # let _ = server;
//! # Ok(())
//! # }
//! ```
//!
//! [`buttress_core::load_shed`] describes the algorithm: how the share of rejected calls follows
//! the monitors, and how priorities and tenants decide which calls these are.
//!
//! # Monitors
//!
//! | monitor | watches | level 1 |
//! |---|---|---|
//! | [`SchedulerDelay`] | how late tasks of the runtime are polled, by CoDel | above 20 ms for 100 ms |
//! | [`QueueDelay`] | how long calls have waited elsewhere, by CoDel: [`waited_by`](LoadShedLayer::waited_by) | as configured |
//! | [`Bulkhead`](crate::Bulkhead) | calls in flight and in its queue | all places are taken |
//! | [`AdaptiveLimit`](crate::AdaptiveLimit) | calls that wait for a response | as many as the limit allows |
//! | [`SystemLoad`] | processor, processor pressure, memory, from cgroups or `/proc` | all of it is used |
//! | [`monitor_fn`], [`Monitor`] | what you like | as you say |
//!
//! Calls are not queued by this layer. On a tokio server they wait in two places before a handler:
//! for a thread of the runtime, which [`SchedulerDelay`] measures, and in queues of layers or
//! proxies, whose waits [`waited_by`](LoadShedLayer::waited_by) reads.
//!
//! A call with a [deadline](crate::context) that is over, or that less time is left for than calls
//! take, is rejected at any level.
//!
//! # When to use it
//!
//! On every server that can get more calls than it can do. Retry budgets and circuit breakers of
//! its clients help it as well, but it cannot rely on them.
//!
//! # Where it belongs
//!
//! Inside health and the [context](crate::context), whose priority and deadline it reads, and
//! outside all else, so that a rejected call costs next to nothing.
//!
//! Give a bulkhead inside it a short [queue](crate::BulkheadLayer::queue). The share of rejected
//! calls follows the load in steps, so that for moments more calls come through than there are
//! places. Without a queue the bulkhead rejects those, whatever their priority or tenant and though
//! they are exempt, and sees no more than its limit: all overload looks alike. Calls that wait
//! raise its level above 1, until as many are rejected as are too many.
//!
//! gRPC's health checks are calls like others: [`exempt`](LoadShedLayer::exempt) them, with
//! `buttress_http::is_probe`. Limits inside this layer know nothing of that. Where a probe must
//! never wait, answer it outside: by a [`HealthLayer`](crate::HealthLayer), or by a route to which
//! the layers are not applied.
//!
//! # Differences
//!
//! * `tower`'s `LoadShed` rejects whenever the inner service is not ready, also when it has only
//!   used up tokio's budget of the task, and regardless of who calls. This layer asks its monitors
//!   and lets a pending service be pending.
//! * Envoy's overload manager watches resources of the process, and rejects by its own list of
//!   actions and not by priority; its admission control is that of a client
//!   ([throttle](crate::throttle)).
//! * failsafe-go rejects by priority and by the usage of users, as this layer does, where its
//!   adaptive limiter or throttler is the only monitor.

mod layer;
mod scheduler;
mod system;
mod task;

pub use layer::{Exempt, LoadShedLayer, LoadShedService, ShedBy, TenantOf};
pub use scheduler::SchedulerDelay;
pub use system::{SystemLoad, SystemMonitor, Unsupported};

pub use buttress_core::load_shed::{Call, Monitor, MonitorFn, OVERLOADED, TOO_LATE, monitor_fn};

use crate::clock::TokioClock;
use buttress_core::load_shed as core;

/// Rejects a share of the calls while the service is overloaded. A cheap handle; clones share the
/// state.
///
/// It uses tokio's clock.
pub type LoadShed = core::LoadShed<TokioClock>;

/// Builds a [`LoadShed`].
pub type Builder = core::Builder<TokioClock>;

/// Whether work waits too long, by CoDel. It uses tokio's clock.
pub type QueueDelay = core::QueueDelay<TokioClock>;

/// The permit of a call through a [`LoadShed`].
pub type LoadShedPermit = core::LoadShedPermit<TokioClock>;
