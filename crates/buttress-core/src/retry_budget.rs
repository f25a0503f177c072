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
/// Deposits need no clock and no shared cache line: they are counted per thread, and the next
/// withdrawal adds them to the balance. This is exact: between two withdrawals there are only
/// deposits, and the capped sum does not depend on their order. The refill by time is exact as
/// well: fractions of a thousandth of a retry are carried over to the next refill.
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
mod tests {
    use super::*;
    use crate::ManualClock;
    use crate::report::Value;
    use crate::testing::reported;
    use proptest::prelude::*;

    type RetryBudget = super::RetryBudget<ManualClock>;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn empty(percent: f64, min_per_second: f64, burst: u32) -> RetryBudget {
        let budget =
            RetryBudget::builder().percent(percent).min_per_second(min_per_second).burst(burst).build().unwrap();
        // An `Instant` cannot be set back beyond the start of the machine.
        budget.clock.advance(2 * 3600 * SECOND);
        budget.balance();
        lock(&budget.state.ledger).balance = 0;
        budget
    }

    impl RetryBudget {
        fn set_back(&self, time: Duration) {
            self.clock.set(self.clock.now() - time);
        }
    }

    fn withdraw_all(budget: &RetryBudget) -> u32 {
        let mut n = 0;
        while let Some(withdrawal) = budget.try_withdraw() {
            withdrawal.spend();
            n += 1;
        }
        n
    }

    #[test]
    fn seventy_percent_of_a_thousand_requests_are_seven_hundred_retries() {
        for (percent, retries) in [(70.0, 700), (30.0, 300), (60.0, 600), (0.1, 1)] {
            let budget = empty(percent, 0.0, 1000);
            (0..1000).for_each(|_| budget.deposit());
            assert_eq!(withdraw_all(&budget), retries, "{percent} %");
        }
    }

    #[test]
    fn time_adds_the_minimum_and_no_more_than_the_burst_is_saved() {
        let budget = empty(0.0, 3.0, 10);
        budget.clock.advance(999 * MS);
        assert_eq!(withdraw_all(&budget), 2);
        budget.clock.advance(2 * MS);
        assert_eq!(withdraw_all(&budget), 1, "the fraction that was left of the first second counts");
        budget.clock.advance(3600 * SECOND);
        assert_eq!(withdraw_all(&budget), 10);
    }

    #[test]
    fn the_minimum_is_exact_at_every_rate() {
        for rate in [1.0, 3.0, 1_500.0, 3_000.0, 150_000.0, 600_000.0, 700_000.0, 999_999.0, 1_000_000.0] {
            let budget = empty(0.0, rate, u32::MAX);
            budget.clock.advance(SECOND);
            assert_eq!(budget.balance(), rate, "{rate} a second");
        }
    }

    #[test]
    fn the_minimum_is_exact_however_often_the_balance_is_read() {
        for rate in [0.7, 3.0, 700_000.0] {
            let budget = empty(0.0, rate, u32::MAX);
            let start = budget.clock.now();
            // 77,777 ns does not divide a second: every reading leaves a fraction of a thousandth.
            while budget.clock.now() < start + SECOND {
                budget.clock.advance(Duration::from_nanos(77_777));
                budget.balance();
            }
            budget.clock.set(start + 10 * SECOND);
            assert_eq!(budget.balance(), rate * 10.0, "{rate} a second");
        }
    }

    #[test]
    fn a_full_bucket_saves_no_fraction() {
        let budget = RetryBudget::builder().percent(0.0).min_per_second(0.001).burst(1).build().unwrap();
        budget.balance();
        budget.clock.advance(999 * MS);
        budget.balance();
        budget.try_withdraw().unwrap().spend();
        budget.clock.advance(999 * MS);
        assert_eq!(budget.balance(), 0.0);
    }

