//! Long times, clocks that are set back, and numbers that wrap.

use super::*;
use std::sync::atomic::AtomicU64;

const HOUR: Duration = Duration::from_secs(3600);

fn slow(configure: impl FnOnce(Builder) -> Builder) -> Bench {
    Bench::new(|builder| {
        let builder = builder.consecutive_failures(None).failure_rate(None).slow_threshold(SECOND).slow_rate(1.0);
        configure(builder.minimum_throughput(1))
    })
}

#[test]
fn calls_of_many_hours_are_timed_right() {
    for hours in [1, 6, 7, 12, 24, 48, 92] {
        let bench = slow(|builder| builder);
        bench.call(Outcome::Success);
        bench.wait(SECOND);
        let permit = bench.admit();
        bench.wait(hours * HOUR);
        bench.settle(permit, Outcome::Success);
        assert_eq!(bench.state(), State::Open, "{hours} hours");
    }
}

/// A clock that counts how often it is read.
#[derive(Clone, Debug)]
struct Read {
    zero: Instant,
    /// The time in nanoseconds, the precise readings and the coarse ones.
    numbers: Arc<[AtomicU64; 3]>,
}

impl Read {
    fn reads(&self) -> (u64, u64) {
        (self.numbers[1].swap(0, Ordering::Relaxed), self.numbers[2].swap(0, Ordering::Relaxed))
    }

    fn wait(&self, time: Duration) {
        self.numbers[0].fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }
}

impl crate::Clock for Read {
    fn now(&self) -> Instant {
        self.numbers[1].fetch_add(1, Ordering::Relaxed);
        self.zero + Duration::from_nanos(self.numbers[0].load(Ordering::Relaxed))
    }

    fn coarse_nanos(&self) -> Option<u64> {
        self.numbers[2].fetch_add(1, Ordering::Relaxed);
        Some(self.numbers[0].load(Ordering::Relaxed))
    }

    fn zero(&self) -> Option<Instant> {
        Some(self.zero)
    }
}

#[test]
fn a_slow_threshold_costs_one_coarse_reading_and_a_failure_none() {
    let threshold = Duration::from_millis(100);
    let of = |slow: Option<Duration>, outcome: Outcome, listens: bool| {
        let clock = Read { zero: ManualClock::new().now(), numbers: Default::default() };
        let rules = CircuitBreaker::builder("read").failure_rate(1.0).slow_threshold(slow);
        let breaker = rules.minimum_throughput(1_000).consecutive_failures(500).clock(clock.clone()).build().unwrap();
        if listens {
            breaker.on_event(|_| {});
        }
        // The first call sets the origin of time.
        for _ in 0..3 {
            clock.reads();
            breaker.admit(&()).unwrap().settle(&outcome);
        }
        clock.reads()
    };
    for outcome in [Outcome::Success, FAILURE] {
        assert_eq!(of(None, outcome, false), (0, 1), "for the window");
        assert_eq!(of(Some(threshold), outcome, false), (0, 2));
        assert_eq!(of(Some(threshold - MS), outcome, false), (2, 0), "the coarse clock is not precise enough");
        assert_eq!(of(Some(threshold), outcome, true), (2, 0), "events tell the time that a call took");
    }
}

#[test]
fn a_call_that_is_timed_by_the_coarse_clock_is_slow_from_its_threshold_on() {
    for (took, state) in [(100, State::Closed), (101, State::Open)] {
        let clock = Read { zero: ManualClock::new().now(), numbers: Default::default() };
        let rules = CircuitBreaker::builder("read").slow_threshold(100 * MS).slow_rate(1.0);
        let breaker = rules.minimum_throughput(1).clock(clock.clone()).build().unwrap();
        let mut permit = breaker.admit(&()).unwrap();
        clock.wait(took * MS);
        permit.settle(&Outcome::Success);
        assert_eq!(breaker.state(), state, "{took} ms");
    }
}

