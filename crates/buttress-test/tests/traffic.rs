//! Sends the traffic through every layer with every ending.

use buttress::{
    Reason, Rejection,
    bulkhead::{Discipline, QueuedLayer},
    gate::GateLayer,
    keyed::Keyed,
    load_shed::monitor_fn,
    outcome::Outcome,
    policy::{AllOf, Class, Criticality, Permit, Policy, Refused},
};
use buttress_http::{HttpKey, ReplayBody, cache::CacheLayer, prelude::*};
use buttress_test::{
    Answer, Plan, TestBody,
    traffic::{Caller, Means, Protocol, Row, Shape, Traffic},
};
use http::Request;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tower::ServiceBuilder;

const ATTEMPT: Duration = Duration::from_millis(500);
const TOTAL: Duration = Duration::from_secs(2);

/// Keeps the body of an attempt: the inner service takes any body.
fn replayed(body: ReplayBody<TestBody>) -> ReplayBody<TestBody> {
    body
}

/// Sends the traffic through a layer with every ending.
macro_rules! every_ending {
    ($name:literal, $layer:expr, $expect:expr) => {{
        let expect: fn(Traffic) -> Traffic = $expect;
        let name = |ending: &str| format!("{}, {ending}", $name);
        expect(Traffic::through(name(".plain()"), || $layer.plain()).speaking(Protocol::Plain)).check();
        expect(Traffic::through(name(".http()"), || $layer.http())).check();
        expect(Traffic::through(name(".http_client()"), || $layer.http_client())).check();
        expect(Traffic::through(name(".http(), gRPC"), || $layer.http()).speaking(Protocol::Grpc)).check();
        expect(Traffic::through(name(".grpc()"), || $layer.grpc()).speaking(Protocol::Grpc)).check();
        expect(Traffic::through(name(".grpc_client()"), || $layer.grpc_client()).speaking(Protocol::Grpc)).check();
    }};
}

#[test]
fn a_circuit_breaker() {
    every_ending!("circuit breaker", CircuitBreakerLayer::new("x"), |traffic| traffic.opens().bears(40));
}

#[test]
fn a_circuit_breaker_with_backpressure() {
    every_ending!("circuit breaker, backpressure", CircuitBreakerLayer::new("x").backpressure(), |traffic| traffic
        .opens());
}

/// The duration of a call ends at its head, so streams, slow readers and idle services do not count
/// as slow.
#[test]
fn a_circuit_breaker_that_counts_slow_calls() {
    fn layer() -> CircuitBreakerLayer {
        let slow = CircuitBreaker::builder("x").slow_threshold(ATTEMPT).slow_rate(0.5).count_overdue(true);
        slow.minimum_throughput(10).build().unwrap().into()
    }
    let rows = [
        Row::Rare,
        Row::Streams,
        Row::Unread,
        Row::Empty,
        Row::Outage,
        Row::Rejections,
        Row::Panics,
        Row::Ready,
        Row::Limits,
    ];
    for row in rows {
        Traffic::through("slow calls, .http_client()", || layer().http_client()).opens().check_row(row);
        Traffic::through("slow calls, .backpressure()", || layer().http().backpressure()).opens().check_row(row);
        let grpc = Traffic::through("slow calls, .grpc_client()", || layer().grpc_client());
        grpc.speaking(Protocol::Grpc).opens().check_row(row);
    }
    // A backend that hangs counts as slow, even if its callers do not wait for the answer.
    let hangs = Shape::new(Row::Long, "an answer that no caller waits for")
        .backend(Plan::of(Answer::Never))
        .caller(Caller::HangsUpAfter(Duration::from_secs(1)))
        .every(Duration::from_millis(10))
        .means(Means::Failure);
    Traffic::through("slow calls", || layer().http_client()).opens().send(&hangs);
}

#[test]
fn a_bulkhead() {
    every_ending!("bulkhead", BulkheadLayer::new(10), |traffic| traffic.at_once(10).waits_within(Duration::ZERO));
}

