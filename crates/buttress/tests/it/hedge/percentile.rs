//! What the percentile learns from.

use super::{Backend, LayerService, backend, budget};
use crate::{MS, SECOND};
use buttress::{Ending, HedgeLayer, hedge::Delay};
use std::time::Duration;
use tower::ServiceExt;

/// A delay whose median is known after two latencies.
fn median() -> Delay {
    Delay::percentile(50.0).min_samples(2).build().unwrap()
}

/// Makes a call with a delay, and steps to when the percentile is computed anew.
async fn call(delay: &Delay, backend: &Backend) {
    let layer = HedgeLayer::with_delay(delay.clone()).budget(budget(100));
    let _ = layer.end(backend::ending()).layer_service(backend).oneshot("a").await;
    tokio::time::advance(3 * SECOND).await;
}

fn is_about(delay: &Delay, millis: u64) -> bool {
    let expected = Duration::from_millis(millis);
    delay.current().is_some_and(|delay| delay >= expected && delay <= expected + expected / 16 + 3 * MS)
}

#[tokio::test(start_paused = true)]
async fn while_the_percentile_is_unknown_no_call_is_hedged() {
    let (delay, backend) = (median(), Backend::new([(10_000, Ok("a")), (10_000, Ok("b"))]));
    call(&delay, &backend).await;
    assert_eq!(backend.starts().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn successes_are_recorded_and_calls_are_hedged_after_the_percentile() {
    let delay = median();
    let backend = Backend::new([(100, Ok("a")), (100, Ok("b")), (500, Ok("c")), (1, Ok("d"))]);
    call(&delay, &backend).await;
    assert_eq!(delay.current(), None);
    call(&delay, &backend).await;
    assert!(is_about(&delay, 100), "{delay:?}");
    call(&delay, &backend).await;
    assert_eq!(backend.starts().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_loses_is_recorded_with_the_time_that_it_had_taken() {
    let delay = Delay::percentile(99.0).min_samples(2).build().unwrap();
    let backend = Backend::new([(100, Ok("a")), (100, Ok("b")), (10_000, Ok("c")), (200, Ok("d"))]);
    for _ in 0..3 {
        call(&delay, &backend).await;
    }
    assert!(is_about(&delay, 300), "{:?}: a hedge after 100 ms won after 200", delay.current());
}

/// Its short time would lower the percentile, which would hedge more calls.
#[tokio::test(start_paused = true)]
async fn a_hedge_that_loses_before_the_delay_is_not_recorded() {
    let delay = Delay::percentile(1.0).min_samples(2).build().unwrap();
    let backend = Backend::new([(100, Ok("a")), (100, Ok("b")), (110, Ok("c")), (1000, Ok("d"))]);
    for _ in 0..3 {
        call(&delay, &backend).await;
    }
    assert_eq!(backend.starts().len(), 4);
    assert!(is_about(&delay, 100), "{:?}", delay.current());
}

#[tokio::test(start_paused = true)]
async fn attempts_that_time_out_are_recorded_and_other_failures_are_not() {
    let (failed, timed_out) = (median(), median());
    let backend = Backend::new([(1, Err("failed")), (1, Err("failed")), (1, Err("fatal")), (1, Err("rejected"))]);
    for _ in 0..3 {
        call(&failed, &backend).await;
    }
    assert_eq!((failed.current(), backend.starts().len()), (None, 4));
    let backend = Backend::new([(300, Err("timeout")), (300, Err("timeout"))]);
    call(&timed_out, &backend).await;
    assert!(is_about(&timed_out, 300), "{:?}", timed_out.current());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_after_the_delay_is_recorded_and_one_before_it_is_not() {
    let delay = Delay::percentile(99.0).min_samples(2).build().unwrap();
    let backend = Backend::new([(100, Ok("a")), (100, Ok("b")), (9000, Ok("c")), (9000, Ok("d")), (9000, Ok("e"))]);
    call(&delay, &backend).await;
    call(&delay, &backend).await;
    let _ = tokio::time::timeout(50 * MS, call(&delay, &backend)).await;
    tokio::time::advance(3 * SECOND).await;
    assert!(is_about(&delay, 100), "{:?}", delay.current());
    let _ = tokio::time::timeout(400 * MS, call(&delay, &backend)).await;
    tokio::time::advance(3 * SECOND).await;
    assert!(is_about(&delay, 400), "{:?}", delay.current());
}

#[tokio::test(start_paused = true)]
async fn calls_with_a_delay_of_their_own_are_not_recorded() {
    let delay = median();
    let backend = Backend::new([(100, Ok("a")), (100, Ok("b"))]);
    let layer = HedgeLayer::with_delay(delay.clone()).delay_by(|_: &&'static str| Some(Duration::MAX));
    let service = layer.end(backend::ending()).layer_service(&backend);
    for _ in 0..2 {
        service.clone().oneshot("a").await.unwrap();
    }
    tokio::time::advance(3 * SECOND).await;
    assert_eq!(delay.current(), None);
}
