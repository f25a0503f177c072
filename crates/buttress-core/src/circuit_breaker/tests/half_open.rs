//! The half-open round: only its probes end it, even if calls are rare, long or streams.

use super::*;
use std::sync::atomic::AtomicBool;

/// A circuit that five failures opened, at the end of its open time. Three probes must succeed.
fn due() -> Bench {
    due_with(|builder| builder.probes(3).close_rule(CloseRule::AllProbes))
}

fn due_with(configure: impl FnOnce(Builder) -> Builder) -> Bench {
    let bench = Bench::new(configure);
    bench.calls(5, FAILURE);
    bench.wait_open();
    bench
}

#[test]
fn rare_calls_close_a_healthy_circuit() {
    for every in [10, 30, 60, 600, 86_400] {
        let bench = due();
        for _ in 0..3 {
            bench.call(Outcome::Success);
            bench.wait(every * SECOND);
        }
        assert_eq!(bench.state(), State::Closed, "a call every {every} s");
        assert_eq!(bench.breaker.snapshot().rejected, 0);
    }
}

#[test]
fn two_of_three_probes_close_it_by_default_in_any_order() {
    for (outcomes, expected) in [
        (vec![Outcome::Success, Outcome::Success], State::Closed),
        (vec![FAILURE, Outcome::Success, Outcome::Success], State::Closed),
        (vec![Outcome::Success, FAILURE, Outcome::Success], State::Closed),
        (vec![FAILURE, FAILURE], State::Open),
        (vec![FAILURE, Outcome::Success, FAILURE], State::Open),
    ] {
        let bench = due_with(|builder| builder);
        for (n, &outcome) in outcomes.iter().enumerate() {
            assert!(n == 0 || bench.state() == State::HalfOpen, "{outcomes:?}");
            bench.call(outcome);
        }
        assert_eq!(bench.state(), expected, "{outcomes:?}");
    }
}

#[test]
fn the_open_time_ends_at_half_a_minute_by_default() {
    let bench = due_with(|builder| builder);
    for _ in 0..10 {
        bench.calls(2, FAILURE);
        let left = bench.breaker.snapshot().retry_after.unwrap();
        assert!(left >= 5 * SECOND && left <= 30 * SECOND, "{left:?}");
        bench.wait_open();
    }
}

#[test]
fn calls_of_any_length_close_it_while_their_responses_deliver() {
    for (length, sign_of_life) in [(20, 20), (120, 1), (7200, 29), (86_400, 25)] {
        let bench = due();
        for _ in 0..3 {
            let mut permit = bench.admit();
            for _ in 0..length / sign_of_life {
                bench.wait(sign_of_life * SECOND);
                permit.progress(Progress::Frame);
                assert_eq!(bench.state(), State::HalfOpen);
            }
            bench.settle(permit, Outcome::Success);
        }
        assert_eq!(bench.state(), State::Closed, "calls of {length} s with a frame every {sign_of_life} s");
    }
}

#[test]
fn a_probe_without_a_sign_of_life_is_revoked_and_its_late_result_is_stale() {
    for head_after in [None, Some(29 * SECOND)] {
        let bench = due();
        let mut hung = bench.admit();
        if let Some(after) = head_after {
            bench.wait(after);
            hung.progress(Progress::Head);
        }
        bench.wait(7200 * SECOND);
        // A frame that arrives after the lease, and nothing has evaluated the circuit for two
        // hours.
        hung.progress(Progress::Frame);
        assert_eq!(bench.state(), State::Open);
        bench.settle(hung, Outcome::Success);
        assert_eq!(bench.breaker.snapshot().stale, 1);
        assert!(bench.admit().is_probe(), "it opened two hours ago, when the lease expired");
    }
}

#[test]
fn a_stream_of_many_frames_renews_its_lease_a_few_times() {
    let bench = due();
    let mut stream = bench.admit();
    stream.progress(Progress::Head);
    bench.wait(SECOND);
    stream.progress(Progress::Frame);
    bench.wait(30 * SECOND - MS);
    assert_eq!(bench.state(), State::Open, "a frame within a sixteenth of the lease must not renew it");
    let bench = due();
    let mut stream = bench.admit();
    stream.progress(Progress::Head);
    bench.wait(2 * SECOND);
    stream.progress(Progress::Frame);
    bench.wait(30 * SECOND - MS);
    assert_eq!(bench.state(), State::HalfOpen);
    drop(stream);
}

