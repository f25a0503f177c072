//! Settings that differ by request: outcomes, attempts and bounds, by method and by route.

use axum::{Router, body::Body, routing::any};
use buttress::{
    Ending,
    circuit_breaker::State,
    outcome::{Failure, FailureKind, Outcome},
    timeout,
};
use buttress_http::{
    ending::{GrpcServer, HttpClient, HttpServer},
    prelude::*,
    tonic::StatusLayer,
};
use buttress_stack_tests::{
    Script, Server, ask, axum_server, channel, client, client_h2, eventually, get, grpc_server, reply, soon,
};
use http::{Method, Request, Response, StatusCode};
use std::{
    future::pending,
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering::SeqCst},
    time::Duration,
};
use tonic::Code;
use tonic_health::pb::{health_client::HealthClient, health_server::HealthServer};
use tower::{Layer, ServiceBuilder, ServiceExt};

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

/// A number in the query of a request.
fn asked<T: std::str::FromStr>(request: &Request<Body>) -> Option<T> {
    request.uri().query()?.parse().ok()
}

#[tokio::test]
async fn any_number_of_attempts_and_any_bound_may_be_asked_for() {
    let attempts = RetryLayer::new(3).backoff(Backoff::constant(Duration::ZERO)).attempts_by(asked::<u32>);
    let (server, requests) = answers(500).await;
    let uri = server.uri(&format!("/?{}", u32::MAX));
    let response: Response<_> = soon(attempts.http_client().layer(client()).oneshot(get(uri))).await.unwrap();
    // The budget ends it.
    assert_eq!(response.status(), 500);
    assert!((2..1000).contains(&requests.load(SeqCst)));

    let bound = TimeoutLayer::total(Duration::from_secs(60)).by(|request: &Request<Body>| {
        asked::<u64>(request)
            .map(|seconds| if seconds == u64::MAX { Duration::MAX } else { Duration::from_secs(seconds) })
    });
    let route = Router::new().fallback(any(async |request: Request<Body>| {
        // Not ready at the first poll.
        tokio::task::yield_now().await;
        request.uri().to_string()
    }));
    let server = axum_server(route.layer(bound.http())).await;
    for client in [client(), client_h2()] {
        for (query, status) in
            [("0", 504), ("1000000", 200), ("18446744073709551615", 200), ("18446744073709551614", 200)]
        {
            let response = soon(client.request(get(server.uri(&format!("/?{query}"))))).await.unwrap();
            assert_eq!(response.status(), status, "{query}");
        }
    }
}

#[tokio::test]
async fn a_panic_in_a_function_of_the_request_gives_the_place_back() {
    let panics = |request: &Request<Body>| -> bool { request.uri().path() == "/panic" && panic!("as asked") };
    let by_head = |panics_at: &'static str| {
        HttpServer::new().classify_by(
            move |request| {
                assert_ne!(request.uri.path(), format!("/note-{panics_at}"), "as asked");
                request.uri.path() == "/classify"
            },
            |panics, _| {
                assert!(!panics, "as asked");
                None
            },
        )
    };
    let (bulkhead, breaker) = (Bulkhead::new(1), CircuitBreaker::new("handler"));
    let layers = ServiceBuilder::new()
        .layer(BulkheadLayer::from(bulkhead.clone()).end(by_head("bulkhead")))
        .layer(BulkheadLayer::new(1).queue(1, Duration::MAX).end(by_head("queue")))
        .layer(CircuitBreakerLayer::from(breaker.clone()).end(by_head("circuit")))
        .layer(TimeoutLayer::total(Duration::MAX).by(move |request| panics(request).then_some(Duration::MAX)).http());
    let server = axum_server(Router::new().fallback(any(async || "here")).layer(layers)).await;
    for client in [client(), client_h2()] {
        for path in ["/panic", "/note-bulkhead", "/note-queue", "/note-circuit", "/classify"] {
            soon(client.request(get(server.uri(path)))).await.unwrap_err();
            eventually(|| bulkhead.in_flight() == 0 && breaker.in_flight() == 0).await;
            assert_eq!(soon(client.request(get(server.uri("/")))).await.unwrap().status(), 200, "{path}");
            eventually(|| bulkhead.in_flight() == 0).await;
        }
    }

    let bulkhead = Bulkhead::new(1);
    let layers = ServiceBuilder::new()
        .layer(BulkheadLayer::from(bulkhead.clone()).http_client())
        .layer(RetryLayer::new(2).attempts_by(move |request| panics(request).then_some(1)).http_client())
        .layer(TimeoutLayer::attempt(Duration::MAX).http_client());
    breaker.reset();
    let service = layers.service(client());
    let broken = tokio::spawn(service.clone().oneshot(get(server.uri("/panic"))));
    assert!(soon(broken).await.unwrap_err().is_panic());
    assert_eq!(bulkhead.in_flight(), 0);
    assert_eq!(soon(service.oneshot(get(server.uri("/")))).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_grpc_call_may_say_its_bound_its_attempts_and_its_outcome() {
    let has = |headers: &http::HeaderMap, name| headers.contains_key(name);
    let breaker = CircuitBreaker::builder("health").consecutive_failures(1).build().unwrap();
    let ending = GrpcServer::new().classify_by(
        move |request| has(request.headers, "x-optional"),
        |is_optional, head| (*is_optional && head.headers.contains_key("grpc-status")).then_some(Outcome::Success),
    );
    let layers = ServiceBuilder::new().layer(CircuitBreakerLayer::from(breaker.clone()).end(ending)).layer(
        TimeoutLayer::total(Duration::MAX)
            .by(move |request: &Request<tonic::body::Body>| has(request.headers(), "x-short").then_some(Duration::ZERO))
            .grpc(),
    );
    let script = Script::new();
    let health = HealthServer::new(script.clone());
    let server = grpc_server(tonic::transport::Server::builder().layer(layers).add_service(health)).await;
    let attempts = RetryLayer::new(1)
        .backoff(Backoff::constant(Duration::ZERO))
        .attempts_by(move |request: &Request<tonic::body::Body>| has(request.headers(), "x-thrice").then_some(3))
        .grpc_client()
        .idempotent(|_: &http::request::Parts| true);
    let mut client =
        HealthClient::new(ServiceBuilder::new().layer(StatusLayer).layer(attempts).service(channel(&server)));
    let mut ask_with = async |service, names: &[&'static str]| {
        let mut request = tonic::Request::new(ask(service));
        for name in names {
            request.metadata_mut().insert(*name, "yes".parse().unwrap());
        }
        let status = soon(client.check(request)).await.map_or_else(|status| status.code(), |_| Code::Ok);
        (status, breaker.state())
    };
    assert_eq!(ask_with("unavailable", &["x-thrice", "x-optional"]).await, (Code::Unavailable, State::Closed));
    assert_eq!(script.calls(), 3);
    assert_eq!(ask_with("ok", &[]).await, (Code::Ok, State::Closed));
    // A rejection by an inner layer is not classified by the function.
    assert_eq!(ask_with("hang", &["x-short", "x-optional"]).await, (Code::DeadlineExceeded, State::Open));
}
