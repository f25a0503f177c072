//! Checks the contract of every layer with every ending.

use buttress::{
    bulkhead::Discipline,
    chaos::Faults,
    deadline::Mode,
    gate::GateLayer,
    keyed::Keyed,
    policy::{AllOf, Criticality},
};
use buttress_http::{HttpKey, ReplayBody, cache::CacheLayer, is_probe, prelude::*};
use buttress_test::{TestBody, contract};
use http::request::Parts;
use std::time::Duration;

/// For timeouts and leases that must not expire within a scenario.
const A_WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// Makes a circuit that is half-open at its first call, with one probe at a time. One success
/// closes it.
fn probing() -> CircuitBreakerLayer {
    let breaker = CircuitBreaker::builder("probed")
        .probes(100)
        .close_rule(buttress::circuit_breaker::CloseRule::Share(0.01))
        .probe_lease(A_WEEK)
        .max_half_open(A_WEEK)
        .build()
        .unwrap();
    breaker.open_for(Duration::ZERO);
    breaker.into()
}

/// Keeps the body of an attempt: the inner service takes any body.
fn replayed(body: ReplayBody<TestBody>) -> ReplayBody<TestBody> {
    body
}

fn retrying() -> RetryLayer {
    RetryLayer::new(3)
}

#[test]
fn a_closed_circuit() {
    contract::check(|| CircuitBreakerLayer::new("closed").plain());
    contract::check(|| CircuitBreakerLayer::new("closed").plain().backpressure());
}

#[test]
fn a_half_open_circuit() {
    contract::check_bound_of_one(|| probing().plain());
    contract::check_bound_of_one(|| probing().http());
    contract::check_bound_of_one(|| probing().http_client());
    contract::check_bound_of_one(|| probing().grpc());
    contract::check_bound_of_one(|| probing().grpc_client());
}

#[test]
fn a_half_open_circuit_with_backpressure() {
    contract::check_bound_of_one(|| probing().backpressure().plain());
    contract::check_bound_of_one(|| probing().http().backpressure());
    contract::check_bound_of_one(|| probing().http_client().backpressure());
    contract::check_bound_of_one(|| probing().grpc_client().backpressure());
}

#[test]
fn a_bulkhead() {
    let bulkhead = Bulkhead::new(1);
    let layer = || BulkheadLayer::from(bulkhead.clone());
    contract::check_bound_of_one(|| layer().plain());
    contract::check_bound_of_one(|| layer().http());
    contract::check_bound_of_one(|| layer().http_client());
    contract::check_bound_of_one(|| layer().grpc());
    contract::check_bound_of_one(|| layer().grpc_client());
    assert_eq!(bulkhead.in_flight(), 0);
}

#[test]
fn a_bulkhead_with_backpressure() {
    let bulkhead = Bulkhead::new(1);
    let layer = || BulkheadLayer::from(bulkhead.clone());
    contract::check_bound_of_one(|| layer().backpressure().plain());
    contract::check_bound_of_one(|| layer().http_client().backpressure());
    contract::check_bound_of_one(|| layer().grpc().backpressure());
    assert_eq!(bulkhead.in_flight(), 0);
}

#[test]
fn a_bulkhead_with_a_queue() {
    let bulkhead = Bulkhead::new(1);
    let layer = || BulkheadLayer::from(bulkhead.clone()).queue(5, A_WEEK);
    contract::check_bound_of_one(|| layer().plain());
    contract::check_bound_of_one(|| layer().http());
    contract::check_bound_of_one(|| layer().http_client());
    contract::check_bound_of_one(|| layer().grpc());
    contract::check_bound_of_one(|| layer().grpc_client());
    assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (0, 0));
}

/// Limits whose bursts no scenario uses up.
#[test]
fn a_rate_limit() {
    let layer = || RateLimitLayer::per_second(1_000_000);
    contract::check(|| layer().plain());
    contract::check(|| layer().http());
    contract::check(|| layer().http_client());
    contract::check(|| layer().grpc());
    contract::check(|| layer().grpc_client());
    contract::check(|| layer().advertise().http());
    contract::check(|| layer().cost(|_: &http::Request<TestBody>| 2).http());
}

#[test]
fn a_rate_limit_whose_calls_wait() {
    let layer = || RateLimitLayer::per_second(1_000_000).wait(A_WEEK);
    contract::check(|| layer().plain());
    contract::check(|| layer().http());
    contract::check(|| layer().http_client());
    contract::check(|| layer().grpc());
    contract::check(|| layer().grpc_client());
}

