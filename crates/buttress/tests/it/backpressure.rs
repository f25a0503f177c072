//! Tests of the gate that takes its permit in `poll_ready`.

use crate::{MS, SECOND, layer, no_request, pass, refusal, request};
use buttress::{
    Bulkhead, BulkheadLayer, CircuitBreaker, CircuitBreakerLayer, PlainExt, Rejection,
    circuit_breaker::State,
    gate::GateLayer,
    policy::{Policy, Refused, Reserve},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task::spawn};

#[tokio::test(start_paused = true)]
async fn it_waits_while_the_circuit_is_open_and_wakes_when_it_may_probe() {
    let breaker = CircuitBreaker::new("payments");
    let (mut service, mut handle) = layer(CircuitBreakerLayer::from(breaker.clone()).backpressure().plain());
    breaker.open_for(5 * SECOND);
    assert_pending!(service.poll_ready());
    pass(5 * SECOND - MS).await;
    assert!(!service.is_woken());
    pass(2 * MS).await;
    assert!(service.is_woken());
    assert_ready_ok!(service.poll_ready());
    let mut probe = spawn(service.call("probe"));
    assert_pending!(probe.poll());
    assert_eq!((request(&mut handle).0, breaker.state()), ("probe", State::HalfOpen));
}

#[tokio::test(start_paused = true)]
async fn it_wakes_when_the_circuit_is_reset() {
    let breaker = CircuitBreaker::new("payments");
    let (mut service, _handle) = layer(CircuitBreakerLayer::from(breaker.clone()).backpressure().plain());
    breaker.force_open();
    assert_pending!(service.poll_ready());
    breaker.reset();
    assert!(service.is_woken());
    assert_ready_ok!(service.poll_ready());
}

#[tokio::test(start_paused = true)]
async fn it_wakes_when_the_probe_before_it_has_come_back() {
    let breaker = CircuitBreaker::builder("payments").probes(2).build().unwrap();
    let (mut first, mut handle) = layer(CircuitBreakerLayer::from(breaker.clone()).backpressure().plain());
    let mut second = first.clone();
    breaker.open_for(MS);
    pass(2 * MS).await;
    assert_ready_ok!(first.poll_ready());
    assert_pending!(second.poll_ready());
    let mut probe = spawn(first.call("probe"));
    request(&mut handle).1.send_response("well");
    assert_ready_ok!(probe.poll());
    assert!(second.is_woken());
    assert_ready_ok!(second.poll_ready());
}

#[tokio::test(start_paused = true)]
async fn it_wakes_when_a_place_is_freed() {
    let (mut service, mut handle) = layer(BulkheadLayer::new(1).backpressure().plain());
    let mut other = service.clone();
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    assert_pending!(other.poll_ready());
    request(&mut handle).1.send_response("b");
    assert_ready_ok!(call.poll());
    assert!(other.is_woken());
    assert_ready_ok!(other.poll_ready());
}

#[tokio::test(start_paused = true)]
async fn a_place_wakes_the_next_waiter_although_another_one_gave_up() {
    let bulkhead = Bulkhead::new(0);
    let (mut first, _handle) = layer(BulkheadLayer::from(bulkhead.clone()).backpressure().plain());
    let (mut second, mut third) = (first.clone(), first.clone());
    for service in [&mut first, &mut second, &mut third] {
        assert_pending!(service.poll_ready());
    }
    drop(first);
    bulkhead.set_limit(1);
    assert!(second.is_woken() && !third.is_woken());
    // The third is polled for another reason, before the second.
    assert_ready_ok!(third.poll_ready());
    assert_pending!(second.poll_ready());
    drop(third);
    assert!(second.is_woken());
    assert_ready_ok!(second.poll_ready());
}