fn bears_a_failure() -> Bench {
    let bench = Bench::consecutive(1, |builder| {
        builder.probes(3).close_rule(CloseRule::Share(0.6)).max_half_open(10 * SECOND).probe_lease(60 * SECOND)
    });
    bench.call(FAILURE);
    bench.wait_open();
    bench
}

#[test]
fn a_round_in_which_something_failed_ends_with_its_bound_which_results_and_signs_of_life_restart() {
    let bench = bears_a_failure();
    bench.wait(100 * SECOND);
    bench.call(FAILURE);
    bench.wait(10 * SECOND - MS);
    assert_eq!(bench.state(), State::HalfOpen);
    bench.call(Outcome::Success);
    bench.wait(10 * SECOND - MS);
    let mut probe = bench.admit();
    bench.wait(MS / 2);
    probe.progress(Progress::Head);
    bench.wait(10 * SECOND - MS);
    assert_eq!(bench.state(), State::HalfOpen);
    bench.wait(MS);
    assert_eq!(bench.state(), State::Open, "without a call");
}

#[test]
fn a_lease_that_runs_out_after_the_bound_ends_the_round_when_it_runs_out() {
    let bench = bears_a_failure();
    let _hung = bench.admit();
    bench.wait(60 * SECOND - MS);
    assert_eq!(bench.state(), State::HalfOpen, "no probe has failed yet");
    bench.wait(500 * MS);
    let left = bench.breaker.snapshot().retry_after;
    assert_eq!(bench.state(), State::Open);
    assert!(left > Some(500 * MS) && left < Some(2 * SECOND), "{left:?}");
}

#[test]
fn a_half_open_circuit_never_asks_to_wait_longer_than_the_first_open_time() {
    for lease in [SECOND, 3600 * SECOND, Duration::MAX] {
        let bench = Bench::consecutive(1, |builder| builder.probe_lease(lease).open_time(2 * SECOND..=60 * SECOND));
        bench.call(FAILURE);
        bench.wait_open();
        let _probe = bench.admit();
        let expected = Some(lease.min(2 * SECOND));
        let rejection = bench.try_admit().unwrap_err();
        assert_eq!((rejection.reason(), rejection.retry_after()), (&PROBES_EXHAUSTED, expected));
        assert_eq!(bench.breaker.peek().unwrap_err().retry_after, expected);
        assert_eq!(bench.breaker.snapshot().retry_after, expected);
    }
}

#[test]
fn a_lease_that_is_renewed_wakes_no_waiter() {
    struct Woken(AtomicBool);
    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let bench = due();
    let mut probe = bench.admit();
    let woken = Arc::new(Woken(false.into()));
    let waiters = bench.breaker.waiters().unwrap();
    waiters.register(waiters.key(), &woken.clone().into());
    bench.wait(10 * SECOND);
    probe.progress(Progress::Head);
    assert!(!woken.0.load(Ordering::SeqCst));
    drop(probe);
    assert!(woken.0.load(Ordering::SeqCst));
}

#[test]
fn a_probe_is_slow_by_the_time_to_its_head() {
    let close = |time| {
        let bench = Bench::consecutive(1, |builder| {
            builder.slow_threshold(100 * MS).slow_rate(1.0).call_time(time).minimum_throughput(1)
        });
        bench.call(FAILURE);
        bench.wait_open();
        let mut probe = bench.admit();
        bench.wait(100 * MS);
        probe.progress(Progress::Head);
        bench.wait(SECOND);
        bench.settle(probe, Outcome::Success);
        bench.state()
    };
    assert_eq!((close(CallTime::ToHead), close(CallTime::ToEnd)), (State::Closed, State::Open));
}

