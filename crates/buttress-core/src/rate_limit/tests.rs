mod clocks;
mod model;
mod refund;
mod reload;
mod usage;

use super::*;
use crate::{ManualClock, Permit, testing::reported};

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

/// A limit with a clock that stands still.
fn limit(quota: Quota) -> (RateLimit<ManualClock>, ManualClock) {
    let clock = ManualClock::new();
    (Builder::<ManualClock>::new(quota).clock(clock.clone()).build().unwrap(), clock)
}

fn quota(limit: u32, period: Duration, burst: u32) -> Quota {
    Quota { burst, ..Quota::new(limit, period) }
}

/// How many calls are admitted until one is rejected.
fn admitted(limit: &RateLimit<ManualClock>) -> usize {
    std::iter::from_fn(|| limit.try_take(1).ok()).take(100_000).count()
}

#[test]
fn a_burst_is_admitted_at_once_and_then_one_call_in_each_interval() {
    let (limit, clock) = limit(quota(10, SECOND, 3));
    assert_eq!(admitted(&limit), 3);
    clock.advance(99 * MILLI);
    assert_eq!(admitted(&limit), 0);
    clock.advance(MILLI);
    assert_eq!(admitted(&limit), 1);
    clock.advance(3600 * SECOND);
    assert_eq!((limit.available(), admitted(&limit)), (3, 3), "no more than the burst is saved");
}

#[test]
fn a_rejection_says_when_to_try_again_and_costs_nothing() {
    let (limit, clock) = limit(quota(10, SECOND, 1));
    limit.try_take(1).unwrap();
    clock.advance(30 * MILLI);
    for _ in 0..100 {
        let rejection = limit.try_take(1).unwrap_err();
        assert_eq!((rejection.reason(), rejection.retry_after()), (&RATE_LIMITED, Some(70 * MILLI)));
    }
    clock.advance(70 * MILLI);
    assert!(limit.try_take(1).is_ok());
    assert_eq!(limit.rejected(), 100);
}

#[test]
fn a_call_of_a_cost_waits_until_all_of_it_is_there() {
    let (limit, clock) = limit(quota(10, SECOND, 10));
    limit.try_take(8).unwrap();
    assert_eq!(limit.try_take(5).unwrap_err().retry_after(), Some(300 * MILLI));
    assert_eq!(limit.available(), 2, "a smaller call can still take what is there");
    clock.advance(300 * MILLI);
    limit.try_take(5).unwrap();
    assert_eq!(limit.available(), 0);
}

#[test]
fn a_call_that_costs_more_than_the_burst_is_refused_for_good() {
    let (limit, _) = limit(quota(10, SECOND, 10));
    limit.try_take(10).unwrap();
    let rejection = limit.try_take(11).unwrap_err();
    assert_eq!((rejection.reason(), rejection.retry_after()), (&TOO_LARGE, None));
    assert_eq!((TOO_LARGE.class(), rejection.http_status()), (Class::Refused, 403));
    assert!(limit.reserve(u32::MAX, Duration::MAX).is_err());
}

#[test]
fn a_call_without_cost_is_always_admitted() {
    let (limit, _) = limit(quota(1, SECOND, 1));
    assert_eq!(admitted(&limit), 1);
    for _ in 0..10 {
        let permit = limit.try_take(0).unwrap();
        assert!(!limit.give_back(permit));
    }
    let costed = limit.costed(|cost: &u32| *cost);
    assert!(costed.admit(&0).is_ok() && costed.admit(&1).is_err());
    assert_eq!(costed.schedule(&0, Duration::ZERO).unwrap().wait, Duration::ZERO);
}

#[test]
fn reservations_follow_each_other_and_none_waits_longer_than_allowed() {
    let (limit, _) = limit(quota(10, SECOND, 2));
    let waits = [0, 0, 100, 200, 300];
    for wait in waits {
        assert_eq!(limit.reserve(1, 300 * MILLI).unwrap().wait, wait * MILLI);
    }
    let rejection = limit.reserve(1, 300 * MILLI).unwrap_err();
    assert_eq!(rejection.retry_after(), Some(400 * MILLI));
    assert_eq!((limit.waited(), limit.rejected()), (3, 1));
}

#[test]
fn peeking_changes_nothing_and_refuses_what_would_be_rejected() {
    let (limit, clock) = limit(quota(10, SECOND, 1));
    let peek = || Policy::<()>::peek(&limit);
    assert_eq!(peek(), Ok(()));
    limit.try_take(1).unwrap();
    let refused = peek().unwrap_err();
    assert_eq!(refused.retry_after, Some(100 * MILLI));
    let rejection = limit.refuse(&(), refused);
    assert_eq!((rejection.retry_after(), limit.rejected()), (Some(100 * MILLI), 1));
    clock.advance(100 * MILLI);
    assert_eq!((peek(), limit.available()), (Ok(()), 1));
    limit.set_limit(0);
    let _ = limit.try_take(1);
    assert_eq!(peek(), Err(Refused { retry_after: None }));
    limit.set_limit(10);
    assert_eq!(peek(), Ok(()));
}

