//! A rate for the calls of a client, which follows what the backend admits.
//!
//! ```
//! use buttress::{AdaptiveRateLayer, PlainExt};
//! use std::time::Duration;
//!
//! // Calls over the rate wait for up to 2 s:
//! let layer = AdaptiveRateLayer::named("inventory").wait(Duration::from_secs(2)).plain();
//!
//! // They are rejected:
//! let layer = AdaptiveRateLayer::named("inventory").plain();
//! # let _ = layer;
//! ```
//!
//! # When to use it
//!
//! Around a client of a backend that throttles at a limit that is not known or changes, such as the
//! API of another company. It is off until the backend throttles for the first time (429,
//! `RESOURCE_EXHAUSTED`, a rejection at admission by a Buttress layer or by Envoy), and costs a
//! counter until then. Retries alone would keep sending what the backend rejects. Where the limit
//! is known, a [rate limit](crate::rate_limit) stays below it from the start.
//!
//! The ending must tell throttling from other failures: those of `buttress-http` do. With
//! [`.plain()`](crate::ending::Plain) it stays off, unless a classifier reports
//! [`Failure::overload`](crate::outcome::Failure::overload).
//!
//! A client that is throttled in its first half second has measured no rate yet, and begins with
//! one call in two seconds. From there it takes between 5 and 10 s to 50 calls per second, if calls
//! wait for at most 2 s. Longer waits slow it down, because a call that waits keeps the start that
//! it was given at the lower rate: with 100 callers that wait for up to 10 s it takes 18 s.
//!
//! # Where it belongs
//!
//! Inside retry: each attempt costs the backend one call, and what it answers is counted for each.
//! One handle for all layers that call one backend.
//!
//! # Algorithm
//!
//! That of the adaptive retry mode of AWS's SDKs: see
//! [`buttress_core::adaptive_rate`](https://docs.rs/buttress-core/latest/buttress_core/adaptive_rate/).
//!
//! # Differences
//!
//! * AWS's SDKs block each call until it has a token, without a limit. Here a call waits for up to
//!   `max_wait` and up to its deadline, or is rejected.
//! * `tower` and `tower-resilience` (0.14.0) have no rate that follows a backend. Their adaptive
//!   limits are limits on calls in flight.

use crate::{
    clock::TokioClock,
    ending::NoEnding,
    gate::{Gate, GateLayer},
};
use buttress_core::{Name, adaptive_rate as core};

pub use buttress_core::adaptive_rate::{AdaptiveRatePermit, THROTTLED};

/// A rate that follows what a backend admits. A cheap handle; clones share the rate.
///
/// It uses tokio's clock.
pub type AdaptiveRate = core::AdaptiveRate<TokioClock>;

/// An adaptive rate as a layer. The [module](self) has an example.
pub type AdaptiveRateLayer<E = NoEnding> = GateLayer<AdaptiveRate, E>;

/// A service behind an adaptive rate that rejects.
pub type AdaptiveRateService<S, E> = Gate<S, AdaptiveRate, E>;

impl AdaptiveRateLayer {
    /// Creates a rate that is off.
    ///
    /// ```
    /// use buttress::AdaptiveRateLayer;
    ///
    /// assert_eq!(AdaptiveRateLayer::new().handle().limit(), None);
    /// ```
    pub fn new() -> Self {
        AdaptiveRate::new().into()
    }

    /// Creates a rate with a name, which its rejections and metrics carry.
    ///
    /// ```
    /// use buttress::AdaptiveRateLayer;
    ///
    /// assert_eq!(AdaptiveRateLayer::named("inventory").handle().name(), Some("inventory"));
    /// ```
    pub fn named(name: impl Into<Name>) -> Self {
        AdaptiveRate::named(name).into()
    }
}

impl From<AdaptiveRate> for AdaptiveRateLayer {
    fn from(rate: AdaptiveRate) -> Self {
        Self::with_policy(rate)
    }
}
