use super::*;
use crate::bulkhead::Bulkhead;
use crate::circuit_breaker::CircuitBreaker;
use crate::concurrency::AdaptiveLimit;
use crate::load_shed::LoadShed as Shed;
use crate::rate_limit::{Advertised, RATE_LIMITED, RateLimit, TOO_LARGE};
use crate::{Failure, FailureKind, ManualClock, bulkhead};
use crate::{adaptive_rate, throttle};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use std::task::Wake;

const MILLI: Duration = Duration::from_millis(1);

fn limit(per_second: u32, burst: u32) -> RateLimit<ManualClock> {
    RateLimit::per_second(per_second).burst(burst)
}

#[test]
fn what_the_first_took_is_given_back_when_the_second_refuses() {
    let (first, second) = (limit(10, 10), limit(10, 1));
    let both = AllOf::new(first.clone(), second.clone());
    assert!(both.admit(&()).is_ok());
    for _ in 0..50 {
        assert_eq!(both.admit(&()).unwrap_err().reason(), &RATE_LIMITED);
    }
    assert_eq!((first.available(), second.available()), (9, 0));
}

#[test]
fn a_call_that_the_first_refuses_costs_the_second_nothing() {
    let (first, second) = (limit(10, 1), limit(10, 10));
    let both = AllOf::new(first, second.clone());
    assert!(both.admit(&()).is_ok());
    for _ in 0..50 {
        assert!(both.admit(&()).is_err());
    }
    assert_eq!(second.available(), 9);
}

#[test]
fn the_longest_wait_is_reported_whichever_policy_refuses_for_it() {
    let after = |first: u32, second: u32| {
        let both = AllOf::new(limit(first, 1), limit(second, 1));
        assert!(both.admit(&()).is_ok());
        both.admit(&()).unwrap_err().retry_after()
    };
    assert_eq!(after(10, 2), Some(500 * MILLI));
    assert_eq!(after(2, 10), Some(500 * MILLI));
    let both = AllOf::new(limit(10, 1), limit(100, 1));
    let _started = both.schedule(&(), Duration::ZERO).unwrap();
    assert_eq!(both.schedule(&(), 10 * MILLI).unwrap_err().retry_after(), Some(100 * MILLI));
    // The first would wait 100 ms, and the second refuses for less.
    assert_eq!(
        AllOf::new(limit(10, 1), Bulkhead::<ManualClock>::new(0)).admit(&()).unwrap_err().reason(),
        &bulkhead::FULL
    );
}

#[test]
fn a_rejection_that_waiting_does_not_help_is_the_one_that_is_reported() {
    let costed = |burst| limit(10, burst).costed(|cost: &u32| *cost);
    let both = AllOf::new(costed(5), costed(3));
    assert!(both.admit(&3).is_ok());
    assert_eq!(both.admit(&4).unwrap_err().reason(), &TOO_LARGE);
}

#[test]
fn a_call_starts_after_the_longer_wait_and_gives_both_back() {
    let (first, second) = (limit(10, 1), limit(2, 1));
    let both = AllOf::new(first.clone(), second.clone());
    let _started = both.schedule(&(), Duration::ZERO).unwrap();
    let later = both.schedule(&(), Duration::MAX).unwrap();
    assert_eq!(later.wait, 500 * MILLI);
    both.undo(&(), later.permit);
    assert_eq!(
        (first.retry_after(1), second.retry_after(1)),
        (Some(100 * MILLI), Some(500 * MILLI)),
        "as before the second call"
    );
}

#[test]
fn a_reservation_of_the_first_is_given_back_when_the_second_cannot_wait_so_long() {
    let (first, second) = (limit(10, 1), limit(1, 1));
    let both = AllOf::new(first.clone(), second);
    let _started = both.schedule(&(), Duration::ZERO).unwrap();
    let rejection = both.schedule(&(), 500 * MILLI).unwrap_err();
    assert_eq!(rejection.retry_after(), Some(1000 * MILLI));
    assert_eq!(first.retry_after(1), Some(100 * MILLI));
}

#[test]
fn calls_that_one_limit_delays_together_start_closer_than_the_other_ones_rate() {
    let calls = limit(10, 1).costed(|_: &u32| 1);
    let both = AllOf::new(calls, limit(1000, 1000).costed(|kilobytes: &u32| *kilobytes));
    let waits = [1000, 1000, 1, 1].map(|kilobytes| both.schedule(&kilobytes, Duration::MAX).unwrap().wait);
    // By the limit on calls alone they would start after 0, 100, 200 and 300 ms.
    assert_eq!(waits, [0, 1000, 1001, 1002].map(|wait| wait * MILLI));
}

#[test]
fn a_place_in_a_bulkhead_and_a_probe_of_a_circuit_are_given_back() {
    let breaker = CircuitBreaker::<ManualClock>::builder("x").probes(1).build().unwrap();
    breaker.open_for(Duration::ZERO);
    let (bulkhead, rate) = (Bulkhead::<ManualClock>::new(1), limit(10, 1));
    rate.try_take(1).unwrap();
    let all = AllOf::new(bulkhead.clone(), breaker.clone()).and(rate);
    for _ in 0..3 {
        assert_eq!(all.admit(&()).err().unwrap().reason(), &RATE_LIMITED);
    }
    assert_eq!(bulkhead.in_flight(), 0);
    assert!(breaker.admit(&()).is_ok(), "the probe is free");
}

