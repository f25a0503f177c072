//! Which results trip a closed circuit, and which do not.

use super::*;
use std::sync::Mutex;

#[test]
fn failures_in_a_row_trip_it_and_a_success_in_between_does_not() {
    let bench = Bench::consecutive(3, |builder| builder);
    bench.calls(2, FAILURE);
    bench.call(Outcome::Success);
    bench.calls(2, FAILURE);
    assert_eq!(bench.state(), State::Closed);
    bench.call(FAILURE);
    assert_eq!(bench.state(), State::Open);
    assert_eq!(bench.try_admit().unwrap_err().reason(), &OPEN);
}

#[test]
fn a_success_ends_a_row_and_is_counted_in_every_generation() {
    let bench = Bench::new(|builder| builder.consecutive_failures(2));
    for generation in 1..=3 {
        bench.breaker.reset();
        for outcome in [FAILURE, Outcome::Success, FAILURE] {
            bench.call(outcome);
        }
        let snapshot = bench.breaker.snapshot();
        assert_eq!((snapshot.state, snapshot.generation), (State::Closed, generation));
        assert_eq!((snapshot.counts.succeeded, snapshot.counts.failed), (1, 2));
    }
}

#[test]
fn overload_is_no_failure_in_a_row_and_does_not_end_a_row_but_counts_in_the_rate() {
    let bench = Bench::consecutive(3, |builder| builder);
    bench.calls(2, FAILURE);
    bench.calls(100, OVERLOAD);
    assert_eq!(bench.state(), State::Closed);
    bench.call(FAILURE);
    assert_eq!(bench.state(), State::Open);

    let bench = Bench::new(|builder| builder.minimum_throughput(10));
    bench.calls(10, OVERLOAD);
    assert_eq!(bench.state(), State::Open);
}

#[test]
fn what_says_nothing_of_the_backend_changes_nothing() {
    let bench = Bench::consecutive(2, |builder| builder);
    bench.call(FAILURE);
    for why in [Ignored::LocalReject, Ignored::Cancelled, Ignored::Superseded, Ignored::Classified] {
        bench.call(Outcome::Ignored(why));
    }
    assert_eq!(bench.breaker.snapshot().consecutive_failures, 1);
    bench.call(FAILURE);
    assert_eq!(bench.state(), State::Open);
}

#[test]
fn a_rate_counts_only_from_the_minimum_throughput_on_and_then_exactly() {
    let bench = Bench::new(|builder| builder.consecutive_failures(None).failure_rate(0.1).minimum_throughput(30));
    bench.calls(2, FAILURE);
    bench.calls(27, Outcome::Success);
    assert_eq!(bench.state(), State::Closed);
    bench.call(FAILURE);
    assert_eq!(bench.state(), State::Open, "3 of 30 is a tenth, though 0.1 * 30.0 is more than 3.0");
}

#[test]
fn a_time_window_forgets_also_without_calls() {
    let bench = Bench::new(|builder| builder.consecutive_failures(None).failure_rate(0.5).minimum_throughput(4));
    bench.calls(3, FAILURE);
    bench.wait(10 * SECOND);
    bench.call(FAILURE);
    assert_eq!(bench.state(), State::Closed);
    assert_eq!(bench.breaker.snapshot().counts.failures(), 1);
    bench.wait(3600 * SECOND);
    assert_eq!(bench.breaker.snapshot().counts.total(), 0);
}

/// The count window of tower-resilience does not slide: after 50,000 successes it took 50,000
/// failures.
#[test]
fn a_count_window_slides_so_that_a_long_healthy_past_does_not_matter() {
    let bench = Bench::new(|builder| {
        builder.consecutive_failures(None).failure_rate(0.5).window(Window::Count(100)).minimum_throughput(100)
    });
    bench.calls(50_000, Outcome::Success);
    bench.calls(49, FAILURE);
    assert_eq!(bench.state(), State::Closed);
    bench.call(FAILURE);
    assert_eq!(bench.state(), State::Open);
}

#[test]
fn a_count_window_sees_the_failure_that_comes_after_a_pause_in_summing() {
    let bench = Bench::new(|builder| {
        builder.consecutive_failures(None).failure_rate(0.5).window(Window::Count(10)).minimum_throughput(10)
    });
    for _ in 0..100 {
        bench.call(FAILURE);
        bench.calls(2, Outcome::Success);
        assert_eq!(bench.state(), State::Closed);
    }
    bench.calls(2, FAILURE);
    assert_eq!(bench.state(), State::Closed);
    bench.call(FAILURE);
    assert_eq!(bench.state(), State::Open, "5 of the last 10: {:?}", bench.breaker.snapshot().counts);
}