#[test]
fn a_limit_of_zero_refuses_before_the_request_is_known() {
    let (made, _) = limit(quota(0, SECOND, 5));
    assert_eq!(Policy::<()>::peek(&made), Err(Refused { retry_after: None }));
    let (set, _) = limit(quota(10, SECOND, 5));
    set.set_limit(0);
    assert!(set.try_take(1).is_err());
    assert_eq!(Policy::<()>::peek(&set), Err(Refused { retry_after: None }), "once a call was rejected");
    set.set_limit(10);
    assert_eq!(Policy::<()>::peek(&set), Ok(()));
}

#[test]
fn a_cost_of_zero_never_has_to_wait() {
    let (limit, _) = limit(quota(10, SECOND, 1));
    let _waits = [(); 3].map(|()| limit.reserve(1, SECOND).unwrap());
    assert_eq!((limit.retry_after(0), limit.retry_after(1)), (Some(Duration::ZERO), Some(300 * MILLI)));
    limit.set_limit(0);
    assert_eq!((limit.retry_after(0), limit.retry_after(1)), (Some(Duration::ZERO), None));
}

#[test]
fn it_is_idle_when_its_bucket_is_full() {
    let (limit, clock) = limit(quota(10, SECOND, 2));
    assert!(limit.is_idle());
    limit.try_take(1).unwrap();
    assert!(!limit.is_idle());
    clock.advance(100 * MILLI);
    assert!(limit.is_idle());
}

#[test]
fn it_reports_its_rate_per_second_and_what_it_did() {
    let (limit, _) = limit(quota(90, 60 * SECOND, 2));
    assert_eq!(admitted(&limit), 2);
    let _waits = limit.reserve(1, SECOND).unwrap();
    let values: Vec<_> = reported(&limit).into_iter().map(|(name, _, value)| (name, value)).collect();
    use crate::report::Value::{Counter, Gauge};
    assert_eq!(
        values,
        [
            ("resilience.rate_limit.limit", Gauge(1.5)),
            ("resilience.rate_limit.available", Gauge(0.0)),
            ("resilience.rate_limit.rejected", Counter(1)),
            ("resilience.rate_limit.waited", Counter(1)),
        ]
    );
}

#[test]
fn an_error_names_the_field_and_the_rule() {
    let field = |quota: Quota| quota.check().err().map(|error| error.field());
    assert_eq!(field(Quota::new(1, Duration::ZERO)), Some("period"));
    assert_eq!(field(Quota::new(2, Duration::from_nanos(1))), Some("limit"));
    assert_eq!(field(quota(1, SECOND, 0)), Some("burst"));
    assert_eq!(field(Quota::new(1, Duration::MAX)), Some("period"));
    assert_eq!(field(quota(1, 3600 * SECOND, u32::MAX)), Some("period"));
    for valid in [Quota::new(0, SECOND), Quota::per_second(1_000_000_000), quota(1, 86_400 * SECOND, 10_000)] {
        assert_eq!(field(valid), None, "{valid:?}");
    }
    let (limit, _) = limit(Quota::per_second(1));
    assert!(limit.reload(quota(1, SECOND, 0)).is_err());
    assert_eq!(limit.quota(), Quota::per_second(1));
}

#[test]
fn extreme_quotas_mean_the_nearest_that_is_possible() {
    for period in [Duration::ZERO, Duration::from_nanos(1), SECOND, Duration::MAX] {
        for calls in [0, 1, u32::MAX] {
            for burst in [0, 1, u32::MAX] {
                let limit = RateLimit::of(quota(calls, period, burst), None, ManualClock::new());
                let first = limit.try_take(1);
                assert_eq!(first.is_ok(), calls > 0, "{calls} in {period:?}");
                let _ = (limit.reserve(u32::MAX, Duration::MAX), limit.retry_after(u32::MAX), limit.available());
                limit.set_limit(1);
                limit.set_burst(u32::MAX);
                let _ = (limit.reserve(2, Duration::MAX), limit.available(), limit.is_idle());
            }
        }
    }
}

#[test]
fn a_rejection_carries_the_present_quota() {
    let limit = RateLimit::<ManualClock>::named("search", 10, SECOND).burst(1);
    limit.try_take(1).unwrap();
    let rejection = limit.try_take(1).unwrap_err();
    limit.set_limit(5);
    assert_eq!(rejection.quota(), Some(quota(5, SECOND, 1)));
    assert_eq!(rejection.name(), Some("search"));
    assert_eq!(Rejection::new("bulkhead", &crate::bulkhead::FULL).quota(), None);
}
