use super::RetryBudget;
use crate::loom_models::model;
use crate::{Failure, FailureKind, ManualClock, Outcome};
use loom::thread;

const FAILURE: Outcome = Outcome::Failure(Failure::new(FailureKind::Grpc(14)));

fn budget() -> super::Builder<ManualClock> {
    RetryBudget::builder().percent(0.0).min_per_second(0.0).burst(1)
}

#[test]
fn of_two_retries_at_once_one_gets_the_last_place_in_flight() {
    model(|| {
        let budget = budget().without_ratio().in_flight(0.0, 1).build().unwrap();
        let withdraw = |budget: RetryBudget<ManualClock>| move || budget.try_withdraw();
        let thread = thread::spawn(withdraw(budget.clone()));
        let (mine, theirs) = (budget.try_withdraw(), thread.join().unwrap());
        assert!(mine.is_some() ^ theirs.is_some());
        drop((mine, theirs));
        assert_eq!(budget.retries_in_flight(), Some(0));
    });
}

#[test]
fn a_retry_that_ends_while_another_one_starts_leaves_an_exact_count() {
    model(|| {
        let budget = budget().without_ratio().in_flight(0.0, 1).build().unwrap();
        let ends = budget.try_withdraw().unwrap().spend();
        let thread = thread::spawn(move || drop(ends));
        let starts = budget.try_withdraw();
        thread.join().unwrap();
        assert_eq!(budget.retries_in_flight(), Some(starts.is_some().into()));
    });
}

#[test]
fn a_retry_that_the_ratio_denies_leaves_its_place_in_flight() {
    model(|| {
        let budget = budget().in_flight(0.0, 2).build().unwrap();
        let other = budget.clone();
        let thread = thread::spawn(move || other.try_withdraw());
        let (mine, theirs) = (budget.try_withdraw(), thread.join().unwrap());
        assert!(mine.is_some() ^ theirs.is_some());
        assert_eq!((budget.retries_in_flight(), budget.balance()), (Some(1), 0.0));
        drop((mine, theirs));
        assert_eq!((budget.retries_in_flight(), budget.balance()), (Some(0), 1.0));
    });
}

#[test]
fn a_failure_and_a_success_at_once_both_change_the_tokens() {
    model(|| {
        let budget = budget().grpc_tokens(2.0, 0.5).build().unwrap();
        budget.record(&FAILURE);
        let other = budget.clone();
        let thread = thread::spawn(move || other.record(&FAILURE));
        budget.record(&Outcome::Success);
        thread.join().unwrap();
        assert!(budget.tokens() == Some(0.5), "{:?}", budget.tokens());
    });
}
