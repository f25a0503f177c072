use super::*;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

#[test]
fn a_clock_that_is_set_back_empties_the_bucket_and_does_not_shut_it() {
    let (limit, clock) = limit(quota(10, SECOND, 5));
    let start = clock.now();
    clock.advance(HOUR);
    assert_eq!(admitted(&limit), 5);
    clock.set(start);
    let rejection = limit.try_take(1).unwrap_err();
    assert_eq!(rejection.retry_after(), Some(100 * MILLI), "no fresh burst, and no hour without calls");
    clock.advance(100 * MILLI);
    assert_eq!(admitted(&limit), 1);
}

#[test]
fn a_clock_that_is_set_back_before_the_limit_was_made_goes_on_from_there() {
    let (limit, clock) = limit(quota(10, SECOND, 5));
    assert_eq!(admitted(&limit), 5);
    if let Some(before) = clock.now().checked_sub(Duration::from_secs(60)) {
        clock.set(before);
        assert_eq!(admitted(&limit), 0);
        clock.advance(SECOND);
        assert_eq!(admitted(&limit), 5);
    }
}

#[test]
fn after_a_step_back_a_service_that_asks_first_is_not_shut() {
    let (limit, clock) = limit(quota(10, SECOND, 5));
    let start = clock.now();
    clock.advance(HOUR);
    assert_eq!(admitted(&limit), 5);
    clock.set(start);
    let peeked = Policy::<()>::peek(&limit).unwrap_err();
    assert_eq!(peeked.retry_after, Some(100 * MILLI), "no hour without calls");
    clock.advance(100 * MILLI);
    assert!(Policy::<()>::peek(&limit).is_ok());
    assert_eq!(limit.available(), 1);
}

#[test]
fn readings_of_threads_in_another_order_change_nothing() {
    let (limit, clock) = limit(quota(10, SECOND, 5));
    clock.advance(SECOND);
    let now = clock.now();
    assert_eq!(admitted(&limit), 5);
    clock.set(now - 500 * MILLI);
    assert_eq!(limit.try_take(1).unwrap_err().retry_after(), Some(600 * MILLI));
    clock.set(now);
    assert_eq!(limit.try_take(1).unwrap_err().retry_after(), Some(100 * MILLI));
}

#[test]
fn a_step_back_is_seen_through_the_longest_wait() {
    let (limit, clock) = limit(quota(1, SECOND, 1));
    let start = clock.now();
    clock.advance(HOUR);
    for _ in 0..4 {
        let _waits = limit.reserve(1, 10 * SECOND).unwrap();
    }
    clock.set(start);
    let waits = limit.reserve(1, 10 * SECOND).unwrap().wait;
    assert_eq!(waits, SECOND, "the bucket is empty, and the calls that waited keep their times");
}

#[test]
fn after_a_year_without_calls_the_burst_is_there() {
    let (limit, clock) = limit(quota(10, SECOND, 5));
    assert_eq!(admitted(&limit), 5);
    clock.advance(YEAR);
    assert_eq!(admitted(&limit), 5);
    clock.advance(100 * MILLI);
    assert_eq!(admitted(&limit), 1);
}

#[test]
fn after_three_centuries_the_time_stands_still_and_nothing_overflows() {
    let (limit, clock) = limit(quota(10, SECOND, 5));
    clock.advance(300 * YEAR);
    assert_eq!(admitted(&limit), 5);
    clock.advance(300 * YEAR);
    assert_eq!(admitted(&limit), 0);
    let _ = (limit.reserve(5, Duration::MAX), limit.available(), limit.set_limit(u32::MAX));
    let _ = (limit.reserve(5, Duration::MAX), limit.available());
}

/// Counts nanoseconds beside a clock that stands still.
#[derive(Clone, Debug)]
struct Precise(Arc<AtomicU64>, ManualClock);

impl crate::Clock for Precise {
    fn now(&self) -> Instant {
        self.1.now()
    }

    fn precise_nanos(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed))
    }
}

#[test]
fn a_clock_that_counts_nanoseconds_is_read_in_place_of_the_other_from_any_number_on() {
    for start in [0, 7, 1 << 40, u64::MAX - 3 * SECOND.as_nanos() as u64] {
        let nanos = Arc::new(AtomicU64::new(start));
        let clock = Precise(nanos.clone(), ManualClock::new());
        let limit = Builder::<ManualClock>::new(quota(10, SECOND, 2)).clock(clock).build().unwrap();
        limit.try_take(2).unwrap();
        assert_eq!(limit.try_take(1).unwrap_err().retry_after(), Some(100 * MILLI), "from {start}");
        nanos.fetch_add((100 * MILLI).as_nanos() as u64, Ordering::Relaxed);
        assert_eq!((limit.available(), limit.try_take(1).is_ok()), (1, true), "from {start}");
        nanos.fetch_add(SECOND.as_nanos() as u64, Ordering::Relaxed);
        assert_eq!(limit.available(), 2);
    }
}

#[test]
fn a_counter_that_starts_anew_empties_the_bucket_and_refills_it() {
    let nanos = Arc::new(AtomicU64::new(1 << 50));
    let clock = Precise(nanos.clone(), ManualClock::new());
    let limit = Builder::<ManualClock>::new(quota(10, SECOND, 2)).clock(clock).build().unwrap();
    limit.try_take(2).unwrap();
    nanos.store(0, Ordering::Relaxed);
    assert!(limit.try_take(1).is_err(), "empty");
    nanos.store(SECOND.as_nanos() as u64, Ordering::Relaxed);
    assert_eq!(limit.available(), 2);
}
