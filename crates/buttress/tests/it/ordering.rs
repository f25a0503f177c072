//! What the order of the layers in docs/ordering.md does, and what the wrong one breaks.

use crate::{MS, SECOND};
use buttress::{
    Backoff, Bulkhead, BulkheadLayer, CircuitBreaker, CircuitBreakerLayer, Error, PlainExt, Reason, RetryLayer,
    TimeoutLayer, bulkhead, circuit_breaker,
    policy::{Clock, TokioClock},
    timeout,
};
use std::{
    future::Pending,
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::sleep;
use tower::{Service, ServiceBuilder, ServiceExt};

const PAUSE: Duration = Duration::from_millis(100);

fn retry() -> RetryLayer {
    RetryLayer::new(3).backoff(Backoff::constant(PAUSE))
}

/// Answers call number `n`, from 1, after the time and with the success that `plan` returns for it.
fn backend(
    plan: fn(u32) -> (Duration, bool),
) -> impl Service<(), Response = u32, Error = io::Error, Future: Send> + Clone + Send + 'static {
    let calls = Arc::new(AtomicU32::new(0));
    tower::service_fn(move |()| {
        let call = calls.fetch_add(1, SeqCst) + 1;
        async move {
            let (time, succeeds) = plan(call);
            sleep(time).await;
            if succeeds { Ok(call) } else { Err(io::Error::other("failed")) }
        }
    })
}

/// Returns the result of a call, and the time that it took.
async fn timed<S>(service: &S) -> (Result<S::Response, S::Error>, Duration)
where
    S: Service<(), Error = Error> + Clone,
{
    let start = TokioClock.now();
    (service.clone().oneshot(()).await, TokioClock.now() - start)
}

#[track_caller]
fn reason<T: std::fmt::Debug>(result: Result<T, Error>) -> &'static Reason {
    result.unwrap_err().rejection().expect("a rejection").reason()
}

