//! The calibrated streak: chance does not open a circuit, and an outage does.

use super::*;
use fastrand::Rng;
use std::sync::Mutex;

/// Returns a circuit whose only rule is the calibrated streak, with a window full of calls of which
/// `percent` fail, at `per_second` calls per second.
fn with_errors(percent: u32, per_second: u32, seed: u64) -> (Bench, Rng) {
    let bench = Bench::new(|builder| builder.failure_rate(None));
    let mut rng = Rng::with_seed(seed);
    // With fewer than 10 results the rate is unknown, and 5 consecutive failures trip it.
    bench.calls(20, Outcome::Success);
    random_calls(&bench, &mut rng, percent, per_second, 10 * per_second);
    (bench, rng)
}

fn random_calls(bench: &Bench, rng: &mut Rng, percent: u32, per_second: u32, calls: u32) {
    for _ in 0..calls {
        bench.call(if rng.u32(..100) < percent { FAILURE } else { Outcome::Success });
        bench.wait(SECOND / per_second);
    }
}

#[test]
fn random_errors_do_not_trip_it_at_any_rate_of_calls() {
    for percent in [1, 5, 10, 20, 40] {
        for (per_second, seconds) in [(10, 2000), (100, 200), (1000, 20)] {
            let (bench, mut rng) = with_errors(percent, per_second, 7);
            random_calls(&bench, &mut rng, percent, per_second, per_second * seconds);
            assert_eq!(bench.state(), State::Closed, "{percent} % at {per_second}/s");
        }
    }
}

/// With the defaults, as in the simulation of docs/trips.md in the repository.
#[test]
fn a_long_run_of_random_errors_refuses_no_call_and_the_outage_after_it_opens_at_once() {
    for (percent, most) in [(1, 7), (5, 9), (10, 12), (20, 18)] {
        for (per_second, seconds) in [(10, 3000), (100, 600), (1000, 60)] {
            for seed in 0..3 {
                let bench = Bench::new(|builder| builder);
                let mut rng = Rng::with_seed(seed);
                random_calls(&bench, &mut rng, percent, per_second, per_second * seconds);
                let snapshot = bench.breaker.snapshot();
                let case = format!("{percent} % at {per_second}/s, seed {seed}");
                assert_eq!((snapshot.generation, snapshot.rejected), (0, 0), "{case}");
                let needed = (1..).find(|_| {
                    bench.call(FAILURE);
                    bench.state() == State::Open
                });
                assert!(needed.is_some_and(|needed| needed <= most), "{case}: {needed:?}");
            }
        }
    }
}

#[test]
fn an_outage_trips_it_within_the_streak_that_its_errors_call_for() {
    for (percent, most) in [(0, 5), (1, 7), (5, 9), (10, 12), (20, 18), (40, 45)] {
        for per_second in [10, 100, 1000] {
            for seed in 0..5 {
                let (bench, _) = with_errors(percent, per_second, seed);
                let needed = (1..=most).find(|_| {
                    bench.call(FAILURE);
                    bench.wait(SECOND / per_second);
                    bench.state() == State::Open
                });
                assert!(needed.is_some(), "{percent} % at {per_second}/s: not after {most} failures");
            }
        }
    }
}

#[test]
fn a_streak_says_how_long_it_was_and_what_it_was_judged_by() {
    let bench = Bench::new(|builder| builder);
    let causes = Arc::new(Mutex::new(Vec::new()));
    let list = causes.clone();
    bench.breaker.on_transition(move |transition| list.lock().unwrap().push(transition.cause));
    for n in 0..100 {
        bench.call(if n % 5 == 0 { FAILURE } else { Outcome::Success });
    }
    bench.calls(12, FAILURE);
    assert_eq!(bench.state(), State::Closed);
    bench.call(FAILURE);
    let others = Counts { succeeded: 80, failed: 20, ..Counts::default() };
    assert_eq!(*causes.lock().unwrap(), [Cause::FailureStreak { failures: 13, others }]);
    bench.breaker.reset();
    bench.calls(5, FAILURE);
    assert_eq!(causes.lock().unwrap().last(), Some(&Cause::ConsecutiveFailures(5)), "too few samples: five");
}

#[test]
fn a_higher_minimum_throughput_makes_no_streak_shorter() {
    let bench = Bench::new(|builder| builder.minimum_throughput(1000));
    for n in 0..100 {
        bench.call(if n % 5 == 0 { FAILURE } else { Outcome::Success });
    }
    bench.calls(12, FAILURE);
    assert_eq!(bench.state(), State::Closed);
    bench.call(FAILURE);
    assert_eq!(bench.state(), State::Open);
}

#[test]
fn ten_other_results_make_a_rate_and_nine_do_not() {
    for (others, needed) in [(9, 5), (10, 30)] {
        let bench = Bench::new(|builder| builder.minimum_throughput(1).failure_rate(None));
        // Half of them fail, and the last one succeeds.
        for n in (0..others).rev() {
            bench.call(if n % 2 == 1 { FAILURE } else { Outcome::Success });
        }
        bench.calls(needed - 1, FAILURE);
        assert_eq!(bench.state(), State::Closed, "{others}");
        bench.call(FAILURE);
        assert_eq!(bench.state(), State::Open, "{others}");
    }
}

#[test]
fn the_calibrated_rule_has_a_window_of_its_own_and_a_fixed_number_needs_none() {
    let counted = |configure: fn(Builder) -> Builder| {
        let bench = Bench::new(configure);
        bench.call(Outcome::Success);
        bench.breaker.snapshot().counts.total()
    };
    assert_eq!(counted(|builder| builder.failure_rate(None)), 1);
    assert_eq!(counted(|builder| builder.failure_rate(None).window(Window::Count(30))), 1);
    assert_eq!(counted(|builder| builder.failure_rate(None).consecutive_failures(5)), 0);
}

#[test]
fn a_count_window_calibrates_too() {
    let bench = Bench::new(|builder| builder.failure_rate(None).window(Window::Count(100)));
    for n in 0..200 {
        bench.call(if n % 5 == 0 { FAILURE } else { Outcome::Success });
    }
    bench.calls(9, FAILURE);
    assert_eq!(bench.state(), State::Closed);
    bench.calls(4, FAILURE);
    assert_eq!(bench.state(), State::Open);
}

#[test]
fn an_outage_outlasts_the_window_that_it_is_judged_by() {
    let bench = Bench::new(|builder| builder.failure_rate(None));
    for n in 0..100 {
        bench.call(if n % 2 == 0 { FAILURE } else { Outcome::Success });
    }
    // One call per second: until the failures before the outage have left the window.
    let needed = (1..).find(|_| {
        bench.wait(SECOND);
        bench.call(FAILURE);
        bench.state() == State::Open
    });
    assert_eq!(needed, Some(10));
}

#[test]
fn what_was_handed_back_in_good_order_is_no_failure() {
    let bench = Bench::consecutive(2, |builder| builder);
    bench.call(FAILURE);
    bench.calls(10, GRACEFUL);
    let snapshot = bench.breaker.snapshot();
    assert_eq!(
        (snapshot.state, snapshot.consecutive_failures),
        (State::Closed, 1),
        "it neither extends a streak nor ends it"
    );
    let bench = Bench::new(|builder| builder.minimum_throughput(1));
    bench.calls(50, GRACEFUL);
    assert_eq!((bench.state(), bench.breaker.snapshot().counts.total()), (State::Closed, 0));
}