#[test]
fn slow_calls_trip_it_when_they_are_strictly_slower_and_succeed() {
    let slow = |by: Duration| {
        let bench = Bench::new(|builder| builder.slow_threshold(100 * MS).slow_rate(0.5).minimum_throughput(4));
        bench.call(Outcome::Success);
        bench.wait(SECOND);
        let permits: Vec<_> = (0..4).map(|_| bench.admit()).collect();
        bench.wait(by);
        permits.into_iter().for_each(|permit| bench.settle(permit, Outcome::Success));
        bench.state()
    };
    assert_eq!(slow(100 * MS), State::Closed);
    assert_eq!(slow(101 * MS), State::Open);
}

#[test]
fn a_custom_rule_sees_the_counts_and_a_panic_in_it_counts_as_no() {
    let bench = Bench::new(|builder| {
        builder.consecutive_failures(None).failure_rate(None).minimum_throughput(1).custom_rule(|counts| {
            assert!(counts.failures() != 2, "contained");
            counts.failures() == 3
        })
    });
    bench.calls(2, FAILURE);
    assert_eq!(bench.state(), State::Closed);
    bench.call(FAILURE);
    assert_eq!(bench.state(), State::Open);
}

/// tower-resilience, recloser and failsafe record nothing if 200 consecutive calls hang and are
/// dropped by an outer timeout.
#[test]
fn a_backend_that_hangs_under_an_outer_timeout_trips_it() {
    let hang = |rule| {
        let bench =
            Bench::new(|builder| builder.slow_threshold(100 * MS).slow_rate(0.5).minimum_throughput(5).on_drop(rule));
        for _ in 0..5 {
            let permit = bench.admit();
            bench.wait(200 * MS);
            bench.settle(permit, Outcome::CANCELLED);
        }
        bench.state()
    };
    assert_eq!(hang(OnDrop::Slow), State::Open);
    assert_eq!(hang(OnDrop::Failure), State::Open);
    assert_eq!(hang(OnDrop::Ignore), State::Closed);
}

#[test]
fn a_call_that_the_caller_drops_early_teaches_nothing() {
    let bench = Bench::new(|builder| {
        builder.slow_threshold(100 * MS).slow_rate(0.5).on_drop(OnDrop::Failure).minimum_throughput(1)
    });
    bench.calls(50, Outcome::CANCELLED);
    drop(bench.admit());
    assert_eq!((bench.state(), bench.breaker.snapshot().counts.total()), (State::Closed, 0));
}

#[test]
fn calls_that_are_still_in_flight_past_the_threshold_trip_it_when_asked_for() {
    let bench =
        Bench::new(|builder| builder.slow_threshold(80 * MS).slow_rate(0.5).minimum_throughput(4).count_overdue(true));
    let hanging: Vec<_> = (0..4).map(|_| bench.admit()).collect();
    bench.wait(200 * MS);
    assert_eq!(bench.breaker.snapshot().overdue, 4);
    let late = bench.admit();
    assert_eq!(bench.state(), State::Open, "no call has ended, and all of them hang");
    // Their results are stale, and the next generation starts without them.
    hanging.into_iter().chain([late]).for_each(|permit| bench.settle(permit, Outcome::Success));
    bench.breaker.reset();
    assert_eq!(bench.breaker.snapshot().overdue, 0);
}

#[test]
fn calls_that_end_are_not_overdue_and_those_dropped_without_a_word_neither() {
    let bench =
        Bench::new(|builder| builder.slow_threshold(80 * MS).slow_rate(0.5).minimum_throughput(4).count_overdue(true));
    let (ends, dropped, stays) = (bench.admit(), bench.admit(), bench.admit());
    bench.wait(50 * MS);
    bench.settle(ends, Outcome::Success);
    drop(dropped);
    bench.wait(100 * MS);
    assert_eq!(bench.breaker.snapshot().overdue, 1);
    bench.settle(stays, Outcome::Success);
    assert_eq!(bench.breaker.snapshot().overdue, 0);
    // The start and the end of a call of an earlier generation do not change the count.
    let old = bench.admit();
    bench.breaker.reset();
    let new = bench.admit();
    bench.wait(200 * MS);
    drop(old);
    assert_eq!(bench.breaker.snapshot().overdue, 1);
    drop(new);
    assert_eq!(bench.breaker.snapshot().overdue, 0);
}

