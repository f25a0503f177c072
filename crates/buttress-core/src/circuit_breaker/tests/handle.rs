//! The handle: operators, listeners and invalid configurations.

use super::*;
use std::sync::Mutex;

#[test]
fn an_operators_state_is_left_by_the_operator_only() {
    let bench = Bench::consecutive(1, |builder| builder);
    bench.breaker.force_open();
    bench.wait(1_000_000 * SECOND);
    let rejection = bench.try_admit().unwrap_err();
    assert_eq!((rejection.reason(), rejection.retry_after()), (&FORCED_OPEN, None));
    bench.breaker.disable();
    bench.calls(10, FAILURE);
    assert_eq!((bench.state(), bench.breaker.snapshot().consecutive_failures), (State::Disabled, 0));
    bench.breaker.metrics_only();
    bench.calls(10, FAILURE);
    assert_eq!((bench.state(), bench.breaker.snapshot().consecutive_failures), (State::MetricsOnly, 10));
    bench.breaker.reset();
    assert_eq!((bench.state(), bench.breaker.snapshot().consecutive_failures), (State::Closed, 0));
}

#[test]
fn opened_for_a_time_it_probes_afterwards() {
    let bench = Bench::consecutive(1, |builder| builder);
    bench.breaker.open_for(7 * SECOND);
    assert_eq!(bench.try_admit().unwrap_err().retry_after(), Some(7 * SECOND));
    bench.wait(7 * SECOND);
    bench.call(Outcome::Success);
    assert_eq!(bench.state(), State::Closed);
    bench.breaker.open_for(Duration::MAX);
    assert_eq!(bench.state(), State::ForcedOpen, "a time that overflows the clock does not end");
}

/// A keyed policy has many circuits, and an exporter looks at all of them.
#[test]
fn a_look_at_a_circuit_that_was_always_closed_takes_no_memory() {
    let bench = Bench::new(|builder| builder.minimum_throughput(1));
    bench.call(Outcome::Success);
    let (before, transitions) = (bench.breaker.snapshot(), bench.breaker.transitions());
    crate::testing::reported(&bench.breaker);
    assert!(!bench.breaker.has_changed());
    assert_eq!((before.state, before.generation, before.openings, before.retry_after), (State::Closed, 0, 0, None));
    assert_eq!((before.counts.succeeded, transitions.len()), (1, 0));
    bench.breaker.force_open();
    assert!(bench.breaker.has_changed());
    assert_eq!(bench.breaker.snapshot().state, State::ForcedOpen);
    assert_eq!(bench.breaker.transitions(), [(State::Closed, State::ForcedOpen, 1)]);
}

#[test]
fn a_reload_keeps_state_and_results_and_another_window_begins_anew() {
    let bench = Bench::new(|builder| builder.consecutive_failures(10));
    bench.calls(4, FAILURE);
    let builder = || CircuitBreaker::builder("test").consecutive_failures(5);
    bench.breaker.reload(&builder()).unwrap();
    let snapshot = bench.breaker.snapshot();
    assert_eq!((snapshot.generation, snapshot.consecutive_failures, snapshot.counts.failed), (0, 4, 4));
    bench.breaker.reload(&builder().window(20 * SECOND)).unwrap();
    let snapshot = bench.breaker.snapshot();
    assert_eq!((snapshot.generation, snapshot.consecutive_failures, snapshot.counts.failed), (1, 0, 0));
    let refused = bench.breaker.reload(&builder().window(Window::Count(20))).unwrap_err();
    assert_eq!(refused.field(), "window");
    assert_eq!(bench.breaker.reload(&builder().probes(0)).unwrap_err().field(), "probes");
    bench.calls(5, FAILURE);
    assert_eq!(bench.state(), State::Open);
}

