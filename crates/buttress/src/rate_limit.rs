//! Limits calls per time.
//!
//! ```
//! use buttress::{PlainExt, RateLimitLayer};
//! use std::time::Duration;
//!
//! // 100 calls per second, of which 20 may come at once. Others are rejected:
//! let layer = RateLimitLayer::per_second(100).burst(20).plain();
//!
//! // They wait for their turn, for up to 50 ms:
//! let layer = RateLimitLayer::per_second(100).burst(20).wait(Duration::from_millis(50)).plain();
//! # let _ = layer;
//! ```
//!
//! # When to use it
//!
//! On a server, so that no customer takes the share of the others: one limit for each key. On a
//! client, to stay below the limit of a service that is known, with [`wait`](GateLayer::wait), so
//! that bursts are spread and not rejected. Where the limit is not known, an
//! adaptive rate finds it. A rate says nothing about how many calls are in
//! flight: a backend that becomes slow needs a [bulkhead](crate::bulkhead).
//!
//! # Where it belongs
//!
//! On a server outside the bulkhead and the timeout, inside health: a call that is rejected costs
//! nothing. On a client outside retry, where it limits calls and not attempts; the
//! [retry budget](crate::RetryBudget) limits those. Inside retry the client would throttle its own
//! attempts.
//!
//! # One limit for each customer
//!
//! [`RateLimit::new_bucket`](buttress_core::rate_limit::RateLimit::new_bucket) makes limits that
//! share their quota, so that a key takes little memory and one reload reaches all keys:
//!
//! ```
//! use buttress::{PlainExt, RateLimit, gate::GateLayer, keyed::Keyed};
//!
//! struct Request {
//!     customer: u32,
//! }
//!
//! let quota = RateLimit::per_second(10);
//! let buckets = quota.clone();
//! let keyed = Keyed::builder(|request: &Request| request.customer, move |_: &u32| buckets.new_bucket());
//! let layer = GateLayer::with_policy(keyed.max_keys(100_000).build()?).plain();
//! quota.set_limit(20); // all customers, at their next call
//! # let _ = layer;
//! # Ok::<(), buttress::InvalidConfig>(())
//! ```
//!
//! # Several limits on one call
//!
//! [`AllOf`](crate::policy::AllOf) asks several policies, all or nothing: a call that one of them
//! refuses costs the others nothing. With two layers, one inside the other, a call that the inner
//! one rejects has used its share of the outer one. That is so for a bulkhead inside a rate limit
//! too: what it rejects counts for the rate.
//!
//! ```
//! use buttress::{PlainExt, RateLimit, gate::GateLayer, policy::AllOf};
//! use std::time::Duration;
//!
//! let (per_second, per_day) = (RateLimit::per_second(10), RateLimit::new(10_000, Duration::from_secs(86_400)));
//! let layer = GateLayer::with_policy(AllOf::new(per_second, per_day)).plain();
//! # let _ = layer;
//! ```
//!
//! # What callers are told
//!
//! With an HTTP ending (`buttress-http`) a server answers 429 with `Retry-After` and the headers
//! `RateLimit` and `RateLimit-Policy`; [`advertise`](GateLayer::advertise) adds these two to the
//! responses of admitted calls. gRPC answers `RESOURCE_EXHAUSTED` with a pushback. A call that
//! costs more than the burst is never admitted, and gets 403 or `PERMISSION_DENIED`: a 429 would
//! invite the caller to repeat it.
//!
//! # Differences
//!
//! * `governor` (0.10.4) has the same algorithm and no Tower layer; `tower_governor` (0.8.0) is one
//!   for HTTP servers that rejects. Its waiting (`until_ready`) takes nothing before the wait and
//!   asks again after it, so that waiting calls have no order. It does not change a quota in use,
//!   has no way to give calls back, and keeps every key until `retain_recent` is called.
//! * `tower`'s `RateLimit` is a fixed window: at the border of two, twice the limit passes. It is
//!   not `Clone` and its state is in the service, so that behind `axum::serve` it limits one
//!   connection. Calls wait in `poll_ready`, without limit.
//! * `tower-resilience` (0.14.0) offers fixed and sliding windows and a token bucket, each behind a
//!   lock. It has no cost for a call, no keys, and no change of a limit in use.

use crate::{
    clock::TokioClock,
    ending::NoEnding,
    gate::{Gate, GateLayer},
};
use buttress_core::{Name, rate_limit as core};
use std::time::Duration;