#[test]
fn an_adaptive_rate() {
    contract::check(|| AdaptiveRateLayer::new().plain());
    contract::check(|| AdaptiveRateLayer::new().http_client());
    contract::check(|| AdaptiveRateLayer::new().grpc_client());
    contract::check(|| AdaptiveRateLayer::new().wait(A_WEEK).http_client());
}

#[test]
fn several_policies_on_one_call() {
    let both = || GateLayer::with_policy(AllOf::new(RateLimit::per_second(1_000_000), Bulkhead::new(1)));
    contract::check_bound_of_one(|| both().plain());
    contract::check_bound_of_one(|| both().http());
    contract::check_bound_of_one(|| both().grpc_client());
}

#[test]
fn a_bulkhead_whose_queue_is_adaptive_and_has_shares() {
    let bulkhead = Bulkhead::new(1);
    let layer = || {
        let queue = BulkheadLayer::from(bulkhead.clone()).queue(5, A_WEEK).discipline(Discipline::Adaptive);
        queue.reserve(Criticality::Critical, 0.5).unwrap()
    };
    contract::check_bound_of_one(|| layer().plain());
    contract::check_bound_of_one(|| layer().http());
    contract::check_bound_of_one(|| layer().http_client());
    contract::check_bound_of_one(|| layer().grpc());
    contract::check_bound_of_one(|| layer().grpc_client());
    assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (0, 0));
    assert_eq!(bulkhead.in_flight_of(Criticality::Critical), Some(0));
}

#[test]
fn an_adaptive_limit() {
    let limit = AdaptiveLimit::builder("adaptive").limits(1..=1).build().unwrap();
    let layer = || AdaptiveLimitLayer::from(limit.clone());
    contract::check_bound_of_one(|| layer().plain());
    contract::check_bound_of_one(|| layer().http());
    contract::check_bound_of_one(|| layer().http_client());
    contract::check_bound_of_one(|| layer().grpc());
    contract::check_bound_of_one(|| layer().grpc_client());
    contract::check_bound_of_one(|| layer().backpressure().plain());
    contract::check_bound_of_one(|| layer().http_client().backpressure());
    assert_eq!((limit.in_flight(), limit.snapshot().streaming), (0, 0));
}

#[test]
fn a_policy_for_each_key() {
    let keyed = || {
        let key = |request: &http::Request<TestBody>| request.uri().path().to_owned();
        GateLayer::with_policy(Keyed::new(key, |_: &String| Bulkhead::new(1)))
    };
    contract::check_bound_of_one(|| keyed().plain());
    contract::check_bound_of_one(|| keyed().http());
    contract::check_bound_of_one(|| keyed().grpc_client());
}

#[test]
fn a_retry() {
    contract::check(|| retrying().plain());
    contract::check(|| retrying().http_client().map_request_body(replayed));
    contract::check(|| retrying().grpc_client().idempotent(|_: &Parts| true).map_request_body(replayed));
    contract::check(|| RetryLayer::new(1).http_client().map_request_body(replayed));
}

/// A delay that no scenario reaches, one that sends all attempts at once, and none.
#[test]
fn a_hedge() {
    for delay in [A_WEEK, Duration::ZERO] {
        let layer = move || HedgeLayer::after(delay);
        contract::check(|| layer().plain());
        contract::check(|| layer().http_client().map_request_body(replayed));
        contract::check(|| layer().grpc_client().idempotent(|_: &Parts| true).map_request_body(replayed));
        contract::check(|| layer().max_hedges(0).http_client().map_request_body(replayed));
    }
    contract::check(|| HedgeLayer::percentile(95.0).unwrap().http_client().map_request_body(replayed));
}

/// Off, on without faults, and with a fault that only takes time.
#[test]
fn a_chaos() {
    let layers = |chaos: fn() -> Chaos| {
        let layer = move || ChaosLayer::from(chaos());
        contract::check(move || layer().plain());
        contract::check(move || layer().http());
        contract::check(move || layer().http_client());
        contract::check(move || layer().grpc());
        contract::check(move || layer().grpc_client());
    };
    layers(Chaos::new);
    layers(|| {
        let chaos = Chaos::new();
        chaos.set(Faults::default());
        chaos
    });
    layers(|| {
        let (chaos, pause) = (Chaos::new(), Duration::from_millis(10));
        chaos.set(Faults::builder().slow_bodies(1.0, pause..=pause).build().unwrap());
        chaos
    });
}

