//! Budgets that limit retries and hedges, so that they cannot overload a backend that is
//! recovering.
//!
//! | budget | limits | default | source |
//! |---|---|---|---|
//! | ratio | retries to a share of the requests, and a number per second | on: 20 %, 3 per second, burst 100 | Finagle, tower |
//! | [in flight](Builder::in_flight) | retries in flight to a share of the calls in flight | off | Envoy, failsafe-go: 20 %, at least 3 |
//! | [gRPC tokens](Builder::grpc_tokens) | allows retries while most attempts succeed | off | gRFC A6 |
//!
//! One [`RetryBudget`] can hold all three. A retry then needs all of them, and takes nothing from
//! one that allows it if another one denies it.
//!
//! The ratio is the one to start with: it needs no tuning, and holds over any interval. The budget
//! in flight also bounds how many retries a slow backend has at the same time: where calls take
//! long, a share of the requests is many retries in flight. The tokens stop retries within few
//! calls of an outage, because they count failures and not requests.

mod bucket;
mod builder;
mod in_flight;
#[cfg(all(test, loom))]
mod loom_models;
mod tokens;
mod withdrawal;

pub use builder::Builder;
pub use in_flight::CallInFlight;
pub use withdrawal::{RetryInFlight, Withdrawal};

use crate::report::{Metric, Report, Sink};
use crate::{Clock, Name, Outcome, Sent};
use bucket::{Bucket, MILLI};
use in_flight::InFlight;
use std::sync::Arc;
use tokens::Tokens;

/// A budget of retries. A cheap handle; clones share the balance.
///
/// Use one budget for all layers that call one destination. Each request deposits `percent` / 100
/// retries, each second adds `min_per_second`, and each retry withdraws one. The balance is at most
/// `burst`, with which the bucket starts. The [module](self) describes the other two budgets that
/// it can hold.
///
/// # Guarantee
///
/// Over *any* interval, retries ≤ `percent` / 100 · requests + `min_per_second` · seconds +
/// `burst`. The balance is never negative, even if several threads withdraw at the same time.
///
/// # Algorithm
///
/// Deposits need no clock and no lock: they are counted per shard of threads, and the next
/// withdrawal, which takes a lock, adds them to the balance. This is exact: between two withdrawals
/// there are only deposits, and the capped sum does not depend on their order. The refill by time
/// is exact as well: fractions of a thousandth of a retry are carried over to the next refill.
///
/// # Differences from `tower`'s `TpsBudget`
///
/// `TpsBudget` rounds the share to 1/n, so that 0.7 allows a retry for every request. It checks the
/// balance before it subtracts, so that concurrent threads overdraw it. Its window of expiring
/// deposits, from Finagle, limits only intervals that are longer than the deposits' time to live.
///
/// # Example
///
/// ```
/// use buttress_core::{ManualClock, retry_budget::RetryBudget};
///
/// let budget = RetryBudget::<ManualClock>::builder().percent(10.0).min_per_second(0.0).burst(5).build()?;
/// (0..100).for_each(|_| budget.deposit());
/// let mut retries = 0;
/// while let Some(withdrawal) = budget.try_withdraw() {
///     withdrawal.spend();
///     retries += 1;
/// }
/// assert_eq!(retries, 5, "10 % of 100 requests, limited to the burst");
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
///
/// With all three budgets:
///
/// ```
/// use buttress_core::{ManualClock, retry_budget::RetryBudget};
///
/// let builder = RetryBudget::<ManualClock>::builder().percent(20.0).in_flight(0.2, 3).grpc_tokens(10.0, 0.1);
/// let budget = builder.build()?;
/// let retries: Vec<_> = std::iter::from_fn(|| budget.try_withdraw().map(|retry| retry.spend())).collect();
/// assert_eq!(retries.len(), 3, "the retries that are in flight at the same time");
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Clone, Debug)]
pub struct RetryBudget<C> {
    state: Arc<State>,
    clock: C,
}

#[derive(Debug)]
struct State {
    name: Option<Name>,
    bucket: Option<Bucket>,
    /// Behind a pointer: most budgets have neither, and a keyed policy has many budgets.
    limits: Option<Box<Limits>>,
}

#[derive(Debug)]
struct Limits {
    in_flight: Option<InFlight>,
    tokens: Option<Tokens>,
}

impl State {
    fn in_flight(&self) -> Option<&InFlight> {
        self.limits.as_ref()?.in_flight.as_ref()
    }

