//! Responses for rejections: custom ones for HTTP, and always gRPC's for a gRPC call, on one port.

use axum::{Router, body::Body, routing::get};
use buttress::{Ending, Rejection, circuit_breaker::State};
use buttress_http::{ending::HttpServer, prelude::*};
use buttress_stack_tests::{
    Door, Script, Server, ask, axum_server, channel, client, eventually, get as get_request, soon, text,
};
use http::{
    Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use std::time::Duration;
use tonic::{Code, service::Routes};
use tonic_health::pb::{health_client::HealthClient, health_server::HealthServer};
use tower::ServiceBuilder;

fn problem(response: Response<()>, rejection: &Rejection) -> Response<String> {
    let status = response.status().as_u16();
    let mut response = response.map(|()| format!(r#"{{"title":"{}","status":{status}}}"#, rejection.reason().word()));
    response.headers_mut().insert(CONTENT_TYPE, "application/problem+json".parse().unwrap());
    response
}

/// HTTP and gRPC on one port.
fn both(script: &Script) -> Router {
    Routes::new(HealthServer::new(script.clone()))
        .into_axum_router()
        .route("/", get(async || "here"))
        .route("/slow", get(std::future::pending::<&str>))
}

async fn call(server: &Server, path: &str) -> Response<hyper::body::Incoming> {
    soon(client().request(get_request(server.uri(path)))).await.unwrap()
}

#[tokio::test]
async fn a_rejection_is_a_problem_for_http_and_a_status_for_grpc() {
    let ending = HttpServer::new().respond(problem);
    let full = both(&Script::new()).layer(BulkheadLayer::new(0).end(ending));
    let server = axum_server(full).await;
    let response = call(&server, "/").await;
    assert_eq!((response.status().as_u16(), &response.headers()[RETRY_AFTER]), (503, &"1".parse().unwrap()));
    assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
    assert_eq!(text(response).await, r#"{"title":"bulkhead_full","status":503}"#);

    let status = soon(HealthClient::new(channel(&server)).check(ask("ok"))).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, "bulkhead: full"));
}

#[tokio::test]
async fn a_timeout_is_a_problem_for_http_and_a_status_for_grpc() {
    let ending = HttpServer::new().respond(problem);
    let late = TimeoutLayer::total(Duration::from_millis(5)).named("api").end(ending);
    let script = Script::new();
    let server = axum_server(both(&script).layer(late)).await;
    let response = call(&server, "/slow").await;
    assert_eq!((response.status().as_u16(), response.headers().get(RETRY_AFTER)), (504, None));
    assert!(text(response).await.contains(r#""status":504"#));

    let status = soon(HealthClient::new(channel(&server)).check(ask("hang"))).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn one_bulkhead_and_one_circuit_hold_for_http_and_grpc_together() {
    let (script, bulkhead) = (Script::new(), Bulkhead::new(1));
    let breaker = CircuitBreaker::builder("handler").consecutive_failures(2).build().unwrap();
    let layers = ServiceBuilder::new()
        .layer(CircuitBreakerLayer::from(breaker.clone()).http())
        .layer(BulkheadLayer::from(bulkhead.clone()).http());
    let server = axum_server(both(&script).layer(layers)).await;
    let grpc = HealthClient::new(channel(&server));
    let busy = tokio::spawn({
        let mut grpc = grpc.clone();
        async move { grpc.check(ask("hang")).await }
    });
    script.door.arrival().await;
    assert_eq!(call(&server, "/").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    let status = soon(grpc.clone().check(ask("ok"))).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    script.door.open();
    soon(busy).await.unwrap().unwrap();
    eventually(|| bulkhead.in_flight() == 0).await;

    // Rejections of the layer below do not count. Failures in trailers do.
    assert_eq!(breaker.state(), State::Closed);
    for _ in 0..2 {
        assert_eq!(soon(grpc.clone().check(ask("internal"))).await.unwrap_err().code(), Code::Internal);
    }
    assert_eq!(breaker.state(), State::Open);
    assert_eq!(call(&server, "/").await.headers()["x-buttress-rejected"], "circuit_open");
    let status = soon(grpc.clone().check(ask("ok"))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.metadata().contains_key("grpc-retry-pushback-ms"));
}

#[tokio::test]
async fn a_classification_of_your_own_sees_http_and_grpc_and_no_rejection() {
    let breaker = CircuitBreaker::builder("handler").consecutive_failures(1).build().unwrap();
    let ending = HttpServer::new()
        .classify(|head| {
            assert_eq!(head.status, StatusCode::OK, "rejections do not reach it");
            (!head.is_grpc && head.headers.contains_key("x-error"))
                .then(|| buttress::outcome::Failure::new(buttress::outcome::FailureKind::Application).into())
        })
        .respond(problem);
    let door = Door::new();
    let behind = door.clone();
    let handler = get(async move || {
        behind.pass().await;
        ([("x-error", "yes")], Body::from("200 means 500 here"))
    });
    let layers = ServiceBuilder::new()
        .layer(CircuitBreakerLayer::from(breaker.clone()).end(ending))
        .layer(BulkheadLayer::new(1).http());
    let server = axum_server(Router::new().route("/", handler).layer(layers)).await;
    let busy = tokio::spawn(client().request(get_request(server.uri("/"))));
    door.arrival().await;
    assert_eq!((call(&server, "/").await.status().as_u16(), breaker.state()), (503, State::Closed));
    door.open();
    assert_eq!(text(soon(busy).await.unwrap().unwrap()).await, "200 means 500 here");
    assert_eq!(breaker.state(), State::Open);
    assert!(text(call(&server, "/").await).await.contains(r#""title":"circuit_open""#));
}