#[test]
fn listeners_get_every_change_with_its_numbers_outside_the_lock_and_may_panic() {
    let bench = Bench::consecutive(2, |builder| builder);
    let heard = Arc::new(Mutex::new(Vec::new()));
    bench.breaker.on_transition(|_| panic!("a listener panics"));
    let (breaker, list) = (bench.breaker.clone(), heard.clone());
    bench.breaker.on_transition(move |transition| {
        // Deadlocks if listeners are called under the lock.
        let state = breaker.state();
        list.lock().unwrap().push((transition.from, transition.to, transition.cause, transition.generation, state));
    });
    bench.calls(2, FAILURE);
    bench.wait_open();
    bench.call(Outcome::Success);
    let heard = heard.lock().unwrap();
    let expected = [
        (State::Closed, State::Open, Cause::ConsecutiveFailures(2), 1, State::Open),
        (State::Open, State::HalfOpen, Cause::OpenTimeElapsed, 2, State::HalfOpen),
        (State::HalfOpen, State::Closed, Cause::ProbesSucceeded(1), 3, State::Closed),
    ];
    assert_eq!(*heard, expected);
}

#[test]
fn a_waiter_is_woken_by_whatever_may_let_it_in() {
    struct Woken(AtomicU32);
    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let bench = Bench::consecutive(1, |builder| builder);
    let woken = Arc::new(Woken(AtomicU32::new(0)));
    let breaker = bench.breaker.clone();
    let waiters = breaker.waiters().unwrap();
    let key = waiters.key();
    let park = || waiters.register(key, &woken.clone().into());
    let wakes = |expected| assert_eq!(woken.0.swap(0, Ordering::SeqCst), expected);

    bench.call(FAILURE);
    park();
    bench.breaker.reset();
    wakes(1);
    bench.call(FAILURE);
    bench.wait_open();
    let probe = bench.admit();
    park();
    drop(probe);
    wakes(1);
    park();
    waiters.deregister(key);
    bench.breaker.reset();
    wakes(0);
}

#[test]
fn a_live_circuit_keeps_how_it_counts_what_is_overdue() {
    let with = |count, slow| {
        CircuitBreaker::builder("x").slow_rate(0.5).slow_threshold(slow).count_overdue(count).minimum_throughput(4)
    };
    let field = |old: Builder, new: Builder| old.build().unwrap().reload(&new).map_err(|e| e.field());
    assert_eq!(field(with(true, SECOND), with(false, SECOND)), Err("count_overdue"));
    assert_eq!(field(with(true, SECOND), with(true, 2 * SECOND)), Err("count_overdue"));
    assert_eq!(field(with(false, SECOND), with(true, SECOND)), Err("count_overdue"));
    assert_eq!(field(with(true, SECOND), with(true, SECOND)), Ok(()));
    assert_eq!(field(with(false, SECOND), with(false, 2 * SECOND)), Ok(()));
}

#[test]
fn a_reset_of_a_closed_circuit_clears_and_a_state_chosen_twice_changes_once() {
    let bench = Bench::consecutive(3, |builder| builder);
    bench.calls(2, FAILURE);
    bench.breaker.reset();
    assert_eq!(bench.breaker.snapshot().consecutive_failures, 0);
    let generation = || bench.breaker.snapshot().generation;
    bench.breaker.disable();
    let disabled = generation();
    bench.breaker.disable();
    assert_eq!(generation(), disabled);
}

