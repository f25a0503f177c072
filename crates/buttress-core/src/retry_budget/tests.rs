use super::*;
use crate::ManualClock;
use crate::report::Value;
use crate::testing::{reported, without_waiting};
use proptest::prelude::*;

type RetryBudget = super::RetryBudget<ManualClock>;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn empty(percent: f64, min_per_second: f64, burst: u32) -> RetryBudget {
    let budget = RetryBudget::builder().percent(percent).min_per_second(min_per_second).burst(burst).build().unwrap();
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
fn a_deposit_takes_no_lock() {
    let budget = empty(100.0, 0.0, 10);
    let held = lock(&budget.state.ledger);
    let caller = budget.clone();
    without_waiting(move || caller.deposit());
    drop(held);
    assert_eq!(budget.balance(), 1.0);
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
fn a_budget_starts_with_a_hundred_retries_and_adds_a_fifth_of_the_requests_and_three_a_second() {
    let budget = RetryBudget::new();
    assert_eq!(budget.balance(), 100.0);
    assert_eq!((withdraw_all(&budget), budget.balance()), (100, 0.0));
    (0..10).for_each(|_| budget.deposit());
    assert_eq!(budget.balance(), 2.0);
    budget.clock.advance(SECOND);
    assert_eq!(budget.balance(), 5.0);
}

#[test]
fn a_retry_that_comes_back_does_not_overfill_the_bucket() {
    let budget = RetryBudget::builder().percent(100.0).min_per_second(0.0).burst(2).build().unwrap();
    let withdrawal = budget.try_withdraw().unwrap();
    (0..5).for_each(|_| budget.deposit());
    assert_eq!(budget.balance(), 2.0);
    drop(withdrawal);
    assert_eq!((withdraw_all(&budget), budget.balance()), (2, 0.0));
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