#[test]
fn the_permit_of_both_holds_and_learns_as_each_of_them_does() {
    type Policies = AllOf<Bulkhead<ManualClock>, CircuitBreaker<ManualClock>>;
    type Permits = <Policies as Policy<()>>::Permit;
    const { assert!(Permits::HOLDS_UNTIL_BODY_END && Permits::LEARNS) };
    let breaker = CircuitBreaker::<ManualClock>::new("x");
    let both = AllOf::new(Bulkhead::<ManualClock>::new(1), breaker.clone());
    let mut permit = both.admit(&()).unwrap();
    permit.progress(Progress::Head);
    permit.settle(&Failure::new(FailureKind::Transport).into());
    assert_eq!((both.policies().0.in_flight(), breaker.snapshot().counts.failed), (1, 1));
    drop(permit);
    assert_eq!(both.policies().0.in_flight(), 0);
}

#[test]
fn it_peeks_and_is_idle_as_both_are() {
    let (first, second) = (limit(10, 1), limit(2, 1));
    let both = AllOf::new(first, second);
    let peek = || Policy::<()>::peek(&both);
    assert!(peek().is_ok() && both.is_idle());
    let _ = (both.admit(&()), both.admit(&()));
    assert_eq!(peek(), Err(Refused { retry_after: Some(500 * MILLI) }));
    assert!(!both.is_idle());
}

#[test]
fn two_that_refuse_are_unknown_for_how_long_if_one_is() {
    let rate = limit(10, 1);
    rate.try_take(1).unwrap();
    let both = AllOf::new(rate, Bulkhead::<ManualClock>::new(0));
    assert_eq!(Policy::<()>::peek(&both), Err(Refused { retry_after: None }), "until a place is free");
}

/// Counts how often it is woken.
#[derive(Default)]
struct Flag(AtomicUsize);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_task_is_woken_when_either_of_two_circuits_opens() {
    let breaker = CircuitBreaker::<ManualClock>::new;
    let circuits = [breaker("first"), breaker("second"), breaker("third")];
    let [first, second, third] = circuits.clone();
    let all = AllOf::new(first, second).and(third).and(limit(10, 1));
    for circuit in circuits {
        let (waiters, flag) = (Policy::<()>::watchers(&all).unwrap(), Arc::new(Flag::default()));
        let key = waiters.key();
        waiters.register(key, &flag.clone().into());
        circuit.force_open();
        assert_eq!(flag.0.load(Ordering::SeqCst), 1, "{}", circuit.name());
        waiters.deregister(key);
        circuit.reset();
    }
}

#[test]
fn a_service_that_is_not_ready_counts_in_both_policies_or_in_none() {
    let breaker = || CircuitBreaker::<ManualClock>::builder("x").probes(1).build().unwrap();
    let (first, second) = (breaker(), breaker());
    let both = AllOf::new(first.clone(), second.clone());
    fn unready(policy: &impl Policy<()>) -> Option<bool> {
        policy.unready().map(|permit| permit.is_ok())
    }
    second.open_for(Duration::from_secs(1));
    assert_eq!(unready(&both), Some(false));
    let needs_request = AllOf::new(first.clone(), NeedsRequest);
    assert_eq!(unready(&needs_request), None);
    first.open_for(Duration::ZERO);
    assert_eq!(unready(&needs_request), None);
    assert!(first.admit(&()).is_ok(), "the probe is free");
    assert_eq!(first.snapshot().counts, breaker().snapshot().counts, "nothing is counted");
}

struct NeedsRequest;

impl Policy<()> for NeedsRequest {
    type Permit = ();

    fn admit(&self, (): &()) -> Result<(), Rejection> {
        Ok(())
    }
}

#[test]
fn beside_any_policy_a_circuit_learns_that_a_service_is_not_ready_and_no_share_is_used() {
    fn learns(other: impl Policy<()>) -> bool {
        let breaker = CircuitBreaker::<ManualClock>::new("x");
        let mut permit = AllOf::new(breaker.clone(), other).unready().and_then(Result::ok).expect("it is not refused");
        permit.settle(&Failure::new(FailureKind::Connect).into());
        breaker.snapshot().counts.failed == 1
    }
    let (rate, bulkhead) = (limit(10, 1), Bulkhead::<ManualClock>::new(1));
    let throttle = throttle::Throttle::<ManualClock>::new("x");
    assert!(learns(rate.clone()) && learns(rate.clone().costed(|_: &()| 1)) && learns(Advertised::new(rate.clone())));
    assert!(learns(bulkhead.clone()) && learns(throttle.clone()) && learns(Shed::<ManualClock>::new("x")));
    assert!(learns(adaptive_rate::AdaptiveRate::<ManualClock>::new()));
    assert_eq!((rate.available(), bulkhead.in_flight(), throttle.counts().requests), (1, 0, 0));
}

#[test]
fn beside_an_adaptive_limit_a_circuit_learns_that_a_service_is_not_ready() {
    let breaker = CircuitBreaker::<ManualClock>::new("x");
    let limit = AdaptiveLimit::<_, ManualClock>::builder("x").limits(1..=1).build().unwrap();
    let both = AllOf::new(breaker.clone(), limit.clone());
    let mut permit = Policy::<()>::unready(&both).and_then(Result::ok).expect("a call would be admitted");
    permit.settle(&Failure::new(FailureKind::Connect).into());
    drop(permit);
    assert_eq!((breaker.snapshot().counts.failed, limit.in_flight()), (1, 0));
    let _full = limit.admit(&()).unwrap();
    assert!(Policy::<()>::unready(&both).is_some_and(|permit| permit.is_err()), "a call would be rejected");
}
