//! Buttress's layers, with their defaults unless the name says otherwise.

use std::time::Duration;

use buttress::gate::GateLayer;
use buttress::keyed::Keyed;
use buttress::{
    Bulkhead, BulkheadLayer, CircuitBreaker, CircuitBreakerLayer, PlainExt, RetryBudget, RetryLayer, TimeoutLayer,
};
use tower::{Service, ServiceBuilder};

use crate::subject::{Again, Bare, Expect, FAIL, Failure, Family, Kind, Subject, batch, call};

pub(crate) fn subjects() -> Vec<Subject> {
    vec![
        ours(
            "buttress/circuit_breaker(consecutive)",
            Family::Breaker,
            ServiceBuilder::new().layer(consecutive().plain()).service(Bare),
        ),
        // A calibrated streak, or half of the calls in an exact window of 10 s.
        ours(
            "buttress/circuit_breaker(window)",
            Family::Breaker,
            ServiceBuilder::new().layer(breaker().plain()).service(Bare),
        ),
        open(),
        ours(
            "buttress/bulkhead",
            Family::Bulkhead,
            ServiceBuilder::new().layer(BulkheadLayer::new(1_000).plain()).service(Bare),
        ),
        ours(
            "buttress/bulkhead(queue)",
            Family::Bulkhead,
            ServiceBuilder::new()
                .layer(BulkheadLayer::new(1_000).queue(1_000, Duration::from_millis(50)).plain())
                .service(Bare),
        ),
        full(),
        ours(
            "buttress/retry",
            Family::Retry,
            ServiceBuilder::new().layer(RetryLayer::new(3).budget(RetryBudget::new()).plain()).service(Bare),
        ),
        ours(
            "buttress/timeout",
            Family::Timeout,
            ServiceBuilder::new().layer(TimeoutLayer::attempt(HALF_A_MINUTE).plain()).service(Bare),
        ),
        // A full client stack: a total timeout, retry with a budget, a breaker, a queueing bulkhead
        // for the dependency, a bulkhead without queue for a share of it, and an attempt timeout.
        Subject::cloned("buttress/stack6", Kind::Ours, Family::Stack, stack6(Bare)),
        ours("buttress/stack6(kept)", Family::KeptStack, stack6(Again(Bare))),
        // The same without bulkheads, whose exact counts are one memory location shared by all
        // threads, and with a second breaker, for the endpoint in addition to the one for the
        // service.
        Subject::cloned(
            "buttress/stack5",
            Kind::Ours,
            Family::Stack,
            ServiceBuilder::new()
                .layer(TimeoutLayer::total(HALF_A_MINUTE).plain())
                .layer(RetryLayer::new(3).budget(RetryBudget::new()).plain())
                .layer(breaker().plain())
                .layer(breaker().plain())
                .layer(TimeoutLayer::attempt(HALF_A_MINUTE).plain())
                .service(Bare),
        ),
        keyed_lookup("buttress/keyed(lookup)", Keys::Own),
        keyed_lookup("buttress/keyed(lookup, one key)", Keys::One),
    ]
}

fn stack6<S>(inner: S) -> impl Service<u64, Response = u64, Error = buttress::Error> + Clone + Send + 'static
where
    S: Service<u64, Response = u64, Error = Failure, Future: Send> + Clone + Send + 'static,
{
    ServiceBuilder::new()
        .layer(TimeoutLayer::total(HALF_A_MINUTE).plain())
        .layer(RetryLayer::new(3).budget(RetryBudget::new()).plain())
        .layer(breaker().plain())
        .layer(BulkheadLayer::new(1_000).queue(1_000, Duration::from_millis(50)).plain())
        .layer(BulkheadLayer::new(1_000).plain())
        .layer(TimeoutLayer::attempt(HALF_A_MINUTE).plain())
        .service(inner)
}

/// Which keys the threads use.
#[derive(Clone, Copy)]
enum Keys {
    /// Each thread its own 1,000 keys.
    Own,
    /// All threads the same key.
    One,
}

/// A call through the circuit of a key, with 1,000 keys per thread.
fn keyed_lookup(name: &'static str, keys: Keys) -> Subject {
    let keyed = Keyed::builder(|key: &u64| *key, |_: &u64| CircuitBreaker::new("backend"));
    let keyed = keyed.max_keys(100_000).build().expect("a valid number of keys");
    let service = ServiceBuilder::new().layer(GateLayer::with_policy(keyed).plain()).service(Bare);
    let workers = std::cell::Cell::new(0);
    Subject::new(name, Kind::Ours, Family::Other, move || {
        let (mut service, base) = (service.clone(), workers.replace(workers.get() + 1_000));
        let mut next = 0;
        batch(name, Expect::Ok, move || {
            next = if next == 999 { 0 } else { next + 1 };
            let key = if let Keys::Own = keys { base + next } else { 0 };
            call(&mut service, key).is_ok()
        })
    })
}

fn ours<S>(name: &'static str, family: Family, service: S) -> Subject
where
    S: Service<u64> + Clone + Send + 'static,
{
    Subject::service(name, Kind::Ours, family, Expect::Ok, service)
}

fn breaker() -> CircuitBreakerLayer {
    CircuitBreaker::builder("backend").failure_rate(0.5).open_time(HOUR..=HOUR).build().expect("a valid breaker").into()
}

fn consecutive() -> CircuitBreakerLayer {
    let breaker = CircuitBreaker::builder("backend").consecutive_failures(5).failure_rate(None);
    breaker.build().expect("a valid breaker").into()
}

const HOUR: Duration = Duration::from_secs(3_600);
const HALF_A_MINUTE: Duration = Duration::from_secs(30);

/// A circuit tripped by failures, not by hand, that still rejects at the end of the run.
fn open() -> Subject {
    let mut service = ServiceBuilder::new().layer(breaker().plain()).service(Bare);
    for _ in 0..1_000 {
        let _ = call(&mut service, FAIL);
    }
    rejecting("buttress/circuit_breaker(open)", Family::OpenBreaker, service)
}

/// A bulkhead without places: measures a rejection.
fn full() -> Subject {
    let service = ServiceBuilder::new().layer(BulkheadLayer::from(Bulkhead::new(0)).plain()).service(Bare);
    rejecting("buttress/bulkhead(full)", Family::Other, service)
}

fn rejecting<S>(name: &'static str, family: Family, service: S) -> Subject
where
    S: Service<u64> + Clone + Send + 'static,
{
    Subject::service(name, Kind::Ours, family, Expect::Err, service)
}
