use super::*;
use crate::testing::reported;
use crate::{Criticality, Failure, FailureKind, Ignored, ManualClock, Outcome, Permit, Progress};
use std::{collections::VecDeque, time::Duration};

const SECOND: Duration = Duration::from_secs(1);
const OVERLOAD: Outcome = Outcome::Failure(Failure { overload: true, ..Failure::new(FailureKind::Http(429)) });

fn failure(kind: FailureKind) -> Outcome {
    Failure::new(kind).into()
}

fn throttle() -> (ManualClock, Throttle<ManualClock>) {
    let clock = ManualClock::new();
    let throttle = Throttle::<ManualClock>::builder("test").clock(clock.clone()).seed(7).build().unwrap();
    (clock, throttle)
}

fn admit(throttle: &Throttle<ManualClock>, priority: Priority) -> Result<ThrottlePermit, Rejection> {
    let _entered = CallContext::default().with_priority(priority).enter();
    throttle.admit(&())
}

/// Makes a call and returns whether it was sent.
fn call(throttle: &Throttle<ManualClock>, outcome: &Outcome) -> bool {
    throttle.admit(&()).map(|mut permit| permit.settle(outcome)).is_ok()
}

fn counts(throttle: &Throttle<ManualClock>) -> (u64, u64) {
    let Counts { requests, accepted } = throttle.counts();
    (requests, accepted)
}

#[test]
fn a_backend_that_accepts_half_of_the_calls_is_not_throttled() {
    let (clock, throttle) = throttle();
    let calls = (0..10_000).filter(|n| {
        clock.advance(SECOND / 100);
        call(&throttle, if n % 2 == 0 { &Outcome::Success } else { &OVERLOAD })
    });
    // The call that is being made counts as a request, which shows while there are few.
    assert!(calls.count() > 9_980);
}

#[test]
fn the_share_is_that_of_the_formula() {
    let (_, throttle) = throttle();
    for (requests, accepted, share) in
        [(9, 0, 0.0), (10, 0, 0.9), (99, 0, 0.9), (99, 40, 0.19), (99, 50, 0.0), (1_000, 1_000, 0.0)]
    {
        assert!((throttle.state.share(Counts { requests, accepted }) - share).abs() < 1e-9, "{requests} {accepted}");
    }
}

/// With as many calls as it can do four times, a backend gets twice what it accepts.
#[test]
fn an_overloaded_backend_gets_about_twice_what_it_accepts() {
    let (clock, throttle) = throttle();
    let (mut sent, mut accepted) = (0, 0);
    for step in 0..40_000u32 {
        clock.advance(SECOND / 100);
        let is_steady = step > 20_000;
        let accepts = step % 4 == 0;
        // A call that the client rejected takes no place of the backend.
        if let Ok(mut permit) = throttle.admit(&()) {
            let has_room = accepts || accepted * 4 < step;
            permit.settle(if has_room { &Outcome::Success } else { &OVERLOAD });
            accepted += u32::from(has_room);
            sent += u32::from(is_steady);
        }
    }
    let share = f64::from(sent) / 20_000.0;
    assert!((0.4..0.6).contains(&share), "a quarter is accepted, so half is sent: {share}");
}

#[test]
fn probes_flow_through_a_total_outage_and_find_the_end_of_it() {
    let (clock, throttle) = throttle();
    let run = |seconds: u32, outcome: &Outcome| {
        let calls = (0..seconds * 100).map(|_| {
            clock.advance(SECOND / 100);
            u32::from(call(&throttle, outcome))
        });
        calls.sum::<u32>()
    };
    run(240, &OVERLOAD);
    let probes = run(60, &OVERLOAD);
    assert!((450..750).contains(&probes), "a tenth of 6,000: {probes}");
    run(300, &Outcome::Success);
    assert_eq!((run(60, &Outcome::Success), throttle.share()), (6_000, 0.0));
}

#[test]
fn unimportant_calls_are_rejected_first() {
    let (clock, throttle) = throttle();
    // The backend has room for 3 calls in 10, so 6 in 10 are sent: 5 critical ones and another.
    let (mut sent, mut accepted) = ([0, 0], 0);
    for step in 0..4_000u32 {
        clock.advance(SECOND / 100);
        for (n, class) in [Criticality::Critical, Criticality::Sheddable].into_iter().enumerate() {
            if let Ok(mut permit) = admit(&throttle, class.into()) {
                sent[n] += 1;
                let has_room = accepted * 10 < (step + 1) * 2 * 3;
                accepted += u32::from(has_room);
                permit.settle(if has_room { &Outcome::Success } else { &OVERLOAD });
            }
        }
    }
    assert!(sent[0] > 3_800 && sent[1] < 1_200, "{sent:?}");
}

