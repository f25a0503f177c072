//! Rejections of a user's policy on the wire, and what a client makes of them.

use axum::{Router, body::Body, response::IntoResponse, routing::any};
use buttress::{
    Error, bulkhead,
    circuit_breaker::{Event, OPEN},
    outcome::{Outcome, Sent},
    policy::{Class, GateLayer, Policy, Reason, Rejection},
};
use buttress_http::{classify, prelude::*, tonic::StatusLayer};
use buttress_stack_tests::{Script, ask, axum_server, channel, client, client_h2, grpc_server, post, reply, soon};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tonic::Code;
use tonic_health::pb::{health_client::HealthClient, health_server::HealthServer};
use tower::{Layer, ServiceBuilder, ServiceExt};

/// Rejects every call, and counts them.
#[derive(Clone)]
struct Rejects(&'static Reason, Arc<AtomicUsize>);

impl<Req: ?Sized> Policy<Req> for Rejects {
    type Permit = ();

    fn admit(&self, _: &Req) -> Result<(), Rejection> {
        self.1.fetch_add(1, SeqCst);
        Err(Rejection::new("mine", self.0))
    }
}

fn rejects(reason: Reason) -> Rejects {
    Rejects(Box::leak(Box::new(reason)), Arc::default())
}

const CLASSES: [(Class, u16, Code); 5] = [
    (Class::Unavailable, 503, Code::Unavailable),
    (Class::Exhausted, 503, Code::ResourceExhausted),
    (Class::RateLimited, 429, Code::ResourceExhausted),
    (Class::Deadline, 504, Code::DeadlineExceeded),
    (Class::Refused, 403, Code::PermissionDenied),
];

/// Whether the outcome counts as overload of a server that did not process the request.
fn is_overload(outcome: &Outcome) -> bool {
    outcome.failure().is_some_and(|failure| failure.overload && failure.sent == Sent::NotProcessed)
}

#[tokio::test]
async fn each_class_is_answered_and_understood_over_http() {
    for (class, status, _) in CLASSES {
        let layer = GateLayer::with_policy(rejects(Reason::new("mine", "mine", class))).http();
        let server = axum_server(Router::new().fallback(any(async || "here")).layer(layer)).await;
        for client in [client(), client_h2()] {
            let response = soon(client.request(post(server.uri("/"), vec![0; 1 << 20]))).await.unwrap();
            let (headers, outcome) = (response.headers(), classify::http_status(response.status(), response.headers()));
            assert_eq!(
                (response.status().as_u16(), &headers["x-buttress-rejected"]),
                (status, &"mine".parse().unwrap())
            );
            assert_eq!(headers.contains_key("retry-after"), matches!(status, 503 | 429), "{class:?}");
            assert_eq!(is_overload(&outcome), class != Class::Refused, "{class:?}: {outcome:?}");
        }
    }
}

#[tokio::test]
async fn each_class_is_answered_and_understood_over_grpc() {
    for (class, _, code) in CLASSES {
        for queued in [false, true] {
            let policy = rejects(Reason::new("mine", "mine", class));
            let layer = GateLayer::with_policy(policy.clone()).grpc();
            let health = HealthServer::new(Script::new());
            let server = if queued {
                let layers =
                    ServiceBuilder::new().layer(layer).layer(BulkheadLayer::new(1).queue(1, Duration::MAX).grpc());
                grpc_server(tonic::transport::Server::builder().layer(layers).add_service(health)).await
            } else {
                grpc_server(tonic::transport::Server::builder().layer(layer).add_service(health)).await
            };
            let (breaker, seen) = (CircuitBreaker::new("backend"), Arc::<Mutex<Vec<Outcome>>>::default());
            let log = seen.clone();
            breaker.on_event(move |event| {
                if let Event::Called { outcome, .. } = event {
                    log.lock().unwrap().push(*outcome);
                }
            });
            let stack = ServiceBuilder::new()
                .layer(StatusLayer)
                .layer(RetryLayer::new(3).backoff(Backoff::constant(Duration::ZERO)).grpc_client())
                .layer(CircuitBreakerLayer::from(breaker).grpc_client())
                .service(channel(&server));
            let status = soon(HealthClient::new(stack).check(ask("ok"))).await.unwrap_err();
            assert_eq!(status.code(), code);
            let attempts = if class == Class::Refused { 1 } else { 3 };
            assert_eq!(policy.1.load(SeqCst), attempts, "{class:?}");
            let seen = seen.lock().unwrap();
            assert!(
                seen.iter().all(|outcome| is_overload(outcome) == (class != Class::Refused)),
                "{class:?}: {seen:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_word_of_any_text_still_says_that_the_request_was_not_processed() {
    let long: &'static str = "long_".repeat(1600).leak();
    for word in ["two words", "", " ", "é", "a\nb", "a\0b", long] {
        let layer = GateLayer::with_policy(rejects(Reason::new(word, word, Class::Unavailable))).http();
        let server = axum_server(Router::new().layer(layer.clone()).fallback(any(async || "here")).layer(layer)).await;
        for client in [client(), client_h2()] {
            let response = soon(client.request(post(server.uri("/"), "a transfer"))).await.unwrap();
            let outcome = classify::http_status(response.status(), response.headers());
            assert!(is_overload(&outcome), "{word:?}: {:?}", response.headers());
        }
    }
}

/// A handler that calls a service, which fails with this error.
async fn fails(error: impl Fn() -> Error + Clone + Send + Sync + 'static) -> (u16, Outcome, u64, u64) {
    let breaker = CircuitBreaker::new("handler");
    let bulkhead = Bulkhead::new(1);
    let handler = async move || Err::<&str, _>(error());
    let layers = ServiceBuilder::new()
        .layer(CircuitBreakerLayer::from(breaker.clone()).http())
        .layer(BulkheadLayer::from(bulkhead.clone()).http());
    let server = axum_server(Router::new().fallback(any(handler)).layer(layers)).await;
    let response = soon(client().request(post(server.uri("/"), "a transfer"))).await.unwrap();
    let outcome = classify::http_status(response.status(), response.headers());
    buttress_stack_tests::eventually(|| bulkhead.in_flight() == 0).await;
    let counts = breaker.snapshot().counts;
    (response.status().as_u16(), outcome, counts.failed, counts.succeeded)
}

#[tokio::test]
async fn an_error_that_a_handler_passes_on_does_not_say_that_the_handler_did_nothing() {
    static MINE: [Reason; 5] = [
        Reason::new("mine", "mine", Class::Unavailable),
        Reason::new("mine", "mine", Class::Exhausted),
        Reason::new("mine", "mine", Class::RateLimited),
        Reason::new("mine", "mine", Class::Deadline),
        Reason::new("mine", "mine", Class::Refused),
    ];
    for reason in MINE.iter().chain([&OPEN, &bulkhead::FULL, &bulkhead::QUEUE_TIMEOUT]) {
        let (status, outcome, failed, succeeded) = fails(move || Rejection::new("mine", reason).into()).await;
        // A failure of the handler, and for its caller, unless it is forbidden.
        assert_eq!((failed, succeeded), if status == 403 { (0, 1) } else { (1, 0) }, "{reason:?}");
        let sent = outcome.failure().map(|failure| failure.sent);
        assert_eq!(sent, (status != 403).then_some(Sent::MaybeProcessed), "{reason:?}");
    }
    let (status, _, failed, _) = fails(|| Error::from_inner(std::io::Error::other("down"))).await;
    assert_eq!((status, failed), (502, 1));
}

#[tokio::test]
async fn a_post_whose_handler_passes_an_error_on_runs_once() {
    static OVER_RATE: Reason = Reason::new("over_rate", "over its rate", Class::RateLimited);
    let runs = Arc::new(AtomicUsize::new(0));
    let count = runs.clone();
    let handler = async move || {
        // Half of its work.
        count.fetch_add(1, SeqCst);
        let next = GateLayer::with_policy(rejects(OVER_RATE)).http_client();
        let next = next.layer(tower::service_fn(async |_: http::Request<Body>| Ok::<_, Error>(reply(200, ""))));
        next.oneshot(post("http://next/".parse().unwrap(), "")).await.map_err(IntoResponse::into_response)
    };
    let server = axum_server(Router::new().fallback(any(handler))).await;
    let retry = RetryLayer::new(3).backoff(Backoff::constant(Duration::ZERO)).http_client();
    soon(retry.layer(client()).oneshot(post(server.uri("/"), "a transfer"))).await.unwrap();
    assert_eq!(runs.load(SeqCst), 1);
}
