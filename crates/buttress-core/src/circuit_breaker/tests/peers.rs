//! The circuit follows other instances of the same service and shares probes with them.

use super::*;

#[test]
fn it_opens_and_closes_as_another_instance_did() {
    let bench = Bench::consecutive(1, |builder| builder);
    bench.breaker.follow(Some(3 * SECOND));
    let rejection = bench.try_admit().unwrap_err();
    assert_eq!((rejection.reason(), rejection.retry_after()), (&OPEN, Some(3 * SECOND)));
    bench.breaker.follow(Some(5 * SECOND));
    assert_eq!(bench.try_admit().unwrap_err().retry_after(), Some(5 * SECOND), "the later opening counts");
    bench.breaker.follow(None);
    assert_eq!(bench.state(), State::Closed);
    bench.breaker.follow(None);
    assert_eq!(bench.breaker.snapshot().generation, 3, "closed already");

    bench.breaker.follow(Some(SECOND));
    bench.wait(SECOND);
    bench.call(FAILURE);
    assert_eq!(bench.try_admit().unwrap_err().retry_after(), Some(SECOND), "its own first opening");
    bench.wait(SECOND);
    let probe = bench.admit();
    bench.breaker.follow(Some(9 * SECOND));
    bench.settle(probe, Outcome::Success);
    assert_eq!(bench.try_admit().unwrap_err().retry_after(), Some(9 * SECOND), "its round is over");
    bench.breaker.follow(Some(Duration::MAX));
    bench.wait(1_000_000_000 * SECOND);
    assert!(bench.try_admit().is_err());
}

#[test]
fn an_operators_state_does_not_follow() {
    let bench = Bench::consecutive(1, |builder| builder);
    for set in [CircuitBreaker::force_open, CircuitBreaker::disable, CircuitBreaker::metrics_only] {
        set(&bench.breaker);
        let before = bench.breaker.snapshot();
        bench.breaker.follow(Some(SECOND));
        bench.breaker.follow(None);
        assert_eq!(bench.breaker.snapshot(), before);
    }
}

#[test]
fn no_more_probes_are_in_flight_than_are_allowed() {
    let bench = Bench::consecutive(1, |builder| builder.probes(5).concurrent_probes(3));
    bench.breaker.allow_probes(Some(2));
    bench.call(FAILURE);
    bench.wait_open();
    let (first, _second) = (bench.admit(), bench.admit());
    assert_eq!(bench.try_admit().unwrap_err().reason(), &PROBES_EXHAUSTED);
    bench.breaker.allow_probes(None);
    let _third = bench.admit();
    assert_eq!(bench.try_admit().unwrap_err().reason(), &PROBES_EXHAUSTED);
    bench.breaker.allow_probes(Some(1));
    bench.settle(first, Outcome::Success);
    assert!(bench.try_admit().is_err(), "two are still in flight");
}

#[test]
fn an_open_circuit_without_a_probe_stays_open_until_it_gets_one() {
    let bench = Bench::consecutive(1, |builder| builder);
    bench.breaker.allow_probes(Some(0));
    bench.call(FAILURE);
    assert_eq!(bench.try_admit().unwrap_err().retry_after(), Some(SECOND));
    bench.wait_open();
    let rejection = bench.try_admit().unwrap_err();
    assert_eq!((rejection.reason(), bench.state()), (&OPEN, State::Open));
    assert_eq!(bench.breaker.peek().map_err(|refused| refused.retry_after), Err(None), "the time is unknown");
    bench.breaker.allow_probes(Some(1));
    assert!(bench.breaker.peek().is_ok());
    bench.call(Outcome::Success);
    assert_eq!(bench.state(), State::Closed);
}

#[test]
fn a_circuit_that_lacks_a_probe_is_freed_by_whatever_opens_it_anew() {
    let bench = Bench::consecutive(1, |builder| builder);
    bench.breaker.allow_probes(Some(0));
    bench.call(FAILURE);
    bench.wait_open();
    assert!(bench.try_admit().is_err());
    bench.breaker.follow(Some(2 * SECOND));
    assert_eq!(bench.try_admit().unwrap_err().retry_after(), Some(2 * SECOND));
}

#[test]
fn while_a_peer_is_in_trouble_half_of_the_minimum_throughput_is_enough() {
    let configure = |window| {
        move |builder: Builder| {
            builder.consecutive_failures(None).failure_rate(0.5).minimum_throughput(9).window(window)
        }
    };
    for window in [Window::Time(10 * SECOND), Window::Count(20)] {
        let bench = Bench::new(configure(window));
        bench.calls(4, FAILURE);
        bench.breaker.set_cautious(true);
        assert_eq!(bench.state(), State::Closed, "{window:?}: evaluated with the next result");
        bench.call(FAILURE);
        assert_eq!(bench.state(), State::Open, "{window:?}: five is half of nine, rounded up");

        let bench = Bench::new(configure(window));
        bench.breaker.set_cautious(true);
        bench.breaker.set_cautious(false);
        bench.calls(8, FAILURE);
        assert_eq!(bench.state(), State::Closed, "{window:?}");
    }
}

#[test]
fn lower_thresholds_count_from_the_next_result_on_in_a_count_window_too() {
    let builder =
        || CircuitBreaker::builder("x").consecutive_failures(None).failure_rate(0.5).window(Window::Count(100));
    let bench = Bench::of(builder().minimum_throughput(60));
    bench.calls(10, FAILURE);
    bench.breaker.reload(&builder().minimum_throughput(11)).unwrap();
    bench.call(FAILURE);
    assert_eq!(bench.state(), State::Open);
}
