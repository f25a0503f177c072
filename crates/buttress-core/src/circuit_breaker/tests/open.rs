//! From open to half-open and closed: open times, probes, leases, and results that arrive too late.

use super::*;
use std::sync::Mutex;

#[test]
fn the_open_time_doubles_with_each_relapse_is_jittered_and_starts_over_after_closing() {
    let bench = Bench::consecutive(1, |builder| builder.open_time(SECOND..=8 * SECOND));
    bench.call(FAILURE);
    for step in [1, 2, 4, 8, 8, 8] {
        let open_for = bench.breaker.snapshot().retry_after.unwrap();
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
    assert_eq!(bench.breaker.snapshot().retry_after, Some(SECOND));
}

#[test]
fn the_backends_retry_after_lengthens_the_open_time_up_to_its_end() {
    let hinted = |hint| Outcome::Failure(Failure { retry_after: Some(hint), ..Failure::new(FailureKind::Http(503)) });
    for (hint, expected) in [(10 * SECOND, 10 * SECOND), (Duration::MAX, 60 * SECOND), (MS, SECOND)] {
        let bench = Bench::consecutive(1, |builder| builder);
        bench.call(hinted(hint));
        assert_eq!(bench.breaker.snapshot().retry_after, Some(expected));
    }
}

/// recloser and failsafe admit all of 1000 calls to a backend that is down while half-open.
#[test]
fn half_open_lets_only_the_probes_through() {
    let bench = Bench::consecutive(1, |builder| builder.probes(3).concurrent_probes(2));
    bench.call(FAILURE);
    bench.wait_open();
    let (first, second) = (bench.admit(), bench.admit());
    assert!(first.is_probe() && second.is_probe());
    assert_eq!(bench.try_admit().unwrap_err().reason(), &PROBES_EXHAUSTED);
    bench.settle(first, Outcome::Success);
    let third = bench.admit();
    assert!(bench.try_admit().is_err(), "of three probes, one is settled and two are in flight");
    bench.settle(second, Outcome::Success);
    assert_eq!(bench.state(), State::HalfOpen);
    bench.settle(third, Outcome::Success);
    assert_eq!(bench.state(), State::Closed);
}

#[test]
fn a_failed_probe_opens_it_again_and_so_does_an_overloaded_one() {
    for outcome in [FAILURE, OVERLOAD] {
        let bench = Bench::consecutive(1, |builder| builder.probes(3));
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
        let bench = Bench::consecutive(1, |builder| builder.probes(4).close_rule(CloseRule::Share(0.75)));
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

/// linkerd's breaker stays open after one cancelled probe; Polly counts it as a success and closes.
#[test]
fn a_cancelled_probe_gives_its_slot_back_and_decides_nothing() {
    let bench = Bench::consecutive(1, |builder| builder);
    bench.call(FAILURE);
    bench.wait_open();
    bench.settle(bench.admit(), Outcome::CANCELLED);
    drop(bench.admit());
    bench.call(Outcome::Ignored(Ignored::LocalReject));
    assert_eq!(bench.state(), State::HalfOpen);
    bench.call(Outcome::Success);
    assert_eq!(bench.state(), State::Closed);
}

/// In resilience4j, Polly and tower-resilience, a probe that hangs has no time limit.
#[test]
fn a_probe_that_hangs_is_given_up_when_its_lease_ends_and_counts_as_failed() {
    let bench = Bench::consecutive(1, |builder| builder.probe_lease(5 * SECOND));
    bench.call(FAILURE);
    bench.wait_open();
    let hung = bench.admit();
    bench.wait(5 * SECOND - MS);
    assert_eq!((bench.state(), bench.try_admit().unwrap_err().retry_after()), (State::HalfOpen, Some(MS)));
    bench.wait(MS);
    assert!(bench.try_admit().is_err());
    assert_eq!(bench.state(), State::Open);
    let stale = bench.breaker.snapshot().stale;
    bench.settle(hung, Outcome::Success);
    assert_eq!((bench.state(), bench.breaker.snapshot().stale), (State::Open, stale + 1));
}

/// tower-resilience, with a time window: the successes of probes expire, but their permits stay
/// used, so that the breaker stays half-open.
#[test]
fn probes_count_however_far_apart_they_are() {
    let bench =
        Bench::new(|builder| builder.window(50 * MS).consecutive_failures(1).probes(2).open_time(SECOND..=SECOND));
    bench.call(FAILURE);
    bench.wait_open();
    bench.call(Outcome::Success);
    bench.wait(80 * MS);
    bench.call(Outcome::Success);
    assert_eq!(bench.state(), State::Closed);
}

/// In resilience4j, Polly, failsafe-go, Sentinel, linkerd and tower-resilience, such a result
/// closes or opens the breaker.
#[test]
fn late_results_from_before_the_trip_neither_close_nor_reopen_it() {
    for late_outcome in [Outcome::Success, FAILURE] {
        let bench = Bench::consecutive(1, |builder| builder);
        let late = bench.admit();
        let later = bench.admit();
        bench.call(FAILURE);
        bench.settle(late, late_outcome);
        assert_eq!(bench.state(), State::Open);
        bench.wait_open();
        let probe = bench.admit();
        bench.settle(later, late_outcome);
        assert_eq!(bench.state(), State::HalfOpen);
        assert_eq!(bench.breaker.snapshot().stale, 2);
        bench.settle(probe, Outcome::Success);
        assert_eq!(bench.state(), State::Closed);
    }
}

#[test]
fn a_probe_of_an_earlier_round_does_not_decide_a_later_one() {
    let bench = Bench::consecutive(1, |builder| builder.concurrent_probes(2).probes(2));
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
    let bench =
        Bench::new(|builder| builder.consecutive_failures(None).failure_rate(0.5).minimum_throughput(4).probes(1));
    bench.calls(4, FAILURE);
    bench.wait_open();
    bench.call(Outcome::Success);
    assert_eq!(bench.breaker.snapshot().counts.total(), 0);
    bench.calls(3, FAILURE);
    assert_eq!(bench.state(), State::Closed);
}

#[test]
fn a_request_that_may_not_be_a_probe_is_refused_only_where_it_would_be_one() {
    let bench = Bench::consecutive(1, |builder| builder);
    assert!(bench.breaker.admit_if(|| unreachable!("called while closed")).is_ok());
    bench.call(FAILURE);
    assert_eq!(bench.breaker.admit_if(|| unreachable!("called while open")).unwrap_err().reason(), &OPEN);
    bench.wait_open();
    assert_eq!(bench.breaker.admit_if(|| false).unwrap_err().reason(), &PROBES_EXHAUSTED);
    assert!(bench.breaker.admit_if(|| true).unwrap().is_probe());
}

#[test]
fn a_recovering_circuit_admits_a_growing_share() {
    let bench = Bench::consecutive(1, |builder| builder.recovery_ramp(10 * SECOND));
    bench.call(FAILURE);
    bench.wait_open();
    bench.call(Outcome::Success);
    let admitted = |bench: &Bench| (0..1000).filter(|_| bench.try_admit().is_ok()).count();
    assert_eq!(admitted(&bench), 100, "a tenth at first");
    assert_eq!(bench.try_admit().unwrap_err().reason(), &RECOVERING);
    bench.wait(5 * SECOND);
    assert!((499..=501).contains(&admitted(&bench)));
    bench.wait(5 * SECOND);
    assert_eq!(admitted(&bench), 1000);
}

#[test]
fn a_reserved_place_that_is_not_used_decides_nothing() {
    let bench = Bench::consecutive(1, |builder| builder.probe_lease(5 * SECOND));
    bench.call(FAILURE);
    bench.wait_open();
    let reserved = bench.reserve();
    assert!(reserved.is_probe() && bench.try_admit().is_err());
    bench.wait(5 * SECOND);
    assert_eq!(bench.state(), State::HalfOpen, "no call began, so none has failed");
    // Its slot is taken by another call, and free after that call.
    let other = bench.admit();
    assert!(bench.confirm(reserved).is_err());
    drop(other);
    let reserved = bench.reserve();
    bench.wait(4 * SECOND);
    let begun = bench.confirm(reserved).unwrap();
    bench.wait(4 * SECOND);
    bench.settle(begun, Outcome::Success);
    assert_eq!(bench.state(), State::Closed, "its lease began with its call");
}

#[test]
fn a_place_reserved_before_the_trip_is_not_good_after_it() {
    let bench = Bench::consecutive(1, |builder| builder);
    let reserved = bench.reserve();
    bench.breaker.force_open();
    let refused = bench.confirm(reserved).unwrap_err();
    assert_eq!(refused.reason(), &FORCED_OPEN);
    bench.breaker.reset();
    let reserved = bench.reserve();
    assert!(bench.confirm(reserved).is_ok());
}

#[test]
fn what_was_due_before_the_next_look_happened_when_it_was_due() {
    let bench = Bench::consecutive(1, |builder| builder.probe_lease(SECOND));
    bench.call(FAILURE);
    bench.wait_open();
    let hung = bench.admit();
    bench.wait(1_500 * MS);
    assert_eq!(bench.state(), State::Open);
    assert!(bench.breaker.snapshot().retry_after < Some(1_500 * MS), "it opened half a second ago");
    bench.wait(60 * SECOND);
    assert!(bench.admit().is_probe(), "and has been open for long enough");
    drop(hung);

    let bench = Bench::consecutive(1, |builder| bears_a_failure(builder).max_half_open(SECOND));
    bench.call(FAILURE);
    bench.wait_open();
    bench.call(FAILURE);
    bench.wait(60 * SECOND);
    assert!(bench.admit().is_probe());
    assert_eq!(bench.breaker.snapshot().openings, 2);
}

/// A circuit that two of three probes close, so that one may fail.
fn bears_a_failure(builder: Builder) -> Builder {
    builder.probes(3).close_rule(CloseRule::Share(0.6))
}

#[test]
fn what_was_due_first_happened_first() {
    for (begins_after, first) in [(Duration::ZERO, Cause::ProbeLeaseExpired), (5 * SECOND, Cause::HalfOpenTimedOut)] {
        let bench =
            Bench::consecutive(1, |builder| bears_a_failure(builder).probe_lease(6 * SECOND).max_half_open(8 * SECOND));
        bench.call(FAILURE);
        bench.wait_open();
        bench.call(FAILURE);
        bench.wait(begins_after);
        let _hung = bench.admit();
        let causes = Arc::new(Mutex::new(Vec::new()));
        let list = causes.clone();
        bench.breaker.on_transition(move |transition| list.lock().unwrap().push(transition.cause));
        bench.wait(20 * SECOND);
        bench.state();
        assert_eq!(*causes.lock().unwrap(), [first]);
    }
}

#[test]
fn a_peek_sees_what_an_admission_would_and_takes_nothing() {
    let bench = Bench::consecutive(1, |builder| builder);
    let peek = |bench: &Bench| bench.breaker.peek().map_err(|refused| refused.retry_after);
    assert_eq!(peek(&bench), Ok(()));
    bench.call(FAILURE);
    assert_eq!(peek(&bench), Err(Some(SECOND)));
    bench.wait_open();
    assert_eq!((peek(&bench), bench.state()), (Ok(()), State::Open));
    let probe = bench.admit();
    assert_eq!(peek(&bench), Err(Some(SECOND)), "the first open time, though its lease is longer");
    drop(probe);
    assert_eq!(peek(&bench), Ok(()));
    bench.breaker.force_open();
    assert_eq!(peek(&bench), Err(None));
    assert_eq!(bench.breaker.snapshot().rejected, 0);
}

#[test]
fn a_probe_is_slow_when_it_is_strictly_slower() {
    for (took, state) in [(100 * MS, State::Closed), (101 * MS, State::Open)] {
        let bench = Bench::consecutive(1, |builder| builder.slow_threshold(100 * MS).slow_rate(1.0));
        bench.call(FAILURE);
        bench.wait_open();
        let probe = bench.admit();
        bench.wait(took);
        bench.settle(probe, Outcome::Success);
        assert_eq!(bench.state(), state);
    }
}

/// A clock with [`coarse_nanos`](Clock::coarse_nanos), which counts the readings of its fine time.
#[derive(Clone, Debug)]
struct Counting {
    zero: Instant,
    fine: Lagging,
}

impl Clock for Counting {
    fn now(&self) -> Instant {
        self.fine.now()
    }

    fn zero(&self) -> Option<Instant> {
        Some(self.zero)
    }

    fn coarse_nanos(&self) -> Option<u64> {
        Some((self.fine.time.now() - self.zero).as_nanos() as u64)
    }
}

#[test]
fn a_clock_that_counts_is_read_once_however_long_it_has_been_counting() {
    // A machine that was started a minute or a day ago: the origin of the circuit's time, two hours
    // before now, is before the clock's zero or after it.
    for uptime in [60, 86_400] {
        let fine = Lagging::default();
        let start = fine.time.now();
        let clock = Counting { zero: start - uptime * SECOND, fine: fine.clone() };
        let breaker = consecutive(1).clock(clock).build().unwrap();
        breaker.admit(&()).unwrap().settle(&FAILURE);
        fine.reads();
        for (elapsed, reads) in [(500 * MS, 1), (600 * MS, 0), (700 * MS, 0)] {
            fine.time.set(start + elapsed);
            let left = breaker.peek().unwrap_err().retry_after;
            assert_eq!((left, fine.reads()), (Some(SECOND - elapsed), reads), "up for {uptime} s");
        }
    }
}

#[test]
fn the_open_time_ends_by_the_fine_clock_which_is_asked_only_near_its_end() {
    let clock = Lagging::default();
    let breaker = consecutive(1).clock(clock.clone()).build().unwrap();
    let start = clock.time.now();
    breaker.admit(&()).unwrap().settle(&FAILURE);
    clock.reads();
    let refused_at = |elapsed: Duration| {
        clock.time.set(start + elapsed);
        (breaker.peek().map_err(|refused| refused.retry_after), clock.reads())
    };
    assert_eq!(refused_at(500 * MS), (Err(Some(510 * MS)), 0), "10 ms too long, by the coarse clock");
    assert_eq!(refused_at(999 * MS), (Err(Some(MS)), 1));
    assert_eq!(refused_at(SECOND), (Ok(()), 1));
}

#[test]
fn probes_of_an_interrupted_round_are_stale() {
    let bench = Bench::consecutive(1, |builder| builder.probes(2).concurrent_probes(2));
    bench.call(FAILURE);
    bench.wait_open();
    let old = bench.admit();
    bench.breaker.open_for(SECOND);
    bench.wait(SECOND);
    let new = bench.admit();
    bench.settle(old, FAILURE);
    assert_eq!((bench.state(), bench.breaker.snapshot().stale), (State::HalfOpen, 1));
    bench.settle(new, Outcome::Success);
    bench.call(Outcome::Success);
    assert_eq!(bench.state(), State::Closed);
}