/// Its fallbacks fail, so that the errors of the inner service come out.
#[test]
fn a_fallback() {
    let layer = || FallbackLayer::with(async |_| Err::<http::Response<TestBody>, _>(std::io::Error::other("none")));
    contract::check(|| layer().plain());
    contract::check(|| layer().http());
    contract::check(|| layer().http_client());
    contract::check(|| layer().grpc());
    contract::check(|| layer().grpc_client());
    let failing = tower::service_fn(async |_: http::Request<ReplayBody<TestBody>>| {
        Err::<http::Response<TestBody>, _>(std::io::Error::other("none"))
    });
    contract::check(|| FallbackLayer::service(failing).http_client().map_request_body(replayed));
}

#[test]
fn a_timeout() {
    contract::check(|| TimeoutLayer::attempt(A_WEEK).plain());
    contract::check(|| TimeoutLayer::total(Duration::MAX).plain());
    contract::check(|| TimeoutLayer::attempt(A_WEEK).http_client().body_idle(A_WEEK).body_total(A_WEEK));
    contract::check(|| TimeoutLayer::attempt(A_WEEK).http());
    contract::check(|| TimeoutLayer::attempt(A_WEEK).grpc());
}

#[test]
fn a_context() {
    contract::check(|| ContextLayer::new().plain());
    contract::check(|| ContextLayer::new().trust_priority().http());
    contract::check(|| ContextLayer::new().http_client());
    contract::check(|| ContextLayer::new().grpc());
    contract::check(|| ContextLayer::new().grpc_client());
}

#[test]
fn a_deadline() {
    contract::check(|| DeadlineLayer::new(A_WEEK).plain());
    contract::check(|| DeadlineLayer::new(Duration::MAX).plain());
    contract::check(|| DeadlineLayer::new(A_WEEK).http_client().through_body());
    contract::check(|| DeadlineLayer::new(A_WEEK).grpc_client());
    contract::check(|| DeadlineLayer::server().http());
    contract::check(|| DeadlineLayer::server().default_limit(A_WEEK).max_limit(A_WEEK).through_body().http());
    contract::check(|| DeadlineLayer::server().mode(Mode::Observe).default_limit(A_WEEK).grpc());
}

#[test]
fn a_load_shed() {
    contract::check(|| LoadShedLayer::new("shed").plain());
    contract::check(|| LoadShedLayer::new("shed").exempt(is_probe::<TestBody>).http());
    contract::check(|| LoadShedLayer::new("shed").grpc());
    contract::check(|| LoadShedLayer::new("shed").http_client());
}

#[test]
fn a_throttle() {
    contract::check(|| ThrottleLayer::new("backend").plain());
    contract::check(|| ThrottleLayer::new("backend").http());
    contract::check(|| ThrottleLayer::new("backend").http_client());
    contract::check(|| ThrottleLayer::new("backend").grpc_client());
}

#[test]
fn single_flight() {
    contract::check(|| SingleFlightLayer::with_key(HttpKey::new()).http_client());
}

#[test]
fn a_cache() {
    // Without a time of its own, so that every call reaches the inner service.
    contract::check(|| CacheLayer::new("cache"));
}

#[test]
fn health() {
    contract::check(|| HealthLayer::new(Health::new()).http());
    contract::check(|| HealthLayer::new(Health::new()).grpc());
}

#[test]
fn a_client_stack() {
    contract::check_bound_of_one(|| {
        tower::ServiceBuilder::new()
            .layer(TimeoutLayer::total(A_WEEK).http_client())
            .layer(retrying().http_client().map_request_body(|_| TestBody::default()))
            .layer(probing().http_client())
            .layer(BulkheadLayer::new(1).queue(5, A_WEEK).http_client())
            .layer(TimeoutLayer::attempt(A_WEEK).http_client())
    });
}

#[test]
fn a_server_stack() {
    contract::check_bound_of_one(|| {
        tower::ServiceBuilder::new()
            .layer(HealthLayer::new(Health::new()).http())
            .layer(TimeoutLayer::total(A_WEEK).http())
            .layer(BulkheadLayer::new(1).http())
    });
}
