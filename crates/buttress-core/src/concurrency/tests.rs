mod algorithms;
mod classes;

use super::*;
use crate::report::{Report, Value};
use crate::testing::{reported, without_waiting};
use crate::{Failure, FailureKind, Idle, Ignored, ManualClock, Outcome, Permit, Policy, Progress, Reserve};
use proptest::prelude::*;
use std::sync::{Arc, Mutex, mpsc};

const MS: Duration = Duration::from_millis(1);
const WINDOW: Duration = Duration::from_millis(250);

/// Returns the limits of a list, one after the other, and records the windows.
#[derive(Clone, Debug, Default)]
struct Script {
    limits: Arc<Mutex<Vec<usize>>>,
    seen: Arc<Mutex<Vec<Window>>>,
}

impl LimitAlgorithm for Script {
    fn update(&mut self, window: &Window) -> usize {
        self.seen.lock().unwrap().push(*window);
        self.limits.lock().unwrap().pop().unwrap_or(window.limit)
    }
}

struct Limiter {
    limit: AdaptiveLimit<Script, ManualClock>,
    clock: ManualClock,
    script: Script,
}

type ScriptPermit = AdaptiveLimitPermit<Script, ManualClock>;

impl Limiter {
    fn new(configure: fn(Builder<Script, ManualClock>) -> Builder<Script, ManualClock>) -> Self {
        let (clock, script) = (ManualClock::new(), Script::default());
        let builder = AdaptiveLimit::<_, ManualClock>::builder("orders").clock(clock.clone());
        let limit = configure(builder.algorithm(script.clone())).build().unwrap();
        Self { limit, clock, script }
    }

    /// Makes the next windows return these limits.
    fn then(&self, limits: &[usize]) {
        *self.script.limits.lock().unwrap() = limits.iter().rev().copied().collect();
    }

    fn admit(&self) -> ScriptPermit {
        self.limit.admit(&()).unwrap()
    }

    fn call(&self, takes: Duration, outcome: &Outcome) {
        let mut permit = self.admit();
        self.clock.advance(takes);
        permit.settle(outcome);
    }

    /// Makes 20 calls of 20 ms. The first settles the window before.
    fn window(&self) -> Option<Window> {
        self.answers(20);
        self.script.seen.lock().unwrap().last().copied()
    }

    fn answers(&self, calls: usize) {
        (0..calls).for_each(|_| self.call(20 * MS, &Outcome::Success));
    }

    fn windows(&self) -> usize {
        self.script.seen.lock().unwrap().len()
    }
}

fn failure(kind: FailureKind, overload: bool) -> Outcome {
    Failure { overload, ..Failure::new(kind) }.into()
}

#[test]
fn no_more_calls_are_in_flight_than_the_limit_and_a_rejection_says_so() {
    let limiter = Limiter::new(|builder| builder.limits(1..=9).initial(2));
    let held = [limiter.admit(), limiter.admit()];
    assert!(limiter.limit.is_limited());
    let rejection = limiter.limit.admit(&()).unwrap_err();
    assert_eq!(rejection.to_string(), "concurrency limit `orders`: at its limit");
    assert_eq!((rejection.reason(), limiter.limit.snapshot().rejected), (&LIMITED, 1));
    assert_eq!(Policy::<()>::peek(&limiter.limit), Err(crate::Refused { retry_after: None }));
    drop(held);
    assert!(!limiter.limit.is_limited());
}

#[test]
fn a_window_ends_after_its_length_with_enough_samples() {
    let limiter = Limiter::new(|builder| builder);
    // The first answer, after 20 ms, begins the first window.
    limiter.answers(13);
    assert_eq!(limiter.windows(), 0, "240 ms");
    limiter.answers(1);
    let window = limiter.script.seen.lock().unwrap()[0];
    assert_eq!((window.duration, window.answered, window.dropped), (260 * MS, 14, 0));
    assert_eq!((window.mean_rtt, window.limit, window.min, window.max), (20 * MS, 20, 4, 1000));
    assert!(window.rtt.abs_diff(20 * MS) < MS, "{:?}", window.rtt);
}

