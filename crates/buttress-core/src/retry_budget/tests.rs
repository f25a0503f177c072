use super::bucket::Ledger;
use super::*;
use crate::report::Value;
use crate::sync::{Mutex, lock};
use crate::testing::{reported, without_waiting};
use crate::{Failure, FailureKind, ManualClock};
use proptest::prelude::*;
use std::time::Duration;

type RetryBudget = super::RetryBudget<ManualClock>;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn empty(percent: f64, min_per_second: f64, burst: u32) -> RetryBudget {
    let budget = RetryBudget::builder().percent(percent).min_per_second(min_per_second).burst(burst).build().unwrap();
    // An `Instant` cannot be set back beyond the start of the machine.
    budget.clock.advance(2 * 3600 * SECOND);
    budget.balance();
    lock(ledger(&budget)).balance = 0;
    budget
}

fn ledger(budget: &RetryBudget) -> &Mutex<Ledger> {
    &budget.state.bucket.as_ref().unwrap().ledger
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
    let held = lock(ledger(&budget));
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
    (0..3).for_each(|_| drop(budget.try_withdraw().unwrap().spend()));
    budget.deposit();
    assert_eq!(balance(), 5.1);
    clock.advance(SECOND);
    assert_eq!(balance(), 5.6);
    assert_eq!(RetryBudget::metrics().len(), 3, "those of the budgets that it does not hold are not reported");
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

const FAILURE: Outcome = Outcome::Failure(Failure::new(FailureKind::Grpc(14)));

fn in_flight(share: f64, min: u32) -> RetryBudget {
    RetryBudget::builder().without_ratio().in_flight(share, min).build().unwrap()
}

fn tokens(max: f64, ratio: f64) -> RetryBudget {
    RetryBudget::builder().without_ratio().grpc_tokens(max, ratio).build().unwrap()
}

#[test]
fn retries_in_flight_are_a_share_of_the_calls_in_flight_and_at_least_the_minimum() {
    for (calls, retries) in [(0, 3), (15, 3), (19, 3), (20, 4), (24, 4), (100, 20)] {
        let budget = in_flight(0.2, 3);
        let calls: Vec<_> = (0..calls).map(|_| budget.call_in_flight()).collect();
        let held: Vec<_> = std::iter::from_fn(|| budget.try_withdraw().map(Withdrawal::spend)).collect();
        assert_eq!(held.len(), retries, "{} calls", calls.len());
    }
}

#[test]
fn a_place_in_flight_is_free_when_the_attempt_ends_or_the_call_is_dropped_in_its_pause() {
    let budget = in_flight(0.0, 1);
    let pausing = budget.try_withdraw().unwrap();
    assert!(budget.try_withdraw().is_none(), "a retry holds its place during its pause");
    drop(pausing);
    let attempt = budget.try_withdraw().unwrap().spend();
    assert!(budget.try_withdraw().is_none());
    drop(attempt);
    assert!(budget.try_withdraw().is_some());
    assert_eq!(budget.retries_in_flight(), Some(0));
}

#[test]
fn calls_that_end_leave_the_retries_in_flight_and_allow_no_more() {
    let budget = in_flight(0.5, 0);
    let mut calls: Vec<_> = (0..4).map(|_| budget.call_in_flight()).collect();
    let held = [(); 2].map(|()| budget.try_withdraw().unwrap().spend());
    calls.truncate(2);
    assert_eq!((budget.retries_in_flight(), budget.try_withdraw().is_none()), (Some(2), true));
    drop(held);
    assert!(budget.try_withdraw().is_some());
    calls.clear();
    assert!(budget.try_withdraw().is_none());
}

#[test]
fn threads_cannot_take_more_places_in_flight_than_there_are() {
    let budget = in_flight(0.0, 100);
    let held: usize = std::thread::scope(|scope| {
        let take = || std::iter::from_fn(|| budget.try_withdraw()).map(|retry| std::mem::forget(retry.spend())).count();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!((held, budget.retries_in_flight()), (100, Some(100)));
}

#[test]
fn a_half_of_the_tokens_is_not_enough() {
    let budget = tokens(10.0, 0.1);
    for failures in 1..=5 {
        budget.record(&FAILURE);
        assert_eq!(budget.try_withdraw().is_some(), failures < 5, "{failures} failures");
    }
    budget.record(&Outcome::Success);
    assert_eq!((budget.tokens(), budget.try_withdraw().is_some()), (Some(5.1), true));
}

#[test]
fn tokens_end_at_zero_and_at_their_maximum() {
    let budget = tokens(2.0, 0.5);
    (0..5).for_each(|_| budget.record(&FAILURE));
    assert_eq!(budget.tokens(), Some(0.0));
    (0..5).for_each(|_| budget.record(&Outcome::Success));
    assert_eq!(budget.tokens(), Some(2.0));
}

#[test]
fn decimals_of_the_tokens_after_the_third_are_ignored() {
    for (ratio, tokens_left) in [(0.5466, 9.546), (0.545, 9.545), (0.001, 9.001), (0.0019, 9.001)] {
        let budget = tokens(10.0, ratio);
        budget.record(&FAILURE);
        budget.record(&Outcome::Success);
        assert_eq!(budget.tokens(), Some(tokens_left), "{ratio}");
    }
}

#[test]
fn tokens_are_taken_by_failures_that_could_be_repeated_and_by_pushbacks_that_forbid_it() {
    let failure = Failure::new(FailureKind::Grpc(14));
    for (failure, taken) in [
        (failure, 1.0),
        (Failure { no_retry: true, pushback: true, ..failure }, 1.0),
        (Failure { retried: true, ..failure }, 1.0),
        (Failure { no_retry: true, ..failure }, 0.0),
        (failure.sent(Sent::NotProcessed), 1.0),
        (failure.sent(Sent::Never), 0.0),
    ] {
        let budget = tokens(10.0, 0.1);
        budget.record(&failure.into());
        assert_eq!(budget.tokens(), Some(10.0 - taken), "{failure:?}");
    }
    let budget = tokens(10.0, 0.1);
    budget.record(&Outcome::CANCELLED);
    assert_eq!(budget.tokens(), Some(10.0));
}

#[test]
fn a_retry_that_one_budget_denies_costs_the_others_nothing() {
    let all = || RetryBudget::builder().percent(0.0).min_per_second(0.0).in_flight(0.0, 2).grpc_tokens(4.0, 0.5);
    let budget = all().burst(1).build().unwrap();
    budget.try_withdraw().unwrap().spend();
    assert!(budget.try_withdraw().is_none(), "the ratio is used up");
    assert_eq!((budget.balance(), budget.retries_in_flight()), (0.0, Some(0)));

    let budget = all().burst(5).build().unwrap();
    let held = [(); 2].map(|()| budget.try_withdraw().unwrap().spend());
    assert!(budget.try_withdraw().is_none(), "two are in flight");
    assert_eq!(budget.balance(), 3.0);
    drop(held);

    (0..2).for_each(|_| budget.record(&FAILURE));
    assert!(budget.try_withdraw().is_none(), "half of the tokens is used up");
    assert_eq!((budget.balance(), budget.retries_in_flight()), (3.0, Some(0)));
}

#[test]
fn each_budget_that_it_holds_reports_its_own_gauge() {
    let budget = RetryBudget::builder().burst(4).in_flight(0.2, 3).grpc_tokens(10.0, 0.1).build().unwrap();
    let _retry = budget.try_withdraw().unwrap().spend();
    budget.record(&FAILURE);
    let values = reported(&budget).into_iter().map(|(name, _, value)| (name, value));
    let expected = [
        ("resilience.budget.balance", Value::Gauge(3.0)),
        ("resilience.budget.in_flight", Value::Gauge(1.0)),
        ("resilience.budget.tokens", Value::Gauge(9.0)),
    ];
    assert!(values.eq(expected));
    assert_eq!(reported(&tokens(10.0, 0.1)).len(), 1);
    assert_eq!(tokens(10.0, 0.1).balance(), f64::INFINITY);
}

#[test]
fn bad_values_of_the_other_budgets_are_named() {
    let error = |builder: Builder<ManualClock>| builder.build().unwrap_err();
    for share in [-0.1, 1.1, f64::NAN] {
        assert_eq!(error(RetryBudget::builder().in_flight(share, 3)).field(), "in_flight", "{share}");
    }
    for (max, ratio) in [(0.0, 0.1), (1000.1, 0.1), (f64::NAN, 0.1), (10.0, 0.0), (10.0, 0.0001), (10.0, f64::NAN)] {
        assert_eq!(error(RetryBudget::builder().grpc_tokens(max, ratio)).field(), "grpc_tokens", "{max} {ratio}");
    }
    assert_eq!(error(RetryBudget::builder().without_ratio()).field(), "without_ratio");
}

proptest! {
    #[test]
    fn retries_in_flight_never_exceed_what_was_allowed_when_they_started_and_tokens_stay_in_their_range(
        share in 0u32..=1000, min in 0u32..5, max in 1u32..=1000, ratio in 1u32..3000,
        steps in prop::collection::vec((0u8..6, 0usize..8), 1..200),
    ) {
        let builder = RetryBudget::builder().without_ratio().in_flight(f64::from(share) / 1000.0, min);
        let budget = builder.grpc_tokens(max.into(), f64::from(ratio) / 1000.0).build().unwrap();
        let (mut calls, mut pausing, mut attempts) = (Vec::new(), Vec::new(), Vec::new());
        // The naive model, in thousandths.
        let mut tokens = u64::from(max) * 1000;
        for (step, index) in steps {
            match step {
                0 => calls.push(budget.call_in_flight()),
                1 if index < calls.len() => drop(calls.swap_remove(index)),
                2 => {
                    let allowed = (calls.len() as u64 * u64::from(share) / 1000).max(min.into());
                    let allows = tokens * 2 > u64::from(max) * 1000 && budget.retries_in_flight().unwrap() < allowed;
                    let retry = budget.try_withdraw();
                    prop_assert_eq!(retry.is_some(), allows);
                    pausing.extend(retry);
                }
                3 if index < pausing.len() => attempts.push(pausing.swap_remove(index).spend()),
                4 if index < attempts.len() => drop(attempts.swap_remove(index)),
                5 if index < 4 => {
                    budget.record(&FAILURE);
                    tokens = tokens.saturating_sub(1000);
                }
                5 => {
                    budget.record(&Outcome::Success);
                    tokens = (tokens + u64::from(ratio)).min(u64::from(max) * 1000);
                }
                _ => {}
            }
            prop_assert_eq!(budget.retries_in_flight(), Some((pausing.len() + attempts.len()) as u64));
            prop_assert_eq!(budget.tokens(), Some(tokens as f64 / 1000.0));
        }
    }

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