#[test]
fn states_causes_and_counts_speak_for_themselves() {
    let words = [State::Closed, State::MetricsOnly, State::Disabled, State::Open, State::HalfOpen, State::ForcedOpen];
    assert_eq!(words.map(State::as_str), ["closed", "metrics-only", "disabled", "open", "half-open", "forced-open"]);
    assert_eq!(State::HalfOpen.to_string(), "half-open");
    let counts = Counts { succeeded: 5, failed: 2, slow: 2, slow_failed: 1 };
    assert_eq!((counts.total(), counts.failures(), counts.slow_calls()), (10, 3, 3));
    assert_eq!((counts.failure_rate(), counts.slow_rate()), (Some(0.3), Some(0.3)));
    assert_eq!((Counts::default().failure_rate(), Counts::default().slow_rate()), (None, None));
    let causes = [
        (Cause::ConsecutiveFailures(1), "1 failure"),
        (Cause::ConsecutiveFailures(5), "5 failures in a row"),
        (
            Cause::FailureStreak { failures: 13, others: counts },
            "13 failures in a row, where 3 of 10 other calls failed",
        ),
        (Cause::FailureRate(counts), "3 of 10 calls failed"),
        (Cause::SlowRate(counts), "3 of 10 calls were slow"),
        (Cause::Custom(counts), "the custom rule, at 3 of 10 calls failed"),
        (Cause::OpenTimeElapsed, "the open time is over"),
        (Cause::ProbesSucceeded(1), "1 probe succeeded"),
        (Cause::ProbesFailed(2), "2 probes failed"),
        (Cause::ProbeLeaseExpired, "the lease of a probe expired"),
        (Cause::HalfOpenTimedOut, "the probes did not decide in time"),
        (Cause::Operator, "set by an operator"),
        (Cause::Reloaded, "reloaded with another window"),
        (Cause::Peer, "set by another instance"),
    ];
    for (cause, words) in causes {
        assert_eq!(cause.to_string(), words);
    }
    let breaker = CircuitBreaker::new("named");
    assert!(format!("{breaker:?}").contains("named"));
    assert!(format!("{:?}", breaker.admit(&()).unwrap()).contains("named"));
    assert!(format!("{:?}", CircuitBreaker::builder("named")).contains("named"));
}

#[test]
fn listeners_leave_when_they_say_so() {
    let bench = Bench::consecutive(1, |builder| builder);
    let heard = Arc::new(Mutex::new(0));
    let count = heard.clone();
    bench.breaker.on_transition_while(move |_| {
        *count.lock().unwrap() += 1;
        false
    });
    bench.call(FAILURE);
    bench.breaker.reset();
    assert_eq!(*heard.lock().unwrap(), 1);
}

#[test]
fn extremes_are_values_like_others() {
    let bench = Bench::new(|builder| {
        builder
            .consecutive_failures(1)
            .open_time(Duration::MAX..=Duration::MAX)
            .probe_lease(Duration::MAX)
            .max_half_open(Duration::MAX)
            .slow_threshold(Duration::MAX)
            .recovery_ramp(Duration::MAX)
    });
    let early = bench.now();
    bench.wait(SECOND);
    bench.call(Outcome::Success);
    bench.clock.set(early); // the clock is set back
    bench.call(FAILURE);
    assert_eq!(bench.state(), State::Open);
    bench.wait(1_000_000_000 * SECOND);
    assert!(bench.try_admit().is_err());
    bench.breaker.open_for(Duration::ZERO);
    bench.calls(2, Outcome::Success);
    assert_eq!(bench.state(), State::Closed);
}