    fn tokens(&self) -> Option<&Tokens> {
        self.limits.as_ref()?.tokens.as_ref()
    }
}

impl<C: Clock + Default> RetryBudget<C> {
    /// Creates a budget of 20 % of the requests and 3 retries per second, with a burst of 100.
    ///
    /// (Finagle and tower: 20 % and 10 per second. AWS SDKs: a bucket of 500 credits, of which a
    /// retry takes 5.)
    ///
    /// ```
    /// use buttress_core::{ManualClock, retry_budget::RetryBudget};
    ///
    /// assert_eq!(RetryBudget::<ManualClock>::new().balance(), 100.0);
    /// ```
    pub fn new() -> Self {
        Builder::default().into_budget()
    }

    /// Returns a builder with the values of [`new`](Self::new).
    ///
    /// ```
    /// use buttress_core::{ManualClock, retry_budget::RetryBudget};
    ///
    /// let budget = RetryBudget::<ManualClock>::builder().percent(10.0).build()?;
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn builder() -> Builder<C> {
        Builder::default()
    }
}

impl<C: Clock> RetryBudget<C> {
    /// Returns the name, if it has one.
    ///
    /// ```
    /// use buttress_core::{ManualClock, retry_budget::RetryBudget};
    ///
    /// let budget = RetryBudget::<ManualClock>::builder().name("stock").build()?;
    /// assert_eq!(budget.name(), Some("stock"));
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn name(&self) -> Option<&str> {
        self.state.name.as_deref()
    }

    /// Counts one request. Call it once for each logical request, not for its retries, nor for a
    /// request that is itself the retry of a caller.
    ///
    /// ```
    /// use buttress_core::{ManualClock, retry_budget::RetryBudget};
    ///
    /// let budget = RetryBudget::<ManualClock>::builder().percent(50.0).burst(2).build()?;
    /// budget.try_withdraw().unwrap().spend();
    /// budget.deposit();
    /// assert_eq!(budget.balance(), 1.5);
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    #[inline]
    pub fn deposit(&self) {
        if let Some(bucket) = &self.state.bucket {
            bucket.deposit();
        }
    }

    /// Counts a call as in flight until the guard is dropped. `None` without a budget
    /// [in flight](Builder::in_flight).
    ///
    /// Call it once for each logical request, as [`deposit`](Self::deposit). Allocates nothing.
    ///
    /// ```
    /// use buttress_core::{ManualClock, retry_budget::RetryBudget};
    ///
    /// let budget = RetryBudget::<ManualClock>::builder().in_flight(0.5, 1).build()?;
    /// let calls: Vec<_> = (0..4).map(|_| budget.call_in_flight()).collect();
    /// let (first, second) = (budget.try_withdraw(), budget.try_withdraw());
    /// assert!(first.is_some() && second.is_some() && budget.try_withdraw().is_none());
    /// # drop(calls);
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    #[inline]
    #[must_use = "the call is in flight until the guard is dropped"]
    pub fn call_in_flight(&self) -> Option<CallInFlight> {
        self.state.in_flight().map(InFlight::call)
    }

    /// Counts the outcome of an attempt, for the [gRPC tokens](Builder::grpc_tokens): a success
    /// adds the ratio; a failure that could be repeated, and one whose pushback forbids it, takes
    /// one.
    ///
    /// Call it for every attempt, but not for one that is repeated transparently. An attempt that
    /// was not sent, and a failure that is of a kind that no one repeats, change nothing.
    ///
    /// ```
    /// use buttress_core::{Failure, FailureKind, ManualClock, retry_budget::RetryBudget};
    ///
    /// let budget = RetryBudget::<ManualClock>::builder().grpc_tokens(4.0, 0.5).build()?;
    /// let unavailable = Failure::new(FailureKind::Grpc(14)).into();
    /// budget.record(&unavailable);
    /// assert!(budget.try_withdraw().is_some());
    /// budget.record(&unavailable);
    /// assert!(budget.try_withdraw().is_none(), "2 of 4 tokens are left, and more than a half is needed");
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    #[inline]
    pub fn record(&self, outcome: &Outcome) {
        if let Some(tokens) = self.state.tokens() {
            match outcome {
                Outcome::Success => tokens.success(),
                Outcome::Failure(failure) if failure.sent == Sent::Never => {}
                Outcome::Failure(failure) if !failure.no_retry || failure.pushback => tokens.failure(),
                Outcome::Failure(_) | Outcome::Ignored(_) => {}
            }
        }
    }