#[test]
fn the_head_of_a_response_ends_the_time_of_its_call() {
    for (time, state) in [(CallTime::ToHead, State::Closed), (CallTime::ToEnd, State::Open)] {
        let bench = slow(|builder| builder.call_time(time));
        let mut permit = bench.admit();
        bench.wait(SECOND);
        permit.progress(Progress::Head);
        for _ in 0..100 {
            bench.wait(HOUR);
            permit.progress(Progress::Frame);
        }
        bench.wait(HOUR);
        bench.settle(permit, Outcome::Success);
        assert_eq!(bench.state(), state, "{time:?}");
    }
    let bench = slow(|builder| builder);
    let mut permit = bench.admit();
    bench.wait(SECOND + MS);
    permit.progress(Progress::Head);
    bench.settle(permit, Outcome::Success);
    assert_eq!(bench.state(), State::Open, "a late head is slow");
}

#[test]
fn a_call_whose_head_has_arrived_is_not_overdue() {
    for (time, overdue) in [(CallTime::ToHead, 1), (CallTime::ToEnd, 2)] {
        let bench = slow(|builder| builder.count_overdue(true).minimum_throughput(10).call_time(time));
        let (mut streams, _hangs) = (bench.admit(), bench.admit());
        streams.progress(Progress::Head);
        bench.wait(2 * SECOND);
        assert_eq!(bench.breaker.snapshot().overdue, overdue, "{time:?}");
        bench.settle(streams, Outcome::Success);
        assert_eq!(bench.breaker.snapshot().overdue, 1);
    }
}

#[test]
fn a_call_is_timed_from_its_beginning_and_not_from_its_reservation() {
    let bench = slow(|builder| builder.count_overdue(true));
    let reserved = bench.reserve();
    let unused = bench.reserve();
    bench.wait(10 * SECOND);
    assert_eq!(bench.breaker.snapshot().overdue, 0);
    drop(bench.admit());
    assert_eq!(bench.state(), State::Closed, "reserved permits are not overdue");
    let begun = bench.confirm(reserved).unwrap();
    bench.wait(SECOND);
    bench.settle(begun, Outcome::Success);
    drop(unused);
    let mut unused = bench.reserve();
    bench.wait(10 * SECOND);
    unused.settle(&Outcome::CANCELLED);
    let counts = bench.breaker.snapshot().counts;
    assert_eq!((bench.state(), counts.slow_calls()), (State::Closed, 0));
    // Once begun, it counts like any other call.
    let begun = bench.confirm(bench.reserve()).unwrap();
    bench.wait(2 * SECOND);
    assert_eq!(bench.breaker.snapshot().overdue, 1);
    bench.settle(begun, Outcome::Success);
    assert_eq!(bench.state(), State::Open);
}

#[test]
fn a_reserved_permit_that_is_settled_without_a_beginning_is_timed_from_its_reservation() {
    let bench = slow(|builder| builder);
    let mut permit = bench.reserve();
    bench.wait(7 * HOUR);
    permit.settle(&Outcome::Success);
    assert_eq!(bench.state(), State::Open);
}

#[test]
fn a_stream_that_outlives_every_counter_leaves_the_overdue_calls_right() {
    let eighth = Duration::from_micros(125);
    for wraps in [1 << 20, 1 << 24, 1 << 31] {
        let bench = Bench::new(|builder| builder.slow_threshold(MS).slow_rate(0.99).count_overdue(true));
        let start = bench.now();
        let stream = bench.admit();
        for at in [16, wraps] {
            bench.clock.set(start + eighth * at);
            bench.call(Outcome::Success);
        }
        bench.settle(stream, Outcome::Success);
        bench.wait(2 * MS);
        assert_eq!(bench.breaker.snapshot().overdue, 0, "after {wraps} buckets");
    }
}

#[test]
fn calls_in_flight_across_a_wrap_of_ticks_are_young() {
    for ticks in [1u64 << 32, 1 << 35] {
        let bench = slow(|builder| builder.slow_threshold(500 * MS).count_overdue(true));
        bench.call(Outcome::Success);
        bench.wait(Duration::from_nanos(ticks * 10_000) - 2 * MS - 2 * HOUR);
        let permits: Vec<_> = (0..20).map(|_| bench.admit()).collect();
        bench.wait(72 * MS);
        drop(bench.admit());
        assert_eq!((bench.state(), bench.breaker.snapshot().overdue), (State::Closed, 0));
        permits.into_iter().for_each(|permit| bench.settle(permit, Outcome::Success));
        assert_eq!(bench.breaker.snapshot().counts.slow_calls(), 0);
    }
}