#[test]
fn bad_values_are_named() {
    let field =
        |configure: fn(Builder) -> Builder| configure(CircuitBreaker::builder("x")).build().unwrap_err().field();
    assert_eq!(field(|b| b.consecutive_failures(0)), "consecutive_failures");
    assert_eq!(field(|b| b.consecutive_failures(None).failure_rate(None)), "consecutive_failures");
    assert_eq!(field(|b| b.failure_rate(0.0)), "failure_rate");
    assert_eq!(field(|b| b.failure_rate(1.01)), "failure_rate");
    assert_eq!(field(|b| b.failure_rate(f64::NAN)), "failure_rate");
    assert_eq!(field(|b| b.slow_rate(0.5)), "slow_rate");
    assert_eq!(field(|b| b.slow_threshold(Duration::ZERO)), "slow_threshold");
    assert_eq!(field(|b| b.count_overdue(true)), "count_overdue");
    assert_eq!(field(|b| b.minimum_throughput(0)), "minimum_throughput");
    assert_eq!(field(|b| b.window(9 * MS)), "window");
    assert_eq!(field(|b| b.window(Duration::MAX)), "window");
    assert_eq!(field(|b| b.window(Window::Count(0))), "window");
    assert_eq!(field(|b| b.window(Window::Count(1_000_001))), "window");
    assert_eq!(field(|b| b.window(Window::Count(19))), "minimum_throughput");
    assert_eq!(field(|b| b.window(Window::Count(8)).minimum_throughput(1)), "failure_rate");
    assert_eq!(field(|b| b.open_time(Duration::ZERO..=SECOND)), "open_time");
    assert_eq!(field(|b| b.open_time(2 * SECOND..=SECOND)), "open_time");
    assert_eq!(field(|b| b.probes(0)), "probes");
    assert_eq!(field(|b| b.concurrent_probes(4)), "concurrent_probes");
    assert_eq!(field(|b| b.concurrent_probes(0)), "concurrent_probes");
    assert_eq!(field(|b| b.close_rule(CloseRule::Share(0.0))), "close_rule");
    assert_eq!(field(|b| b.probe_lease(Duration::ZERO)), "probe_lease");
    assert_eq!(field(|b| b.max_half_open(Duration::ZERO)), "max_half_open");
}

/// Returns the events that a listener receives while `act` runs.
fn heard<C: Clock>(breaker: &crate::circuit_breaker::CircuitBreaker<C>, act: impl FnOnce()) -> Vec<Event> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let (list, listening) = (heard.clone(), Arc::new(Mutex::new(true)));
    let still = listening.clone();
    breaker.on_event_while(move |event| {
        let listening = *still.lock().unwrap();
        if listening {
            list.lock().unwrap().push(event.clone());
        }
        listening
    });
    act();
    *listening.lock().unwrap() = false;
    std::mem::take(&mut *heard.lock().unwrap())
}

fn called(outcome: Outcome, elapsed: Duration, slow: bool) -> Event {
    Event::Called { outcome, elapsed, slow }
}

#[test]
fn listeners_of_events_get_every_call_with_its_time() {
    let bench = Bench::consecutive(9, |builder| builder.slow_threshold(SECOND));
    bench.call(Outcome::Success);
    bench.wait(MS);
    let events = heard(&bench.breaker, || {
        for (time, outcome) in [(MS, Outcome::Success), (SECOND, FAILURE), (2 * SECOND, Outcome::CANCELLED)] {
            let permit = bench.admit();
            bench.wait(time);
            bench.settle(permit, outcome);
        }
        bench.breaker.disable();
        bench.call(OVERLOAD);
    });
    assert_eq!(events[0], called(Outcome::Success, MS, false));
    assert_eq!(events[1], called(FAILURE, SECOND, false));
    assert_eq!(events[2], called(Outcome::CANCELLED, 2 * SECOND, true));
    assert!(matches!(&events[3], Event::Transition(transition) if transition.to == State::Disabled));
    assert_eq!(events[4], called(OVERLOAD, Duration::ZERO, false), "not counted, but emitted");
    assert_eq!(events.len(), 5);
}

#[test]
fn listeners_of_events_get_rejections_late_results_and_probes() {
    let bench = Bench::consecutive(2, |builder| builder.probe_lease(SECOND));
    let events = heard(&bench.breaker, || {
        let late = bench.admit();
        bench.calls(2, FAILURE);
        assert!(bench.try_admit().is_err());
        bench.settle(late, Outcome::Success);
        bench.wait_open();
        let hung = bench.admit();
        bench.wait(5 * MS);
        assert!(bench.try_admit().is_err());
        bench.wait(SECOND);
        bench.settle(hung, FAILURE);
        bench.wait_open();
        let probe = bench.admit();
        bench.wait(7 * MS);
        bench.settle(probe, Outcome::Success);
    });
    let events: Vec<_> = events.into_iter().filter(|event| !matches!(event, Event::Transition(_))).collect();
    let refused = |reason, retry_after| Event::NotPermitted { reason, retry_after: Some(retry_after) };
    let expected = [
        called(FAILURE, Duration::ZERO, false),
        called(FAILURE, Duration::ZERO, false),
        Event::RateExceeded(Cause::ConsecutiveFailures(2)),
        refused(&OPEN, SECOND),
        Event::Stale(Outcome::Success),
        refused(&PROBES_EXHAUSTED, SECOND - 5 * MS),
        Event::ProbeLeaseExpired,
        Event::Stale(FAILURE),
        called(Outcome::Success, 7 * MS, false),
    ];
    assert_eq!(events, expected);
}

