//! What a call allocates. One file, because its allocator counts for the whole process.

use allocation_counter::measure;
use buttress_http::{HttpKey, ReplayBody, prelude::*};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{Empty, Full};
use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tower::{Layer, Service, ServiceBuilder};

/// Reads the request to its end, and answers 200 with a short body.
#[derive(Clone)]
struct Backend;

impl<B: Body> Service<Request<B>> for Backend {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        assert_eq!(request.headers().len(), 4);
        read(request.into_body());
        ready(Ok(Response::new(Full::new(Bytes::from_static(b"ok")))))
    }
}

/// Reads a body to its end.
fn read(body: impl Body) {
    let mut body = pin!(body);
    let mut cx = Context::from_waker(Waker::noop());
    while !body.is_end_stream() {
        match body.as_mut().poll_frame(&mut cx) {
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(None) => return,
            Poll::Ready(Some(Err(_))) | Poll::Pending => panic!("the bodies here are there and whole"),
        }
    }
}

/// A body of several chunks, which were allocated before.
struct Chunks(std::iter::RepeatN<Bytes>);

impl Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.next().map(|chunk| Ok(Frame::data(chunk))))
    }
}

fn chunks(number: usize) -> Chunks {
    Chunks(std::iter::repeat_n(Bytes::from_static(b"chunk"), number))
}

/// Returns the allocations of the second of two calls. The first one makes what a thread keeps.
fn allocations<S, B, Res>(service: S, body: impl Fn() -> B) -> u64
where
    S: Service<Request<B>, Response = Response<Res>> + Clone,
    S::Error: std::fmt::Debug,
    Res: Body,
{
    let call = || {
        // Clones are what retry, axum and generated clients call.
        let mut service = service.clone();
        let request = Request::post("http://backend/orders")
            .header("accept", "application/json")
            .header("authorization", "Bearer token")
            .header("user-agent", "shop")
            .header("x-request-id", "7")
            .body(body())
            .unwrap();
        measure(|| {
            let mut cx = Context::from_waker(Waker::noop());
            assert!(service.poll_ready(&mut cx).is_ready());
            match pin!(service.call(request)).poll(&mut cx) {
                Poll::Ready(response) => read(response.unwrap().into_body()),
                Poll::Pending => panic!("the backend answers at once"),
            }
        })
    };
    call();
    call().count_total
}

#[test]
fn a_client_call_without_a_body_allocates_nothing() {
    let stack = ServiceBuilder::new()
        .layer(FallbackLayer::to(Response::new(Full::<Bytes>::from("nothing"))).http_client())
        .layer(TimeoutLayer::total(Duration::from_secs(2)).http_client())
        .layer(RateLimitLayer::per_second(100).http_client())
        .layer(RateLimitLayer::per_second(100).wait(Duration::from_secs(1)).http_client())
        .layer(RetryLayer::new(3).budget(RetryBudget::new()).http_client())
        .layer(HedgeLayer::percentile(95.0).unwrap().http_client())
        .layer(AdaptiveRateLayer::new().http_client())
        .layer(CircuitBreakerLayer::new("backend").http_client())
        .layer(BulkheadLayer::new(100).queue(100, Duration::from_millis(50)).http_client())
        .layer(BulkheadLayer::new(100).http_client())
        .layer(AdaptiveLimitLayer::new("backend").http_client())
        .layer(TimeoutLayer::attempt(Duration::from_millis(500)).http_client())
        .service(Backend);
    assert_eq!(allocations(stack, Empty::<Bytes>::new), 0);
}

#[test]
fn retry_allocates_once_for_a_body_in_one_piece() {
    let retry = RetryLayer::new(3).budget(RetryBudget::new()).http_client();
    assert_eq!(allocations(retry.layer(Backend), || Full::new(Bytes::from_static(b"content"))), 1);
    let retry = retry.map_request_body(|body: ReplayBody<Chunks>| body);
    assert_eq!(allocations(retry.layer(Backend), || chunks(1)), 1, "a body that does not say that it ends");
    // The list of its chunks grows to two, four and eight.
    assert_eq!(allocations(retry.layer(Backend), || chunks(8)), 4);
}

#[test]
fn a_hedge_allocates_once_for_a_body_in_one_piece_and_nothing_for_a_request_that_is_sent_once() {
    let full = || Full::new(Bytes::from_static(b"content"));
    let hedge = HedgeLayer::percentile(95.0).unwrap().http_client();
    assert_eq!(allocations(hedge.layer(Backend), full), 0, "a POST");
    assert_eq!(allocations(hedge.idempotent(|_: &http::request::Parts| true).layer(Backend), full), 1);
}

#[test]
fn a_server_call_allocates_nothing_without_a_bound_on_its_body() {
    let stack = ServiceBuilder::new()
        .layer(HealthLayer::new(Health::new()).http())
        .layer(RateLimitLayer::per_second(100).http())
        .layer(CircuitBreakerLayer::new("handler").http())
        .layer(BulkheadLayer::new(100).http())
        .layer(AdaptiveLimitLayer::new("handler").http())
        .service(Backend);
    assert_eq!(allocations(stack, Empty::<Bytes>::new), 0);
}

#[test]
fn a_deadline_allocates_nothing_where_no_caller_sets_one_and_a_client_the_value_of_its_header() {
    let server = DeadlineLayer::server().http().layer(Forwarding);
    assert_eq!(allocations(server, Empty::<Bytes>::new), 0);
    let client = DeadlineLayer::new(Duration::from_secs(2)).http_client().layer(Forwarding);
    assert_eq!(allocations(client, Empty::<Bytes>::new), 1);
    let plain = DeadlineLayer::new(Duration::from_secs(2)).plain().layer(Backend);
    assert_eq!(allocations(plain, Empty::<Bytes>::new), 0);
}

/// Answers without a look at the request.
#[derive(Clone)]
struct Forwarding;

impl<B> Service<Request<B>> for Forwarding {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        ready(Ok(Response::new(Full::new(Bytes::from_static(b"ok")))))
    }
}

/// The exception that the README names: the body, what its timer shares with it, and the timer.
#[tokio::test]
async fn the_bound_on_a_body_of_a_server_under_a_timeout_allocates_three_times() {
    let stack = ServiceBuilder::new().layer(TimeoutLayer::total(Duration::from_secs(2)).http()).service(Backend);
    assert_eq!(allocations(stack, Empty::<Bytes>::new), 3);
}

/// A call that is not shared costs nothing, and one that joins another no more than its key: the
/// place of its waker is reused.
#[test]
fn a_call_that_joins_another_allocates_nothing() {
    let unshared = SingleFlightLayer::with_key(HttpKey::new()).http_client().layer(Backend);
    assert_eq!(allocations(unshared, Empty::<Bytes>::new), 0);

    let pending = tower::service_fn(|_: u64| std::future::pending::<Result<u64, Infallible>>());
    let mut service = SingleFlightLayer::new(|key: &u64| *key).plain().layer(pending);
    let mut cx = Context::from_waker(Waker::noop());
    let first = measure(|| {
        let mut held = Box::pin(service.call(7));
        assert!(held.as_mut().poll(&mut cx).is_pending());
        std::mem::forget(held);
    });
    let mut join = || {
        let joined = pin!(service.call(7));
        assert!(joined.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    };
    join();
    let joined = measure(join);
    assert_eq!(joined.count_total, 0);
    assert!(first.count_total > 0, "the first call makes what they share");
}