#[test]
fn a_reserved_probe_that_waits_for_its_call_is_not_slow() {
    let bench =
        Bench::consecutive(1, |builder| builder.slow_threshold(100 * MS).slow_rate(1.0).on_drop(OnDrop::Failure));
    bench.call(FAILURE);
    bench.wait_open();
    let mut reserved = bench.reserve();
    bench.wait(SECOND);
    reserved.settle(&Outcome::CANCELLED);
    assert_eq!(bench.state(), State::HalfOpen);
    let reserved = bench.reserve();
    bench.wait(SECOND);
    let begun = bench.confirm(reserved).unwrap();
    bench.wait(100 * MS);
    bench.settle(begun, Outcome::Success);
    assert_eq!(bench.state(), State::Closed);
}

#[test]
fn a_graceful_refusal_of_a_probe_decides_nothing() {
    let bench = due();
    for _ in 0..10 {
        bench.call(GRACEFUL);
    }
    assert_eq!(bench.state(), State::HalfOpen);
    bench.calls(3, Outcome::Success);
    assert_eq!(bench.state(), State::Closed);
    bench.wait(SECOND);
}

#[test]
fn it_is_idle_when_it_could_be_forgotten() {
    let bench = Bench::consecutive(1, |builder| builder);
    let idle = |bench: &Bench| bench.breaker.is_idle();
    assert!(idle(&bench));
    let permit = bench.admit();
    assert!(!idle(&bench), "a permit is held");
    bench.settle(permit, FAILURE);
    assert!(!idle(&bench), "open");
    bench.wait_open();
    assert!(idle(&bench), "its open time has elapsed");
    let probe = bench.admit();
    assert!(!idle(&bench), "a probe is in flight");
    drop(probe);
    assert!(idle(&bench));
    for set in [CircuitBreaker::force_open, CircuitBreaker::disable, CircuitBreaker::metrics_only] {
        set(&bench.breaker);
        assert!(!idle(&bench), "a state that an operator set");
    }
}

#[test]
fn a_waiting_call_takes_what_is_free_and_is_no_rejection_otherwise() {
    let bench = due();
    let before = bench.breaker.snapshot().rejected;
    let probe = bench.breaker.try_reserve().unwrap();
    assert!(probe.is_probe());
    assert_eq!(bench.breaker.try_reserve().unwrap_err().retry_after, Some(5 * SECOND));
    assert!(bench.breaker.holds(&probe));
    bench.wait(30 * SECOND);
    assert!(!bench.breaker.holds(&probe), "its slot was given to another call");
    assert_eq!(bench.breaker.snapshot().rejected, before);
    drop(probe);
    bench.calls(3, Outcome::Success);
    let reserved = bench.breaker.try_reserve().unwrap();
    assert!(bench.breaker.holds(&reserved));
    bench.breaker.open_for(SECOND);
    assert!(!bench.breaker.holds(&reserved), "the circuit has opened since");
    assert_eq!(bench.breaker.try_reserve().unwrap_err().retry_after, Some(SECOND));
}

#[test]
fn a_waiting_call_of_a_recovering_circuit_gets_a_time_to_ask_again() {
    let bench = Bench::consecutive(1, |builder| builder.recovery_ramp(10 * SECOND));
    bench.call(FAILURE);
    bench.wait_open();
    bench.call(Outcome::Success);
    let refused = (0..10).find_map(|_| bench.breaker.try_reserve().err()).unwrap();
    assert!(refused.retry_after.is_some(), "no wake-up comes");
}

/// A clock that advances by 1 ms with each reading.
#[derive(Clone, Debug, Default)]
struct Ticking(ManualClock);

impl Clock for Ticking {
    fn now(&self) -> Instant {
        self.0.advance(MS);
        self.0.now()
    }
}

#[test]
fn a_call_that_may_not_probe_is_none_whenever_the_open_time_ends() {
    for before in 0..12 {
        let clock = Ticking::default();
        let breaker = consecutive(1).clock(clock.clone()).build().unwrap();
        breaker.admit(&()).unwrap().settle(&FAILURE);
        let open_for = breaker.snapshot().retry_after.unwrap();
        clock.0.advance(open_for - before * MS);
        assert!(breaker.admit_if(|| false).is_err(), "{before} ms before the end");
    }
}
