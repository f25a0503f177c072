//! Tests of the throttle as a layer.

use crate::{MS, pass};
use buttress::{
    BulkheadLayer, Ending, Error, PlainExt, RetryLayer, Throttle, ThrottleLayer,
    ending::Plain,
    outcome::{Failure, FailureKind, Outcome},
    throttle::THROTTLED,
};
use std::convert::Infallible;
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};

/// Answers are codes; 429 means overload.
fn codes() -> Plain<impl Fn(Result<&u16, &Error>) -> Outcome + Clone> {
    Plain::new().classify(|result: Result<&u16, &Error>| match result {
        Ok(429) => Failure { overload: true, ..Failure::new(FailureKind::Http(429)) }.into(),
        Ok(_) => Outcome::Success,
        Err(_) => Failure::new(FailureKind::Transport).into(),
    })
}

#[tokio::test(start_paused = true)]
async fn calls_to_an_overloaded_backend_are_rejected_before_they_are_sent() {
    let throttle = Throttle::builder("search").seed(7).build().unwrap();
    let backend = service_fn(async |_: ()| Ok::<_, Infallible>(429));
    let client = ThrottleLayer::from(throttle.clone()).end(codes()).layer(backend);
    let mut rejected = 0;
    for _call in 0..200 {
        pass(100 * MS).await;
        if let Err(error) = client.clone().oneshot(()).await {
            assert_eq!(error.rejection().unwrap().reason(), &THROTTLED);
            rejected += 1;
        }
    }
    assert!((150..195).contains(&rejected), "{rejected}");
    assert_eq!((throttle.rejected(), throttle.counts().requests), (rejected, 200));
}

#[tokio::test(start_paused = true)]
async fn a_rejection_by_a_layer_inside_is_no_rejection_by_the_backend() {
    let throttle = Throttle::new("search");
    let client = ServiceBuilder::new()
        .layer(ThrottleLayer::from(throttle.clone()).plain())
        .layer(BulkheadLayer::new(0).plain())
        .service_fn(async |_: ()| Ok::<_, Infallible>(()));
    for _call in 0..200 {
        pass(100 * MS).await;
        client.clone().oneshot(()).await.unwrap_err();
    }
    assert_eq!((throttle.counts().requests, throttle.share(), throttle.rejected()), (0, 0.0, 0));
}

#[tokio::test(start_paused = true)]
async fn outside_retry_a_rejected_call_is_not_repeated_and_an_attempt_is_no_request() {
    let throttle = Throttle::builder("search").seed(7).build().unwrap();
    let client = ServiceBuilder::new()
        .layer(ThrottleLayer::from(throttle.clone()).end(codes()))
        .layer(RetryLayer::new(3).end(codes()))
        .service_fn(async |_: ()| Ok::<_, Infallible>(429));
    client.oneshot(()).await.unwrap();
    assert_eq!(throttle.counts().requests, 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_counts_nothing() {
    let throttle = Throttle::new("search");
    let client = ThrottleLayer::from(throttle.clone())
        .plain()
        .layer(service_fn(|_: ()| std::future::pending::<Result<(), Infallible>>()));
    let mut call = tokio_test::task::spawn(client.oneshot(()));
    assert!(call.poll().is_pending());
    assert_eq!(throttle.counts().requests, 1);
    drop(call);
    assert_eq!(throttle.counts().requests, 0);
}
