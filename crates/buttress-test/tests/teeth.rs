//! The contract and the traffic harness find defects: each test runs a layer with a defect that was
//! found in a published crate.

use buttress::{
    Bulkhead, PlainExt, Rejection,
    bulkhead::BulkheadPermit,
    gate::GateLayer,
    policy::{Permit, Policy, Refused},
};
use buttress_test::{
    Answer, Plan, TestBody, contract,
    traffic::{Caller, Means, Row, Shape, Traffic},
};
use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame};
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};
use tower::{Service, layer::layer_fn};

/// A policy whose permits are not released when their call is cancelled.
#[derive(Clone)]
struct Leaky(Bulkhead);

struct LeakyPermit(Option<BulkheadPermit>);

impl<Req: ?Sized> Policy<Req> for Leaky {
    type Permit = LeakyPermit;

    fn admit(&self, request: &Req) -> Result<LeakyPermit, Rejection> {
        self.0.admit(request).map(|permit| LeakyPermit(Some(permit)))
    }

    fn peek(&self) -> Result<(), Refused> {
        self.0.peek()
    }
}

impl Permit for LeakyPermit {
    fn settle(&mut self, outcome: &buttress::outcome::Outcome) {
        let mut permit = self.0.take().expect("a permit is settled once");
        if outcome == &buttress::outcome::Outcome::CANCELLED {
            std::mem::forget(permit)
        } else {
            permit.settle(outcome)
        }
    }
}

#[test]
#[should_panic(expected = "a permit is lost, the next call is not admitted")]
fn a_permit_that_is_lost_with_a_dropped_future() {
    contract::check(|| GateLayer::with_policy(Leaky(Bulkhead::new(1))).plain());
}

#[test]
#[should_panic(expected = "two services of the layer do not share their bound")]
fn a_bound_for_each_connection() {
    contract::check_bound_of_one(|| layer_fn(|inner| tower::limit::ConcurrencyLimit::new(inner, 1)));
}

/// Calls a fresh clone instead of the service that is ready.
#[derive(Clone)]
struct CallsAClone<S>(S);

impl<S: Service<Req> + Clone, Req> Service<Req> for CallsAClone<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> S::Future {
        self.0.clone().call(request)
    }
}

#[test]
#[should_panic(expected = "a clone was called before its poll_ready returned ready")]
fn a_call_of_an_instance_that_is_not_ready() {
    contract::check(|| layer_fn(CallsAClone));
}

/// Wraps bodies and implements `poll_frame` only, so `is_end_stream` and `size_hint` are lost.
#[derive(Clone)]
struct Wraps<S>(S);

struct Wrapped(TestBody);

impl Body for Wrapped {
    type Data = Bytes;
    type Error = buttress_test::BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }
}

impl<S: Service<Req, Response = Response<TestBody>, Future: Send + 'static>, Req> Service<Req> for Wraps<S> {
    type Response = Response<Wrapped>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Wrapped>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let response = self.0.call(request);
        Box::pin(async move { Ok(response.await?.map(Wrapped)) })
    }
}

#[test]
#[should_panic(expected = "is_end_stream or size_hint is not forwarded")]
fn a_body_that_hides_its_end() {
    contract::check(|| layer_fn(Wraps));
}

/// Runs calls in spawned tasks, which continue when their caller has dropped the call.
#[derive(Clone)]
struct Detached<S>(S);

impl<S, Req> Service<Req> for Detached<S>
where
    S: Service<Req, Response: Send + 'static, Error: Send + 'static, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let task = tokio::spawn(self.0.call(request));
        Box::pin(async move { task.await.expect("the task runs to its end") })
    }
}

#[test]
#[should_panic(expected = "a future or a body of the inner service is still held")]
fn a_call_that_goes_on_without_its_caller() {
    contract::check(|| layer_fn(Detached));
}

#[test]
fn a_layer_that_does_nothing_keeps_the_contract() {
    contract::check(tower::layer::util::Identity::new);
}

#[test]
#[should_panic(
    expected = "row 7 (hang-ups), \"the caller hangs up after 0 polls\", through leaky: the next call is not admitted"
)]
fn traffic_finds_a_permit_that_is_lost_with_a_hang_up() {
    Traffic::through("leaky", || GateLayer::with_policy(Leaky(Bulkhead::new(10))).plain()).check_row(Row::HangUps);
}

#[test]
#[should_panic(expected = "a call is admitted while streams hold every permit")]
fn traffic_finds_a_place_that_is_free_before_the_stream_has_ended() {
    let layer = || tower::limit::GlobalConcurrencyLimitLayer::new(10);
    Traffic::through("tower's concurrency limit", layer).at_once(10).check_row(Row::Streams);
}

#[test]
#[should_panic(expected = "the next call is not admitted")]
fn traffic_finds_a_circuit_where_none_is_promised() {
    let layer = || buttress::CircuitBreakerLayer::new("x").plain();
    Traffic::through("circuit breaker", layer).check_row(Row::Panics);
}

#[test]
#[should_panic(expected = "of these calls do not open the circuit")]
fn traffic_finds_a_circuit_that_does_not_see_what_it_should() {
    let layer = || buttress::CircuitBreakerLayer::new("x").plain();
    let mut down = Response::new(vec![]);
    *down.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
    let shape = Shape::new(Row::Outage, "503").backend(Plan::of(Answer::Response(down))).means(Means::Failure);
    Traffic::through("an ending that looks at no status", layer).opens().send(&shape.caller(Caller::ReadsAll));
}

#[test]
#[should_panic(expected = "expected 500ms")]
fn traffic_finds_a_timeout_that_does_not_fire() {
    Traffic::through("no timeout", tower::layer::util::Identity::new)
        .attempt_within(std::time::Duration::from_millis(500))
        .check_row(Row::Hung);
}

#[test]
fn traffic_goes_through_a_layer_that_does_nothing() {
    Traffic::through("nothing", tower::layer::util::Identity::new).check();
}
