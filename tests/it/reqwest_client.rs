//! reqwest's client, whose requests, responses and errors are of its own types.

use axum::Router;
use buttress::{
    Error,
    circuit_breaker::{Event, State},
    ending::Plain,
    outcome::{FailureKind, Sent},
};
use buttress_http::{ReplayBody, classify, prelude::*};
use buttress_stack_tests::{PATIENCE, axum_server, reply, soon, text};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::net::{TcpListener, TcpSocket};
use tower::{Service, ServiceBuilder, ServiceExt};

/// The failures that a circuit breaker takes note of. Successes are `None`.
type Seen = Arc<Mutex<Vec<Option<(FailureKind, Sent)>>>>;

fn watch(breaker: &CircuitBreaker) -> Seen {
    let seen = Seen::default();
    let log = seen.clone();
    breaker.on_event(move |event| {
        if let Event::Called { outcome, .. } = event {
            log.lock().unwrap().push(outcome.failure().map(|failure| (failure.kind, failure.sent)));
        }
    });
    seen
}

/// A name service that knows no name.
struct NoNames;

impl reqwest::dns::Resolve for NoNames {
    fn resolve(&self, _: reqwest::dns::Name) -> reqwest::dns::Resolving {
        Box::pin(std::future::ready(Err(io::Error::other("no such name").into())))
    }
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().dns_resolver(Arc::new(NoNames)).build().unwrap()
}

fn get(url: impl std::fmt::Display) -> reqwest::Request {
    reqwest::Request::new(reqwest::Method::GET, url.to_string().parse().unwrap())
}

/// A connection that is refused, a name that is not known, and an answer that does not come in
/// time.
async fn fails_thrice<S>(service: S)
where
    S: Service<reqwest::Request, Response: std::fmt::Debug, Error = Error> + Clone,
{
    // Bound, and not listening.
    let deaf = TcpSocket::new_v4().unwrap();
    deaf.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let refused = get(format!("http://{}/", deaf.local_addr().unwrap()));
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut late = get(format!("http://{}/", silent.local_addr().unwrap()));
    *late.timeout_mut() = Some(Duration::from_millis(5));
    for request in [refused, get("http://a-name.invalid/"), late] {
        soon(service.clone().oneshot(request)).await.unwrap_err();
    }
}

#[tokio::test]
async fn its_errors_are_looked_into_by_a_plain_circuit() {
    let breaker = CircuitBreaker::new("backend");
    let seen = watch(&breaker);
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::total(PATIENCE).plain())
        .layer(CircuitBreakerLayer::from(breaker).plain())
        .layer(BulkheadLayer::new(1).plain())
        .layer(TimeoutLayer::attempt(PATIENCE).plain())
        .service(client());
    fails_thrice(service).await;
    let unknown = Some((FailureKind::Transport, Sent::MaybeProcessed));
    // Without a protocol, a connection that was refused is all that is known never to have been
    // sent.
    assert_eq!(*seen.lock().unwrap(), [Some((FailureKind::Connect, Sent::Never)), unknown, unknown]);
}

#[tokio::test]
async fn a_plain_circuit_reads_statuses_and_errors_with_the_tables_of_http() {
    let server = axum_server(Router::new().fallback(async || reply(503, "no"))).await;
    let breaker = CircuitBreaker::new("backend");
    let seen = watch(&breaker);
    let ending = Plain::new().classify(|result: Result<&reqwest::Response, &Error>| match result {
        Ok(response) => classify::http_status(response.status(), response.headers()),
        Err(error) => classify::error(error),
    });
    let service = ServiceBuilder::new().layer(CircuitBreakerLayer::from(breaker.clone()).end(ending)).service(client());
    fails_thrice(service.clone()).await;
    for _ in 0..2 {
        assert_eq!(soon(service.clone().oneshot(get(server.uri("/")))).await.unwrap().status(), 503);
    }
    assert_eq!(breaker.state(), State::Open);
    let (never, http) =
        (Some((FailureKind::Connect, Sent::Never)), Some((FailureKind::Http(503), Sent::MaybeProcessed)));
    let late = Some((FailureKind::Transport, Sent::MaybeProcessed));
    assert_eq!(*seen.lock().unwrap(), [never, never, late, http, http]);
}

/// What a request and a response of `http` go through on their way to reqwest and back.
fn over_http()
-> impl Service<Request<reqwest::Body>, Response = Response<reqwest::Body>, Error = reqwest::Error, Future: Send> + Clone
{
    ServiceBuilder::new()
        .map_request(|request: Request<reqwest::Body>| reqwest::Request::try_from(request).unwrap())
        .map_response(Response::<reqwest::Body>::from)
        .service(client())
}

#[tokio::test]
async fn behind_http_types_the_client_endings_repeat_and_judge_as_over_hyper() {
    let (bodies, breaker) = (Arc::<Mutex<Vec<Bytes>>>::default(), CircuitBreaker::new("backend"));
    let log = bodies.clone();
    let handler = async move |body: Bytes| {
        let mut log = log.lock().unwrap();
        log.push(body);
        reply(if log.len() < 3 { 503 } else { 200 }, "done")
    };
    let server = axum_server(Router::new().fallback(handler)).await;
    let retry = RetryLayer::new(3).backoff(Backoff::constant(Duration::ZERO)).http_client();
    let service = ServiceBuilder::new()
        .layer(retry.map_request_body(|body: ReplayBody<Full<Bytes>>| reqwest::Body::wrap(body)))
        .layer(CircuitBreakerLayer::from(breaker.clone()).http_client())
        .service(over_http());
    let request = Request::put(server.uri("/")).body(Full::from("a transfer")).unwrap();
    let response = soon(service.oneshot(request)).await.unwrap();
    assert_eq!((response.status().as_u16(), text(response).await.as_str()), (200, "done"));
    assert_eq!(*bodies.lock().unwrap(), vec![Bytes::from("a transfer"); 3]);
    let counts = breaker.snapshot().counts;
    assert_eq!((counts.succeeded, counts.failed), (1, 2));
}

#[tokio::test]
async fn behind_http_types_a_post_that_was_never_sent_is_tried_again() {
    let breaker = CircuitBreaker::new("backend");
    let seen = watch(&breaker);
    let retry = RetryLayer::new(3).backoff(Backoff::constant(Duration::ZERO)).http_client();
    let service = ServiceBuilder::new()
        .layer(retry.map_request_body(|body: ReplayBody<Full<Bytes>>| reqwest::Body::wrap(body)))
        .layer(CircuitBreakerLayer::from(breaker).http_client())
        .service(over_http());
    let request = Request::post("http://a-name.invalid/").body(Full::from("a transfer")).unwrap();
    soon(service.oneshot(request)).await.unwrap_err();
    assert_eq!(*seen.lock().unwrap(), [Some((FailureKind::Connect, Sent::Never)); 3]);
}
