//! Layers on an axum router behind plain `axum::serve`, which applies the layers again for every
//! connection.

use axum::{Router, body::Body, routing::get};
use buttress::circuit_breaker::State;
use buttress_http::prelude::*;
use buttress_stack_tests::{
    Door, PATIENCE, Server, axum_server, client, eventually, fresh_client, get as get_request, post, reply, soon,
    streams, text,
};
use http::{Request, StatusCode, header::CONTENT_LENGTH};
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::task::JoinSet;
use tower::{ServiceBuilder, layer::util::Identity, util::option_layer};

async fn behind(door: Door) -> &'static str {
    door.pass().await;
    "done"
}

async fn status(server: &Server, path: &str) -> u16 {
    soon(client().request(get_request(server.uri(path)))).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn a_bulkhead_bounds_all_connections_together() {
    let door = Door::new();
    let route = get({
        let door = door.clone();
        || behind(door)
    });
    let server = axum_server(Router::new().route("/", route).layer(BulkheadLayer::new(2).http())).await;
    let mut calls = JoinSet::new();
    for _ in 0..20 {
        calls.spawn(fresh_client().request(get_request(server.uri("/"))));
    }
    for _ in 0..18 {
        let refused = soon(calls.join_next()).await.unwrap().unwrap().unwrap();
        assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    }
    door.open_wide();
    while let Some(call) = soon(calls.join_next()).await {
        assert_eq!(text(call.unwrap().unwrap()).await, "done");
    }
    assert_eq!((door.entered(), door.peak()), (2, 2));
}

#[tokio::test]
async fn a_queue_is_shared_by_all_connections() {
    let door = Door::new();
    let route = get({
        let door = door.clone();
        || behind(door)
    });
    let bulkhead = Bulkhead::new(1);
    let layer = BulkheadLayer::from(bulkhead.clone()).queue(4, PATIENCE).http();
    let server = axum_server(Router::new().route("/", route).layer(layer)).await;
    let mut calls = JoinSet::new();
    for _ in 0..8 {
        calls.spawn(fresh_client().request(get_request(server.uri("/"))));
    }
    for _ in 0..3 {
        assert_eq!(soon(calls.join_next()).await.unwrap().unwrap().unwrap().status(), 503);
    }
    eventually(|| bulkhead.waiting() == 4).await;
    door.open_wide();
    while let Some(call) = soon(calls.join_next()).await {
        assert_eq!(call.unwrap().unwrap().status(), 200);
    }
    assert_eq!((door.entered(), door.peak()), (5, 1));
}

#[tokio::test]
async fn a_circuit_is_one_for_all_connections() {
    let hits = Arc::new(AtomicUsize::new(0));
    let counter = hits.clone();
    let failing = get(async move || {
        counter.fetch_add(1, SeqCst);
        StatusCode::INTERNAL_SERVER_ERROR
    });
    let breaker = CircuitBreaker::builder("handler").consecutive_failures(3).build().unwrap();
    let layer = CircuitBreakerLayer::from(breaker.clone()).http();
    let server = axum_server(Router::new().route("/", failing).layer(layer)).await;
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(fresh_client().request(get_request(server.uri("/"))).await.unwrap().status().as_u16());
    }
    assert_eq!(statuses, [500, 500, 500, 503, 503, 503]);
    assert_eq!((hits.load(SeqCst), breaker.state()), (3, State::Open));
}

#[tokio::test]
async fn a_timeout_is_a_504_and_the_handler_is_dropped() {
    let bulkhead = Bulkhead::new(1);
    let route = get(std::future::pending::<&str>);
    let layers = ServiceBuilder::new()
        .layer(TimeoutLayer::total(Duration::from_millis(5)).http())
        .layer(BulkheadLayer::from(bulkhead.clone()).http());
    let server = axum_server(Router::new().route("/", route).layer(layers)).await;
    assert_eq!(status(&server, "/").await, 504);
    eventually(|| bulkhead.in_flight() == 0).await;
}

#[tokio::test]
async fn health_endpoints_tell_start_up_readiness_and_liveness() {
    let health = Health::new();
    let server = axum_server(Router::new().layer(HealthLayer::new(health.clone()).http())).await;
    let all = async || {
        (status(&server, "/startupz").await, status(&server, "/readyz").await, status(&server, "/livez").await)
    };
    assert_eq!(all().await, (503, 503, 200));
    let database = health.readiness("database");
    health.started();
    assert_eq!(all().await, (200, 503, 200));
    database.up();
    assert_eq!(all().await, (200, 200, 200));
    database.down("gone");
    assert_eq!(all().await, (200, 503, 200));
    database.up();
    health.drain();
    assert_eq!(all().await, (200, 503, 200), "draining is no reason to be killed");
}