pub use buttress_core::rate_limit::{
    Advertised, AdvertisedPermit, LiveQuota, Metered, Quota, RATE_LIMITED, RatePermit, TOO_LARGE, Usage,
};

/// A limit on calls per time. A cheap handle; clones share the bucket.
///
/// It uses tokio's clock.
pub type RateLimit = core::RateLimit<TokioClock>;

/// Builds a [`RateLimit`].
pub type Builder = core::Builder<TokioClock>;

/// A [`RateLimit`] whose calls differ in cost.
pub type Costed<F> = core::Costed<TokioClock, F>;

/// Futures of the services behind a rate limit.
pub mod future {
    pub use crate::gate::ResponseFuture;
    pub use crate::wait::ResponseFuture as WaitFuture;
}

/// A rate limit as a layer. The [module](self) has an example.
pub type RateLimitLayer<E = NoEnding> = GateLayer<RateLimit, E>;

/// A service behind a rate limit that rejects.
pub type RateLimitService<S, E> = Gate<S, RateLimit, E>;

impl RateLimitLayer {
    /// Creates a limit of `limit` calls per second, with a burst of as many. 0 rejects all calls
    /// until [`RateLimit::set_limit`](buttress_core::rate_limit::RateLimit::set_limit).
    ///
    /// ```
    /// use buttress::RateLimitLayer;
    ///
    /// let layer = RateLimitLayer::per_second(100);
    /// assert_eq!(layer.handle().available(), 100);
    /// ```
    pub fn per_second(limit: u32) -> Self {
        RateLimit::per_second(limit).into()
    }

    /// Creates a limit of `limit` calls in each `period`, with a burst of as many.
    ///
    /// ```
    /// use buttress::RateLimitLayer;
    /// use std::time::Duration;
    ///
    /// let layer = RateLimitLayer::new(600, Duration::from_secs(60)).burst(10);
    /// assert_eq!(layer.handle().available(), 10);
    /// ```
    pub fn new(limit: u32, period: Duration) -> Self {
        RateLimit::new(limit, period).into()
    }

    /// Creates a limit with a name, which its rejections, its metrics and the header `RateLimit`
    /// carry.
    ///
    /// ```
    /// use buttress::{RateLimitLayer, policy::Policy};
    /// use std::time::Duration;
    ///
    /// let layer = RateLimitLayer::named("search", 0, Duration::from_secs(1));
    /// let rejection = layer.handle().admit("a request").unwrap_err();
    /// assert_eq!(rejection.to_string(), "rate limit `search`: over the rate");
    /// ```
    pub fn named(name: impl Into<Name>, limit: u32, period: Duration) -> Self {
        RateLimit::named(name, limit, period).into()
    }
}

impl From<RateLimit> for RateLimitLayer {
    fn from(limit: RateLimit) -> Self {
        Self::with_policy(limit)
    }
}

impl<E> RateLimitLayer<E> {
    /// Sets the calls that may come at once, and fills the bucket. Default: the limit.
    pub fn burst(self, calls: u32) -> Self {
        self.map_policy(|limit| limit.burst(calls))
    }

    /// Adds a cost to each call, which `cost` reads from its request. A call without cost is always
    /// admitted, and one that costs more than the burst never.
    ///
    /// ```
    /// use buttress::{PlainExt, RateLimitLayer};
    ///
    /// // A kilobyte per second for each call of a burst of 64:
    /// let layer = RateLimitLayer::per_second(64).cost(|upload: &Vec<u8>| upload.len().div_ceil(1024) as u32).plain();
    /// # let _ = layer;
    /// ```
    pub fn cost<Req: ?Sized, F: Fn(&Req) -> u32>(self, cost: F) -> GateLayer<Costed<F>, E> {
        self.map_policy(|limit| limit.costed(cost))
    }
}

impl<Pol, E> GateLayer<Pol, E> {
    /// Tells callers what is left of the quota, in the protocols that can: HTTP servers add the
    /// headers `RateLimit` and `RateLimit-Policy` to the responses of admitted calls.
    ///
    /// The policy must have a [quota](Metered). Rejections carry it in any case. A limit without a
    /// name is called `default` there; give each a name where there are several.
    ///
    /// ```
    /// use buttress::{PlainExt, RateLimitLayer};
    ///
    /// let layer = RateLimitLayer::per_second(100).advertise();
    /// # let _ = layer.plain();
    /// ```
    pub fn advertise(self) -> GateLayer<Advertised<Pol>, E> {
        self.map_policy(Advertised::new)
    }
}