#[tokio::test(start_paused = true)]
async fn a_reserved_permit_is_given_back_by_drop_and_not_copied_by_clone() {
    let bulkhead = Bulkhead::new(1);
    let (mut service, _handle) = layer(BulkheadLayer::from(bulkhead.clone()).backpressure().plain());
    assert_ready_ok!(service.poll_ready());
    assert_ready_ok!(service.poll_ready(), "a second poll takes no second permit");
    assert_eq!(bulkhead.in_flight(), 1);
    let mut clone = service.clone();
    assert_eq!(bulkhead.in_flight(), 1);
    assert_eq!(refusal(&mut spawn(clone.call("a"))), &buttress::policy::NOT_READY);
    drop(service);
    assert_eq!(bulkhead.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_not_polled_ready_is_refused_without_a_panic() {
    let (mut service, mut handle) = layer(BulkheadLayer::new(1).backpressure().plain());
    assert_eq!(refusal(&mut spawn(service.call("a"))), &buttress::policy::NOT_READY);
    handle.allow(0);
    assert_pending!(service.poll_ready());
    assert_eq!(refusal(&mut spawn(service.call("b"))), &buttress::policy::NOT_READY, "the inner service was not ready");
    no_request(&mut handle);
}

#[tokio::test(start_paused = true)]
async fn nothing_of_the_inner_service_is_touched_while_the_policy_refuses() {
    let bulkhead = Bulkhead::new(0);
    let (mut service, mut handle) = layer(BulkheadLayer::from(bulkhead.clone()).backpressure().plain());
    handle.send_error("touched");
    assert_pending!(service.poll_ready());
    bulkhead.set_limit(1);
    assert_eq!(assert_ready_err!(service.poll_ready()).to_string(), "touched");
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_cannot_even_become_ready_opens_the_circuit_again() {
    let breaker = CircuitBreaker::builder("payments").probes(1).build().unwrap();
    let (mut service, mut handle) = layer(CircuitBreakerLayer::from(breaker.clone()).backpressure().plain());
    breaker.open_for(MS);
    pass(2 * MS).await;
    handle.send_error("no connection");
    assert_ready_err!(service.poll_ready());
    assert_eq!(breaker.state(), State::Open);
    drop(service);
}

#[tokio::test(start_paused = true)]
async fn a_gate_whose_inner_service_hangs_takes_no_turn_of_one_that_waits_for_a_place() {
    let bulkhead = Bulkhead::new(1);
    let (mut hangs, mut handle) = layer(BulkheadLayer::from(bulkhead.clone()).plain());
    handle.allow(0);
    assert_pending!(hangs.poll_ready());
    let (mut waits, _handle) = layer(BulkheadLayer::from(bulkhead).backpressure().plain());
    let mut other = waits.clone();
    assert_ready_ok!(other.poll_ready());
    assert_pending!(waits.poll_ready());
    drop(other);
    assert!(waits.is_woken(), "the wake-up went to a gate that takes no place");
    assert_ready_ok!(waits.poll_ready());
}

/// A policy that wakes no task and refuses, with this time to come back, until it is opened.
#[derive(Clone)]
struct Silent(Arc<AtomicBool>, Option<Duration>);

impl Policy<&'static str> for Silent {
    type Permit = ();

    fn admit(&self, _: &&'static str) -> Result<(), Rejection> {
        unreachable!("a gate that reserves does not ask")
    }
}

impl Reserve for Silent {
    type Permit = ();

    fn try_reserve(&self) -> Result<(), Refused> {
        if self.0.load(SeqCst) { Ok(()) } else { Err(Refused { retry_after: self.1 }) }
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_wakes_nobody_is_asked_again_after_the_time_that_it_gives_or_in_short_intervals() {
    for (retry_after, asked_after) in [(None, 50 * MS), (Some(3 * SECOND), 3 * SECOND), (Some(Duration::ZERO), MS)] {
        let is_open = Arc::new(AtomicBool::new(false));
        let policy = Silent(is_open.clone(), retry_after);
        let (mut service, _handle) = layer(GateLayer::with_policy(policy).backpressure().plain());
        assert_pending!(service.poll_ready());
        for _ in 0..3 {
            pass(asked_after - MS).await;
            assert!(!service.is_woken() || asked_after == MS, "{retry_after:?}");
            pass(2 * MS).await;
            assert!(service.is_woken(), "{retry_after:?}");
            assert_pending!(service.poll_ready());
        }
        is_open.store(true, SeqCst);
        pass(asked_after + MS).await;
        assert!(service.is_woken());
        assert_ready_ok!(service.poll_ready());
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_was_woken_and_is_not_polled_does_not_keep_a_free_place_from_the_others() {
    let bulkhead = Bulkhead::new(0);
    let (mut asleep, _handle) = layer(BulkheadLayer::from(bulkhead.clone()).backpressure().plain());
    let mut other = asleep.clone();
    assert_pending!(asleep.poll_ready());
    assert_pending!(other.poll_ready());
    bulkhead.set_limit(1);
    assert!(asleep.is_woken() && !other.is_woken());
    pass(SECOND + MS).await;
    assert!(other.is_woken());
    assert_ready_ok!(other.poll_ready());
}

#[tokio::test(start_paused = true)]
async fn a_service_that_gives_up_waiting_leaves_nothing_in_the_list_of_waiters() {
    let bulkhead = Bulkhead::new(0);
    let (service, _handle) = layer(BulkheadLayer::from(bulkhead.clone()).backpressure().plain());
    for _ in 0..3 {
        let mut gives_up = service.clone();
        assert_pending!(gives_up.poll_ready());
        drop(gives_up);
    }
    let mut waits = service.clone();
    assert_pending!(waits.poll_ready());
    bulkhead.set_limit(1);
    assert!(waits.is_woken(), "the wake-up went to a service that is gone");
    assert_ready_ok!(waits.poll_ready());
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_got_its_place_wakes_no_other() {
    let bulkhead = Bulkhead::new(0);
    let (mut first, _handle) = layer(BulkheadLayer::from(bulkhead.clone()).backpressure().plain());
    let mut second = first.clone();
    assert_pending!(first.poll_ready());
    assert_pending!(second.poll_ready());
    bulkhead.set_limit(1);
    assert!(first.is_woken());
    assert_ready_ok!(first.poll_ready());
    assert!(!second.is_woken(), "there is no place for it");
    drop(first);
    assert!(second.is_woken());
    assert_ready_ok!(second.poll_ready());
}
