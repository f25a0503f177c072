//! A circuit breaker around hyper's client.

use axum::{Router, body::Body, routing::get};
use buttress::{Error, Reason, circuit_breaker::State};
use buttress_http::prelude::*;
use buttress_stack_tests::{
    Door, Server, axum_server, client, get as get_request, half_open, refuses, soon, streams, text,
};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use std::io;
use tower::{Layer, Service, ServiceExt};

/// Trips at the second consecutive failure; one successful probe closes it.
fn breaker() -> CircuitBreaker {
    CircuitBreaker::builder("backend").consecutive_failures(2).probes(1).build().unwrap()
}

fn around(
    breaker: &CircuitBreaker,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = Error, Future: Send> + Clone + Send + use<> {
    let layer = CircuitBreakerLayer::from(breaker.clone()).http_client();
    layer.layer(client()).map_response(|response: Response<_>| response.map(Body::new))
}

/// `/hang` waits at the door, `/fail` answers 500.
async fn server(door: &Door) -> Server {
    let door = door.clone();
    let hang = get(async move || {
        door.pass().await;
        "done"
    });
    axum_server(
        Router::new()
            .route("/hang", hang)
            .route("/fail", get(StatusCode::INTERNAL_SERVER_ERROR))
            .route("/ok", get("ok")),
    )
    .await
}

fn reason(result: Result<Response<Body>, Error>) -> &'static Reason {
    result.expect_err("it is refused").rejection().expect("by one of ours").reason()
}

#[tokio::test]
async fn an_open_circuit_does_not_reach_the_server() {
    let (door, breaker) = (Door::new(), breaker());
    let (server, service) = (server(&door).await, around(&breaker));
    for _ in 0..2 {
        assert_eq!(service.clone().oneshot(get_request(server.uri("/fail"))).await.unwrap().status(), 500);
    }
    let refused = service.oneshot(get_request(server.uri("/hang"))).await;
    assert_eq!(reason(refused), &buttress::circuit_breaker::OPEN);
    assert_eq!(door.entered(), 0);
}

#[tokio::test]
async fn a_late_success_from_before_the_trip_does_not_close_it() {
    let (door, breaker) = (Door::new(), breaker());
    let (server, service) = (server(&door).await, around(&breaker));
    let late = tokio::spawn(service.clone().oneshot(get_request(server.uri("/hang"))));
    door.arrival().await;
    for _ in 0..2 {
        service.clone().oneshot(get_request(server.uri("/fail"))).await.unwrap();
    }
    assert_eq!(breaker.state(), State::Open);
    half_open(&breaker).await;
    let probe = tokio::spawn(service.clone().oneshot(get_request(server.uri("/hang"))));
    door.arrival().await;
    assert_eq!(breaker.state(), State::HalfOpen);

    door.open();
    assert_eq!(text(soon(late).await.unwrap().unwrap()).await, "done");
    assert_eq!((breaker.state(), breaker.snapshot().stale), (State::HalfOpen, 1));

    door.open();
    assert_eq!(text(soon(probe).await.unwrap().unwrap()).await, "done");
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test]
async fn a_late_failure_from_before_the_trip_does_not_open_it_again() {
    let (sender, streaming) = streams(());
    let breaker = breaker();
    let (server, service) =
        (axum_server(Router::new().route("/", streaming).route("/ok", get("ok"))).await, around(&breaker));
    let late = service.clone().oneshot(get_request(server.uri("/"))).await.unwrap();
    half_open(&breaker).await;
    assert_eq!(text(service.oneshot(get_request(server.uri("/ok"))).await.unwrap()).await, "ok");
    assert_eq!(breaker.state(), State::Closed);
    sender.abort(io::Error::other("broken off"));
    assert!(soon(late.into_body().collect()).await.is_err());
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.stale, snapshot.consecutive_failures), (1, 0));
}

