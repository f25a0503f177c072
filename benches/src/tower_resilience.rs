//! tower-resilience, with its defaults unless the row says otherwise, and without listeners or
//! metrics.

use std::sync::Arc;
use std::time::Duration;

use tower::ServiceBuilder;
use tower::load_shed::LoadShedLayer;
use tower_resilience_adaptive::{AdaptiveLimiterLayer, Gradient2};
use tower_resilience_bulkhead::BulkheadLayer;
use tower_resilience_circuitbreaker::{
    CircuitBreakerConfigBuilder, CircuitBreakerLayer, DefaultClassifier, SlidingWindowType,
};
use tower_resilience_ratelimiter::RateLimiterLayer;
use tower_resilience_retry::{RetryBudget, RetryBudgetBuilder, RetryLayer};
use tower_resilience_timelimiter::TimeLimiterLayer;

use crate::family::{
    ADAPTIVE, BULKHEAD, CONSECUTIVE, DEFAULTS, FULL, LAST_100, LIMIT, OPEN, OVER_RATE, RATE_LIMIT, RETRY, SLOW,
    STACK_RESILIENCE, TEN_MILLISECONDS, TIMEOUT,
};
use crate::inner::Failure;
use crate::situation::{AllFail, Kept, MANY_IN_A_ROW, MostFail, NEARLY_ALL, TenthFails};
use crate::subject::{Kind::Peer, Rows};

pub(crate) fn add(rows: &mut Rows) {
    breakers(rows);
    let waiting = |places| BulkheadLayer::builder().max_concurrent_calls(places);
    let timeout = || TimeLimiterLayer::builder().timeout_duration(Duration::from_secs(30)).build();
    rows.of(Peer, "tower-resilience/bulkhead", BULKHEAD).healthy(|| bulkhead(1_000));
    // Its rejecting mode is a timeout of zero, which sleeps to the next tick of tokio's timer, for
    // a millisecond: no cost to compare. This is how it rejects at once.
    let shedding = |places| {
        let waiting = waiting(places).backpressure().build().expect("a valid bulkhead");
        ServiceBuilder::new().layer(LoadShedLayer::new()).layer(waiting)
    };
    rows.of(Peer, "tower-resilience/load_shed+bulkhead(backpressure)", BULKHEAD).healthy(|| shedding(1_000));
    rows.of(Peer, "tower-resilience/load_shed+bulkhead(backpressure)", FULL).full(|| shedding(1));
    rows.of(Peer, "tower-resilience/bulkhead(queue)", LIMIT)
        .healthy(|| waiting(1_000).build().expect("a valid bulkhead"));
    rows.of(Peer, "tower-resilience/bulkhead(backpressure)", LIMIT)
        .healthy(|| waiting(1_000).backpressure().build().expect("a valid bulkhead"));
    let gradient = || Gradient2::builder().initial_limit(1_000).min_limit(1_000).max_limit(2_000).build();
    let adaptive = move || AdaptiveLimiterLayer::new(gradient().expect("a valid limit"));
    rows.of(Peer, "tower-resilience/adaptive", ADAPTIVE).healthy(adaptive);
    let bucket = |calls, period| {
        let limit = RateLimiterLayer::builder().limit_for_period(calls).refresh_period(period).burst_size(0);
        let (layer, _) = limit.timeout_duration(Duration::ZERO).build_with_handle().expect("a valid rate limit");
        layer
    };
    rows.of(Peer, "tower-resilience/rate_limit", RATE_LIMIT)
        .healthy(move || bucket(1_000_000_000, Duration::from_secs(1)));
    rows.of(Peer, "tower-resilience/rate_limit", OVER_RATE).open(move || bucket(1, Duration::from_secs(3_600)));
    rows.of(Peer, "tower-resilience/retry", RETRY).healthy(retry::<Failure>);
    rows.of(Peer, "tower-resilience/timeout", TIMEOUT).healthy(timeout);
    // The client stack that its manual recommends, plus an attempt timeout.
    rows.of(Peer, "tower-resilience/stack5", STACK_RESILIENCE).healthy(|| {
        ServiceBuilder::new()
            .layer(timeout())
            .layer(retry())
            .layer(build(last_100()))
            .layer(bulkhead(1_000))
            .layer(timeout())
    });
}

/// The failing calls meet the same rules as ours: see there.
fn breakers(rows: &mut Rows) {
    let consecutive = |failures| build(builder().consecutive_failures(failures));
    rows.of(Peer, "tower-resilience/circuit_breaker(consecutive)", CONSECUTIVE)
        .healthy(|| consecutive(5))
        .when(TenthFails, || consecutive(MANY_IN_A_ROW as usize))
        .when(AllFail, || consecutive(usize::MAX));
    rows.of(Peer, "tower-resilience/circuit_breaker(last 100)", LAST_100)
        .healthy(|| build(last_100()))
        .when(TenthFails, || build(last_100()))
        .when(MostFail, || build(last_100().failure_rate_threshold(NEARLY_ALL.into())));
    // Its time window visits every call in it for each call. In one of 10 s, the row would depend
    // on how long the bench ran. In this one there are some thousands.
    let ten_milliseconds = || {
        let window = builder().sliding_window_type(SlidingWindowType::TimeBased).minimum_number_of_calls(100);
        build(window.sliding_window_duration(Duration::from_millis(10)))
    };
    rows.of(Peer, "tower-resilience/circuit_breaker(10 ms)", TEN_MILLISECONDS)
        .when(Kept, ten_milliseconds)
        .when(TenthFails, ten_milliseconds);
    rows.of(Peer, "tower-resilience/circuit_breaker(defaults)", DEFAULTS).when(Kept, breaker);
    let slow = || {
        let slow = last_100().slow_call_duration_threshold(Duration::from_secs(1));
        build(slow.slow_call_rate_threshold(0.5))
    };
    rows.of(Peer, "tower-resilience/circuit_breaker(last 100, slow)", SLOW).when(Kept, slow).when(TenthFails, slow);
    rows.of(Peer, "tower-resilience/circuit_breaker(open)", OPEN).open(|| build(last_100()));
}

type Builder = CircuitBreakerConfigBuilder<DefaultClassifier>;

fn builder() -> Builder {
    CircuitBreakerLayer::builder().wait_duration_in_open(Duration::from_secs(3_600))
}

/// Its default rule. The window is said to slide and does not: it counts all calls since the last
/// change of state, which is less work.
fn last_100() -> Builder {
    builder().sliding_window_size(100).minimum_number_of_calls(100).failure_rate_threshold(0.5)
}

fn build(builder: Builder) -> CircuitBreakerLayer {
    builder.build().expect("a valid breaker")
}

/// With its defaults.
pub(crate) fn breaker() -> CircuitBreakerLayer {
    build(CircuitBreakerLayer::builder())
}

pub(crate) fn bulkhead(places: usize) -> BulkheadLayer {
    BulkheadLayer::builder().max_concurrent_calls(places).reject_when_full().build().expect("a valid bulkhead")
}

fn retry<E>() -> RetryLayer<u64, u64, E> {
    RetryLayer::builder().max_attempts(3).budget(budget()).build()
}

pub(crate) fn budget() -> Arc<dyn RetryBudget> {
    RetryBudgetBuilder::new().token_bucket().build().expect("a valid budget")
}
