//! The calibrated failure rate: half of the calls plus three standard deviations.

use super::*;
use fastrand::Rng;
use std::sync::Mutex;

/// A circuit whose only rule is the failure rate.
fn rate_alone(window: impl Into<Window>) -> Bench {
    Bench::new(|builder| builder.consecutive_failures(None).window(window))
}

/// Makes calls that alternate between success and failure, so that failures do not come first.
fn mixed(bench: &Bench, successes: u32, failures: u32) {
    for n in 0..successes.max(failures) {
        if n < successes {
            bench.call(Outcome::Success);
        }
        if n < failures {
            bench.call(FAILURE);
        }
    }
}

#[test]
fn it_trips_with_the_failure_that_is_three_standard_deviations_above_a_half() {
    for window in [Window::Time(10 * SECOND), Window::Count(1000)] {
        for (calls, needed) in [(20, 17), (57, 40), (100, 65), (225, 135), (999, 547)] {
            let bench = rate_alone(window);
            let causes = Arc::new(Mutex::new(Vec::new()));
            let list = causes.clone();
            bench.breaker.on_transition(move |transition| list.lock().unwrap().push(transition.cause));
            mixed(&bench, calls - needed, needed - 1);
            assert_eq!(bench.state(), State::Closed, "{} of {}", needed - 1, calls - 1);
            bench.call(FAILURE);
            assert_eq!(bench.state(), State::Open, "{needed} of {calls}");
            let counts = Counts { succeeded: (calls - needed).into(), failed: needed.into(), ..Counts::default() };
            assert_eq!(*causes.lock().unwrap(), [Cause::FailureRate(counts)]);
        }
    }
}

#[test]
fn it_waits_for_the_minimum_throughput_and_for_nine_calls() {
    let bench = rate_alone(10 * SECOND);
    bench.calls(19, FAILURE);
    assert_eq!(bench.state(), State::Closed);
    bench.call(FAILURE);
    assert_eq!(bench.state(), State::Open);

    let bench = Bench::new(|builder| builder.consecutive_failures(None).minimum_throughput(1));
    bench.calls(8, FAILURE);
    assert_eq!(bench.state(), State::Closed, "if half of the calls fail, 8 of 8 do with a probability of 1/256");
    bench.call(FAILURE);
    assert_eq!(bench.state(), State::Open);
}

#[test]
fn random_errors_of_forty_percent_do_not_trip_it_and_seventy_do() {
    for (per_second, seconds) in [(10, 3000), (100, 600), (1000, 60)] {
        for seed in 0..3 {
            let bench = rate_alone(10 * SECOND);
            let mut rng = Rng::with_seed(seed);
            let mut call = |percent: u32| {
                bench.call(if rng.u32(..100) < percent { FAILURE } else { Outcome::Success });
                bench.wait(SECOND / per_second);
                bench.state()
            };
            let case = format!("{per_second}/s, seed {seed}");
            assert!((0..per_second * seconds).all(|_| call(40) == State::Closed), "{case}");
            let needed = (1..).find(|_| call(70) == State::Open).unwrap();
            assert!(needed <= 20 * per_second, "{case}: {needed}");
        }
    }
}

/// Sums are skipped while there are too few bad results to meet the rule. If too many were skipped,
/// an outage would not be detected.
#[test]
fn it_trips_at_once_after_any_number_of_skipped_sums() {
    for window in [Window::Time(10 * SECOND), Window::Count(500)] {
        for successes in [0, 1, 19, 20, 40, 200] {
            let bench = rate_alone(window);
            bench.calls(successes, Outcome::Success);
            let needed = (1..).find(|_| {
                bench.call(FAILURE);
                bench.state() == State::Open
            });
            let expected = (1..).find(|failures| {
                let calls = successes + failures;
                calls >= 20 && f64::from(*failures) >= f64::from(calls) / 2.0 + 1.5 * f64::from(calls).sqrt()
            });
            assert_eq!(needed, expected, "after {successes} successes in {window:?}");
        }
    }
}

#[test]
fn it_is_reloaded_to_an_exact_one_and_back() {
    let builder = || CircuitBreaker::builder("test").consecutive_failures(None);
    for window in [Window::Time(10 * SECOND), Window::Count(50)] {
        let bench = rate_alone(window);
        mixed(&bench, 10, 10);
        assert_eq!(bench.state(), State::Closed);
        bench.breaker.reload(&builder().window(window).failure_rate(0.5)).unwrap();
        assert_eq!(bench.state(), State::Open, "{window:?}: half of them are met already");

        bench.breaker.reset();
        bench.breaker.reload(&builder().window(window)).unwrap();
        mixed(&bench, 10, 10);
        assert_eq!(bench.state(), State::Closed, "{window:?}");
    }
}

#[test]
fn numbers_are_exact_and_none_is_off() {
    assert_eq!(FailureRate::from(0.3), FailureRate::Exact(0.3));
    assert_eq!(FailureRate::from(Some(0.3)), FailureRate::Exact(0.3));
    assert_eq!(FailureRate::from(None), FailureRate::Off);
    let bench = Bench::new(|builder| builder.consecutive_failures(None).failure_rate(0.5));
    mixed(&bench, 10, 10);
    assert_eq!(bench.state(), State::Open);
    let bench = Bench::new(|builder| builder.consecutive_failures(1000).failure_rate(None));
    bench.calls(999, FAILURE);
    assert_eq!(bench.state(), State::Closed);
}