#[test]
fn a_window_with_too_few_samples_goes_on() {
    let limiter = Limiter::new(|builder| builder);
    (0..9).for_each(|_| limiter.call(100 * MS, &Outcome::Success));
    assert_eq!(limiter.windows(), 0, "800 ms");
    limiter.call(100 * MS, &Outcome::Success);
    assert_eq!(limiter.script.seen.lock().unwrap()[0].duration, 900 * MS);
}

#[test]
fn a_window_is_at_least_twice_as_long_as_the_latency_before() {
    let limiter = Limiter::new(|builder| builder.min_samples(1));
    (0..2).for_each(|_| limiter.call(Duration::from_secs(3), &Outcome::Success));
    assert_eq!(limiter.windows(), 1);
    limiter.call(Duration::from_secs(3), &Outcome::Success);
    assert_eq!(limiter.windows(), 1, "3 of 6 s");
    limiter.call(Duration::from_secs(3), &Outcome::Success);
    assert_eq!(limiter.windows(), 2);
}

#[test]
fn overload_and_timeouts_are_dropped_and_other_failures_are_ignored() {
    let limiter = Limiter::new(|builder| builder);
    limiter.call(20 * MS, &failure(FailureKind::Http(429), true));
    limiter.call(20 * MS, &failure(FailureKind::Timeout, false));
    limiter.call(MS, &failure(FailureKind::Connect, false));
    limiter.call(MS, &failure(FailureKind::Http(500), false));
    limiter.call(MS, &Outcome::Ignored(Ignored::LocalReject));
    let window = limiter.window().unwrap();
    assert_eq!(window.dropped, 2);
    assert!(window.mean_rtt == 20 * MS, "failures have no latency: {window:?}");
}

#[test]
fn a_cancelled_call_is_dropped_if_it_took_longer_than_the_median() {
    let limiter = Limiter::new(|builder| builder);
    limiter.call(Duration::from_secs(1), &Outcome::CANCELLED);
    limiter.window().unwrap();
    let dropped = |takes| {
        let before = limiter.windows();
        limiter.call(takes, &Outcome::CANCELLED);
        limiter.answers(20);
        limiter.script.seen.lock().unwrap()[before..].iter().map(|window| window.dropped).sum::<u64>()
    };
    assert_eq!(limiter.script.seen.lock().unwrap()[0].dropped, 0, "no median yet");
    assert_eq!((dropped(10 * MS), dropped(60 * MS)), (0, 1));
}

#[test]
fn the_latency_ends_at_the_head_and_the_place_is_held_to_the_end() {
    let limiter = Limiter::new(|builder| builder);
    let mut streams: Vec<_> = (0..20).map(|_| limiter.admit()).collect();
    limiter.clock.advance(20 * MS);
    streams.iter_mut().for_each(|permit| permit.progress(Progress::Head));
    limiter.clock.advance(Duration::from_secs(60));
    streams.iter_mut().for_each(|permit| permit.progress(Progress::Frame));
    streams.iter_mut().take(10).for_each(|permit| permit.settle(&Outcome::Success));
    assert_eq!((limiter.limit.in_flight(), limiter.limit.snapshot().streaming), (20, 20));
    drop(streams.split_off(10));
    assert_eq!((limiter.limit.in_flight(), limiter.limit.snapshot().streaming), (10, 10));
    let window = limiter.window().unwrap();
    assert_eq!(window.mean_rtt, 20 * MS);
    assert_eq!(window.streaming, 10);
}

#[test]
fn streams_have_places_of_their_own() {
    let limiter = Limiter::new(|builder| builder.initial(20));
    let mut streams: Vec<_> = (0..15).map(|_| limiter.admit()).collect();
    streams.iter_mut().for_each(|permit| permit.progress(Progress::Head));
    limiter.answers(30);
    let snapshot = limiter.limit.snapshot();
    assert_eq!((snapshot.limit, snapshot.streaming), (35, 15));
    assert_eq!(snapshot.window.unwrap().limit, 20, "the algorithm is not asked about them");
    drop(streams);
    limiter.answers(30);
    assert_eq!(limiter.limit.limit(), 20);
}