#[tokio::test(start_paused = true)]
async fn a_total_bounds_all_attempts_outside_retry_and_one_attempt_inside() {
    let fails_late = |_| (900 * MS, false);
    let outside = ServiceBuilder::new()
        .layer(TimeoutLayer::total(SECOND).plain())
        .layer(retry().plain())
        .service(backend(fails_late));
    let (result, time) = timed(&outside).await;
    assert_eq!((reason(result), time), (&timeout::TOTAL, SECOND));

    let inside = ServiceBuilder::new()
        .layer(retry().plain())
        .layer(TimeoutLayer::total(SECOND).plain())
        .service(backend(fails_late));
    assert_eq!(timed(&inside).await.1, 3 * 900 * MS + 2 * PAUSE);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_sees_each_attempt_inside_retry_and_one_result_for_all_outside() {
    let third_succeeds = |call| (MS, call % 3 == 0);
    let circuit = || CircuitBreaker::builder("backend").consecutive_failures(2).build().unwrap();

    let inside = circuit();
    let service = ServiceBuilder::new()
        .layer(retry().plain())
        .layer(CircuitBreakerLayer::from(inside.clone()).plain())
        .service(backend(third_succeeds));
    assert_eq!(reason(timed(&service).await.0), &circuit_breaker::OPEN);
    assert_eq!(inside.state(), circuit_breaker::State::Open);

    let outside = circuit();
    let service = ServiceBuilder::new()
        .layer(CircuitBreakerLayer::from(outside.clone()).plain())
        .layer(retry().plain())
        .service(backend(third_succeeds));
    for _ in 0..10 {
        timed(&service).await.0.unwrap();
    }
    assert_eq!((outside.snapshot().counts.failures(), outside.snapshot().counts.succeeded), (0, 10));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_pauses_holds_a_place_of_a_bulkhead_outside_retry_and_none_inside() {
    let fails_at_once = |_| (Duration::ZERO, false);
    for (is_inside, held) in [(true, 0), (false, 1)] {
        let places = Bulkhead::new(1);
        let layer = BulkheadLayer::from(places.clone()).plain();
        let call = if is_inside {
            let service = ServiceBuilder::new().layer(retry().plain()).layer(layer).service(backend(fails_at_once));
            tokio::spawn(service.oneshot(()))
        } else {
            let service = ServiceBuilder::new().layer(layer).layer(retry().plain()).service(backend(fails_at_once));
            tokio::spawn(service.oneshot(()))
        };
        sleep(PAUSE / 2).await;
        assert_eq!(places.in_flight(), held, "inside: {is_inside}");
        call.await.unwrap().unwrap_err();
        assert_eq!(places.in_flight(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_hangs_is_a_failure_where_the_timeout_is_inside_the_breaker() {
    let hangs = |_| (Duration::MAX, true);
    let attempt = || TimeoutLayer::attempt(SECOND).plain();

    let outside_timeout = CircuitBreaker::new("backend");
    let layer = CircuitBreakerLayer::from(outside_timeout.clone()).plain();
    timed(&ServiceBuilder::new().layer(layer).layer(attempt()).service(backend(hangs))).await.0.unwrap_err();
    assert_eq!(outside_timeout.snapshot().counts.failures(), 1);

    let inside_timeout = CircuitBreaker::new("backend");
    let layer = CircuitBreakerLayer::from(inside_timeout.clone()).plain();
    timed(&ServiceBuilder::new().layer(attempt()).layer(layer).service(backend(hangs))).await.0.unwrap_err();
    assert_eq!(inside_timeout.snapshot().counts.total(), 0, "the call was dropped");

    let with_threshold = CircuitBreaker::builder("backend").slow_threshold(SECOND / 2).build().unwrap();
    let layer = CircuitBreakerLayer::from(with_threshold.clone()).plain();
    timed(&ServiceBuilder::new().layer(attempt()).layer(layer).service(backend(hangs))).await.0.unwrap_err();
    assert_eq!(with_threshold.snapshot().counts.slow_calls(), 1, "`on_drop` counts it");
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_outside_a_full_bulkhead_is_the_reason_and_inside_it_is_not() {
    let circuit = CircuitBreaker::new("backend");
    circuit.force_open();
    let breaker = || CircuitBreakerLayer::from(circuit.clone()).plain();
    let full = || BulkheadLayer::new(0).plain();
    let never = |_| unreachable!("the call is rejected");

    let right = ServiceBuilder::new().layer(breaker()).layer(full()).service(backend(never));
    assert_eq!(reason(timed(&right).await.0), &circuit_breaker::FORCED_OPEN);
    let swapped = ServiceBuilder::new().layer(full()).layer(breaker()).service(backend(never));
    assert_eq!(reason(timed(&swapped).await.0), &bulkhead::FULL);
}

#[tokio::test(start_paused = true)]
async fn the_time_in_a_queue_counts_for_an_attempt_timeout_outside_it_and_not_inside() {
    let takes = |_| (400 * MS, true);
    let queue = || BulkheadLayer::new(1).queue(1, 10 * SECOND).plain();
    let attempt = || TimeoutLayer::attempt(500 * MS).plain();

    let inside = ServiceBuilder::new().layer(queue()).layer(attempt()).service(backend(takes));
    let (first, second) = tokio::join!(timed(&inside), timed(&inside));
    first.0.unwrap();
    assert_eq!((second.0.unwrap(), second.1), (2, 800 * MS));

    let circuit = CircuitBreaker::new("backend");
    let breaker = CircuitBreakerLayer::from(circuit.clone()).plain();
    let outside = ServiceBuilder::new().layer(breaker).layer(attempt()).layer(queue()).service(backend(takes));
    let (first, second) = tokio::join!(timed(&outside), timed(&outside));
    first.0.unwrap();
    assert_eq!(reason(second.0), &timeout::ATTEMPT);
    assert_eq!(circuit.snapshot().counts.failures(), 1, "the queue is taken for a slow backend");
}

#[tokio::test(start_paused = true)]
async fn a_total_bounds_the_time_in_a_queue_inside_it_and_not_in_one_outside() {
    let takes = |_| (5 * SECOND, true);
    let queue = || BulkheadLayer::new(1).queue(1, 60 * SECOND).plain();

    let right =
        ServiceBuilder::new().layer(TimeoutLayer::total(8 * SECOND).plain()).layer(queue()).service(backend(takes));
    let (first, second) = tokio::join!(timed(&right), timed(&right));
    first.0.unwrap();
    assert_eq!((reason(second.0), second.1), (&timeout::TOTAL, 8 * SECOND));

    let swapped =
        ServiceBuilder::new().layer(queue()).layer(TimeoutLayer::total(8 * SECOND).plain()).service(backend(takes));
    let (first, second) = tokio::join!(timed(&swapped), timed(&swapped));
    first.0.unwrap();
    assert_eq!((second.0.unwrap(), second.1), (2, 10 * SECOND));
}

/// A service that is never ready.
#[derive(Clone)]
struct NeverReady;

impl Service<()> for NeverReady {
    type Response = ();
    type Error = io::Error;
    type Future = Pending<Result<(), io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Pending
    }

    fn call(&mut self, (): ()) -> Self::Future {
        unreachable!("it is never ready")
    }
}

#[tokio::test(start_paused = true)]
async fn a_total_bounds_the_wait_for_readiness_where_a_queue_is_inside() {
    let queue = BulkheadLayer::new(1).queue(1, Duration::MAX).plain();
    let service = ServiceBuilder::new().layer(TimeoutLayer::total(SECOND).plain()).layer(queue).service(NeverReady);
    let (result, time) = timed(&service).await;
    assert_eq!((reason(result), time), (&timeout::TOTAL, SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_retry_around_a_retry_multiplies_attempts() {
    let calls = Arc::new(AtomicU32::new(0));
    let counter = calls.clone();
    let service = ServiceBuilder::new().layer(retry().plain()).layer(retry().plain()).service_fn(move |()| {
        counter.fetch_add(1, SeqCst);
        async { Err::<(), _>(io::Error::other("failed")) }
    });
    timed(&service).await.0.unwrap_err();
    assert_eq!(calls.load(SeqCst), 9);
}