    /// Withdraws one retry; returns `None` if one of the budgets denies it.
    ///
    /// A [`Withdrawal`] that is dropped without [`spend`](Withdrawal::spend) returns the retry, so
    /// that a call that is dropped during its pause costs nothing. `try_withdraw().is_some()` only
    /// tests the budget.
    ///
    /// ```
    /// use buttress_core::{ManualClock, retry_budget::RetryBudget};
    ///
    /// let budget = RetryBudget::<ManualClock>::builder().burst(1).build()?;
    /// let withdrawal = budget.try_withdraw().unwrap();
    /// assert!(budget.try_withdraw().is_none());
    /// withdrawal.spend();
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    #[must_use = "a withdrawal that is dropped unspent returns the retry"]
    pub fn try_withdraw(&self) -> Option<Withdrawal> {
        if self.state.tokens().is_some_and(|tokens| !tokens.allow()) {
            return None;
        }
        // A place that is taken goes back where the bucket is empty.
        let place = RetryInFlight::take(&self.state)?;
        if let Some(bucket) = &self.state.bucket {
            bucket.try_take(self.clock.now())?;
        }
        Some(Withdrawal::new(place))
    }

    /// Returns how many retries the ratio has left. May be fractional; infinite
    /// [without a ratio](Builder::without_ratio).
    ///
    /// ```
    /// use buttress_core::{ManualClock, retry_budget::RetryBudget};
    ///
    /// let clock = ManualClock::new();
    /// let builder = RetryBudget::<ManualClock>::builder().min_per_second(0.5).burst(8);
    /// let budget = builder.clock(clock.clone()).build()?;
    /// budget.try_withdraw().unwrap().spend();
    /// clock.advance(std::time::Duration::from_secs(1));
    /// assert_eq!(budget.balance(), 7.5);
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn balance(&self) -> f64 {
        let bucket = self.state.bucket.as_ref();
        bucket.map_or(f64::INFINITY, |bucket| bucket.balance(self.clock.now()) as f64 / MILLI as f64)
    }

    /// Returns the retries and hedges that are in flight or in the pause before it. `None` without
    /// a budget [in flight](Builder::in_flight).
    ///
    /// ```
    /// use buttress_core::{ManualClock, retry_budget::RetryBudget};
    ///
    /// let budget = RetryBudget::<ManualClock>::builder().in_flight(0.2, 3).build()?;
    /// let retry = budget.try_withdraw().unwrap().spend();
    /// assert_eq!(budget.retries_in_flight(), Some(1));
    /// drop(retry);
    /// assert_eq!(budget.retries_in_flight(), Some(0));
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn retries_in_flight(&self) -> Option<u64> {
        self.state.in_flight().map(InFlight::retries)
    }

    /// Returns the tokens that are left. May be fractional. `None` without
    /// [gRPC tokens](Builder::grpc_tokens).
    ///
    /// ```
    /// use buttress_core::{ManualClock, retry_budget::RetryBudget};
    ///
    /// let budget = RetryBudget::<ManualClock>::builder().grpc_tokens(10.0, 0.1).build()?;
    /// assert_eq!(budget.tokens(), Some(10.0));
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn tokens(&self) -> Option<f64> {
        self.state.tokens().map(|tokens| tokens.left() as f64 / MILLI as f64)
    }
}

const BALANCE: Metric = Metric::gauge("resilience.budget.balance", "retries", "Retries that the budget has left");
const IN_FLIGHT: Metric =
    Metric::gauge("resilience.budget.in_flight", "retries", "Retries and hedges that are in flight or about to be");
const TOKENS: Metric = Metric::gauge("resilience.budget.tokens", "tokens", "gRPC tokens that the budget has left");

/// Reports the metrics of the budgets that it holds.
impl<C: Clock> Report for RetryBudget<C> {
    fn metrics() -> Vec<Metric> {
        vec![BALANCE, IN_FLIGHT, TOKENS]
    }

    fn name(&self) -> Option<&str> {
        self.name()
    }

    fn report(&self, sink: &mut dyn Sink) {
        if self.state.bucket.is_some() {
            sink.gauge(&BALANCE, self.balance());
        }
        if let Some(retries) = self.retries_in_flight() {
            sink.gauge(&IN_FLIGHT, retries as f64);
        }
        if let Some(tokens) = self.tokens() {
            sink.gauge(&TOKENS, tokens);
        }
    }
}

impl<C: Clock + Default> Default for RetryBudget<C> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
