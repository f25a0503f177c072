use super::*;
use crate::testing::without_waiting;

#[test]
fn a_higher_limit_acts_at_once_and_gives_no_fresh_burst() {
    let (limit, clock) = limit(quota(1, SECOND, 5));
    assert_eq!(admitted(&limit), 5);
    limit.set_limit(100);
    assert_eq!(limit.try_take(1).unwrap_err().retry_after(), Some(10 * MILLI));
    clock.advance(20 * MILLI);
    assert_eq!(admitted(&limit), 2);
}

#[test]
fn a_lower_limit_acts_at_once_and_takes_nothing_away() {
    let (limit, clock) = limit(quota(100, SECOND, 10));
    limit.try_take(4).unwrap();
    limit.set_limit(1);
    assert_eq!(admitted(&limit), 6);
    assert_eq!(limit.try_take(1).unwrap_err().retry_after(), Some(SECOND));
    clock.advance(2 * SECOND);
    assert_eq!(admitted(&limit), 2);
}

#[test]
fn a_burst_that_was_not_set_stays_the_first_limit_until_a_reload_of_both() {
    let limit = RateLimit::<ManualClock>::per_second(1_000);
    limit.set_limit(5);
    assert_eq!((limit.quota().burst, limit.available()), (1_000, 1_000));
    limit.reload(Quota::per_second(5)).unwrap();
    assert_eq!((limit.quota().burst, limit.available()), (5, 5));
}

#[test]
fn a_larger_burst_is_filled_by_time_also_that_of_a_full_bucket() {
    let (limit, clock) = limit(quota(10, SECOND, 5));
    clock.advance(3600 * SECOND);
    limit.set_burst(50);
    assert_eq!(admitted(&limit), 5);
    clock.advance(10 * SECOND);
    assert_eq!(admitted(&limit), 50);
}

#[test]
fn a_smaller_burst_cuts_what_is_available_and_no_call_pays_for_the_past() {
    let (limit, clock) = limit(quota(10, SECOND, 100));
    limit.try_take(30).unwrap();
    limit.set_burst(10);
    assert_eq!(admitted(&limit), 10);
    limit.set_burst(5);
    assert_eq!(limit.try_take(1).unwrap_err().retry_after(), Some(100 * MILLI));
    clock.advance(100 * MILLI);
    assert_eq!(admitted(&limit), 1);
}

#[test]
fn one_reload_reaches_every_bucket_at_its_next_decision() {
    let (limit, clock) = limit(quota(1, SECOND, 4));
    let buckets: Vec<_> = (0..100).map(|_| limit.new_bucket()).collect();
    for bucket in &buckets[..50] {
        assert_eq!(admitted(bucket), 4);
    }
    limit.reload(quota(10, SECOND, 8)).unwrap();
    clock.advance(200 * MILLI);
    for (n, bucket) in buckets.iter().enumerate() {
        let available = if n < 50 { 2 } else { 6 };
        assert_eq!((bucket.available(), admitted(bucket)), (available, available as usize), "bucket {n}");
    }
    assert_eq!(limit.new_bucket().available(), 8, "a new bucket is full");
}

#[test]
fn a_bucket_that_missed_reloads_counts_each_rate_for_its_time() {
    let (limit, clock) = limit(quota(1, SECOND, 100));
    let bucket = limit.new_bucket();
    bucket.try_take(100).unwrap();
    for rate in [10, 2, 20] {
        limit.set_limit(rate);
        clock.advance(SECOND);
    }
    assert_eq!(bucket.available(), 32);
}

#[test]
fn a_bucket_that_missed_too_many_reloads_counts_as_empty() {
    let (limit, clock) = limit(quota(10, SECOND, 10));
    let bucket = limit.new_bucket();
    for rate in 1..=17 {
        limit.set_limit(rate);
    }
    assert_eq!(admitted(&bucket), 0);
    clock.advance(SECOND);
    assert_eq!(admitted(&bucket), 10);
}

#[test]
fn an_equal_reload_changes_nothing() {
    let (limit, _) = limit(quota(10, SECOND, 10));
    let permit = limit.try_take(3).unwrap();
    limit.reload(quota(10, SECOND, 10)).unwrap();
    limit.set_limit(10);
    assert!(limit.give_back(permit), "after a reload that changes something it would be kept");
}

#[test]
fn a_limit_of_zero_rejects_every_call_until_it_is_raised() {
    let (limit, clock) = limit(quota(10, SECOND, 10));
    assert_eq!(admitted(&limit), 10);
    limit.set_limit(0);
    let rejection = limit.try_take(1).unwrap_err();
    assert_eq!((rejection.reason(), rejection.retry_after()), (&RATE_LIMITED, None));
    assert_eq!((limit.available(), limit.retry_after(1)), (0, None));
    assert!(limit.reserve(1, Duration::MAX).is_err());
    limit.set_limit(10);
    assert_eq!(admitted(&limit), 0, "no fresh burst");
    clock.advance(100 * MILLI);
    assert_eq!(admitted(&limit), 1);
}

#[test]
fn a_limit_that_was_made_with_zero_can_be_raised() {
    let (limit, _) = limit(quota(0, SECOND, 5));
    assert_eq!(admitted(&limit), 0);
    limit.set_limit(10);
    assert_eq!(admitted(&limit), 5);
}

#[test]
fn a_limit_that_was_made_with_zero_gets_the_burst_of_the_first_limit_above() {
    let clock = ManualClock::new();
    let limit = RateLimit::of(Quota::per_second(0), None, clock.clone());
    limit.set_limit(100);
    assert_eq!(limit.quota(), Quota::per_second(100));
    clock.advance(SECOND);
    assert_eq!(admitted(&limit), 100);
    limit.set_limit(0);
    limit.set_limit(10);
    assert_eq!(limit.quota(), quota(10, SECOND, 100), "later on the burst stays");
    limit.reload(Quota { period: 60 * SECOND, ..limit.quota() }).unwrap();
}

#[test]
fn calls_that_wait_over_a_reload_stay_ahead_of_the_next_ones() {
    let (limit, _) = limit(quota(10, SECOND, 1));
    for _ in 0..3 {
        let _waits = limit.reserve(1, SECOND).unwrap();
    }
    limit.set_limit(1);
    // Two calls wait: at one call a second, the next one starts after three.
    assert_eq!(limit.reserve(1, 10 * SECOND).unwrap().wait, 3 * SECOND);
}

#[test]
fn a_call_takes_no_lock_but_the_first_one_after_a_reload() {
    let (limit, _) = limit(quota(10, SECOND, 10));
    let caller = limit.clone();
    limit.change(|quota| {
        // Under the lock of the reload.
        without_waiting(move || {
            assert!(caller.try_take(1).is_ok());
            let _ = (caller.try_take(20), caller.available());
        });
        Quota { limit: 20, ..quota }
    });
    assert_eq!(limit.available(), 9);
}
