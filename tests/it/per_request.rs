//! Settings that differ by request: outcomes, attempts and bounds, by method and by route.

use axum::{Router, body::Body, routing::any};
use buttress::{
    Ending,
    circuit_breaker::State,
    outcome::{Failure, FailureKind, Outcome},
    timeout,
};
use buttress_http::{ending::HttpClient, prelude::*};
use buttress_stack_tests::{Server, axum_server, client, get, reply, soon};
use http::{Method, Request, Response, StatusCode};
use std::{
    future::pending,
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering::SeqCst},
    time::Duration,
};
use tower::{Layer, ServiceExt};

/// Answers everything with this status, and counts the requests.
async fn answers(status: u16) -> (Server, Arc<AtomicUsize>) {
    let requests = Arc::<AtomicUsize>::default();
    let count = requests.clone();
    let handler = async move || {
        count.fetch_add(1, SeqCst);
        reply(status, "answer")
    };
    (axum_server(Router::new().fallback(any(handler))).await, requests)
}

fn request(method: Method, server: &Server) -> Request<Body> {
    Request::builder().method(method).uri(server.uri("/")).body(Body::empty()).unwrap()
}

#[tokio::test]
async fn an_answer_is_classified_by_the_method_of_its_request() {
    let (server, _) = answers(409).await;
    let ending = HttpClient::new().classify_by(
        |request| *request.method == Method::DELETE,
        |is_delete, head| match head.status {
            StatusCode::CONFLICT if !is_delete => Some(Failure::new(FailureKind::Http(409)).into()),
            StatusCode::CONFLICT => Some(Outcome::Success),
            _ => None,
        },
    );
    for (method, state) in [(Method::DELETE, State::Closed), (Method::PUT, State::Open)] {
        let breaker = CircuitBreaker::builder("files").consecutive_failures(1).build().unwrap();
        let service = CircuitBreakerLayer::from(breaker.clone()).end(ending).layer(client());
        let response: Response<_> = soon(service.oneshot(request(method.clone(), &server))).await.unwrap();
        assert_eq!(response.status(), 409);
        drop(response);
        assert_eq!(breaker.state(), state, "{method}");
    }
}

#[tokio::test]
async fn a_request_may_say_how_many_attempts_it_gets() {
    let layer = RetryLayer::new(3)
        .backoff(Backoff::constant(Duration::ZERO))
        .attempts_by(|request: &Request<Body>| match request.uri().query() {
            Some("once") => Some(1),
            Some("none") => Some(0),
            Some("five") => Some(5),
            _ => None,
        })
        .http_client();
    for (query, attempts) in [("?once", 1), ("?none", 1), ("?five", 5), ("", 3)] {
        let (server, requests) = answers(500).await;
        let service = layer.layer(client());
        let response: Response<_> = soon(service.oneshot(get(server.uri(&format!("/{query}"))))).await.unwrap();
        assert_eq!((response.status().as_u16(), requests.load(SeqCst)), (500, attempts), "{query}");
    }
}

#[tokio::test]
async fn a_route_may_have_a_bound_of_its_own() {
    let layer = TimeoutLayer::total(Duration::MAX)
        .by(|request: &Request<Body>| (request.uri().path() == "/short").then_some(Duration::from_millis(5)))
        .http_client();
    let server = axum_server(Router::new().route("/short", any(pending::<()>)).fallback(async || "here")).await;
    let call = |path| soon(layer.layer(client()).oneshot(get(server.uri(path))));
    let error = call("/short").await.unwrap_err();
    assert_eq!(error.rejection().unwrap().reason(), &timeout::TOTAL);
    assert_eq!(call("/other").await.unwrap().status(), 200);
}
