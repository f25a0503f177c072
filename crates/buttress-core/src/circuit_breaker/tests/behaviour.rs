//! Every rule by name, and every defect that a peer was found to have.

use super::{super::*, *};
use crate::Reason;
use std::sync::{Arc, Mutex};

#[test]
fn failures_in_a_row_trip_it_and_a_success_in_between_does_not() {
    let bench = Bench::consecutive(3, |builder| builder);
    bench.calls(2, FAILURE);
    bench.call(Outcome::Success);
    bench.calls(2, FAILURE);
    assert_eq!(bench.state(), State::Closed);
    bench.call(FAILURE);
    assert_eq!(bench.state(), State::Open);
    assert_eq!(bench.try_admit().unwrap_err().reason(), Reason::CircuitOpen);
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
    assert_eq!(bench.breaker.snapshot(&bench.now).consecutive_failures, 1);
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
fn a_time_window_forgets_also_when_nobody_calls() {
    let mut bench = Bench::new(|builder| builder.consecutive_failures(None).minimum_throughput(4));
    bench.calls(3, FAILURE);
    bench.wait(10 * SECOND);
    bench.call(FAILURE);
    assert_eq!(bench.state(), State::Closed);
    assert_eq!(bench.breaker.snapshot(&bench.now).counts.failures(), 1);
    bench.wait(3600 * SECOND);
    assert_eq!(bench.breaker.snapshot(&bench.now).counts.total(), 0);
}

/// tower-resilience never slides: after 50,000 good calls it took 50,000 failures to open.
#[test]
fn a_count_window_slides_so_that_a_long_healthy_past_does_not_matter() {
    let bench =
        Bench::new(|builder| builder.consecutive_failures(None).window(Window::Count(100)).minimum_throughput(100));
    bench.calls(50_000, Outcome::Success);
    bench.calls(49, FAILURE);
    assert_eq!(bench.state(), State::Closed);
    bench.call(FAILURE);
    assert_eq!(bench.state(), State::Open);
}

#[test]
fn a_count_window_sees_the_failure_that_comes_after_a_pause_in_summing() {
    let bench =
        Bench::new(|builder| builder.consecutive_failures(None).window(Window::Count(10)).minimum_throughput(10));
    for _ in 0..100 {
        bench.call(FAILURE);
        bench.calls(2, Outcome::Success);
        assert_eq!(bench.state(), State::Closed);
    }
    bench.calls(2, FAILURE);
    assert_eq!(bench.state(), State::Closed);
    bench.call(FAILURE);
    assert_eq!(bench.state(), State::Open, "5 of the last 10: {:?}", bench.breaker.snapshot(&bench.now).counts);
}

#[test]
fn slow_calls_trip_it_when_they_are_strictly_slower_and_succeed() {
    let slow = |by: Duration| {
        let mut bench = Bench::new(|builder| builder.slow_threshold(100 * MS).slow_rate(0.5).minimum_throughput(4));
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

/// tower-resilience, recloser and failsafe: 200 calls in a row hang and are dropped by an outer timeout, and nothing is recorded.
#[test]
fn a_backend_that_hangs_under_an_outer_timeout_trips_it() {
    let hang = |rule| {
        let mut bench =
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
    assert_eq!((bench.state(), bench.breaker.snapshot(&bench.now).counts.total()), (State::Closed, 0));
}

#[test]
fn calls_that_are_still_in_flight_past_the_threshold_trip_it_when_asked_for() {
    let mut bench =
        Bench::new(|builder| builder.slow_threshold(80 * MS).slow_rate(0.5).minimum_throughput(4).count_overdue(true));
    let hanging: Vec<_> = (0..4).map(|_| bench.admit()).collect();
    bench.wait(200 * MS);
    assert_eq!(bench.breaker.snapshot(&bench.now).overdue, 4);
    let late = bench.admit();
    assert_eq!(bench.state(), State::Open, "nothing has ended, and everything hangs");
    // Their end is stale, and the next generation starts without them.
    hanging.into_iter().chain([late]).for_each(|permit| bench.settle(permit, Outcome::Success));
    bench.breaker.reset(&bench.now);
    assert_eq!(bench.breaker.snapshot(&bench.now).overdue, 0);
}

#[test]
fn the_open_time_doubles_with_each_relapse_is_jittered_and_starts_over_after_closing() {
    let mut bench = Bench::consecutive(1, |builder| builder.open_time(SECOND..=8 * SECOND));
    bench.call(FAILURE);
    for step in [1, 2, 4, 8, 8, 8] {
        let open_for = bench.breaker.snapshot(&bench.now).retry_after.unwrap();
        assert!(
            open_for >= SECOND && open_for >= step * SECOND / 2 && open_for <= step * SECOND,
            "{open_for:?} at {step}"
        );
        bench.wait_open();
        bench.call(FAILURE);
    }
    bench.wait_open();
    bench.call(Outcome::Success);
    assert_eq!(bench.state(), State::Closed);
    bench.call(FAILURE);
    assert_eq!(bench.breaker.snapshot(&bench.now).retry_after, Some(SECOND));
}

#[test]
fn the_backends_retry_after_lengthens_the_open_time_up_to_its_end() {
    let hinted = |hint| Outcome::Failure(Failure { retry_after: Some(hint), ..Failure::new(FailureKind::Http(503)) });
    for (hint, expected) in [(10 * SECOND, 10 * SECOND), (Duration::MAX, 60 * SECOND), (MS, SECOND)] {
        let bench = Bench::consecutive(1, |builder| builder);
        bench.call(hinted(hint));
        assert_eq!(bench.breaker.snapshot(&bench.now).retry_after, Some(expected));
    }
}

/// recloser and failsafe let all of 1000 callers through to a dead backend while half-open.
#[test]
fn half_open_lets_only_the_probes_through() {
    let mut bench = Bench::consecutive(1, |builder| builder.probes(3).concurrent_probes(2));
    bench.call(FAILURE);
    bench.wait_open();
    let (first, second) = (bench.admit(), bench.admit());
    assert!(first.is_probe() && second.is_probe());
    assert_eq!(bench.try_admit().unwrap_err().reason(), Reason::ProbesExhausted);
    bench.settle(first, Outcome::Success);
    let third = bench.admit();
    assert!(bench.try_admit().is_err(), "three probes decide, and three are out or back");
    bench.settle(second, Outcome::Success);
    assert_eq!(bench.state(), State::HalfOpen);
    bench.settle(third, Outcome::Success);
    assert_eq!(bench.state(), State::Closed);
}

#[test]
fn a_failed_probe_opens_it_again_and_so_does_an_overloaded_one() {
    for outcome in [FAILURE, OVERLOAD] {
        let mut bench = Bench::consecutive(1, |builder| builder.probes(3));
        bench.call(FAILURE);
        bench.wait_open();
        bench.call(Outcome::Success);
        bench.call(outcome);
        assert_eq!(bench.state(), State::Open);
    }
}

#[test]
fn a_share_of_the_probes_decides_as_soon_as_the_rest_cannot_change_it() {
    let round = |outcomes: &[Outcome]| {
        let mut bench = Bench::consecutive(1, |builder| builder.probes(4).close_rule(CloseRule::Share(0.75)));
        bench.call(FAILURE);
        bench.wait_open();
        outcomes.iter().for_each(|outcome| bench.call(*outcome));
        bench.state()
    };
    assert_eq!(round(&[FAILURE, Outcome::Success, Outcome::Success]), State::HalfOpen);
    assert_eq!(round(&[FAILURE, Outcome::Success, Outcome::Success, Outcome::Success]), State::Closed);
    assert_eq!(round(&[Outcome::Success, Outcome::Success, Outcome::Success]), State::Closed);
    assert_eq!(round(&[FAILURE, FAILURE]), State::Open);
}

/// linkerd's breaker stays shut for ever after one cancelled probe; Polly counts it as a success and closes.
#[test]
fn a_cancelled_probe_gives_its_slot_back_and_decides_nothing() {
    let mut bench = Bench::consecutive(1, |builder| builder);
    bench.call(FAILURE);
    bench.wait_open();
    bench.settle(bench.admit(), Outcome::CANCELLED);
    drop(bench.admit());
    bench.call(Outcome::Ignored(Ignored::LocalReject));
    assert_eq!(bench.state(), State::HalfOpen);
    bench.call(Outcome::Success);
    assert_eq!(bench.state(), State::Closed);
}

/// resilience4j, Polly and tower-resilience wait for a hung probe for ever.
#[test]
fn a_probe_that_hangs_is_given_up_when_its_lease_ends_and_counts_as_failed() {
    let mut bench = Bench::consecutive(1, |builder| builder.probe_lease(5 * SECOND));
    bench.call(FAILURE);
    bench.wait_open();
    let hung = bench.admit();
    assert_eq!(bench.try_admit().unwrap_err().retry_after(), Some(5 * SECOND));
    bench.wait(5 * SECOND);
    assert!(bench.try_admit().is_err());
    assert_eq!(bench.state(), State::Open);
    let stale = bench.breaker.snapshot(&bench.now).stale;
    bench.settle(hung, Outcome::Success);
    assert_eq!((bench.state(), bench.breaker.snapshot(&bench.now).stale), (State::Open, stale + 1));
}

#[test]
fn probes_that_never_decide_end_with_the_bound_on_half_open_time() {
    let mut bench = Bench::consecutive(1, |builder| builder.probes(2).max_half_open(10 * SECOND));
    bench.call(FAILURE);
    bench.wait_open();
    bench.call(Outcome::Success);
    bench.wait(10 * SECOND - MS);
    assert_eq!(bench.state(), State::HalfOpen);
    bench.wait(MS);
    assert_eq!(bench.state(), State::Open, "nobody has to call for it");
}

/// tower-resilience: with a time window, successes of probes expire while their permits are used up, and it is wedged.
#[test]
fn probes_count_however_far_apart_they_are() {
    let mut bench =
        Bench::new(|builder| builder.window(50 * MS).consecutive_failures(1).probes(2).open_time(SECOND..=SECOND));
    bench.call(FAILURE);
    bench.wait_open();
    bench.call(Outcome::Success);
    bench.wait(80 * MS);
    bench.call(Outcome::Success);
    assert_eq!(bench.state(), State::Closed);
}

/// resilience4j, Polly, failsafe-go, Sentinel, linkerd and tower-resilience let such a result decide.
#[test]
fn late_results_from_before_the_trip_neither_close_nor_reopen_it() {
    for late_outcome in [Outcome::Success, FAILURE] {
        let mut bench = Bench::consecutive(1, |builder| builder);
        let late = bench.admit();
        let later = bench.admit();
        bench.call(FAILURE);
        bench.settle(late, late_outcome);
        assert_eq!(bench.state(), State::Open);
        bench.wait_open();
        let probe = bench.admit();
        bench.settle(later, late_outcome);
        assert_eq!(bench.state(), State::HalfOpen);
        assert_eq!(bench.breaker.snapshot(&bench.now).stale, 2);
        bench.settle(probe, Outcome::Success);
        assert_eq!(bench.state(), State::Closed);
    }
}

#[test]
fn a_probe_of_an_earlier_round_does_not_decide_a_later_one() {
    let mut bench = Bench::consecutive(1, |builder| builder.concurrent_probes(2).probes(2));
    bench.call(FAILURE);
    bench.wait_open();
    let (old, failing) = (bench.admit(), bench.admit());
    bench.settle(failing, FAILURE);
    bench.wait_open();
    let probe = bench.admit();
    bench.settle(old, Outcome::Success);
    drop(probe);
    bench.call(Outcome::Success);
    assert_eq!(bench.state(), State::HalfOpen, "one of two");
}

#[test]
fn results_of_the_past_do_not_count_after_closing() {
    let mut bench = Bench::new(|builder| builder.consecutive_failures(None).minimum_throughput(4).probes(1));
    bench.calls(4, FAILURE);
    bench.wait_open();
    bench.call(Outcome::Success);
    assert_eq!(bench.breaker.snapshot(&bench.now).counts.total(), 0);
    bench.calls(3, FAILURE);
    assert_eq!(bench.state(), State::Closed);
}

#[test]
fn an_operators_state_is_left_by_the_operator_only() {
    let mut bench = Bench::consecutive(1, |builder| builder);
    bench.breaker.force_open(&bench.now);
    bench.wait(1_000_000 * SECOND);
    let rejection = bench.try_admit().unwrap_err();
    assert_eq!((rejection.reason(), rejection.retry_after()), (Reason::ForcedOpen, None));
    bench.breaker.disable(&bench.now);
    bench.calls(10, FAILURE);
    assert_eq!((bench.state(), bench.breaker.snapshot(&bench.now).consecutive_failures), (State::Disabled, 0));
    bench.breaker.metrics_only(&bench.now);
    bench.calls(10, FAILURE);
    assert_eq!((bench.state(), bench.breaker.snapshot(&bench.now).consecutive_failures), (State::MetricsOnly, 10));
    bench.breaker.reset(&bench.now);
    assert_eq!((bench.state(), bench.breaker.snapshot(&bench.now).consecutive_failures), (State::Closed, 0));
}

#[test]
fn opened_for_a_time_it_probes_afterwards() {
    let mut bench = Bench::consecutive(1, |builder| builder);
    bench.breaker.open_for(7 * SECOND, &bench.now);
    assert_eq!(bench.try_admit().unwrap_err().retry_after(), Some(7 * SECOND));
    bench.wait(7 * SECOND);
    bench.call(Outcome::Success);
    assert_eq!(bench.state(), State::Closed);
    bench.breaker.open_for(Duration::MAX, &bench.now);
    assert_eq!(bench.state(), State::ForcedOpen, "a time that no clock reaches is for ever");
}

#[test]
fn a_request_that_may_not_be_a_probe_is_refused_only_where_it_would_be_one() {
    let mut bench = Bench::consecutive(1, |builder| builder);
    assert!(bench.breaker.reserve_if(|| unreachable!("not asked while closed"), &bench.now).is_ok());
    bench.call(FAILURE);
    assert_eq!(
        bench.breaker.reserve_if(|| unreachable!("nor while open"), &bench.now).unwrap_err().reason(),
        Reason::CircuitOpen
    );
    bench.wait_open();
    assert_eq!(bench.breaker.reserve_if(|| false, &bench.now).unwrap_err().reason(), Reason::ProbesExhausted);
    assert!(bench.breaker.reserve_if(|| true, &bench.now).unwrap().is_probe());
}

#[test]
fn a_recovering_circuit_admits_a_growing_share() {
    let mut bench = Bench::consecutive(1, |builder| builder.recovery_ramp(10 * SECOND));
    bench.call(FAILURE);
    bench.wait_open();
    bench.call(Outcome::Success);
    let admitted = |bench: &Bench| (0..1000).filter(|_| bench.try_admit().is_ok()).count();
    assert_eq!(admitted(&bench), 100, "a tenth to begin with");
    assert_eq!(bench.try_admit().unwrap_err().reason(), Reason::Recovering);
    bench.wait(5 * SECOND);
    assert!((499..=501).contains(&admitted(&bench)));
    bench.wait(5 * SECOND);
    assert_eq!(admitted(&bench), 1000);
}

#[test]
fn a_reload_keeps_state_and_results_and_another_window_begins_anew() {
    let bench = Bench::new(|builder| builder.consecutive_failures(10));
    bench.calls(4, FAILURE);
    let builder = || CircuitBreaker::builder("test").consecutive_failures(5);
    bench.breaker.reload(&builder(), &bench.now).unwrap();
    let snapshot = bench.breaker.snapshot(&bench.now);
    assert_eq!((snapshot.generation, snapshot.consecutive_failures, snapshot.counts.failed), (0, 4, 4));
    bench.breaker.reload(&builder().window(20 * SECOND), &bench.now).unwrap();
    let snapshot = bench.breaker.snapshot(&bench.now);
    assert_eq!((snapshot.generation, snapshot.consecutive_failures, snapshot.counts.failed), (1, 0, 0));
    let refused = bench.breaker.reload(&builder().window(Window::Count(20)), &bench.now).unwrap_err();
    assert_eq!(refused.field(), "window");
    assert_eq!(bench.breaker.reload(&builder().probes(0), &bench.now).unwrap_err().field(), "probes");
    bench.calls(5, FAILURE);
    assert_eq!(bench.state(), State::Open);
}

#[test]
fn listeners_hear_every_change_with_its_numbers_outside_the_lock_and_may_panic() {
    let mut bench = Bench::consecutive(2, |builder| builder);
    let heard = Arc::new(Mutex::new(Vec::new()));
    bench.breaker.on_transition(|_| panic!("a listener breaks"));
    let (breaker, now, list) = (bench.breaker.clone(), bench.now, heard.clone());
    bench.breaker.on_transition(move |transition| {
        // Would deadlock under the lock.
        let state = breaker.state(&now);
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
    use std::sync::atomic::{AtomicUsize, Ordering};
    struct Woken(AtomicUsize);
    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let mut bench = Bench::consecutive(1, |builder| builder);
    let woken = Arc::new(Woken(AtomicUsize::new(0)));
    let breaker = bench.breaker.clone();
    let waiters = breaker.waiters().unwrap();
    let key = waiters.key();
    let park = || waiters.register(key, &woken.clone().into());
    let wakes = |expected| assert_eq!(woken.0.swap(0, Ordering::SeqCst), expected);

    bench.call(FAILURE);
    park();
    bench.breaker.reset(&bench.now);
    wakes(1);
    bench.call(FAILURE);
    bench.wait_open();
    let probe = bench.admit();
    park();
    drop(probe);
    wakes(1);
    park();
    waiters.deregister(key);
    bench.breaker.reset(&bench.now);
    wakes(0);
}

#[test]
fn a_reserved_place_that_nobody_uses_decides_nothing() {
    let mut bench = Bench::consecutive(1, |builder| builder.probe_lease(5 * SECOND));
    bench.call(FAILURE);
    bench.wait_open();
    let reserved = bench.breaker.reserve(&bench.now).unwrap();
    assert!(reserved.is_probe() && bench.try_admit().is_err());
    bench.wait(5 * SECOND);
    assert_eq!(bench.state(), State::HalfOpen, "no call began, so none has failed");
    // Its slot went to another call, and comes back to it when that is over.
    let other = bench.admit();
    assert!(bench.breaker.confirm(reserved, &(), &bench.now).is_err());
    drop(other);
    let reserved = bench.breaker.reserve(&bench.now).unwrap();
    bench.wait(4 * SECOND);
    let begun = bench.breaker.confirm(reserved, &(), &bench.now).unwrap();
    bench.wait(4 * SECOND);
    bench.settle(begun, Outcome::Success);
    assert_eq!(bench.state(), State::Closed, "its lease began with its call");
}

#[test]
fn a_place_reserved_before_the_trip_is_not_good_after_it() {
    let bench = Bench::consecutive(1, |builder| builder);
    let reserved = bench.breaker.reserve(&bench.now).unwrap();
    bench.breaker.force_open(&bench.now);
    let refused = bench.breaker.confirm(reserved, &(), &bench.now).unwrap_err();
    assert_eq!(refused.reason(), Reason::ForcedOpen);
    bench.breaker.reset(&bench.now);
    let reserved = bench.breaker.reserve(&bench.now).unwrap();
    assert!(bench.breaker.confirm(reserved, &(), &bench.now).is_ok());
}

#[test]
fn what_was_due_while_nobody_looked_happened_when_it_was_due() {
    let mut bench = Bench::consecutive(1, |builder| builder.probe_lease(SECOND));
    bench.call(FAILURE);
    bench.wait_open();
    let hung = bench.admit();
    bench.wait(1_500 * MS);
    assert_eq!(bench.state(), State::Open);
    assert!(bench.breaker.snapshot(&bench.now).retry_after < Some(1_500 * MS), "it opened half a second ago");
    bench.wait(60 * SECOND);
    assert!(bench.admit().is_probe(), "and has been open for long enough");
    drop(hung);

    let mut bench = Bench::consecutive(1, |builder| builder.probes(2).max_half_open(SECOND));
    bench.call(FAILURE);
    bench.wait_open();
    bench.call(Outcome::Success);
    bench.wait(60 * SECOND);
    assert!(bench.admit().is_probe());
}

#[test]
fn a_peek_sees_what_an_admission_would_and_takes_nothing() {
    let mut bench = Bench::consecutive(1, |builder| builder);
    let peek = |bench: &Bench| bench.breaker.peek(&bench.now).map_err(|refused| refused.retry_after);
    assert_eq!(peek(&bench), Ok(()));
    bench.call(FAILURE);
    assert_eq!(peek(&bench), Err(Some(SECOND)));
    bench.wait_open();
    assert_eq!((peek(&bench), bench.state()), (Ok(()), State::Open));
    let probe = bench.admit();
    assert_eq!(peek(&bench), Err(Some(30 * SECOND)), "until its lease ends");
    drop(probe);
    assert_eq!(peek(&bench), Ok(()));
    bench.breaker.force_open(&bench.now);
    assert_eq!(peek(&bench), Err(None));
    assert_eq!(bench.breaker.snapshot(&bench.now).rejected, 0);
}

#[test]
fn a_live_circuit_keeps_how_it_counts_what_is_overdue() {
    let with = |count, slow| {
        CircuitBreaker::builder("x").slow_rate(0.5).slow_threshold(slow).count_overdue(count).minimum_throughput(4)
    };
    let field =
        |old: Builder, new: Builder| old.build().unwrap().reload(&new, &crate::testing::start()).map_err(|e| e.field());
    assert_eq!(field(with(true, SECOND), with(false, SECOND)), Err("count_overdue"));
    assert_eq!(field(with(true, SECOND), with(true, 2 * SECOND)), Err("count_overdue"));
    assert_eq!(field(with(false, SECOND), with(true, SECOND)), Err("count_overdue"));
    assert_eq!(field(with(true, SECOND), with(true, SECOND)), Ok(()));
    assert_eq!(field(with(false, SECOND), with(false, 2 * SECOND)), Ok(()));
}

#[test]
fn calls_that_end_are_not_overdue_and_those_dropped_without_a_word_neither() {
    let mut bench =
        Bench::new(|builder| builder.slow_threshold(80 * MS).slow_rate(0.5).minimum_throughput(4).count_overdue(true));
    let (ends, dropped, stays) = (bench.admit(), bench.admit(), bench.admit());
    bench.wait(50 * MS);
    bench.settle(ends, Outcome::Success);
    drop(dropped);
    bench.wait(100 * MS);
    assert_eq!(bench.breaker.snapshot(&bench.now).overdue, 1);
    bench.settle(stays, Outcome::Success);
    assert_eq!(bench.breaker.snapshot(&bench.now).overdue, 0);
    // One of an earlier generation is not counted in this one, in either direction.
    let old = bench.admit();
    bench.breaker.reset(&bench.now);
    let new = bench.admit();
    bench.wait(200 * MS);
    drop(old);
    assert_eq!(bench.breaker.snapshot(&bench.now).overdue, 1);
    drop(new);
    assert_eq!(bench.breaker.snapshot(&bench.now).overdue, 0);
}

#[test]
fn a_call_whose_end_is_read_off_a_clock_behind_its_start_is_not_slow() {
    let mut bench = Bench::new(|builder| builder.slow_threshold(80 * MS).slow_rate(0.5).minimum_throughput(1));
    bench.call(Outcome::Success);
    bench.wait(SECOND);
    let permit = bench.admit();
    bench.now -= 200 * MS;
    bench.settle(permit, Outcome::Success);
    assert_eq!(bench.breaker.snapshot(&bench.now).counts.slow_calls(), 0);
}

/// A clock whose coarse reading is as far behind as a kernel's tick may be, and that counts how often the fine one is read.
struct Lagging(Instant, std::cell::Cell<u32>);

impl crate::Clock for Lagging {
    fn now(&self) -> Instant {
        self.1.set(self.1.get() + 1);
        self.0
    }

    fn coarse(&self) -> Instant {
        self.0 - 10 * MS
    }
}

#[test]
fn a_clock_is_read_only_where_it_matters_and_the_fine_one_only_where_buckets_are_narrow() {
    let reads = |configure: fn(Builder) -> Builder| {
        let breaker = configure(CircuitBreaker::builder("x")).build().unwrap();
        let clock = Lagging(crate::testing::start() + SECOND, std::cell::Cell::new(0));
        breaker.snapshot(&clock);
        clock.1.set(0);
        breaker.reserve(&clock).unwrap().settle(&Outcome::Success, &clock);
        clock.1.get()
    };
    assert_eq!(reads(|builder| builder.failure_rate(None)), 0);
    assert_eq!(reads(|builder| builder), 0, "buckets of a second");
    assert_eq!(reads(|builder| builder.window(SECOND)), 0, "buckets of a tenth");
    assert_eq!(reads(|builder| builder.window(990 * MS)), 1);
    assert_eq!(reads(|builder| builder.slow_threshold(SECOND)), 2, "at the start and at the end");
}

#[test]
fn a_probe_is_slow_when_it_is_strictly_slower() {
    for (took, state) in [(100 * MS, State::Closed), (101 * MS, State::Open)] {
        let mut bench = Bench::consecutive(1, |builder| builder.slow_threshold(100 * MS).slow_rate(1.0));
        bench.call(FAILURE);
        bench.wait_open();
        let probe = bench.admit();
        bench.wait(took);
        bench.settle(probe, Outcome::Success);
        assert_eq!(bench.state(), state);
    }
}

#[test]
fn a_young_call_that_ends_does_not_hide_an_overdue_one() {
    for drops in [false, true] {
        let mut bench = Bench::new(|builder| {
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
        assert_eq!(bench.breaker.snapshot(&bench.now).overdue, 1);
        drop(overdue);
    }
}

#[test]
fn a_count_window_is_summed_at_every_bad_result_where_overdue_calls_count() {
    let mut bench = Bench::new(|builder| {
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
fn the_open_time_ends_by_the_fine_clock_which_is_asked_only_near_its_end() {
    let bench = Bench::consecutive(1, |builder| builder);
    bench.call(FAILURE);
    let refused_at = |elapsed: Duration| {
        let clock = Lagging(bench.now + elapsed, std::cell::Cell::new(0));
        (bench.breaker.peek(&clock).map_err(|refused| refused.retry_after), clock.1.get())
    };
    assert_eq!(refused_at(500 * MS), (Err(Some(510 * MS)), 0), "some milliseconds too long, for a cheap look");
    assert_eq!(refused_at(999 * MS), (Err(Some(MS)), 1));
    assert_eq!(refused_at(SECOND), (Ok(()), 1));
}

#[test]
fn a_reset_of_a_closed_circuit_clears_and_a_state_chosen_twice_changes_once() {
    let bench = Bench::consecutive(3, |builder| builder);
    bench.calls(2, FAILURE);
    bench.breaker.reset(&bench.now);
    assert_eq!(bench.breaker.snapshot(&bench.now).consecutive_failures, 0);
    let generation = || bench.breaker.snapshot(&bench.now).generation;
    bench.breaker.disable(&bench.now);
    let disabled = generation();
    bench.breaker.disable(&bench.now);
    assert_eq!(generation(), disabled);
}

#[test]
fn probes_of_an_interrupted_round_are_stale() {
    let mut bench = Bench::consecutive(1, |builder| builder.probes(2).concurrent_probes(2));
    bench.call(FAILURE);
    bench.wait_open();
    let old = bench.admit();
    bench.breaker.open_for(SECOND, &bench.now);
    bench.wait(SECOND);
    let new = bench.admit();
    bench.settle(old, FAILURE);
    assert_eq!((bench.state(), bench.breaker.snapshot(&bench.now).stale), (State::HalfOpen, 1));
    bench.settle(new, Outcome::Success);
    bench.call(Outcome::Success);
    assert_eq!(bench.state(), State::Closed);
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
        (Cause::ConsecutiveFailures(5), "5 failures in a row"),
        (Cause::FailureRate(counts), "3 of 10 calls failed"),
        (Cause::SlowRate(counts), "3 of 10 calls were slow"),
        (Cause::Custom(counts), "the custom rule, at 3 of 10 calls failed"),
        (Cause::OpenTimeElapsed, "the open time is over"),
        (Cause::ProbesSucceeded(1), "1 probe succeeded"),
        (Cause::ProbesFailed(2), "2 probes failed"),
        (Cause::ProbeLeaseExpired, "a probe did not come back"),
        (Cause::HalfOpenTimedOut, "the probes did not decide in time"),
        (Cause::Operator, "by hand"),
        (Cause::Reloaded, "reloaded with another window"),
    ];
    for (cause, words) in causes {
        assert_eq!(cause.to_string(), words);
    }
    let breaker = CircuitBreaker::new("named");
    assert!(format!("{breaker:?}").contains("named"));
    assert!(format!("{:?}", breaker.reserve(&crate::testing::start()).unwrap()).contains("named"));
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
    bench.breaker.reset(&bench.now);
    assert_eq!(*heard.lock().unwrap(), 1);
}

#[test]
fn extremes_are_values_like_others() {
    let mut bench = Bench::new(|builder| {
        builder
            .consecutive_failures(1)
            .open_time(Duration::MAX..=Duration::MAX)
            .probe_lease(Duration::MAX)
            .max_half_open(Duration::MAX)
            .slow_threshold(Duration::MAX)
            .recovery_ramp(Duration::MAX)
    });
    let early = bench.now;
    bench.wait(SECOND);
    bench.call(Outcome::Success);
    bench.now = early; // a clock that jumps back
    bench.call(FAILURE);
    assert_eq!(bench.state(), State::Open);
    bench.wait(1_000_000_000 * SECOND);
    assert!(bench.try_admit().is_err());
    bench.breaker.open_for(Duration::ZERO, &bench.now);
    bench.calls(3, Outcome::Success);
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
    assert_eq!(field(|b| b.open_time(Duration::ZERO..=SECOND)), "open_time");
    assert_eq!(field(|b| b.open_time(2 * SECOND..=SECOND)), "open_time");
    assert_eq!(field(|b| b.probes(0)), "probes");
    assert_eq!(field(|b| b.concurrent_probes(4)), "concurrent_probes");
    assert_eq!(field(|b| b.concurrent_probes(0)), "concurrent_probes");
    assert_eq!(field(|b| b.close_rule(CloseRule::Share(0.0))), "close_rule");
    assert_eq!(field(|b| b.probe_lease(Duration::ZERO)), "probe_lease");
    assert_eq!(field(|b| b.max_half_open(Duration::ZERO)), "max_half_open");
}

#[test]
fn threads_count_exactly_and_one_of_them_trips_it() {
    let bench = Bench::new(|builder| builder.consecutive_failures(None).minimum_throughput(4000).failure_rate(0.5));
    let (breaker, now) = (&bench.breaker, bench.now);
    let trips = Arc::new(Mutex::new(0));
    let count = trips.clone();
    breaker.on_transition(move |_| *count.lock().unwrap() += 1);
    std::thread::scope(|scope| {
        for outcome in [Outcome::Success, FAILURE, Outcome::Success, FAILURE] {
            scope.spawn(move || (0..999).for_each(|_| breaker.reserve(&now).unwrap().settle(&outcome, &now)));
        }
    });
    let counts = breaker.snapshot(&now).counts;
    assert_eq!((counts.succeeded, counts.failed), (1998, 1998));
    bench.calls(4, FAILURE);
    assert_eq!((bench.state(), *trips.lock().unwrap()), (State::Open, 1));
}