#[test]
fn streams_that_take_all_places_get_places_of_their_own_though_no_answer_ends_the_window() {
    // Enough samples for a window, and too few.
    let builders: [fn(Builder<_, _>) -> Builder<_, _>; 2] =
        [|builder| builder.initial(20), |builder| builder.initial(4)];
    for limiter in builders.map(Limiter::new) {
        let mut streams = Vec::new();
        for _ in 0..3 {
            let before = streams.len();
            while let Ok(mut stream) = limiter.limit.admit(&()) {
                stream.progress(Progress::Head);
                streams.push(stream);
            }
            assert!(streams.len() > before, "{before} streams take all places, and no call is admitted any more");
            limiter.clock.advance(2 * WINDOW);
            let _rejected = limiter.limit.admit(&());
        }
        assert_eq!(limiter.limit.snapshot().streaming, streams.len());
    }
}

#[test]
fn a_window_is_ended_by_an_answer_and_not_by_a_rejection_soon_after_it_is_over() {
    let limiter = Limiter::new(|builder| builder.limits(1..=100).initial(20));
    limiter.answers(20);
    let windows = limiter.windows();
    let calls: Vec<_> = (0..20).map(|_| limiter.admit()).collect();
    limiter.clock.advance(WINDOW + WINDOW / 8);
    assert!(limiter.limit.admit(&()).is_err());
    assert_eq!(limiter.windows(), windows);
    drop(calls);
}

#[test]
fn a_stream_that_reports_overload_or_breaks_off_after_its_head() {
    let limiter = Limiter::new(|builder| builder);
    let ends = |outcome: &Outcome| {
        let mut permit = limiter.admit();
        permit.progress(Progress::Head);
        limiter.clock.advance(WINDOW);
        permit.settle(outcome);
        drop(permit);
        let before = limiter.windows();
        limiter.answers(40);
        limiter.script.seen.lock().unwrap()[before..].iter().map(|window| window.dropped).sum::<u64>()
    };
    assert_eq!(ends(&failure(FailureKind::Grpc(8), true)), 1);
    assert_eq!(ends(&failure(FailureKind::Timeout, false)), 0, "a bound on the body says nothing of the backend");
    assert_eq!(ends(&failure(FailureKind::Body, false)), 0);
    assert_eq!(ends(&Outcome::CANCELLED), 0);
}

#[test]
fn an_idle_limiter_admits_one_call_whatever_its_algorithm_says() {
    let limiter = Limiter::new(|builder| builder.limits(1..=100).initial(20));
    limiter.then(&[0]);
    limiter.answers(14);
    assert_eq!(limiter.limit.limit(), 1);
    drop(limiter.admit());
}

#[test]
fn a_window_in_which_this_process_stood_still_is_discarded() {
    let limiter = Limiter::new(|builder| builder.limits(1..=100).initial(50));
    limiter.answers(1);
    limiter.then(&[7]);
    let mut held: Vec<_> = (0..20).map(|_| limiter.admit()).collect();
    limiter.clock.advance(10 * MS);
    held.push(limiter.admit());
    limiter.clock.advance(300 * MS);
    held.iter_mut().for_each(|permit| permit.settle(&Outcome::Success));
    drop(held);
    limiter.answers(4);
    let snapshot = limiter.limit.snapshot();
    assert_eq!((limiter.windows(), snapshot.limit, snapshot.last), (0, 50, Some(Decision::Discarded)));
    limiter.answers(40);
    assert_eq!(limiter.limit.limit(), 7, "the next window counts");
}

#[test]
fn bursts_with_pauses_between_them_are_no_stall() {
    let limiter = Limiter::new(|builder| builder.limits(1..=100).initial(50));
    for _ in 0..10 {
        let mut burst: Vec<_> = (0..40).map(|_| limiter.admit()).collect();
        limiter.clock.advance(10 * MS);
        burst.iter_mut().for_each(|permit| permit.settle(&Outcome::Success));
        drop(burst);
        limiter.clock.advance(Duration::from_secs(1));
    }
    assert!(limiter.windows() >= 8, "{}", limiter.windows());
    assert_eq!(limiter.limit.snapshot().decisions(Decision::Discarded), 0);
}

#[test]
fn a_backend_that_hangs_while_calls_are_rejected_is_no_stall() {
    let limiter = Limiter::new(|builder| builder.limits(1..=100).initial(20));
    limiter.answers(1);
    let mut held: Vec<_> = (0..20).map(|_| limiter.admit()).collect();
    for _ in 0..60 {
        limiter.clock.advance(10 * MS);
        assert!(limiter.limit.admit(&()).is_err());
    }
    held.iter_mut().for_each(|permit| permit.settle(&Outcome::Success));
    drop(held);
    limiter.answers(4);
    assert_eq!(limiter.windows(), 1);
    let window = limiter.limit.snapshot().window.unwrap();
    assert_eq!((window.rejected, window.in_flight), (60, 20));
}

