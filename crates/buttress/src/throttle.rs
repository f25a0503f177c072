//! Rejects calls before they are sent, as many as the backend would reject for overload.
//!
//! ```
//! use buttress::{PlainExt, ThrottleLayer};
//!
//! let layer = ThrottleLayer::new("search").plain();
//! # let _ = layer;
//! ```
//!
//! With another multiplier, for a backend that pays much for a rejection:
//!
//! ```
//! use buttress::{PlainExt, Throttle, ThrottleLayer};
//! use std::time::Duration;
//!
//! let throttle = Throttle::builder("search")
//!     .multiplier(1.1)
//!     .window(Duration::from_secs(300))
//!     .slowest_answer(Duration::from_secs(60))
//!     .build()?;
//! let layer = ThrottleLayer::from(throttle.clone()).plain();
//! assert_eq!(throttle.share(), 0.0);
//! # let _ = layer;
//! # Ok::<(), buttress::InvalidConfig>(())
//! ```
//!
//! [`buttress_core::throttle`] describes the algorithm, and what counts as accepted.
//!
//! # When to use it
//!
//! Around each client of a backend that rejects calls when it is overloaded, with 429,
//! `RESOURCE_EXHAUSTED`, or as a [load shed](crate::load_shed) or a bulkhead of this crate does.
//! Against a backend that fails or is away use a [circuit breaker](crate::circuit_breaker): a
//! throttle learns nothing from calls without an answer, and takes a minute to find out that a
//! backend has recovered.
//!
//! The calls of a low [priority](crate::context) are rejected first.
//!
//! # Where it belongs
//!
//! Outside retry, so that a call that is not sent is not repeated, and each attempt is not counted
//! as a call of its own. Inside the total timeout.
//!
//! # Differences
//!
//! * `tower` and `tower-resilience` (0.14.0) have no throttle.
//! * Envoy's admission control has the same formula with a window of 30 seconds and a limit of 0.8.
//!   It counts every failure as not accepted, so that an outage throttles, and it knows no
//!   priorities.
//! * failsafe-go's adaptive throttler counts an execution when it has ended, so that rejections are
//!   not among the requests. Its window does not move without calls.

use crate::{
    clock::TokioClock,
    ending::NoEnding,
    gate::{Gate, GateLayer},
};
use buttress_core::{Name, throttle as core};

pub use buttress_core::throttle::{Counts, THROTTLED, ThrottlePermit};

/// Rejects a share of the calls while their backend is overloaded. A cheap handle; clones share the
/// counts.
///
/// It uses tokio's clock.
pub type Throttle = core::Throttle<TokioClock>;

/// Builds a [`Throttle`].
pub type Builder = core::Builder<TokioClock>;

/// A throttle as a layer. The [module](self) has examples.
pub type ThrottleLayer<E = NoEnding> = GateLayer<Throttle, E>;

/// A service behind a throttle.
pub type ThrottleService<S, E> = Gate<S, Throttle, E>;

impl ThrottleLayer {
    /// Creates a throttle with the defaults of [`Throttle::builder`].
    ///
    /// ```
    /// use buttress::ThrottleLayer;
    ///
    /// let layer = ThrottleLayer::new("search");
    /// assert_eq!(layer.handle().name(), "search");
    /// ```
    pub fn new(name: impl Into<Name>) -> Self {
        Throttle::new(name).into()
    }
}

impl From<Throttle> for ThrottleLayer {
    fn from(throttle: Throttle) -> Self {
        Self::with_policy(throttle)
    }
}