#[test]
fn answers_are_accepted_and_what_is_none_counts_nothing() {
    for (outcome, expected) in [
        (Outcome::Success, (1, 1)),
        (failure(FailureKind::Http(500)), (1, 1)),
        (failure(FailureKind::Body), (1, 1)),
        (OVERLOAD, (1, 0)),
        (failure(FailureKind::Connect), (0, 0)),
        (failure(FailureKind::Transport), (0, 0)),
        (failure(FailureKind::Timeout), (0, 0)),
        (Outcome::CANCELLED, (0, 0)),
        (Outcome::Ignored(Ignored::LocalReject), (0, 0)),
    ] {
        let (_, throttle) = throttle();
        assert!(call(&throttle, &outcome));
        assert_eq!(counts(&throttle), expected, "{outcome:?}");
    }
}

#[test]
fn a_stream_is_accepted_at_its_head_and_not_when_the_head_is_a_rejection() {
    for (outcome, expected) in [
        (Outcome::Success, (1, 1)),
        (Outcome::CANCELLED, (1, 1)),
        (failure(FailureKind::Transport), (1, 1)),
        (OVERLOAD, (1, 0)),
        (Outcome::Ignored(Ignored::LocalReject), (0, 0)),
    ] {
        let (_, throttle) = throttle();
        let mut permit = throttle.admit(&()).unwrap();
        permit.progress(Progress::Head);
        assert_eq!(counts(&throttle), (1, 1));
        permit.progress(Progress::Frame);
        permit.settle(&outcome);
        assert_eq!(counts(&throttle), expected, "{outcome:?}");
    }
}

#[test]
fn a_request_counts_when_it_is_made_and_its_acceptance_leaves_with_it() {
    let (clock, throttle) = throttle();
    let mut late = throttle.admit(&()).unwrap();
    assert_eq!(counts(&throttle), (1, 0));
    clock.advance(100 * SECOND);
    late.settle(&Outcome::Success);
    assert_eq!(counts(&throttle), (1, 1));
    clock.advance(21 * SECOND);
    assert_eq!(counts(&throttle), (0, 0));
    let mut later = throttle.admit(&()).unwrap();
    clock.advance(200 * SECOND);
    call(&throttle, &Outcome::Success);
    later.settle(&Outcome::Success);
    assert_eq!(counts(&throttle), (1, 1), "an answer after its window counts nothing");
}

#[test]
fn rejected_calls_are_requests() {
    let (clock, throttle) = throttle();
    for _call in 0..1_000 {
        clock.advance(SECOND / 100);
        call(&throttle, &OVERLOAD);
    }
    assert_eq!(counts(&throttle), (1_000, 0));
    assert!(throttle.rejected() > 800);
}

#[test]
fn a_rejection_says_so() {
    let (clock, throttle) = throttle();
    for _call in 0..100 {
        clock.advance(SECOND);
        if let Err(rejection) = throttle.admit(&()) {
            assert_eq!(rejection.to_string(), "throttle `test`: not sent, the backend rejects calls for overload");
            assert_eq!((rejection.reason(), rejection.http_status()), (&THROTTLED, 503));
            return;
        }
        call(&throttle, &OVERLOAD);
    }
    panic!("nothing was rejected");
}

#[test]
fn a_clock_that_was_set_back_or_is_far_ahead_does_not_stop_it() {
    let (clock, throttle) = throttle();
    let start = clock.now();
    clock.advance(3600 * SECOND);
    (0..100).for_each(|_| _ = call(&throttle, &OVERLOAD));
    clock.set(start);
    (0..100).for_each(|_| _ = call(&throttle, &Outcome::Success));
    clock.advance(SECOND);
    assert!(call(&throttle, &Outcome::Success));
    assert_eq!(throttle.share(), 0.0);
    clock.advance(365 * 24 * 3600 * SECOND);
    assert!(call(&throttle, &Outcome::Success) && throttle.share() == 0.0);
}

