//! A limit on calls in flight that follows the capacity of the backend.
//!
//! The number of calls that a backend can serve at the same time is seldom known, and changes with
//! its hardware, its neighbours and its version. With more calls in flight they wait for each other
//! and are answered late; with fewer, capacity is unused. An [`AdaptiveLimit`] measures latencies
//! in windows and asks a [`LimitAlgorithm`] for the limit of the next one.
//!
//! | algorithm | follows |
//! |---|---|
//! | [`Gradient2`] | the default: latency in proportion to a baseline, after Netflix |
//! | [`Vegas`] | the estimated queue, after TCP Vegas and Netflix |
//! | [`EnvoyGradient`] | latency in proportion to one measured without load, after Envoy |
//! | [`Pid`] | latency at a target, by a PI controller, after Uber's Cinnamon |
//! | [`Aimd`] | dropped calls and timeouts |
//! | [`Fixed`] | nothing |
//!
//! # What is measured
//!
//! * The latency of a call is the time from its admission to the head of its response, or to its
//!   end if it has no head. Its place is held to the end of the body, so a response that streams
//!   for long takes a place and no latency.
//! * All calls are timed while they are few: the first 256 of a window on each shard of threads. Of
//!   more, one in eight is.
//! * Calls that an overloaded backend refused, and calls that timed out, are *dropped*. So are
//!   calls that their caller gave up after more than the median latency; earlier cancellations are
//!   ignored. Rejections of our own process and other failures are ignored as well: they say
//!   nothing about how long the backend takes.
//! * A window lasts at least [`window`](Builder::window) and twice the mean latency, and until it
//!   has [`min_samples`](Builder::min_samples).
//! * A window in which this process stood still is discarded: for a quarter of its length no call
//!   began, was rejected or was answered, although calls were in flight. The latencies then contain
//!   a pause of our own.
//!
//! # Counting
//!
//! The places are those of a [`Bulkhead`](crate::bulkhead::Bulkhead): the bound is exact, a lowered
//! limit cancels no call, and threads do not contend. The smallest limit is 1, so that a limiter
//! without calls always admits one.
//!
//! While calls are rejected, the last places are kept for the more important classes:
//! [`Builder::priority_step`] has the rule.
//!
//! The thread that settles the first call after the end of a window updates the limit. Others do
//! not wait for it.

mod aimd;
mod builder;
mod classes;
mod control;
mod envoy;
mod fixed;
mod gradient2;
mod limit;
mod permit;
mod pid;
mod samples;
mod snapshot;
mod tracked;
mod vegas;
mod window;

pub use aimd::Aimd;
pub use builder::Builder;
pub use envoy::{EnvoyGradient, EnvoyGradientBuilder};
pub use fixed::Fixed;
pub use gradient2::{Builder as Gradient2Builder, Gradient2};
pub use limit::{AdaptiveLimit, LIMITED};
pub use permit::AdaptiveLimitPermit;
pub use pid::{Pid, PidBuilder};
pub use snapshot::{Decision, Snapshot};
pub use vegas::Vegas;
pub use window::{Statistic, Window};

use std::{fmt, time::Duration};

/// Computes the limit of the next window. Pure: it reads no clock, and randomness can be seeded.
///
/// Called under a lock, by the thread that ends a window. It must not call the limiter.
///
/// ```
/// use buttress_core::concurrency::{LimitAlgorithm, Window};
/// use std::time::Duration;
///
/// /// Half of the limit while latencies are above 100 ms.
/// #[derive(Debug)]
/// struct Halve;
///
/// impl LimitAlgorithm for Halve {
///     fn update(&mut self, window: &Window) -> usize {
///         if window.rtt > Duration::from_millis(100) { window.limit / 2 } else { window.limit + 1 }
///     }
/// }
///
/// assert_eq!(Halve.update(&Window::new(20)), 21);
/// ```
pub trait LimitAlgorithm: fmt::Debug + Send + 'static {
    /// Returns the limit of the next window. The handle clamps it to its bounds.
    ///
    /// The limit of the window can differ from the last result: because of the bounds, or because
    /// these were changed.
    fn update(&mut self, window: &Window) -> usize;

    /// Returns the latency to which the algorithm compares, for metrics. `None` by default.
    fn baseline(&self) -> Option<Duration> {
        None
    }
}

impl LimitAlgorithm for Box<dyn LimitAlgorithm> {
    fn update(&mut self, window: &Window) -> usize {
        (**self).update(window)
    }

    fn baseline(&self) -> Option<Duration> {
        (**self).baseline()
    }
}

/// Returns nanoseconds as a duration.
fn nanos(nanos: f64) -> Duration {
    Duration::from_nanos(nanos as u64)
}

#[cfg(all(test, not(loom)))]
mod tests;