#[test]
fn a_bulkhead_with_backpressure() {
    every_ending!("bulkhead, backpressure", BulkheadLayer::new(10).backpressure(), |traffic| traffic.at_once(10));
}

#[test]
fn an_adaptive_limit() {
    fn ten() -> AdaptiveLimitLayer {
        AdaptiveLimit::builder("x").limits(10..=10).build().unwrap().into()
    }
    every_ending!("adaptive limit", ten(), |traffic| traffic.at_once(10).waits_within(Duration::ZERO));
    every_ending!("adaptive limit, backpressure", ten().backpressure(), |traffic| traffic.at_once(10));
    every_ending!("adaptive limit, default", AdaptiveLimitLayer::new("x"), |traffic| traffic);
}

#[test]
fn a_bulkhead_with_a_queue() {
    let traffic = |traffic: Traffic| traffic.at_once(10);
    every_ending!("bulkhead, queue", BulkheadLayer::new(10).queue(20_000, Duration::MAX), traffic);
    let traffic = |traffic: Traffic| traffic.at_once(10).waits_within(TOTAL);
    every_ending!("bulkhead, queue for two seconds", BulkheadLayer::new(10).queue(20_000, TOTAL), traffic);
}

/// A limit that no row reaches: what it admits must be as without it.
#[test]
fn a_rate_limit() {
    every_ending!("rate limit", RateLimitLayer::per_second(1_000_000), |traffic| traffic);
    every_ending!("rate limit, advertised", RateLimitLayer::per_second(1_000_000).advertise(), |traffic| traffic);
}

#[test]
fn a_rate_limit_whose_calls_wait() {
    every_ending!("rate limit, wait", RateLimitLayer::per_second(1_000_000).wait(TOTAL), |traffic| traffic);
}

#[test]
fn a_rate_limit_for_each_key() {
    fn layer() -> PerPath<RateLimit> {
        let quota = RateLimit::per_second(1_000_000);
        GateLayer::with_policy(Keyed::new(path, move |_: &String| quota.new_bucket()))
    }
    every_ending!("keyed rate limit", layer(), |traffic| traffic);
}

#[test]
fn a_rate_limit_and_a_bulkhead_on_one_call() {
    fn layer() -> GateLayer<AllOf<RateLimit, Bulkhead>> {
        GateLayer::with_policy(AllOf::new(RateLimit::per_second(1_000_000), Bulkhead::new(10)))
    }
    every_ending!("rate limit and bulkhead", layer(), |traffic| traffic.at_once(10));
}

#[test]
fn a_bulkhead_whose_queue_has_a_discipline_and_shares() {
    fn layer(discipline: Discipline) -> QueuedLayer {
        let queue = BulkheadLayer::new(10).queue(20_000, TOTAL).discipline(discipline);
        queue.reserve(Criticality::Sheddable, 0.2).unwrap()
    }
    let traffic = |traffic: Traffic| traffic.at_once(10).waits_within(TOTAL);
    every_ending!("bulkhead, LIFO", layer(Discipline::Lifo), traffic);
    every_ending!("bulkhead, adaptive", layer(Discipline::Adaptive), traffic);
}

#[test]
fn a_retry() {
    let expect = |traffic: Traffic| traffic.attempts(4);
    let layer = || RetryLayer::new(4);
    expect(Traffic::through("retry, .plain()", move || layer().plain()).speaking(Protocol::Plain)).check();
    let http = move || layer().http_client().map_request_body(replayed);
    expect(Traffic::through("retry, .http_client()", http)).check();
    let grpc = move || layer().grpc_client().map_request_body(replayed);
    expect(Traffic::through("retry, .grpc_client()", grpc).speaking(Protocol::Grpc)).check();
}

