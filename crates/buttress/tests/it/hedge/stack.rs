//! Hedges around other layers.

use super::{Backend, Ended, after, backend};
use crate::MS;
use buttress::{
    Bulkhead, BulkheadLayer, CircuitBreaker, CircuitBreakerLayer, Ending, PlainExt, RetryLayer, TimeoutLayer,
};
use tower::{ServiceBuilder, ServiceExt};

#[tokio::test(start_paused = true)]
async fn a_loser_is_no_failure_for_a_breaker_inside_and_gives_its_place_back() {
    let (breaker, bulkhead) = (CircuitBreaker::new("backend"), Bulkhead::new(10));
    let backend = Backend::new([(1000, Ok("a")), (5, Ok("b"))]);
    let service = ServiceBuilder::new()
        .layer(after().plain())
        .layer(CircuitBreakerLayer::from(breaker.clone()).plain())
        .layer(BulkheadLayer::from(bulkhead.clone()).plain())
        .service(backend.clone());
    let call = service.clone().oneshot("a");
    tokio::pin!(call);
    tokio::select! {
        _ = &mut call => panic!("it takes 35 ms"),
        () = tokio::time::sleep(33 * MS) => {}
    }
    assert_eq!(bulkhead.in_flight(), 2);
    assert_eq!(call.await.unwrap(), "b");
    assert_eq!(backend.ended(), [Ended::Answered(2), Ended::Dropped(1)]);
    let counts = breaker.snapshot().counts;
    assert_eq!((bulkhead.in_flight(), counts.succeeded, counts.failed), (0, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_gives_everything_back() {
    let (breaker, bulkhead) = (CircuitBreaker::new("backend"), Bulkhead::new(10));
    let service = ServiceBuilder::new()
        .layer(after().plain())
        .layer(CircuitBreakerLayer::from(breaker.clone()).plain())
        .layer(BulkheadLayer::from(bulkhead.clone()).plain())
        .service(Backend::new([(1000, Ok("a")), (1000, Ok("b"))]));
    let dropped = tokio::time::timeout(100 * MS, service.oneshot("a")).await;
    assert!(dropped.is_err());
    assert_eq!((bulkhead.in_flight(), breaker.snapshot().counts.total()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_full_bulkhead_inside_rejects_the_hedge_and_not_the_call() {
    let backend = Backend::new([(100, Ok("a"))]);
    let service = ServiceBuilder::new().layer(after().plain()).layer(BulkheadLayer::new(1).plain());
    assert_eq!(service.service(backend).oneshot("a").await.unwrap(), "a");
}

#[tokio::test(start_paused = true)]
async fn a_retry_around_a_hedge_shares_its_budget_and_repeats_what_it_could_not_help() {
    let budget = backend::budget(100);
    let backend = Backend::new([(100, Err("failed")), (5, Err("failed")), (5, Ok("c"))]);
    let service = ServiceBuilder::new()
        .layer(RetryLayer::new(2).budget(budget.clone()).plain())
        .layer(after().shared_budget(budget.clone()).end(backend::ending()))
        .service(backend.clone());
    assert_eq!(service.oneshot("a").await.unwrap(), "c");
    assert_eq!((backend.starts().len(), budget.balance()), (3, 98.0));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_times_out_is_followed_by_the_next_at_once() {
    let backend = Backend::new([(1000, Ok("a")), (5, Ok("b"))]);
    let service = ServiceBuilder::new()
        .layer(buttress::HedgeLayer::after(500 * MS).plain())
        .layer(TimeoutLayer::attempt(100 * MS).plain());
    assert_eq!(service.service(backend.clone()).oneshot("a").await.unwrap(), "b");
    assert_eq!(backend.starts(), [0, 100]);
}
