//! Reloads: they take effect at once, at every uptime, and equal settings change nothing.

use super::*;

fn builder() -> Builder {
    let builder = CircuitBreaker::builder("test").consecutive_failures(1).failure_rate(None);
    builder.open_time(SECOND..=60 * SECOND).close_rule(CloseRule::AllProbes)
}

#[test]
fn fewer_probes_than_have_succeeded_close_it_at_once() {
    let bench = Bench::of(builder().probes(5));
    bench.call(FAILURE);
    bench.wait_open();
    bench.calls(3, Outcome::Success);
    bench.breaker.reload(&builder().probes(2)).unwrap();
    assert_eq!(bench.state(), State::Closed);
}

#[test]
fn fewer_failed_probes_to_bear_open_it_at_once() {
    let bench = Bench::of(builder().probes(4).close_rule(CloseRule::Share(0.5)));
    bench.call(FAILURE);
    bench.wait_open();
    bench.call(FAILURE);
    assert_eq!(bench.state(), State::HalfOpen);
    bench.breaker.reload(&builder().probes(4)).unwrap();
    assert_eq!(bench.state(), State::Open);
}

#[test]
fn another_lease_and_another_bound_hold_for_the_probe_that_is_out() {
    let bench = Bench::of(builder().probe_lease(3600 * SECOND));
    bench.call(FAILURE);
    bench.wait_open();
    let _probe = bench.admit();
    bench.wait(10 * SECOND);
    bench.breaker.reload(&builder().probe_lease(20 * SECOND)).unwrap();
    assert_eq!(bench.state(), State::HalfOpen);
    bench.wait(10 * SECOND);
    assert_eq!(bench.state(), State::Open);
}

#[test]
fn a_shorter_open_time_ends_the_one_that_runs_but_not_an_operators() {
    let long = || builder().open_time(300 * SECOND..=300 * SECOND);
    let bench = Bench::of(long());
    bench.call(FAILURE);
    bench.wait(2 * SECOND);
    bench.breaker.reload(&builder().open_time(SECOND..=5 * SECOND)).unwrap();
    assert_eq!(bench.breaker.snapshot().retry_after, Some(3 * SECOND));

    let bench = Bench::of(long());
    bench.breaker.open_for(100 * SECOND);
    bench.breaker.reload(&builder()).unwrap();
    assert_eq!(bench.breaker.snapshot().retry_after, Some(100 * SECOND));
}

#[test]
fn thresholds_that_are_met_already_trip_it_at_once() {
    let builder = || CircuitBreaker::builder("test").consecutive_failures(10).minimum_throughput(10);
    for window in [Window::Time(10 * SECOND), Window::Count(20)] {
        let bench = Bench::of(builder().window(window));
        bench.calls(4, FAILURE);
        bench.breaker.reload(&builder().consecutive_failures(4).window(window)).unwrap();
        assert_eq!(bench.state(), State::Open, "{window:?}");

        let bench = Bench::of(builder().window(window));
        bench.calls(4, FAILURE);
        bench.calls(6, Outcome::Success);
        bench.breaker.reload(&builder().window(window)).unwrap();
        assert_eq!(bench.breaker.snapshot().generation, 0, "{window:?}: equal settings change nothing");
        bench.breaker.reload(&builder().failure_rate(0.4).window(window)).unwrap();
        assert_eq!(bench.state(), State::Open, "{window:?}");
    }
}

#[test]
fn a_window_of_another_length_counts_from_now_on_at_any_uptime() {
    let builder =
        |window| CircuitBreaker::builder("x").consecutive_failures(None).minimum_throughput(10).window(window);
    for uptime in [0, 60, 3600, 6 * 3600, 86_400, 40 * 86_400] {
        for (from, to) in [(10, 20), (20, 10), (10, 100), (1, 86_400), (86_400, 1)] {
            let (from, to) = (from * SECOND, to * SECOND);
            let bench = Bench::of(builder(from));
            bench.call(Outcome::Success);
            bench.wait(uptime * SECOND);
            for _ in 0..16 {
                bench.calls(3, Outcome::Success);
                bench.call(FAILURE);
                bench.wait(from / 10);
            }
            bench.breaker.reload(&builder(to)).unwrap();
            bench.calls(10, FAILURE);
            assert_eq!(bench.state(), State::Open, "{from:?} to {to:?} after {uptime} s");
        }
    }
}

#[test]
fn the_time_of_calls_may_be_chosen_anew() {
    let builder = || builder().slow_threshold(100 * MS);
    let bench = Bench::of(builder());
    bench.breaker.reload(&builder().call_time(CallTime::ToEnd)).unwrap();
    let mut permit = bench.admit();
    permit.progress(Progress::Head);
    bench.wait(SECOND);
    bench.settle(permit, Outcome::CANCELLED);
    assert_eq!(bench.state(), State::Closed);
}

#[test]
fn a_result_that_was_judged_by_the_old_rules_puts_off_no_check_by_the_new_ones() {
    for window in [Window::Count(100), Window::Time(10 * SECOND)] {
        let needs = |calls| {
            let builder = CircuitBreaker::builder("test").window(window).consecutive_failures(50);
            builder.failure_rate(0.5).minimum_throughput(calls)
        };
        let bench = Bench::of(needs(100));
        let circuit = &*bench.breaker.circuit;
        let (generation, nanos) = (circuit.generation(), circuit.nanos(bench.now()));
        let counting = circuit.window.as_ref().unwrap();
        let (version, check) = (circuit.rules.version(), counting.check(generation, nanos));
        let missing = circuit.rules.missing(circuit.counts(generation, nanos));
        // Before that thread skips sums, others fail, and another one changes the rules.
        bench.calls(9, FAILURE);
        bench.breaker.reload(&needs(10)).unwrap();
        circuit.skip(counting, check, generation, missing, version);
        bench.call(FAILURE);
        assert_eq!(bench.state(), State::Open, "{window:?}");
    }
}
