//! Sends a call again that has no answer yet, and takes the answer that comes first.
//!
//! ```
//! use buttress::{HedgeLayer, PlainExt, RetryBudget, hedge::Delay};
//! use std::time::Duration;
//!
//! // With defaults: one hedge after the 95th percentile of the latency, for 5 % of the calls.
//! let reads = HedgeLayer::percentile(95.0)?.plain();
//!
//! let delay = Delay::percentile(99.0).max(Duration::from_secs(1)).build()?;
//! let budget = RetryBudget::builder().percent(1.0).min_per_second(0.0).build()?;
//! let searches = HedgeLayer::with_delay(delay).budget(budget).max_hedges(2).named("search").plain();
//! # let _ = (reads, searches);
//! # Ok::<(), buttress::InvalidConfig>(())
//! ```
//!
//! # When to use it
//!
//! For reads from a backend with several instances, of which one is slow now and then: a garbage
//! collection, a full queue, a cold cache. The slowest hundredth of the calls then takes as long as
//! the delay and a usual call. It does not help where all calls are slow.
//!
//! # What is sent again
//!
//! The ending says which requests may be processed twice; over HTTP and gRPC these are idempotent
//! ones. Others are sent once. [`.plain()`](crate::ending::Plain) takes every request for
//! idempotent.
//!
//! 1. After the [`Delay`] without an answer the next attempt is sent, after twice the delay the one
//!    after it, up to [`max_hedges`](HedgeLayer::max_hedges) more than the first. The delay starts
//!    when the first attempt does not answer at once. While a percentile is unknown, none is sent.
//! 2. The first success is the answer, and so is a failure that another attempt would not change
//!    (501, gRPC `INTERNAL`). The other attempts are dropped at once; over HTTP/2 their streams are
//!    reset. They are no failures for the layers inside, which give back what they held.
//! 3. After another failure the next attempt is sent at once; if the failure asks for a pause, up
//!    to [`max_hint`](HedgeLayer::max_hint), after that pause. If it forbids another attempt, none
//!    is sent. A rejection by a layer of this crate sends none either. In all these cases the
//!    attempts in flight go on.
//! 4. If all attempts have failed and none is due, the failure of the earliest one is the answer.
//! 5. Each attempt after the first is withdrawn from the [budget](HedgeLayer::budget). If that is
//!    empty, the call waits for the attempts in flight.
//! 6. A hedge that would have less time than the delay until the deadline of the call
//!    ([`CallContext`](crate::policy::CallContext)) is not sent.
//!
//! Each attempt has a clone of the inner service, which is polled until it is ready while the
//! attempts before it go on.
//!
//! # What the percentile learns from
//!
//! From attempts that succeed, those that time out, and those that lose after the delay, with the
//! time that they had taken until then. A call that its caller drops counts in the same way. If
//! all calls become slow, the percentile becomes as long, and hedges go back to their share; until
//! then, for a few seconds, the budget bounds them.
//!
//! # Where it belongs
//!
//! Inside retry, and outside the balancer, circuit breaker, bulkhead and attempt timeout. Each
//! attempt is then balanced, and is a sample of its own. Share the budget with the retry
//! ([`shared_budget`](HedgeLayer::shared_budget)).
//!
//! # Differences
//!
//! * Finagle's `BackupRequestFilter` has the percentile of a window, losers that count as lower
//!   bounds, and two budgets. It sends one backup, returns the result of an attempt that ends
//!   before the backup even if it is a failure, and sends no backup if the percentile is above 2 s.
//!   Here that limit is [`max`](Builder::max).
//! * gRPC (gRFC A6) has the rules for failures and pushbacks, and fixed delays. Without a delay it
//!   sends all attempts at once.
//! * Polly's delay is fixed or comes from a function, and zero means that all attempts start
//!   together. It waits for the attempts that it cancels before it returns.
//! * failsafe-go's percentile learns only from the results that calls return, so that slow attempts
//!   that lose do not count. Its budget is a share of the calls in flight, which hedges and retries
//!   have together.
//! * Envoy sends another request only when the timeout of a try has expired.
//! * `tower`'s `Hedge` has a percentile of a window. It has no budget, and no rule for failures.
//! * `tower-resilience` (0.14.0) has no budget: 100 calls to a slow backend became 500. After a
//!   failure it waits for the delay. Its requests must be `Clone`.

mod attempt;
mod hedging;
mod layer;
mod service;

pub use layer::{HedgeLayer, HedgeStats};
pub use service::Hedge;

use crate::clock::TokioClock;
use buttress_core::hedge as core;

/// The future of a [`Hedge`].
pub mod future {
    pub use super::service::ResponseFuture;
}

/// How long a call waits for an answer before it is sent again. A cheap handle; clones share what
/// was learned.
///
/// It uses tokio's clock.
pub type Delay = core::Delay<TokioClock>;

/// Builds a [`Delay`] that is a percentile.
pub type Builder = core::Builder<TokioClock>;