#[tokio::test]
async fn health_answers_get_and_head_and_nothing_else() {
    let health = Health::new();
    health.started();
    let server = axum_server(Router::new().layer(HealthLayer::new(health).http())).await;
    let response = client().request(get_request(server.uri("/readyz"))).await.unwrap();
    assert_eq!(
        (&response.headers()["x-health"], &response.headers()["cache-control"]),
        (&"up".parse().unwrap(), &"no-store".parse().unwrap())
    );
    assert_eq!(text(response).await, "up\n");
    let head = Request::head(server.uri("/readyz")).body(Body::empty()).unwrap();
    let response = client().request(head).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(text(response).await, "");
    assert_eq!(client().request(post(server.uri("/readyz"), "")).await.unwrap().status(), 404);
    assert_eq!(status(&server, "/readyz/more").await, 404);
}

#[tokio::test]
async fn health_is_answered_while_the_bulkhead_is_full() {
    let (door, health) = (Door::new(), Health::new());
    health.started();
    let route = get({
        let door = door.clone();
        || behind(door)
    });
    let layers = ServiceBuilder::new().layer(HealthLayer::new(health).http()).layer(BulkheadLayer::new(1).http());
    let server = axum_server(Router::new().route("/", route).layer(layers)).await;
    let busy = tokio::spawn(client().request(get_request(server.uri("/"))));
    door.arrival().await;
    assert_eq!(status(&server, "/").await, 503);
    assert_eq!(status(&server, "/livez").await, 200);
    assert_eq!(status(&server, "/readyz").await, 200);
    door.open();
    assert_eq!(soon(busy).await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_layer_that_answers_by_a_response_can_be_optional() {
    for (layer, expected) in [(Some(BulkheadLayer::new(0).http()), 503), (None, 200)] {
        let layers = ServiceBuilder::new()
            .layer(Identity::new())
            // The two arms have different body types, so both are converted to one.
            .map_response(|response: http::Response<_>| response.map(Body::new))
            .layer(option_layer(layer.map(|layer| {
                ServiceBuilder::new().map_response(|response: http::Response<_>| response.map(Body::new)).layer(layer).into_inner()
            })));
        let server = axum_server(Router::new().route("/", get(async || "here")).layer(layers)).await;
        assert_eq!(status(&server, "/").await, expected);
    }
}

#[tokio::test]
async fn a_streaming_response_holds_its_place_until_its_body_has_ended() {
    let (sender, route) = streams(());
    let bulkhead = Bulkhead::new(1);
    let server = axum_server(Router::new().route("/", route).layer(BulkheadLayer::from(bulkhead.clone()).http())).await;
    let response = client().request(get_request(server.uri("/"))).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!((bulkhead.in_flight(), status(&server, "/").await), (1, 503));
    drop(sender);
    assert_eq!(text(response).await, "");
    eventually(|| bulkhead.in_flight() == 0).await;
    assert_eq!(status(&server, "/").await, 200);
}

/// hyper does not poll a body whose end it can tell from `is_end_stream` or from its length.
#[tokio::test]
async fn a_body_that_hyper_stops_polling_is_a_success_all_the_same() {
    let endless = Body::from_stream(tokio_stream::StreamExt::chain(
        tokio_stream::once(Ok::<_, Infallible>("12345")),
        tokio_stream::pending(),
    ));
    let endless = Arc::new(std::sync::Mutex::new(Some(endless)));
    let promised = get(async move || ([(CONTENT_LENGTH, "5")], endless.lock().unwrap().take().unwrap()));
    let breaker = CircuitBreaker::new("handler");
    let router = Router::new()
        .route("/empty", get(async || StatusCode::NO_CONTENT))
        .route("/whole", get(async || reply(200, "12345")))
        .route("/promised", promised)
        .layer(CircuitBreakerLayer::from(breaker.clone()).http());
    let server = axum_server(router).await;
    for (done, path) in ["/empty", "/whole", "/promised"].into_iter().enumerate() {
        let response = client().request(get_request(server.uri(path))).await.unwrap();
        assert_eq!(text(response).await, if path == "/empty" { "" } else { "12345" });
        eventually(|| breaker.snapshot().counts.succeeded == done as u64 + 1).await;
    }
}

#[tokio::test]
async fn draining_is_final_whatever_is_reported_afterwards() {
    let health = Health::new();
    let database = health.readiness("database");
    health.started();
    database.up();
    let server = axum_server(Router::new().layer(HealthLayer::new(health.clone()).http())).await;
    assert_eq!(status(&server, "/readyz").await, 200);
    health.drain();
    let late = health.readiness("late");
    for report in [
        &(|| database.up()) as &dyn Fn(),
        &|| database.down("gone"),
        &|| database.up(),
        &|| health.started(),
        &|| late.up(),
        &|| health.drain(),
    ] {
        report();
        let probes =
            (status(&server, "/startupz").await, status(&server, "/readyz").await, status(&server, "/livez").await);
        assert_eq!(probes, (200, 503, 200));
    }
    drop((database, late));
    assert_eq!(status(&server, "/readyz").await, 503);
}
