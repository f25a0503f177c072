//! A budget that limits retries to a share of the requests, so that retries cannot overload a
//! backend that is recovering.

use crate::report::{Metric, Report, Sink};
use crate::shard::Counter;
use crate::sync::{Mutex, lock};
use crate::{Clock, InvalidConfig, Name};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Thousandths in a retry. The budget counts in thousandths, so its arithmetic is exact.
const MILLI: u64 = 1000;

/// Nanoseconds in a second.
const NANOS: u128 = 1_000_000_000;

/// The longest step back that is not a clock that was set back.
///
/// Threads may read the clock in one order and take the lock in the other. The time between such
/// readings is less than this and must not be added twice. After a longer step back, the refill
/// continues from the new time.
const MAX_STEP_BACK: Duration = Duration::from_secs(1);

/// A token bucket of retries. A cheap handle; clones share the balance.
///
/// Use one budget for all layers that call one destination. Each request deposits `percent` / 100
/// retries, each second adds `min_per_second`, and each retry withdraws one. The balance is at most
/// `burst`, with which the bucket starts.
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
#[derive(Clone, Debug)]
pub struct RetryBudget<C> {
    state: Arc<State>,
    clock: C,
}

#[derive(Debug)]
struct State {
    name: Option<Name>,
    deposits: Counter,
    /// In thousandths of a retry.
    per_deposit: u32,
    /// In thousandths of a retry.
    per_second: u32,
    /// In whole retries.
    burst: u32,
    ledger: Mutex<Ledger>,
}

#[derive(Debug)]
struct Ledger {
    /// In thousandths of a retry.
    balance: u64,
    /// Deposits that are included in the balance.
    folded: u64,
    refilled_at: Option<Instant>,
    /// The fraction of a thousandth that the time up to `refilled_at` has added, in billionths of a
    /// thousandth.
    carried: u32,
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

    /// Counts one request. Call it once for each logical request, not for its retries.
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
    pub fn deposit(&self) {
        self.state.deposits.add(1);
    }

    /// Withdraws one retry; returns `None` if the balance is less than one.
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
        let state = &*self.state;
        let mut ledger = lock(&state.ledger);
        state.fold(&mut ledger, self.clock.now());
        ledger.balance = ledger.balance.checked_sub(MILLI)?;
        Some(Withdrawal { budget: self.state.clone(), spent: false })
    }

    /// Returns how many retries are left. May be fractional.
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
        let mut ledger = lock(&self.state.ledger);
        self.state.fold(&mut ledger, self.clock.now());
        ledger.balance as f64 / MILLI as f64
    }
}

const BALANCE: Metric = Metric::gauge("resilience.budget.balance", "retries", "Retries that the budget has left");

impl<C: Clock> Report for RetryBudget<C> {
    fn metrics() -> Vec<Metric> {
        vec![BALANCE]
    }

    fn name(&self) -> Option<&str> {
        self.name()
    }

    fn report(&self, sink: &mut dyn Sink) {
        sink.gauge(&BALANCE, self.balance());
    }
}

impl<C: Clock + Default> Default for RetryBudget<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    /// Returns the burst, in thousandths of a retry.
    fn burst(&self) -> u64 {
        u64::from(self.burst) * MILLI
    }

    /// Adds the deposits and the time since the last call to the balance.
    fn fold(&self, ledger: &mut Ledger, now: Instant) {
        let deposits = self.deposits.sum();
        let deposited = deposits.saturating_sub(ledger.folded).saturating_mul(self.per_deposit.into());
        ledger.folded = deposits;
        let income = deposited.saturating_add(self.refill(ledger, now));
        ledger.balance = ledger.balance.saturating_add(income).min(self.burst());
        if ledger.balance == self.burst() {
            // Otherwise a fraction of a thousandth would be saved beyond the burst.
            ledger.carried = 0;
        }
    }

    /// Returns what the time since the last refill adds, in thousandths of a retry.
    fn refill(&self, ledger: &mut Ledger, now: Instant) -> u64 {
        let since = *ledger.refilled_at.get_or_insert(now);
        if now <= since {
            if since - now > MAX_STEP_BACK {
                ledger.refilled_at = Some(now);
            }
            return 0;
        }
        ledger.refilled_at = Some(now);
        let share = (now - since).as_nanos().saturating_mul(self.per_second.into()) + u128::from(ledger.carried);
        ledger.carried = (share % NANOS) as u32;
        u64::try_from(share / NANOS).unwrap_or(u64::MAX)
    }
}

/// A guard of one retry that was withdrawn from a budget.
///
/// Dropping it without [`spend`](Self::spend) returns the retry to the budget.
///
/// ```
/// use buttress_core::{ManualClock, retry_budget::RetryBudget};
///
/// let budget = RetryBudget::<ManualClock>::builder().burst(1).build()?;
/// drop(budget.try_withdraw().unwrap()); // the call was dropped during its pause
/// assert_eq!(budget.balance(), 1.0);
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Debug)]
#[must_use = "a withdrawal that is dropped unspent returns the retry"]
pub struct Withdrawal {
    budget: Arc<State>,
    spent: bool,
}

