use crate::shard::Counter;
use crate::sync::{Mutex, lock};
use std::time::{Duration, Instant};

/// Thousandths in a retry. Budgets count in thousandths, so their arithmetic is exact.
pub(super) const MILLI: u64 = 1000;

/// Nanoseconds in a second.
const NANOS: u128 = 1_000_000_000;

/// The longest step back that is not a clock that was set back.
///
/// Threads may read the clock in one order and take the lock in the other. The time between such
/// readings is less than this and must not be added twice. After a longer step back, the refill
/// continues from the new time.
const MAX_STEP_BACK: Duration = Duration::from_secs(1);

/// The bucket of the ratio, which requests and time fill.
#[derive(Debug)]
pub(super) struct Bucket {
    deposits: Counter,
    /// In thousandths of a retry.
    per_deposit: u32,
    /// In thousandths of a retry.
    per_second: u32,
    pub(super) ledger: Mutex<Ledger>,
}

#[derive(Debug)]
pub(super) struct Ledger {
    /// In thousandths of a retry.
    pub(super) balance: u64,
    /// Deposits that are included in the balance.
    folded: u64,
    refilled_at: Option<Instant>,
    /// The fraction of a thousandth that the time up to `refilled_at` has added, in billionths of a
    /// thousandth.
    carried: u32,
    /// In whole retries. Here, because it fits beside `carried`.
    burst: u32,
}

impl Ledger {
    /// Returns the burst, in thousandths of a retry.
    fn burst(&self) -> u64 {
        u64::from(self.burst) * MILLI
    }
}

impl Bucket {
    pub(super) fn new(percent: f64, min_per_second: f64, burst: u32) -> Self {
        let ledger = Ledger { balance: u64::from(burst) * MILLI, folded: 0, refilled_at: None, carried: 0, burst };
        Self {
            deposits: Counter::default(),
            per_deposit: (percent * 10.0).round() as u32,
            per_second: (min_per_second * MILLI as f64).round() as u32,
            ledger: Mutex::new(ledger),
        }
    }

    #[inline]
    pub(super) fn deposit(&self) {
        self.deposits.add(1);
    }

    /// Takes one retry, if there is one.
    pub(super) fn try_take(&self, now: Instant) -> Option<()> {
        let mut ledger = lock(&self.ledger);
        self.fold(&mut ledger, now);
        ledger.balance = ledger.balance.checked_sub(MILLI)?;
        Some(())
    }

    pub(super) fn give_back(&self) {
        let mut ledger = lock(&self.ledger);
        ledger.balance = ledger.balance.saturating_add(MILLI).min(ledger.burst());
    }

    /// Returns the balance, in thousandths of a retry.
    pub(super) fn balance(&self, now: Instant) -> u64 {
        let mut ledger = lock(&self.ledger);
        self.fold(&mut ledger, now);
        ledger.balance
    }

    /// Adds the deposits and the time since the last call to the balance.
    fn fold(&self, ledger: &mut Ledger, now: Instant) {
        let deposits = self.deposits.sum();
        let deposited = deposits.saturating_sub(ledger.folded).saturating_mul(self.per_deposit.into());
        ledger.folded = deposits;
        let income = deposited.saturating_add(self.refill(ledger, now));
        ledger.balance = ledger.balance.saturating_add(income).min(ledger.burst());
        if ledger.balance == ledger.burst() {
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