#[test]
fn the_limit_moves_to_new_bounds_at_once() {
    let limiter = Limiter::new(|builder| builder.initial(20));
    limiter.limit.set_bounds(30, 40).unwrap();
    assert_eq!((limiter.limit.limit(), limiter.limit.bounds()), (30, (30, 40)));
    limiter.then(&[1000]);
    limiter.answers(14);
    assert_eq!(limiter.limit.limit(), 40);
    for (min, max) in [(0, 10), (11, 10), (1, usize::MAX)] {
        assert_eq!(limiter.limit.set_bounds(min, max).unwrap_err().field(), "limits");
    }
    assert_eq!(limiter.limit.bounds(), (30, 40));
}

#[test]
fn a_reserved_permit_counts_from_the_call() {
    let limiter = Limiter::new(|builder| builder);
    let reserved = limiter.limit.try_reserve().unwrap();
    assert_eq!(limiter.limit.in_flight(), 1);
    limiter.clock.advance(Duration::from_secs(60));
    let mut permit = limiter.limit.confirm(reserved, &()).unwrap();
    limiter.clock.advance(20 * MS);
    permit.settle(&Outcome::Success);
    // A service that was not called.
    limiter.limit.try_reserve().unwrap().settle(&Outcome::CANCELLED);
    drop(permit);
    let window = limiter.window().unwrap();
    assert_eq!((window.mean_rtt, window.dropped, limiter.limit.in_flight()), (20 * MS, 0, 0));
}

#[test]
fn waiters_are_woken_when_the_limit_rises() {
    use std::sync::atomic::{AtomicBool, Ordering};
    struct Flag(AtomicBool);
    impl std::task::Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let limiter = Limiter::new(|builder| builder.limits(1..=100).initial(1));
    limiter.answers(1);
    limiter.then(&[3]);
    let held = limiter.admit();
    let (waiters, flag) = (limiter.limit.waiters().unwrap(), Arc::new(Flag(AtomicBool::new(false))));
    waiters.register(waiters.key(), &flag.clone().into());
    limiter.limit.set_bounds(3, 100).unwrap();
    assert!(flag.0.load(Ordering::SeqCst));
    drop(held);
}

#[test]
fn calls_wait_neither_for_an_update_nor_for_each_other() {
    #[derive(Debug)]
    struct Slow(mpsc::Sender<()>, mpsc::Receiver<()>);
    impl LimitAlgorithm for Slow {
        fn update(&mut self, window: &Window) -> usize {
            self.0.send(()).expect("the test waits for the update");
            self.1.recv().expect("the test ends the update");
            window.limit + 1
        }
    }
    let ((begin, begun), (end, ended)) = (mpsc::channel(), mpsc::channel());
    let clock = ManualClock::new();
    let builder = AdaptiveLimit::<_, ManualClock>::builder("orders").clock(clock.clone()).min_samples(1);
    let limit = builder.algorithm(Slow(begin, ended)).build().unwrap();
    let call = |limit: &AdaptiveLimit<Slow, ManualClock>| {
        let limit = limit.clone();
        move || limit.admit(&()).unwrap().settle(&Outcome::Success)
    };
    call(&limit)();
    clock.advance(WINDOW);
    let updating = std::thread::spawn(call(&limit));
    begun.recv().unwrap();
    for _ in 0..100 {
        without_waiting(call(&limit));
    }
    end.send(()).unwrap();
    updating.join().unwrap();
    assert_eq!(limit.limit(), 21);
}

#[test]
fn an_algorithm_that_panics_leaves_the_limit_as_it_was_and_breaks_no_call() {
    #[derive(Debug)]
    struct Panics;
    impl LimitAlgorithm for Panics {
        fn update(&mut self, _: &Window) -> usize {
            panic!("in an algorithm of a user")
        }
    }
    let clock = ManualClock::new();
    let builder = AdaptiveLimit::<_, ManualClock>::builder("orders").clock(clock.clone()).min_samples(1);
    let limit = builder.algorithm(Panics).build().unwrap();
    limit.admit(&()).unwrap().settle(&Outcome::Success);
    clock.advance(WINDOW);
    for _ in 0..2 {
        let limit = limit.clone();
        let settle = move || limit.admit(&()).unwrap().settle(&Outcome::Success);
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(settle)).is_ok());
    }
    assert_eq!((limit.limit(), limit.in_flight(), limit.snapshot().limit), (20, 0, 20));
    assert_eq!(limit.snapshot().last, Some(Decision::Held));
}