#[test]
fn a_call_that_was_admitted_before_the_listener_came_is_no_event() {
    let bench = Bench::consecutive(2, |builder| builder);
    let early = bench.admit();
    let heard = Arc::new(Mutex::new(0));
    let count = heard.clone();
    bench.breaker.on_event(move |_| *count.lock().unwrap() += 1);
    bench.settle(early, FAILURE);
    assert_eq!(*heard.lock().unwrap(), 0);
    bench.call(Outcome::Success);
    bench.call(Outcome::Success);
    assert_eq!(*heard.lock().unwrap(), 2, "it stays");
}

#[test]
fn a_reservation_that_is_given_back_is_no_call() {
    let bench = Bench::consecutive(1, |builder| builder.slow_threshold(SECOND));
    let events = heard(&bench.breaker, || {
        let mut reserved = bench.reserve();
        bench.wait(2 * SECOND);
        reserved.settle(&Outcome::CANCELLED);
    });
    assert_eq!(events, []);
    bench.call(FAILURE);
    bench.wait_open();
    let events = heard(&bench.breaker, || {
        let mut probe = bench.reserve();
        probe.settle(&Outcome::CANCELLED);
    });
    assert_eq!(events.len(), 1, "only the transition: {events:?}");
}

#[test]
fn a_rule_that_is_met_is_an_event_also_where_nothing_trips() {
    let bench = Bench::consecutive(2, |builder| builder);
    bench.breaker.metrics_only();
    let exceeded = |events: Vec<Event>| {
        events.into_iter().filter(|event| matches!(event, Event::RateExceeded(_))).collect::<Vec<_>>()
    };
    let events = heard(&bench.breaker, || bench.calls(3, FAILURE));
    let rows = [2, 3].map(|n| Event::RateExceeded(Cause::ConsecutiveFailures(n)));
    assert_eq!(exceeded(events), rows);
    assert_eq!(bench.state(), State::MetricsOnly);
}

#[test]
fn a_reload_is_an_event_and_a_refused_one_is_not() {
    let bench = Bench::consecutive(2, |builder| builder);
    let builder = || CircuitBreaker::builder("test").consecutive_failures(3).failure_rate(None);
    let events = heard(&bench.breaker, || {
        bench.breaker.reload(&builder()).unwrap();
        bench.breaker.reload(&builder().probes(0)).unwrap_err();
        bench.calls(2, FAILURE);
    });
    assert_eq!(events[0], Event::Reloaded);
    assert_eq!(events[1..], [called(FAILURE, Duration::ZERO, false), called(FAILURE, Duration::ZERO, false)]);
}

#[test]
fn a_listener_of_changes_gets_no_call_and_calls_are_timed_only_for_listeners_of_calls() {
    let clock = Lagging::default();
    let builder = consecutive(2).clock(clock.clone());
    let breaker = builder.clone().build().unwrap();
    let call = || breaker.admit(&()).unwrap().settle(&Outcome::Success);
    let reads = || {
        clock.reads();
        call();
        clock.reads()
    };
    breaker.on_transition(|transition| panic!("{transition:?}"));
    assert_eq!(reads(), 0);
    heard(&breaker, || assert_eq!(reads(), 2));
    // The listener is removed with the next event. Calls are timed until the next reload.
    call();
    breaker.reload(&builder).unwrap();
    assert_eq!(reads(), 0);
}