/// With a percentile, which the slow calls of the table raise.
#[test]
fn a_hedge() {
    let expect = |traffic: Traffic| traffic.without(Row::Uploads, "the row expects the rules of a retry");
    let layer = || HedgeLayer::percentile(95.0).unwrap();
    expect(Traffic::through("hedge, .plain()", move || layer().plain()).speaking(Protocol::Plain)).check();
    let http = move || layer().http_client().map_request_body(replayed);
    expect(Traffic::through("hedge, .http_client()", http)).check();
    let grpc = move || layer().grpc_client().map_request_body(replayed);
    expect(Traffic::through("hedge, .grpc_client()", grpc).speaking(Protocol::Grpc)).check();
    let often = move || HedgeLayer::after(ATTEMPT).max_hedges(3).http_client().map_request_body(replayed);
    let expect = |traffic: Traffic| expect(traffic).without(Row::Long, "each call is sent again, as it should be");
    expect(Traffic::through("hedge, fixed", often)).check();
}

/// Off.
#[test]
fn a_chaos() {
    every_ending!("chaos", ChaosLayer::from(Chaos::new()), |traffic| traffic);
}

/// One that fails, so that what the backend answers comes out.
#[test]
fn a_fallback() {
    every_ending!(
        "fallback",
        FallbackLayer::with(async |_| Err::<http::Response<TestBody>, _>(std::io::Error::other("none"))),
        |traffic| traffic
    );
}

#[test]
fn a_timeout_of_an_attempt() {
    every_ending!("attempt timeout", TimeoutLayer::attempt(ATTEMPT), |traffic| traffic.attempt_within(ATTEMPT));
}

#[test]
fn a_total_timeout() {
    every_ending!("total timeout", TimeoutLayer::total(TOTAL), |traffic| traffic.answers_within(TOTAL));
}

#[test]
fn a_context() {
    every_ending!("context", ContextLayer::new().trust_priority(), |traffic| traffic);
}

/// Longer than every answer and every stream, which the deadline of a gRPC call ends too.
const A_YEAR: Duration = Duration::from_secs(365 * 86_400);

#[test]
fn a_deadline() {
    every_ending!("deadline", DeadlineLayer::new(A_YEAR), |traffic| traffic);
    every_ending!("deadline of a server", DeadlineLayer::server(), |traffic| traffic);
    let head = |traffic: Traffic| traffic.answers_within(TOTAL).check();
    let plain = Traffic::through("deadline of the head, .plain()", || DeadlineLayer::new(TOTAL).plain());
    head(plain.speaking(Protocol::Plain));
    head(Traffic::through("deadline of the head, .http()", || DeadlineLayer::server().max_limit(TOTAL).http()));
    head(Traffic::through("deadline of the head, .http_client()", || DeadlineLayer::new(TOTAL).http_client()));
}

#[test]
fn a_load_shed_below_its_limit() {
    fn layer() -> LoadShedLayer {
        let shed = LoadShed::builder("x").monitor(monitor_fn("half", || 0.5));
        shed.build().unwrap().into()
    }
    every_ending!("load shed", layer(), |traffic| traffic);
}

#[test]
fn a_throttle() {
    every_ending!("throttle", ThrottleLayer::new("x"), |traffic| traffic);
}

#[test]
fn an_adaptive_rate() {
    let traffic = |traffic: Traffic| traffic.without(Row::Uploads, "the backend throttles, and it rejects calls then");
    every_ending!("adaptive rate", AdaptiveRateLayer::new(), traffic);
    every_ending!("adaptive rate, wait", AdaptiveRateLayer::new().wait(10 * TOTAL), |traffic| traffic);
}

#[test]
fn single_flight() {
    let layer = || SingleFlightLayer::with_key(HttpKey::new());
    Traffic::through("single flight, .http_client()", move || layer().http_client()).check();
}

#[test]
fn a_cache() {
    Traffic::through("cache", || CacheLayer::new("cache")).check();
}

#[test]
fn health() {
    let layer = || HealthLayer::new(Health::new());
    Traffic::through("health, .http()", move || layer().http()).check();
    Traffic::through("health, .grpc()", move || layer().grpc()).speaking(Protocol::Grpc).check();
}