#[test]
fn a_call_whose_end_is_read_off_a_clock_behind_its_start_is_not_slow() {
    let bench = Bench::new(|builder| builder.slow_threshold(80 * MS).slow_rate(0.5).minimum_throughput(1));
    bench.call(Outcome::Success);
    bench.wait(SECOND);
    let permit = bench.admit();
    bench.set_back(200 * MS);
    bench.settle(permit, Outcome::Success);
    assert_eq!(bench.breaker.snapshot().counts.slow_calls(), 0);
}

#[test]
fn a_clock_is_read_only_where_it_matters_and_the_fine_one_only_where_buckets_are_narrow() {
    let reads = |configure: fn(Builder) -> Builder| {
        let clock = Lagging::default();
        let breaker = configure(CircuitBreaker::builder("x")).clock(clock.clone()).build().unwrap();
        breaker.snapshot();
        clock.reads();
        breaker.admit(&()).unwrap().settle(&Outcome::Success);
        clock.reads()
    };
    assert_eq!(reads(|builder| builder.failure_rate(None)), 0);
    assert_eq!(reads(|builder| builder), 0, "buckets of a second");
    assert_eq!(reads(|builder| builder.window(SECOND)), 0, "buckets of a tenth");
    assert_eq!(reads(|builder| builder.window(990 * MS)), 1);
    assert_eq!(reads(|builder| builder.slow_threshold(100 * MS)), 0, "milliseconds do not matter");
    assert_eq!(reads(|builder| builder.slow_threshold(99 * MS)), 2, "at the start and at the end");
    assert_eq!(reads(|builder| builder.slow_threshold(SECOND).window(990 * MS)), 1, "at the end");
}

#[test]
fn a_young_call_that_ends_does_not_hide_an_overdue_one() {
    for drops in [false, true] {
        let bench = Bench::new(|builder| {
            builder.slow_threshold(80 * MS).slow_rate(1.0).minimum_throughput(9).count_overdue(true)
        });
        bench.call(Outcome::Success);
        bench.wait(SECOND);
        let overdue = bench.admit();
        bench.wait(200 * MS);
        let young = bench.admit();
        if drops {
            drop(young);
        } else {
            bench.settle(young, Outcome::Success);
        }
        assert_eq!(bench.breaker.snapshot().overdue, 1);
        drop(overdue);
    }
}

#[test]
fn a_count_window_is_summed_at_every_bad_result_where_overdue_calls_count() {
    let bench = Bench::new(|builder| {
        builder
            .consecutive_failures(None)
            .failure_rate(None)
            .window(Window::Count(20))
            .slow_threshold(80 * MS)
            .slow_rate(0.5)
            .minimum_throughput(4)
            .count_overdue(true)
    });
    bench.calls(6, Outcome::Success);
    bench.call(FAILURE);
    let hanging: Vec<_> = (0..7).map(|_| bench.admit()).collect();
    let fails = bench.admit();
    bench.wait(200 * MS);
    bench.settle(fails, FAILURE);
    assert_eq!(bench.state(), State::Open, "eight of fifteen are slow, and seven of them have not ended");
    drop(hanging);
}

#[test]
fn threads_count_exactly_and_one_of_them_trips_it() {
    let bench = Bench::new(|builder| builder.consecutive_failures(None).minimum_throughput(4000).failure_rate(0.5));
    let breaker = &bench.breaker;
    let trips = Arc::new(Mutex::new(0));
    let count = trips.clone();
    breaker.on_transition(move |_| *count.lock().unwrap() += 1);
    std::thread::scope(|scope| {
        for outcome in [Outcome::Success, FAILURE, Outcome::Success, FAILURE] {
            scope.spawn(move || (0..999).for_each(|_| breaker.admit(&()).unwrap().settle(&outcome)));
        }
    });
    let counts = breaker.snapshot().counts;
    assert_eq!((counts.succeeded, counts.failed), (1998, 1998));
    bench.calls(4, FAILURE);
    assert_eq!((bench.state(), *trips.lock().unwrap()), (State::Open, 1));
}