impl Withdrawal {
    /// Spends the retry. Call it when the retry is sent.
    ///
    /// ```
    /// use buttress_core::{ManualClock, retry_budget::RetryBudget};
    ///
    /// let budget = RetryBudget::<ManualClock>::builder().burst(1).build()?;
    /// budget.try_withdraw().unwrap().spend();
    /// assert_eq!(budget.balance(), 0.0);
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn spend(mut self) {
        self.spent = true;
    }
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        if !self.spent {
            let mut ledger = lock(&self.budget.ledger);
            ledger.balance = ledger.balance.saturating_add(MILLI).min(self.budget.burst());
        }
    }
}

/// Builds a [`RetryBudget`].
///
/// ```
/// use buttress_core::{ManualClock, retry_budget::RetryBudget};
///
/// let builder = RetryBudget::<ManualClock>::builder().name("stock").percent(10.0).min_per_second(1.0);
/// assert_eq!(builder.burst(50).build()?.balance(), 50.0);
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder<C> {
    name: Option<Name>,
    clock: C,
    percent: f64,
    min_per_second: f64,
    burst: u32,
}

impl<C: Default> Default for Builder<C> {
    fn default() -> Self {
        Self { name: None, clock: C::default(), percent: 20.0, min_per_second: 3.0, burst: 100 }
    }
}

impl<C: Clock> Builder<C> {
    /// Sets the name in metrics. None by default.
    pub fn name(mut self, name: impl Into<Name>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the clock, for tests and simulations.
    ///
    /// ```
    /// use buttress_core::{ManualClock, retry_budget::RetryBudget};
    ///
    /// let clock = ManualClock::new();
    /// let budget = RetryBudget::<ManualClock>::builder().clock(clock.clone()).build()?;
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn clock<D: Clock>(self, clock: D) -> Builder<D> {
        let Self { name, clock: _, percent, min_per_second, burst } = self;
        Builder { name, clock, percent, min_per_second, burst }
    }

    /// Sets the retries for each hundred requests: 0 to 1000, rounded to a tenth. Default 20
    /// (Finagle, tower).
    ///
    /// ```
    /// use buttress_core::{ManualClock, retry_budget::RetryBudget};
    ///
    /// let builder = RetryBudget::<ManualClock>::builder();
    /// assert_eq!(builder.percent(-1.0).build().unwrap_err().field(), "percent");
    /// ```
    pub fn percent(mut self, percent: f64) -> Self {
        self.percent = percent;
        self
    }

    /// Sets the retries that each second adds, whatever the traffic: 0 to 1,000,000, rounded to a
    /// thousandth. Default 3: enough for a client with few requests, and less than the 10 of
    /// Finagle and tower.
    pub fn min_per_second(mut self, retries: f64) -> Self {
        self.min_per_second = retries;
        self
    }

    /// Sets the maximum balance, in retries, with which the budget starts. At least 1. Default 100
    /// (the AWS SDKs' bucket, in retries).
    pub fn burst(mut self, retries: u32) -> Self {
        self.burst = retries;
        self
    }

    /// Creates the budget.
    ///
    /// # Errors
    /// If a value is out of its range. The error names the setting and the rule that it breaks.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::{ManualClock, retry_budget::RetryBudget};
    ///
    /// let error = RetryBudget::<ManualClock>::builder().burst(0).build().unwrap_err();
    /// assert_eq!(error.field(), "burst");
    /// ```
    pub fn build(self) -> Result<RetryBudget<C>, InvalidConfig> {
        if !(0.0..=1000.0).contains(&self.percent) {
            return Err(InvalidConfig::new("percent", "must be between 0 and 1000"));
        }
        if !(0.0..=1_000_000.0).contains(&self.min_per_second) {
            return Err(InvalidConfig::new("min_per_second", "must be between 0 and 1,000,000"));
        }
        if self.burst == 0 {
            return Err(InvalidConfig::new("burst", "must be at least 1, or no retry is allowed"));
        }
        Ok(self.into_budget())
    }

    fn into_budget(self) -> RetryBudget<C> {
        let state = State {
            name: self.name,
            deposits: Counter::default(),
            per_deposit: (self.percent * 10.0).round() as u32,
            per_second: (self.min_per_second * MILLI as f64).round() as u32,
            burst: self.burst,
            ledger: Mutex::new(Ledger {
                balance: u64::from(self.burst) * MILLI,
                folded: 0,
                refilled_at: None,
                carried: 0,
            }),
        };
        RetryBudget { state: Arc::new(state), clock: self.clock }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