type PerPath<A> = GateLayer<Keyed<String, A, fn(&Request<TestBody>) -> String>>;

fn path(request: &Request<TestBody>) -> String {
    request.uri().path().to_owned()
}

#[test]
fn a_circuit_breaker_for_each_key() {
    fn layer() -> PerPath<CircuitBreaker> {
        GateLayer::with_policy(Keyed::new(path, |_: &String| CircuitBreaker::new("key")))
    }
    every_ending!("keyed circuit breaker", layer(), |traffic| traffic.opens());
}

#[test]
fn a_bulkhead_for_each_key() {
    fn layer() -> PerPath<Bulkhead> {
        GateLayer::with_policy(Keyed::new(path, |_: &String| Bulkhead::new(10)))
    }
    every_ending!("keyed bulkhead", layer(), |traffic| traffic.at_once(10));
}

/// A user's own policy: a bound on the calls in flight.
#[derive(Clone, Default)]
struct Ten(Arc<AtomicUsize>);

struct OneOfTen(Arc<AtomicUsize>);

static TEN_ARE_BUSY: Reason = Reason::new("ten_are_busy", "ten are busy", Class::Exhausted);

impl<Req: ?Sized> Policy<Req> for Ten {
    type Permit = OneOfTen;

    fn admit(&self, _: &Req) -> Result<OneOfTen, Rejection> {
        Policy::<Req>::peek(self).map_err(|_| Rejection::new("ten", &TEN_ARE_BUSY))?;
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(OneOfTen(self.0.clone()))
    }

    fn peek(&self) -> Result<(), Refused> {
        if self.0.load(Ordering::Relaxed) < 10 { Ok(()) } else { Err(Refused { retry_after: None }) }
    }
}

impl Permit for OneOfTen {
    const HOLDS_UNTIL_BODY_END: bool = true;

    fn settle(&mut self, _: &Outcome) {}
}

impl Drop for OneOfTen {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[test]
fn a_policy_of_a_user() {
    every_ending!("own policy", GateLayer::with_policy(Ten::default()), |traffic| traffic.at_once(10));
}

#[test]
fn a_client_stack() {
    let http = || {
        ServiceBuilder::new()
            .layer(TimeoutLayer::total(TOTAL).http_client())
            .layer(RetryLayer::new(3).http_client().map_request_body(replayed))
            .layer(CircuitBreakerLayer::new("payments").http_client())
            .layer(BulkheadLayer::new(10).queue(20, Duration::from_millis(50)).http_client())
            .layer(TimeoutLayer::attempt(ATTEMPT).http_client())
    };
    let expect =
        |traffic: Traffic| traffic.opens().at_once(10).attempts(3).attempt_within(ATTEMPT).answers_within(TOTAL);
    expect(Traffic::through("client stack, HTTP", http)).check();
    let grpc = || {
        ServiceBuilder::new()
            .layer(TimeoutLayer::total(TOTAL).grpc_client())
            .layer(RetryLayer::new(3).grpc_client().map_request_body(replayed))
            .layer(CircuitBreakerLayer::new("payments").grpc_client())
            .layer(BulkheadLayer::new(10).queue(20, Duration::from_millis(50)).grpc_client())
            .layer(TimeoutLayer::attempt(ATTEMPT).grpc_client())
    };
    expect(Traffic::through("client stack, gRPC", grpc).speaking(Protocol::Grpc)).check();
}

#[test]
fn a_server_stack() {
    let stack = || {
        ServiceBuilder::new()
            .layer(HealthLayer::new(Health::new()).http())
            .layer(TimeoutLayer::total(Duration::from_secs(5)).http())
            .layer(BulkheadLayer::new(64).http())
    };
    let expect = |traffic: Traffic| traffic.at_once(64).answers_within(Duration::from_secs(5));
    expect(Traffic::through("server stack, HTTP", stack)).check();
    expect(Traffic::through("server stack, gRPC", stack).speaking(Protocol::Grpc)).check();
}