    #[test]
    fn a_clock_that_is_set_back_an_hour_goes_on_from_there() {
        let budget = empty(0.0, 3.0, 10);
        budget.set_back(3600 * SECOND);
        assert_eq!(withdraw_all(&budget), 0);
        budget.clock.advance(SECOND);
        assert_eq!(withdraw_all(&budget), 3);
    }

    #[test]
    fn a_compact_budget_takes_at_most_128_bytes() {
        // The reference counts and the state. A compact counter is part of the state.
        let counts = 2 * size_of::<usize>();
        assert!(counts + size_of::<State>() <= 128, "{}", size_of::<State>());
    }

    #[test]
    fn a_retry_given_up_during_its_pause_goes_back() {
        let budget = empty(0.0, 0.0, 1);
        assert!(budget.try_withdraw().is_none());
        let budget = RetryBudget::builder().burst(1).min_per_second(0.0).build().unwrap();
        drop(budget.try_withdraw().expect("the bucket starts full"));
        assert!(budget.try_withdraw().is_some());
    }

    #[test]
    fn threads_cannot_overdraw_it() {
        let budget = RetryBudget::builder().percent(0.0).min_per_second(0.0).burst(1000).build().unwrap();
        let taken: u32 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| withdraw_all(&budget))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 1000);
    }

    #[test]
    fn a_clock_that_jumps_back_adds_nothing_and_does_not_panic() {
        let budget = empty(0.0, 3.0, 10);
        budget.set_back(50 * SECOND);
        assert_eq!(withdraw_all(&budget), 0);
    }

    #[test]
    fn it_reports_its_balance() {
        let clock = ManualClock::new();
        let builder = RetryBudget::builder().name("stock").percent(10.0).min_per_second(0.5).burst(8);
        let budget = builder.clock(clock.clone()).build().unwrap();
        let balance = || match reported(&budget)[..] {
            [("resilience.budget.balance", ["", ""], Value::Gauge(balance))] => balance,
            ref others => panic!("{others:?}"),
        };
        assert_eq!(balance(), 8.0);
        (0..3).for_each(|_| budget.try_withdraw().unwrap().spend());
        budget.deposit();
        assert_eq!(balance(), 5.1);
        clock.advance(SECOND);
        assert_eq!(balance(), 5.6);
        assert_eq!(RetryBudget::metrics().len(), 1, "every metric is reported");
        assert_eq!((Report::name(&budget), Report::name(&RetryBudget::new())), (Some("stock"), None));
    }

    #[test]
    fn bad_values_are_named() {
        assert_eq!(RetryBudget::builder().percent(f64::NAN).build().unwrap_err().field(), "percent");
        assert_eq!(RetryBudget::builder().min_per_second(-1.0).build().unwrap_err().field(), "min_per_second");
        assert_eq!(RetryBudget::builder().burst(0).build().unwrap_err().field(), "burst");
    }

    proptest! {
        #[test]
        fn retries_never_exceed_share_plus_minimum_plus_burst(
            percent in 0u32..1000, per_second in 0u32..50, burst in 1u32..50,
            steps in prop::collection::vec((0u64..500, 0u32..20, 0u32..20), 1..60),
        ) {
            let budget = RetryBudget::builder().percent(percent.into()).min_per_second(per_second.into()).burst(burst).build().unwrap();
            let start = budget.clock.now();
            let (mut requests, mut retries) = (0u64, 0u64);
            for (pause, deposits, wanted) in steps {
                budget.clock.advance(Duration::from_millis(pause));
                (0..deposits).for_each(|_| budget.deposit());
                requests += u64::from(deposits);
                for _ in 0..wanted {
                    if let Some(w) = budget.try_withdraw() { w.spend(); retries += 1; }
                }
                let seconds = (budget.clock.now() - start).as_secs_f64();
                let bound = requests as f64 * f64::from(percent) / 100.0 + f64::from(per_second) * seconds + f64::from(burst);
                prop_assert!(retries as f64 <= bound + 1e-6, "{retries} > {bound}");
                prop_assert!(budget.balance() >= 0.0);
            }
        }
    }
}
