use super::*;
use crate::{Failure, FailureKind, ManualClock, testing::reported};

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

fn rate() -> (AdaptiveRate<ManualClock>, ManualClock) {
    let clock = ManualClock::new();
    (AdaptiveRate::with_clock(clock.clone()), clock)
}

/// A clock whose coarse time is 10 ms behind, the length of a long kernel tick.
#[derive(Clone, Debug, Default)]
struct Lagging(ManualClock);

impl Clock for Lagging {
    fn now(&self) -> Instant {
        self.0.now()
    }

    fn coarse(&self) -> Instant {
        self.0.now() - 10 * MILLI
    }
}

fn throttled() -> Outcome {
    Failure { overload: true, ..Failure::new(FailureKind::Http(429)) }.into()
}

fn call<C: Clock>(rate: &AdaptiveRate<C>, outcome: Outcome) -> bool {
    rate.admit(&()).map(|mut permit| permit.settle(&outcome)).is_ok()
}

/// 100 good calls a second for `seconds`.
fn busy<C: Clock>(rate: &AdaptiveRate<C>, clock: &ManualClock, seconds: u32) {
    for _ in 0..seconds * 100 {
        clock.advance(10 * MILLI);
        call(rate, Outcome::Success);
    }
}

/// A rate that was cut from a measured 100 calls per second.
fn cut() -> (AdaptiveRate<ManualClock>, ManualClock) {
    let (rate, clock) = rate();
    busy(&rate, &clock, 20);
    assert!((rate.measured() - 100.0).abs() < 1.0, "{}", rate.measured());
    assert!(call(&rate, throttled()));
    (rate, clock)
}

#[test]
fn it_admits_every_call_until_the_backend_throttles() {
    let (rate, clock) = rate();
    for outcome in [Outcome::Success, Failure::new(FailureKind::Http(500)).into(), Outcome::CANCELLED] {
        for _ in 0..1000 {
            assert!(call(&rate, outcome));
        }
        clock.advance(SECOND);
    }
    assert_eq!((rate.limit(), rate.is_idle(), rate.throttled()), (None, true, 0));
}

#[test]
fn a_throttling_cuts_the_rate_to_seven_tenths_of_what_was_measured() {
    let (rate, clock) = cut();
    let limit = rate.limit().unwrap();
    assert!((limit - 0.7 * rate.measured()).abs() < 1e-9, "{limit}");
    let rejection = rate.admit(&()).unwrap_err();
    assert_eq!(rejection.reason(), &THROTTLED);
    assert!((rejection.retry_after().unwrap().as_secs_f64() - 1.0 / limit).abs() < 1e-6, "its bucket starts empty");
    clock.advance(SECOND);
    let admitted = (0..1000).filter(|_| rate.admit(&()).is_ok()).count();
    assert_eq!(admitted, limit as usize, "the calls of one second");
}

#[test]
fn the_rate_returns_to_where_it_was_and_looks_for_more() {
    let (rate, clock) = cut();
    let mut limits = Vec::new();
    for _ in 0..12 {
        busy(&rate, &clock, 1);
        limits.push(rate.limit().unwrap());
    }
    assert!(limits[..4].is_sorted() && (85.0..105.0).contains(&limits[3]), "{limits:?}");
    assert!(limits[11] > 150.0, "{limits:?}");
}

#[test]
fn waiting_calls_follow_each_other_at_the_rate() {
    let (rate, _) = cut();
    let interval = 1.0 / rate.limit().unwrap();
    for n in 1..=3 {
        let wait = rate.schedule(&(), SECOND).unwrap().wait.as_secs_f64();
        assert!((wait - f64::from(n) * interval).abs() < 1e-6, "{wait}");
    }
    assert!(rate.schedule(&(), 3 * MILLI).is_err());
    assert_eq!((rate.waited(), rate.rejected()), (3, 1));
}

#[test]
fn the_last_call_that_waits_gives_its_token_back_and_an_earlier_one_does_not() {
    let (rate, clock) = cut();
    let wait = || rate.schedule(&(), SECOND).unwrap();
    let (first, second) = (wait(), wait());
    let start = second.wait;
    rate.undo(&(), first.permit);
    rate.undo(&(), second.permit);
    assert!((wait().wait.as_secs_f64() - start.as_secs_f64()).abs() < 1e-6);
    clock.advance(SECOND);
    let (a, _b) = (rate.admit(&()).unwrap(), rate.admit(&()).unwrap());
    let tokens = lock(&rate.state.control).tokens;
    rate.undo(&(), a);
    assert_eq!(lock(&rate.state.control).tokens, tokens + 1.0, "no call waits");
}

#[test]
fn a_backend_that_throttles_at_once_leaves_one_call_in_two_seconds() {
    let (rate, clock) = rate();
    call(&rate, throttled());
    clock.advance(SECOND);
    assert!(!call(&rate, Outcome::Success));
    clock.advance(SECOND);
    assert!(call(&rate, Outcome::Success));
    rate.reset();
    assert!((0..100).all(|_| call(&rate, Outcome::Success)) && rate.is_idle());
}