#[tokio::test]
async fn a_cancelled_probe_returns_its_slot() {
    let (door, breaker) = (Door::new(), breaker());
    let (server, service) = (server(&door).await, around(&breaker));
    half_open(&breaker).await;
    let probe = tokio::spawn(service.clone().oneshot(get_request(server.uri("/hang"))));
    door.arrival().await;
    let refused = service.clone().oneshot(get_request(server.uri("/ok"))).await;
    assert_eq!(reason(refused), &buttress::circuit_breaker::PROBES_EXHAUSTED);
    probe.abort();
    assert!(probe.await.unwrap_err().is_cancelled());
    assert_eq!(breaker.state(), State::HalfOpen);
    assert_eq!(text(service.oneshot(get_request(server.uri("/ok"))).await.unwrap()).await, "ok");
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test]
async fn a_probe_whose_body_is_dropped_returns_its_slot() {
    let (_sender, streaming) = streams(());
    let breaker = breaker();
    let (server, service) =
        (axum_server(Router::new().route("/", streaming).route("/ok", get("ok"))).await, around(&breaker));
    half_open(&breaker).await;
    let probe = service.clone().oneshot(get_request(server.uri("/"))).await.unwrap();
    let refused = service.clone().oneshot(get_request(server.uri("/ok"))).await;
    assert_eq!(
        reason(refused),
        &buttress::circuit_breaker::PROBES_EXHAUSTED,
        "a probe is one until its body has ended"
    );
    drop(probe);
    assert_eq!(text(service.oneshot(get_request(server.uri("/ok"))).await.unwrap()).await, "ok");
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_a_failure_although_the_status_was_200() {
    let (mut sender, streaming) = streams(());
    let breaker = breaker();
    let (server, service) = (axum_server(Router::new().route("/", streaming)).await, around(&breaker));
    let response = service.oneshot(get_request(server.uri("/"))).await.unwrap();
    assert_eq!(response.status(), 200);
    sender.send_data("half of".into()).await.unwrap();
    sender.abort(io::Error::other("the disk is gone"));
    assert!(soon(response.into_body().collect()).await.is_err());
    assert_eq!((breaker.snapshot().counts.failed, breaker.snapshot().consecutive_failures), (1, 1));
}

#[tokio::test]
async fn a_caller_that_drops_the_body_of_a_good_response_has_had_a_success() {
    let (mut sender, streaming) = streams(());
    let breaker = breaker();
    let (server, service) = (axum_server(Router::new().route("/", streaming)).await, around(&breaker));
    sender.send_data("one".into()).await.unwrap();
    let mut body = service.oneshot(get_request(server.uri("/"))).await.unwrap().into_body();
    assert!(soon(body.frame()).await.unwrap().unwrap().is_data());
    drop(body);
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.counts.succeeded, snapshot.counts.total(), snapshot.state), (1, 1, State::Closed));
}

#[tokio::test]
async fn a_status_that_is_a_failure_counts_at_once_although_its_body_goes_on() {
    let (_sender, streaming) = streams(StatusCode::BAD_GATEWAY);
    let breaker = breaker();
    let (server, service) = (axum_server(Router::new().route("/", streaming)).await, around(&breaker));
    let response = service.oneshot(get_request(server.uri("/"))).await.unwrap();
    assert_eq!((response.status().as_u16(), breaker.snapshot().counts.failed), (502, 1));
    drop(response);
    assert_eq!(breaker.snapshot().counts.total(), 1, "and it counts once");
}

#[tokio::test]
async fn a_whole_body_is_a_success_once_it_has_ended() {
    let breaker = breaker();
    let (server, service) = (server(&Door::new()).await, around(&breaker));
    let response = service.oneshot(get_request(server.uri("/ok"))).await.unwrap();
    assert_eq!(breaker.snapshot().counts.total(), 0);
    assert_eq!(text(response).await, "ok");
    assert_eq!(breaker.snapshot().counts.succeeded, 1);
}

#[tokio::test]
async fn nobody_at_the_other_end_is_a_failure() {
    let breaker = breaker();
    let service = around(&breaker);
    let (_deaf, address) = refuses();
    for _ in 0..2 {
        soon(service.clone().oneshot(get_request(address.clone()))).await.unwrap_err();
    }
    assert_eq!(breaker.state(), State::Open);
    assert_eq!(reason(service.oneshot(get_request(address)).await), &buttress::circuit_breaker::OPEN);
}