#[test]
fn a_clock_that_is_set_back_adds_no_latency() {
    let limiter = Limiter::new(|builder| builder);
    limiter.answers(2);
    let start = crate::Clock::now(&limiter.clock);
    let mut permit = limiter.admit();
    limiter.clock.set(start.checked_sub(Duration::from_secs(3600)).unwrap_or(start));
    permit.settle(&Outcome::Success);
    limiter.clock.set(start);
    let window = limiter.window().unwrap();
    assert!(window.mean_rtt <= 20 * MS, "{window:?}");
}

#[test]
fn a_clock_that_was_set_back_does_not_stop_the_windows() {
    let limiter = Limiter::new(|builder| builder);
    let start = crate::Clock::now(&limiter.clock);
    limiter.clock.advance(Duration::from_secs(7200));
    _ = limiter.window();
    limiter.clock.set(start + Duration::from_secs(3600));
    let windows = limiter.windows();
    (0..3).for_each(|_| _ = limiter.window());
    assert!(limiter.windows() > windows, "no window for an hour");
    let window = limiter.window().unwrap();
    assert!(window.duration > 200 * MS && window.duration < Duration::from_secs(1), "{window:?}");
}

#[test]
fn it_is_idle_without_calls() {
    let limiter = Limiter::new(|builder| builder);
    let permit = limiter.admit();
    assert!(!limiter.limit.is_idle());
    drop(permit);
    assert!(limiter.limit.is_idle());
}

#[test]
fn it_reports_its_limit_its_latencies_and_its_decisions() {
    let limiter = Limiter::new(|builder| builder.limits(1..=100).initial(20));
    limiter.then(&[25]);
    limiter.answers(14);
    let _held = limiter.admit();
    let _rejection = limiter.limit.reject();
    let mut values = reported(&limiter.limit);
    let (name, _, rtt) = values.remove(3);
    assert_eq!(name, "resilience.concurrency.rtt");
    assert!(matches!(rtt, Value::Gauge(seconds) if (seconds - 0.02).abs() < 0.001), "{rtt:?}");
    let decision = |word, n| ("resilience.concurrency.decisions", [word, ""], Value::Counter(n));
    let expected = [
        ("resilience.concurrency.limit", ["", ""], Value::Gauge(25.0)),
        ("resilience.concurrency.in_flight", ["", ""], Value::Gauge(1.0)),
        ("resilience.concurrency.rejected", ["", ""], Value::Counter(1)),
        decision("raised", 1),
        decision("lowered", 0),
        decision("held", 0),
        decision("discarded", 0),
    ];
    assert_eq!(values, expected);
    assert_eq!(Report::name(&limiter.limit), Some("orders"));
}

#[test]
fn a_baseline_is_reported_once_there_is_one() {
    let clock = ManualClock::new();
    let limit = AdaptiveLimit::<_, ManualClock>::builder("orders").clock(clock.clone()).build().unwrap();
    let baseline = |limit: &AdaptiveLimit<Gradient2, ManualClock>| {
        reported(limit).iter().any(|(name, ..)| *name == "resilience.concurrency.baseline")
    };
    assert!(!baseline(&limit));
    for _ in 0..20 {
        let mut permit = limit.admit(&()).unwrap();
        clock.advance(20 * MS);
        permit.settle(&Outcome::Success);
    }
    assert!(baseline(&limit));
}

#[test]
fn an_error_names_the_field() {
    type Configure = fn(Builder<Gradient2, ManualClock>) -> Builder<Gradient2, ManualClock>;
    let field = |configure: Configure| {
        let builder = AdaptiveLimit::<_, ManualClock>::builder("orders");
        configure(builder).build().err().map(|error| error.field())
    };
    assert_eq!(field(|builder| builder.limits(0..=10)), Some("limits"));
    assert_eq!(field(|builder| builder.limits(std::ops::RangeInclusive::new(10, 9))), Some("limits"));
    assert_eq!(field(|builder| builder.limits(1..=usize::MAX)), Some("limits"));
    assert_eq!(field(|builder| builder.initial(3)), Some("initial"));
    assert_eq!(field(|builder| builder.window(Duration::ZERO)), Some("window"));
    assert_eq!(field(|builder| builder.min_samples(0)), Some("min_samples"));
    assert_eq!(field(|builder| builder.limits(30..=40)), None, "the initial limit moves to the bound");
}

