//! `.backpressure()` under tower's balancer, which checks readiness long before it uses it, on a
//! paused clock.

use buttress::{Error, circuit_breaker::State};
use buttress_http::prelude::*;
use buttress_stack_tests::PATIENCE;
use std::{convert::Infallible, time::Duration};
use tokio::time::{sleep, timeout};
use tower::{
    Layer, Service, ServiceExt,
    balance::p2c::Balance,
    discover::ServiceList,
    load::{CompleteOnResponse, Load, PendingRequests, PendingRequestsDiscover},
    service_fn,
};

/// A backend that answers at once.
fn quick() -> impl Service<u8, Response = u8, Error = Infallible, Future: Send> + Clone + Send {
    service_fn(|request: u8| std::future::ready(Ok(request)))
}

/// Trips when half of five calls take longer than 100 ms.
fn slow_rule(count_overdue: bool) -> CircuitBreaker {
    let builder = CircuitBreaker::builder("backend").slow_threshold(Duration::from_millis(100)).slow_rate(0.5);
    builder.minimum_throughput(5).count_overdue(count_overdue).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_call_that_comes_long_after_readiness_is_not_slow() {
    for count_overdue in [false, true] {
        let breaker = slow_rule(count_overdue);
        let mut service = CircuitBreakerLayer::from(breaker.clone()).backpressure().plain().layer(quick());
        for _ in 0..6 {
            service.ready().await.unwrap();
            sleep(Duration::from_millis(200)).await;
            service.call(1).await.unwrap();
        }
        let counts = breaker.snapshot().counts;
        assert_eq!((counts.succeeded, counts.slow, breaker.state()), (6, 0, State::Closed));
    }
}

#[tokio::test(start_paused = true)]
async fn services_that_are_ready_and_never_called_are_no_slow_calls() {
    let breaker = slow_rule(true);
    let layer = CircuitBreakerLayer::from(breaker.clone()).backpressure().plain();
    let mut idle = (0..10).map(|_| layer.layer(quick())).collect::<Vec<_>>();
    for service in &mut idle {
        service.ready().await.unwrap();
    }
    sleep(Duration::from_secs(600)).await;
    layer.layer(quick()).oneshot(1).await.unwrap();
    drop(idle);
    let counts = breaker.snapshot().counts;
    assert_eq!((counts.total(), counts.slow, breaker.state()), (1, 0, State::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_balancer_that_is_called_seldom_rejects_nothing_and_opens_no_circuit() {
    let breakers = [(); 3].map(|()| slow_rule(true));
    let endpoints =
        breakers.clone().map(|breaker| CircuitBreakerLayer::from(breaker).backpressure().plain().layer(quick()));
    let discover = PendingRequestsDiscover::new(ServiceList::new::<u8>(endpoints), CompleteOnResponse::default());
    let mut balance = Balance::new(discover);
    for _ in 0..60 {
        let ready = timeout(Duration::from_secs(1), balance.ready()).await.expect("an endpoint is ready");
        ready.unwrap().call(1).await.unwrap();
        sleep(Duration::from_secs(1)).await;
    }
    for breaker in breakers {
        assert_eq!((breaker.snapshot().counts.slow, breaker.state()), (0, State::Closed));
    }
}

#[tokio::test(start_paused = true)]
async fn a_balancer_chooses_the_endpoints_whose_circuits_are_closed() {
    let breakers = [(); 3].map(|()| CircuitBreaker::new("endpoint"));
    let endpoints =
        breakers.clone().map(|breaker| CircuitBreakerLayer::from(breaker).backpressure().plain().layer(quick()));
    let discover = PendingRequestsDiscover::new(ServiceList::new::<u8>(endpoints), CompleteOnResponse::default());
    let mut balance = Balance::new(discover);
    breakers[..2].iter().for_each(CircuitBreaker::force_open);
    for _ in 0..20 {
        balance.ready().await.unwrap().call(1).await.unwrap();
    }
    assert_eq!(breakers.map(|breaker| breaker.snapshot().counts.succeeded), [0, 0, 20]);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_was_ready_when_the_circuit_opened_is_rejected_and_waits_from_then_on() {
    let breaker = CircuitBreaker::new("backend");
    let mut service = CircuitBreakerLayer::from(breaker.clone()).backpressure().plain().layer(quick());
    service.ready().await.unwrap();
    breaker.open_for(Duration::from_secs(5));
    let rejected = service.call(1).await.unwrap_err();
    assert_eq!(rejected.rejection().unwrap().reason(), &buttress::circuit_breaker::OPEN);
    assert!(timeout(Duration::from_millis(4_900), service.ready()).await.is_err());
    timeout(PATIENCE, service.ready()).await.expect("it wakes").unwrap().call(1).await.unwrap();
    assert_eq!(breaker.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_retry_does_not_repeat_a_rejection() {
    let breaker = CircuitBreaker::new("backend");
    breaker.force_open();
    let retry = RetryLayer::new(3);
    let stats = retry.stats();
    let inner = CircuitBreakerLayer::from(breaker).plain().layer(quick());
    let error: Error = retry.plain().layer(inner).oneshot(1).await.unwrap_err();
    assert_eq!((error.rejection().unwrap().reason(), stats.retries()), (&buttress::circuit_breaker::FORCED_OPEN, 0));
}

/// `PendingRequests` inside our layers, which pass its load on.
#[tokio::test(start_paused = true)]
async fn a_balancer_reads_the_load_of_a_service_inside_the_layers() {
    let endpoints = [(); 2].map(|()| (CircuitBreaker::new("endpoint"), Bulkhead::new(100)));
    let services = endpoints.clone().map(|(breaker, bulkhead)| {
        let hung = service_fn(|_: u8| std::future::pending::<Result<u8, Infallible>>());
        let inner = PendingRequests::new(hung, CompleteOnResponse::default());
        let inner = TimeoutLayer::attempt(Duration::MAX).plain().layer(inner);
        let inner = BulkheadLayer::from(bulkhead).plain().layer(inner);
        CircuitBreakerLayer::from(breaker).backpressure().plain().layer(inner)
    });
    assert_eq!(services[0].load(), services[1].load());
    let mut balance = Balance::new(ServiceList::new::<u8>(services));
    let mut calls = Vec::new();
    for _ in 0..40 {
        calls.push(timeout(PATIENCE, balance.ready()).await.unwrap().unwrap().call(1));
    }
    // Each call goes to the endpoint with fewer.
    assert_eq!(endpoints.clone().map(|(_, bulkhead)| bulkhead.in_flight()), [20, 20]);
    endpoints[0].0.open_for(Duration::from_secs(5));
    for _ in 0..10 {
        calls.push(timeout(PATIENCE, balance.ready()).await.unwrap().unwrap().call(1));
    }
    assert_eq!(endpoints.clone().map(|(_, bulkhead)| bulkhead.in_flight()), [20, 30]);
    drop(calls);
    assert_eq!(endpoints.map(|(_, bulkhead)| bulkhead.in_flight()), [0, 0]);
}