#[test]
fn a_call_that_another_policy_rejects_is_no_request() {
    let (_, throttle) = throttle();
    let full = crate::bulkhead::Bulkhead::<ManualClock>::new(0);
    let both = crate::AllOf::new(throttle.clone(), full.clone());
    (0..100).for_each(|_| assert!(both.admit(&()).is_err()));
    assert_eq!((counts(&throttle), throttle.share()), ((0, 0), 0.0));
    let both = crate::AllOf::new(full, throttle.clone());
    (0..100).for_each(|_| assert!(both.admit(&()).is_err()));
    assert_eq!((counts(&throttle), throttle.rejected()), ((0, 0), 0));
}

#[test]
fn it_is_idle_without_calls_in_the_window() {
    let (clock, throttle) = throttle();
    assert!(throttle.is_idle());
    let permit = throttle.admit(&()).unwrap();
    assert!(!throttle.is_idle());
    clock.advance(200 * SECOND);
    assert!(!throttle.is_idle(), "a call is in flight");
    drop(permit);
    assert!(throttle.is_idle());
}

#[test]
fn settings_have_their_ranges() {
    let builder = || Throttle::<ManualClock>::builder("test");
    let field = |builder: Builder<ManualClock>| builder.build().unwrap_err().field();
    assert_eq!(field(builder().window(SECOND / 2)), "window");
    assert_eq!(field(builder().window(3601 * SECOND)), "window");
    assert_eq!(field(builder().window(10 * SECOND)), "window");
    assert_eq!(field(builder().slowest_answer(Duration::MAX)), "window");
    assert!([0.99, f64::NAN, 101.0].iter().all(|k| field(builder().multiplier(*k)) == "multiplier"));
    assert!([-0.1, f64::NAN, 1.0].iter().all(|share| field(builder().max_share(*share)) == "max_share"));
    assert!(builder().window(11 * SECOND).multiplier(1.0).max_share(0.99).min_requests(0).build().is_ok());
}

#[test]
fn the_numbers_of_a_throttle_are_reported() {
    let (clock, throttle) = throttle();
    for _call in 0..99 {
        clock.advance(SECOND / 100);
        call(&throttle, &OVERLOAD);
    }
    let reported = reported(&throttle);
    use crate::report::Value;
    assert_eq!(reported[0], ("resilience.throttle.accepted", [""; 2], Value::Rate { part: 0, whole: 99 }));
    assert_eq!(reported[1], ("resilience.throttle.rejected", [""; 2], Value::Counter(throttle.rejected())));
    assert_eq!(reported[2], ("resilience.throttle.share", [""; 2], Value::Gauge(0.9)));
}

proptest::proptest! {
    /// Compares the window with a list of all calls.
    #[test]
    fn counts_are_those_of_a_list(events in proptest::collection::vec((0u64..30_000, 0usize..4, 0usize..4), 1..120)) {
        let clock = ManualClock::new();
        let builder = Throttle::<ManualClock>::builder("test").clock(clock.clone()).min_requests(u64::MAX);
        let throttle = builder.build().unwrap();
        let (mut passed, mut list, mut open) = (0u64, Vec::new(), VecDeque::new());
        // The time of a policy begins two hours, 600 whole buckets, before it is first asked.
        throttle.counts();
        for (pause, outcome, keep) in events {
            clock.advance(Duration::from_millis(pause));
            passed += pause;
            let bucket = passed / 12_000;
            open.push_back((throttle.admit(&()).unwrap(), list.len()));
            list.push((bucket, true, false));
            while open.len() > keep {
                let (mut permit, n) = open.pop_front().unwrap();
                let (made, is_counted, is_accepted): &mut (u64, bool, bool) = &mut list[n];
                let outcome = [Outcome::Success, OVERLOAD, Outcome::CANCELLED, failure(FailureKind::Timeout)][outcome];
                permit.settle(&outcome);
                // A slot that has a newer bucket is not touched; neither is live then.
                let _ = made;
                *is_accepted = outcome == Outcome::Success;
                *is_counted = matches!(outcome, Outcome::Success | OVERLOAD);
            }
            let live = list.iter().filter(|(made, is_counted, _)| bucket - made < 10 && *is_counted);
            let expected = (live.clone().count() as u64, live.filter(|(.., is_accepted)| *is_accepted).count() as u64);
            proptest::prop_assert_eq!(counts(&throttle), expected);
        }
    }
}
