//! Layers in front of a tonic server.

use buttress_http::prelude::*;
use buttress_stack_tests::{Script, ask, channel, eventually, grpc_server, soon};
use std::time::Duration;
use tonic::{Code, Status, transport::Server};
use tonic_health::pb::{health_client::HealthClient, health_server::HealthServer};

/// A call on its own connection.
async fn check(server: &buttress_stack_tests::Server, service: &str) -> Result<(), Status> {
    soon(HealthClient::new(channel(server)).check(ask(service))).await.map(drop)
}

#[tokio::test]
async fn a_bulkhead_bounds_all_connections_together_and_answers_resource_exhausted() {
    let (script, bulkhead) = (Script::new(), Bulkhead::new(1));
    let layer = BulkheadLayer::from(bulkhead.clone()).grpc();
    let server = grpc_server(Server::builder().layer(layer).add_service(HealthServer::new(script.clone()))).await;
    let mut first = HealthClient::new(channel(&server));
    let first = tokio::spawn(async move { first.check(ask("hang")).await });
    script.door.arrival().await;
    let status = check(&server, "ok").await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, "bulkhead: full"));
    script.door.open();
    soon(first).await.unwrap().unwrap();
    eventually(|| bulkhead.in_flight() == 0).await;
    check(&server, "ok").await.unwrap();
}

#[tokio::test]
async fn a_stream_holds_its_place_until_its_trailers_are_sent() {
    let (script, bulkhead) = (Script::new(), Bulkhead::new(1));
    let layer = BulkheadLayer::from(bulkhead.clone()).grpc();
    let server = grpc_server(Server::builder().layer(layer).add_service(HealthServer::new(script.clone()))).await;
    let mut stream = HealthClient::new(channel(&server)).watch(ask("hang")).await.unwrap().into_inner();
    assert!(soon(stream.message()).await.unwrap().is_some());
    assert_eq!(check(&server, "ok").await.unwrap_err().code(), Code::ResourceExhausted);
    script.door.open();
    while soon(stream.message()).await.unwrap().is_some() {}
    eventually(|| bulkhead.in_flight() == 0).await;
    check(&server, "ok").await.unwrap();
}

#[tokio::test]
async fn a_caller_that_hangs_up_frees_its_place() {
    let (script, bulkhead) = (Script::new(), Bulkhead::new(1));
    let layer = BulkheadLayer::from(bulkhead.clone()).grpc();
    let server = grpc_server(Server::builder().layer(layer).add_service(HealthServer::new(script.clone()))).await;
    let mut stream = HealthClient::new(channel(&server)).watch(ask("hang")).await.unwrap().into_inner();
    assert!(soon(stream.message()).await.unwrap().is_some());
    assert_eq!(bulkhead.in_flight(), 1);
    drop(stream);
    eventually(|| bulkhead.in_flight() == 0).await;
    check(&server, "ok").await.unwrap();
}

#[tokio::test]
async fn a_timeout_is_deadline_exceeded() {
    let script = Script::new();
    let layer = TimeoutLayer::total(Duration::from_millis(5)).grpc();
    let server = grpc_server(Server::builder().layer(layer).add_service(HealthServer::new(script))).await;
    assert_eq!(check(&server, "hang").await.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn an_open_circuit_is_unavailable_and_says_when_to_come_back() {
    let (script, breaker) = (Script::new(), CircuitBreaker::new("handler"));
    let layer = CircuitBreakerLayer::from(breaker.clone()).grpc();
    let server = grpc_server(Server::builder().layer(layer).add_service(HealthServer::new(script.clone()))).await;
    for _ in 0..5 {
        assert_eq!(check(&server, "internal").await.unwrap_err().code(), Code::Internal);
    }
    let status = check(&server, "ok").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap().parse::<u64>().unwrap();
    // 5 s, measured with a coarse clock.
    assert!((1..6_000).contains(&pushback), "{pushback}");
    assert_eq!(script.calls(), 5);
}
