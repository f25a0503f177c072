//! tower-resilience, with its defaults where possible, and without listeners or metrics.

use std::time::Duration;

use tower::{Service, ServiceBuilder};
use tower_resilience_bulkhead::BulkheadLayer;
use tower_resilience_circuitbreaker::CircuitBreakerLayer;
use tower_resilience_ratelimiter::RateLimiterLayer;
use tower_resilience_retry::{RetryBudgetBuilder, RetryLayer};
use tower_resilience_timelimiter::TimeLimiterLayer;

use crate::subject::{Again, Bare, Expect, FAIL, Failure, Family, Kind, Subject, call};

pub(crate) fn subjects() -> Vec<Subject> {
    let bulkhead =
        || BulkheadLayer::builder().max_concurrent_calls(1_000).reject_when_full().build().expect("a valid bulkhead");
    let timeout = || TimeLimiterLayer::builder().timeout_duration(Duration::from_secs(30)).build();
    let rate = RateLimiterLayer::builder()
        .limit_for_period(1_000_000_000)
        .refresh_period(Duration::from_secs(1))
        .build()
        .expect("a valid rate limiter");
    macro_rules! stack {
        ($inner:expr) => {
            ServiceBuilder::new()
                .layer(timeout())
                .layer(retry())
                .layer(breaker())
                .layer(bulkhead())
                .layer(timeout())
                .service($inner)
        };
    }
    vec![
        peer("tower-resilience/circuit_breaker", Family::Breaker, ServiceBuilder::new().layer(breaker()).service(Bare)),
        open(),
        peer("tower-resilience/bulkhead", Family::Bulkhead, ServiceBuilder::new().layer(bulkhead()).service(Bare)),
        peer("tower-resilience/retry", Family::Retry, ServiceBuilder::new().layer(retry::<Failure>()).service(Bare)),
        peer("tower-resilience/rate_limit", Family::RateLimit, ServiceBuilder::new().layer(rate).service(Bare)),
        peer("tower-resilience/timeout", Family::Timeout, ServiceBuilder::new().layer(timeout()).service(Bare)),
        // The client stack that its manual recommends, plus an attempt timeout.
        Subject::cloned("tower-resilience/stack5", Kind::Peer, Family::Stack, stack!(Bare)),
        peer("tower-resilience/stack5(kept)", Family::KeptStack, stack!(Again(Bare))),
    ]
}

fn peer<S>(name: &'static str, family: Family, service: S) -> Subject
where
    S: Service<u64> + Clone + Send + 'static,
{
    Subject::service(name, Kind::Peer, family, Expect::Ok, service)
}

fn breaker() -> CircuitBreakerLayer {
    CircuitBreakerLayer::builder().wait_duration_in_open(Duration::from_secs(3_600)).build().expect("a valid breaker")
}

fn retry<E>() -> RetryLayer<u64, u64, E> {
    let budget = RetryBudgetBuilder::new().token_bucket().build().expect("a valid budget");
    RetryLayer::builder().max_attempts(3).budget(budget).build()
}

fn open() -> Subject {
    let mut service = ServiceBuilder::new().layer(breaker()).service(Bare);
    // Its window needs this many failures before it can trip.
    for _ in 0..1_000 {
        let _ = call(&mut service, FAIL);
    }
    Subject::service("tower-resilience/circuit_breaker(open)", Kind::Peer, Family::OpenBreaker, Expect::Err, service)
}