#[test]
fn a_clock_an_hour_back_does_not_make_it_deaf_or_keep_it_open() {
    // Wide buckets, narrow buckets, and an uptime that is shorter than the step back.
    for (window, uptime) in [(10 * SECOND, 2 * HOUR), (1000 * SECOND, 2 * HOUR), (MS * 10, HOUR), (10 * SECOND, SECOND)]
    {
        let bench = Bench::new(|builder| {
            builder
                .window(window)
                .consecutive_failures(None)
                .minimum_throughput(10)
                .probes(3)
                .close_rule(CloseRule::AllProbes)
        });
        bench.call(Outcome::Success);
        bench.wait(uptime);
        for _ in 0..16 {
            bench.calls(4, Outcome::Success);
            bench.call(FAILURE);
            bench.wait(window / 10);
        }
        bench.set_back(HOUR);
        bench.calls(10, FAILURE);
        assert_eq!(bench.state(), State::Open, "{window:?} after {uptime:?}");
        bench.set_back(HOUR / 2);
        assert!(bench.try_admit().unwrap_err().retry_after() <= Some(5 * SECOND));
        bench.wait(5 * SECOND);
        let hung = bench.admit();
        bench.set_back(HOUR / 4);
        assert_eq!(bench.state(), State::HalfOpen);
        bench.wait(30 * SECOND);
        assert_eq!(bench.state(), State::Open, "its lease expired");
        drop(hung);
        bench.wait_open();
        bench.calls(3, Outcome::Success);
        assert_eq!(bench.state(), State::Closed);
    }
}

#[test]
fn a_ramp_begins_anew_when_the_clock_is_set_back() {
    let bench = Bench::consecutive(1, |builder| builder.recovery_ramp(10 * SECOND));
    bench.call(FAILURE);
    bench.wait_open();
    bench.call(Outcome::Success);
    bench.wait(5 * SECOND);
    bench.set_back(HOUR);
    let _ = bench.try_admit();
    bench.wait(10 * SECOND);
    assert!((0..100).all(|_| bench.try_admit().is_ok()));
}

#[test]
fn a_year_later_everything_counts_as_before() {
    let bench = Bench::new(|builder| builder.window(10 * MS).slow_threshold(SECOND).slow_rate(1.0).count_overdue(true));
    bench.calls(20, Outcome::Success);
    for _ in 0..3 {
        bench.wait(365 * 24 * HOUR);
        bench.call(Outcome::Success);
        bench.calls(5, FAILURE);
        assert_eq!(bench.state(), State::Open);
        bench.wait(365 * 24 * HOUR);
        bench.calls(3, Outcome::Success);
        assert_eq!(bench.state(), State::Closed);
    }
}

#[test]
fn rates_are_unknown_below_the_minimum_throughput() {
    let bench = Bench::new(|builder| builder.consecutive_failures(None));
    bench.calls(19, FAILURE);
    let snapshot = bench.breaker.snapshot();
    assert_eq!((snapshot.failure_rate(), snapshot.slow_rate()), (None, None));
    bench.breaker.metrics_only();
    bench.calls(5, FAILURE);
    bench.calls(15, Outcome::Success);
    let snapshot = bench.breaker.snapshot();
    assert_eq!((snapshot.failure_rate(), snapshot.slow_rate()), (Some(0.25), Some(0.0)));
}

/// Generations have 61 bits. Permits, windows and streaks keep some of them, which wrap.
#[test]
fn changes_of_state_beyond_every_wrap_keep_permits_apart_and_streaks_right() {
    let bench = Bench::consecutive(2, |builder| builder);
    for generation in [(1 << 22) - 1, (1 << 26) - 2, (1 << 29) - 1, (1 << 31) - 1, 3 << 30, (1 << 32) - 2] {
        bench.breaker.jump_to(generation);
        let old = bench.admit();
        bench.breaker.reset();
        bench.call(FAILURE);
        bench.settle(old, FAILURE);
        let snapshot = bench.breaker.snapshot();
        assert_eq!((snapshot.generation, snapshot.state), (generation + 2, State::Closed), "{generation}");
        assert_eq!(snapshot.consecutive_failures, 1, "{generation}");
        bench.call(FAILURE);
        assert_eq!(bench.state(), State::Open, "{generation}");
    }
}