#[derive(Clone, Debug)]
enum Step {
    Admit,
    Reserve,
    Head(usize),
    Settle(usize, u8),
    Drop(usize),
    Wait(u64),
    Bounds(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Admit),
        1 => Just(Step::Reserve),
        2 => (0usize..30).prop_map(Step::Head),
        3 => (0usize..30, 0u8..4).prop_map(|(call, outcome)| Step::Settle(call, outcome)),
        3 => (0usize..30).prop_map(Step::Drop),
        3 => (0u64..200).prop_map(Step::Wait),
        1 => (1usize..20, 0usize..20).prop_map(|(min, more)| Step::Bounds(min, min + more)),
    ]
}

proptest! {
    /// The counts are those of a list of calls, and the limit is within its bounds.
    #[test]
    fn it_counts_as_a_list_of_calls_does(steps in prop::collection::vec(step(), 1..300), shards in 1usize..5) {
        let clock = ManualClock::new();
        let limit = crate::shard::with_shards(shards, || {
            let builder = AdaptiveLimit::<_, ManualClock>::builder("orders").clock(clock.clone()).min_samples(1);
            builder.algorithm(Gradient2::builder().seed(1).build().unwrap()).limits(1..=20).build().unwrap()
        });
        let mut calls: Vec<(_, bool)> = Vec::new();
        for step in steps {
            match step {
                Step::Admit | Step::Reserve => {
                    let before = (limit.limit(), calls.len());
                    let permit = match step {
                        Step::Admit => limit.admit(&()).ok(),
                        _ => limit.try_reserve().ok().and_then(|permit| limit.confirm(permit, &()).ok()),
                    };
                    prop_assert_eq!(permit.is_some(), before.1 < before.0);
                    calls.extend(permit.map(|permit| (permit, false)));
                }
                Step::Head(call) => {
                    if let Some((permit, streams)) = calls.get_mut(call) {
                        permit.progress(Progress::Head);
                        *streams = true;
                    }
                }
                Step::Settle(call, outcome) => {
                    if call < calls.len() {
                        let (mut permit, _) = calls.remove(call);
                        let overload = failure(FailureKind::Http(429), true);
                        permit.settle(&[Outcome::Success, Outcome::CANCELLED, overload][usize::from(outcome) % 3]);
                    }
                }
                Step::Drop(call) => {
                    if call < calls.len() {
                        drop(calls.remove(call));
                    }
                }
                Step::Wait(millis) => clock.advance(Duration::from_millis(millis)),
                Step::Bounds(min, max) => limit.set_bounds(min, max).unwrap(),
            }
            let snapshot = limit.snapshot();
            let streaming = calls.iter().filter(|(_, streams)| *streams).count();
            prop_assert_eq!((snapshot.in_flight, snapshot.streaming), (calls.len(), streaming));
            let (min, max) = limit.bounds();
            prop_assert!((min..=max).contains(&snapshot.limit));
        }
        drop(calls);
        prop_assert!(limit.is_idle() && !limit.is_limited());
    }
}

#[test]
fn a_service_that_is_not_ready_teaches_nothing_whatever_its_error() {
    let limiter = Limiter::new(|builder| builder.min_samples(1));
    limiter.window();
    for outcome in [failure(FailureKind::Timeout, false), failure(FailureKind::Http(503), true), Outcome::CANCELLED] {
        let unready = Policy::<()>::unready(&limiter.limit).and_then(Result::ok);
        let reserved = limiter.limit.try_reserve().ok();
        for mut permit in [unready, reserved].map(Option::unwrap) {
            limiter.clock.advance(WINDOW);
            permit.settle(&outcome);
        }
    }
    assert_eq!(limiter.limit.in_flight(), 0);
    limiter.window();
    assert!(limiter.script.seen.lock().unwrap().iter().all(|window| window.dropped == 0));
}