/// Returns when callers that wait for up to `max_wait` reach 50 calls per second, in milliseconds
/// after the backend throttled the first call.
fn reaches_50(callers: usize, max_wait: Duration) -> u64 {
    let (rate, clock) = rate();
    call(&rate, throttled());
    let mut started: Vec<Option<(u64, AdaptiveRatePermit<ManualClock>)>> = (0..callers).map(|_| None).collect();
    for now in (0..).step_by(10) {
        for caller in &mut started {
            match caller {
                Some((end, _)) if *end > now => {}
                Some((_, permit)) => {
                    permit.settle(&Outcome::Success);
                    *caller = None;
                }
                None => {
                    let start = rate.schedule(&(), max_wait).ok();
                    *caller = start.map(|start| (now + 10 + start.wait.as_millis() as u64, start.permit));
                }
            }
        }
        if rate.limit().unwrap() >= 50.0 {
            return now;
        }
        clock.advance(10 * MILLI);
    }
    unreachable!("the numbers do not end")
}

#[test]
fn a_client_that_was_throttled_before_it_had_measured_a_rate_reaches_50_calls_a_second_in_ten_seconds() {
    for callers in [2, 8, 100] {
        for max_wait in [Duration::ZERO, 500 * MILLI, 2 * SECOND] {
            let time = reaches_50(callers, max_wait);
            assert!((5_000..10_000).contains(&time), "{callers} {max_wait:?}: {time}");
        }
    }
    assert!(reaches_50(100, 10 * SECOND) > 15_000, "calls that wait keep the start that a low rate gave them");
}

#[test]
fn time_that_a_coarse_clock_has_not_seen_yet_earns_no_tokens_twice() {
    let clock = ManualClock::new();
    let rate = AdaptiveRate::with_clock(Lagging(clock.clone()));
    busy(&rate, &clock, 20);
    call(&rate, throttled());
    let mut admitted = 0;
    for _ in 0..1000 {
        clock.advance(MILLI);
        admitted += u32::from(call(&rate, Outcome::Success));
    }
    let limit = rate.limit().unwrap();
    assert!(f64::from(admitted) <= limit, "{admitted} calls in a second, at a rate that rose to {limit}");
}

#[test]
fn a_token_from_before_a_reset_is_not_given_back_after_it() {
    let (rate, _) = cut();
    let waiting = [(); 5].map(|()| rate.schedule(&(), SECOND).unwrap());
    rate.reset();
    call(&rate, throttled());
    waiting.into_iter().for_each(|call| rate.undo(&(), call.permit));
    assert!(rate.admit(&()).is_err(), "its bucket starts empty");
}

#[test]
fn a_call_that_is_undone_by_another_handle_gives_its_token_to_its_own_rate() {
    let (rate, _) = cut();
    let (other, clock) = cut();
    let waits = rate.schedule(&(), SECOND).unwrap();
    other.undo(&(), waits.permit);
    clock.advance(SECOND);
    assert_eq!(rate.schedule(&(), SECOND).unwrap().wait, waits.wait);
    let limit = other.limit().unwrap();
    assert_eq!((0..1000).filter(|_| other.admit(&()).is_ok()).count(), limit as usize);
}

#[test]
fn a_clock_that_is_set_back_or_far_ahead_breaks_nothing() {
    let (rate, clock) = cut();
    let now = clock.now();
    clock.advance(Duration::from_secs(365 * 86_400));
    assert!(call(&rate, Outcome::Success) && rate.limit().unwrap().is_finite());
    clock.set(now);
    let admitted = (0..1000).filter(|_| call(&rate, Outcome::Success)).count();
    assert!(admitted <= 100, "{admitted}");
    clock.advance(2 * SECOND);
    assert!(call(&rate, throttled()));
}

#[test]
fn responses_after_a_clock_was_set_back_are_measured_over_their_own_time() {
    for throttles in [false, true] {
        let (rate, clock) = if throttles { cut() } else { rate() };
        busy(&rate, &clock, 20);
        // Before the rate was made.
        clock.set(clock.now() - Duration::from_secs(60));
        let mut most = rate.measured();
        for _ in 0..80 {
            busy(&rate, &clock, 1);
            most = rate.measured().max(most);
        }
        assert!((99.0..102.0).contains(&most), "100 a second: {most}");
    }
}

#[test]
fn threads_that_answer_at_once_lose_no_response() {
    let (rate, clock) = rate();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1000).for_each(|_| assert!(call(&rate, Outcome::Success))));
        }
    });
    clock.advance(SECOND);
    call(&rate, throttled());
    // 4,001 responses in two buckets, of which 0.8 count.
    assert!((rate.measured() - 0.8 * 4001.0).abs() < 1e-6, "{}", rate.measured());
}

#[test]
fn it_reports_its_limit_once_it_has_one() {
    let (rate, _) = rate();
    let names = |rate: &AdaptiveRate<_>| reported(rate).into_iter().map(|(name, ..)| name).collect::<Vec<_>>();
    assert!(!names(&rate).contains(&"resilience.adaptive_rate.limit"));
    call(&rate, throttled());
    assert!(names(&rate).contains(&"resilience.adaptive_rate.limit"));
}
