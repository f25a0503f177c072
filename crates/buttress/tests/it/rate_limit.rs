//! Tests of rate limits whose calls wait, and of those with keys.

use crate::{MS, SECOND, layer, no_request, pass, refusal, request};
use buttress::{
    AdaptiveRateLayer, CircuitBreaker, Ending, PlainExt, RateLimit, RateLimitLayer, context,
    ending::Plain,
    gate::GateLayer,
    keyed::Keyed,
    outcome::{Failure, FailureKind, Outcome},
    policy::{AllOf, CallContext, Clock, Policy, Rejection, Schedule, Scheduled, TokioClock},
    rate_limit::{Quota, RATE_LIMITED, TOO_LARGE},
};
use std::{convert::Infallible, time::Duration};
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task::spawn};
use tower::{Layer, ServiceExt, service_fn};

fn one_per_100_ms() -> RateLimit {
    RateLimit::per_second(10).burst(1)
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_its_turn_and_holds_nothing_of_the_inner_service() {
    let limit = one_per_100_ms();
    let (mut service, mut handle) = layer(RateLimitLayer::from(limit.clone()).wait(SECOND).plain());
    handle.allow(1);
    let (mut first, mut second) = (spawn(service.call("first")), spawn(service.call("second")));
    assert_pending!(first.poll());
    assert_eq!(request(&mut handle).0, "first");
    assert_pending!(second.poll());
    pass(99 * MS).await;
    assert!(!second.is_woken());
    no_request(&mut handle);
    pass(2 * MS).await;
    assert!(second.is_woken());
    handle.allow(1);
    assert_pending!(second.poll());
    let (text, answer) = request(&mut handle);
    assert_eq!(text, "second");
    answer.send_response("done");
    assert_ready_ok!(second.poll());
    assert_eq!((limit.waited(), limit.rejected()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_would_wait_too_long_is_rejected_at_once() {
    let (mut service, _handle) = layer(RateLimitLayer::from(one_per_100_ms()).wait(150 * MS).plain());
    let (_first, _second) = (service.call("first"), service.call("second"));
    let mut third = spawn(service.call("third"));
    assert_eq!(refusal(&mut third), &RATE_LIMITED);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_while_it_waits_gives_its_turn_back() {
    let limit = one_per_100_ms();
    let (mut service, _handle) = layer(RateLimitLayer::from(limit.clone()).wait(SECOND).plain());
    let _first = service.call("first");
    let mut second = spawn(service.call("second"));
    assert_pending!(second.poll());
    assert_eq!(limit.retry_after(1), Some(200 * MS));
    drop(second);
    assert_eq!(limit.retry_after(1), Some(100 * MS));
    drop(service.call("never polled"));
    assert_eq!(limit.retry_after(1), Some(100 * MS));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_before_the_inner_service_is_ready_gives_its_turn_back() {
    let limit = one_per_100_ms();
    let (mut service, mut handle) = layer(RateLimitLayer::from(limit.clone()).wait(SECOND).plain());
    handle.allow(0);
    let mut call = spawn(service.call("call"));
    assert_pending!(call.poll());
    drop(call);
    assert_eq!(limit.available(), 1);
    // Nor does one cost anything whose inner service fails before its start.
    let mut call = spawn(service.call("call"));
    assert_pending!(call.poll());
    handle.send_error("down");
    assert_ready_err!(call.poll());
    assert_eq!(limit.available(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_has_started_keeps_its_turn_when_it_is_dropped() {
    let limit = one_per_100_ms();
    let (mut service, mut handle) = layer(RateLimitLayer::from(limit.clone()).wait(SECOND).plain());
    handle.allow(1);
    let mut call = spawn(service.call("call"));
    assert_pending!(call.poll());
    request(&mut handle);
    drop(call);
    assert_eq!(limit.available(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_wait_is_cut_by_the_deadline_of_the_call_that_is_served() {
    let (mut service, _handle) = layer(RateLimitLayer::from(one_per_100_ms()).wait(SECOND).plain());
    let _first = service.call("first");
    let at = |left: Duration| CallContext::default().with_deadline(TokioClock.now() + left);
    {
        let _served = at(99 * MS).enter();
        assert_eq!(refusal(&mut spawn(service.call("too late"))), &RATE_LIMITED);
    }
    {
        let _served = at(Duration::ZERO).enter();
        assert_eq!(refusal(&mut spawn(service.call("over"))), &RATE_LIMITED);
    }
    let _served = at(100 * MS).enter();
    assert_pending!(spawn(service.call("in time")).poll());
}

#[tokio::test(start_paused = true)]
async fn calls_of_one_customer_wait_for_each_other_only() {
    let quota = one_per_100_ms();
    let buckets = quota.clone();
    let keyed = Keyed::new(|customer: &u32| *customer, move |_: &u32| buckets.new_bucket());
    let service = GateLayer::with_policy(keyed.clone())
        .wait(SECOND)
        .plain()
        .layer(service_fn(|_: u32| async { Ok::<_, Infallible>(TokioClock.now()) }));
    let (start, call) = (TokioClock.now(), |customer| service.clone().oneshot(customer));
    let (a, b, c) = tokio::join!(call(1), call(1), call(2));
    let waits = [a, b, c].map(|at| at.unwrap() - start);
    assert_eq!(waits, [Duration::ZERO, 100 * MS, Duration::ZERO]);
    // A dropped call gives back to its own key.
    let mut waiting = spawn(call(1));
    assert_pending!(waiting.poll());
    drop(waiting);
    assert_eq!(keyed.get(&1).unwrap().retry_after(1), Some(100 * MS));
}

#[tokio::test(start_paused = true)]
async fn one_reload_reaches_all_keys_and_gives_none_a_fresh_burst() {
    let quota = RateLimit::per_second(10);
    let buckets = quota.clone();
    let keyed = Keyed::builder(|key: &u32| *key, move |_: &u32| buckets.new_bucket()).max_keys(10_000).build().unwrap();
    for key in 0..1000 {
        assert_eq!((0..20).filter(|_| keyed.admit(&key).is_ok()).count(), 10);
    }
    quota.reload(Quota::per_second(100)).unwrap();
    pass(50 * MS).await;
    for key in 0..1000 {
        assert_eq!((0..200).filter(|_| keyed.admit(&key).is_ok()).count(), 5, "key {key}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_is_evicted_when_its_bucket_is_full() {
    let keyed = Keyed::builder(|key: &u32| *key, |_: &u32| RateLimit::per_second(10)).max_keys(1).build().unwrap();
    assert!(keyed.admit(&1).is_ok());
    assert!(keyed.admit(&2).is_ok());
    assert_eq!((keyed.evicted(), keyed.untracked()), (0, 1), "a customer cannot be made to lose its count");
    pass(SECOND).await;
    assert!(keyed.admit(&2).is_ok());
    assert_eq!((keyed.evicted(), keyed.get(&1).is_none()), (1, true));
}

#[tokio::test(start_paused = true)]
async fn a_call_costs_what_its_request_says() {
    let limit = RateLimitLayer::per_second(10).cost(|text: &&'static str| text.len() as u32);
    let (mut service, mut handle) = layer(limit.plain());
    handle.allow(9);
    assert_ready_ok!(service.poll_ready());
    let mut first = spawn(service.call("eight..."));
    assert_pending!(first.poll());
    assert_ready_ok!(service.poll_ready());
    assert_eq!(refusal(&mut spawn(service.call("four"))), &RATE_LIMITED);
    assert_ready_ok!(service.poll_ready());
    assert_eq!(refusal(&mut spawn(service.call("more than all"))), &TOO_LARGE);
    assert_ready_ok!(service.poll_ready());
    assert_pending!(spawn(service.call("")).poll());
}

#[tokio::test(start_paused = true)]
async fn of_two_limits_the_outer_loses_nothing_to_the_inner_one() {
    let (per_second, per_hour) = (RateLimit::per_second(10), RateLimit::new(1, 3600 * SECOND));
    let both = GateLayer::with_policy(AllOf::new(per_second.clone(), per_hour));
    let (mut service, mut handle) = layer(both.plain());
    handle.allow(9);
    assert_ready_ok!(service.poll_ready());
    let _first = service.call("first");
    for _ in 0..20 {
        assert_ready_ok!(service.poll_ready());
        assert_eq!(refusal(&mut spawn(service.call("another"))), &RATE_LIMITED);
    }
    assert_eq!(per_second.available(), 9);
}

#[tokio::test(start_paused = true)]
async fn it_is_ready_at_once_while_it_would_reject() {
    let (mut service, mut handle) = layer(RateLimitLayer::from(one_per_100_ms()).plain());
    handle.allow(1);
    assert_ready_ok!(service.poll_ready());
    let _call = service.call("call");
    // The inner service is not ready any more, and a call that is rejected does not wait for it.
    assert_ready_ok!(service.poll_ready());
    assert_eq!(refusal(&mut spawn(service.call("rejected"))), &RATE_LIMITED);
    pass(100 * MS).await;
    assert_pending!(service.poll_ready());
}

#[tokio::test(start_paused = true)]
async fn an_adaptive_rate_waits_once_the_backend_has_throttled() {
    let throttles = Plain::new().classify(|result: Result<&&'static str, &buttress::Error>| match result {
        Ok(&"slow down") => Failure { overload: true, ..Failure::new(FailureKind::Application) }.into(),
        _ => Outcome::Success,
    });
    let limit = AdaptiveRateLayer::named("inventory").wait(10 * SECOND).end(throttles);
    let rate = limit.handle().clone();
    let service = limit.layer(service_fn(|text: &'static str| async move { Ok::<_, Infallible>(text) }));
    let call = |text| service.clone().oneshot(text);
    let start = TokioClock.now();
    for _ in 0..100 {
        call("hello").await.unwrap();
    }
    assert_eq!((TokioClock.now() - start, rate.limit()), (Duration::ZERO, None));
    call("slow down").await.unwrap();
    call("hello").await.unwrap();
    assert_eq!(TokioClock.now() - start, 2 * SECOND, "one call in two seconds is the least");
    let mut dropped = spawn(call("hello"));
    assert_pending!(dropped.poll());
    drop(dropped);
    // Two seconds after the throttling: 0.4 * 2^3 = 3.2 calls per second. The dropped call gave its
    // token back.
    assert_eq!(rate.schedule(&(), 10 * SECOND).unwrap().wait, Duration::from_micros(312_500));
}

#[tokio::test(start_paused = true)]
async fn a_spawned_call_keeps_the_deadline_it_was_given() {
    let (mut service, _handle) = layer(RateLimitLayer::from(one_per_100_ms()).wait(SECOND).plain());
    let _first = service.call("first");
    let served = CallContext::default().with_deadline(TokioClock.now() + 50 * MS);
    let call = context::with(served, async { service.call("second").await });
    assert!(call.await.is_err());
}

#[tokio::test(start_paused = true)]
async fn beside_a_circuit_a_service_that_is_not_ready_costs_nothing_and_is_counted() {
    let (limit, breaker) = (one_per_100_ms(), CircuitBreaker::new("x"));
    let both = AllOf::new(limit.clone(), breaker.clone());
    let (mut service, mut handle) = layer(GateLayer::with_policy(both).plain());
    handle.send_error("down");
    assert_ready_err!(service.poll_ready());
    assert_eq!((limit.available(), breaker.snapshot().counts.failed), (1, 1));
}

/// A policy of a user whose calls start after a time of their own.
#[derive(Clone)]
struct Later(Duration);

impl<Req: ?Sized> Policy<Req> for Later {
    type Permit = ();

    fn admit(&self, _: &Req) -> Result<(), Rejection> {
        Ok(())
    }
}

impl<Req: ?Sized> Schedule<Req> for Later {
    fn schedule(&self, _: &Req, _: Duration) -> Result<Scheduled<()>, Rejection> {
        Ok(Scheduled { permit: (), wait: self.0 })
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_overflows_the_clock_is_one_without_end() {
    for wait in [Duration::MAX, Duration::MAX - MS, Duration::from_secs(u64::MAX / 2)] {
        let (mut service, mut handle) = layer(GateLayer::with_policy(Later(wait)).wait(Duration::MAX).plain());
        let mut call = spawn(service.call("call"));
        assert_pending!(call.poll());
        pass(1000 * SECOND).await;
        assert_pending!(call.poll());
        no_request(&mut handle);
    }
}
