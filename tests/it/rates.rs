//! Limits on calls per time over sockets: callers that hang up while they wait, uploads that wait,
//! and what a client makes of a server that is over its rate.

use axum::{Router, body::Body};
use buttress::rate_limit::Quota;
use buttress_http::{prelude::*, tonic::StatusLayer};
use buttress_stack_tests::{
    Script, ask, axum_server, channel, client, client_h2, eventually, get, grpc_server, post, soon,
};
use bytes::Bytes;
use http_body_util::{BodyExt, channel::Channel};
use std::{io, time::Duration};
use tokio::task::JoinSet;
use tonic::{Code, transport::Server};
use tonic_health::pb::{health_client::HealthClient, health_server::HealthServer};
use tower::{ServiceBuilder, ServiceExt};

const HOUR: Duration = Duration::from_secs(3600);

/// Whether a call waits for its turn at a limit of one in an hour.
fn waits(limit: &RateLimit) -> bool {
    limit.retry_after(1) > Some(HOUR)
}

#[tokio::test]
async fn a_caller_that_hangs_up_while_it_waits_for_its_turn_gives_it_back() {
    for is_h2 in [false, true] {
        let limit = RateLimit::new(1, HOUR);
        let layer = RateLimitLayer::from(limit.clone()).wait(Duration::MAX).http();
        let server = axum_server(Router::new().fallback(async || "here").layer(layer)).await;
        let client = || if is_h2 { client_h2() } else { client() };
        assert_eq!(soon(client().request(get(server.uri("/")))).await.unwrap().status(), 200);
        let (_sender, endless) = Channel::<Bytes, io::Error>::new(1);
        let bodies = [Body::empty(), Body::from("a body"), Body::from(vec![7; 300_000]), Body::new(endless)];
        // Over HTTP/1 hyper reads no more than the first piece of a body before the handler does,
        // and until it has read all does not see that the connection has ended.
        for body in bodies.into_iter().take(if is_h2 { 4 } else { 2 }) {
            let call = tokio::spawn(client().request(post(server.uri("/"), body)));
            eventually(|| waits(&limit)).await;
            call.abort();
            eventually(|| !waits(&limit)).await;
        }
    }
}

#[tokio::test]
async fn uploads_that_wait_for_their_turn_do_not_stall_those_at_work() {
    let limit = RateLimit::new(1, HOUR).burst(5);
    let layer = RateLimitLayer::from(limit.clone()).wait(Duration::MAX).http();
    let length = async |body: Body| body.collect().await.unwrap().to_bytes().len().to_string();
    let server = axum_server(Router::new().fallback(length).layer(layer)).await;
    let client = client_h2();
    let upload = || post(server.uri("/"), vec![7; 256 * 1024]);
    // Establishes the connection before it is shared.
    soon(client.request(upload())).await.unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..50 {
        calls.spawn(client.request(upload()));
    }
    // Those that wait have filled the window of the connection several times.
    for _ in 0..4 {
        let response = soon(calls.join_next()).await.unwrap().unwrap().unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "262144");
    }
    eventually(|| limit.waited() == 46).await;
    calls.abort_all();
    // The last one gives its turn back, and others that no later one waits behind.
    eventually(|| limit.retry_after(1) <= Some(46 * HOUR)).await;
    drop(client);
}

#[tokio::test]
async fn a_grpc_client_over_the_rate_is_told_when_to_come_back_and_a_retry_does() {
    let limit = RateLimit::new(1, HOUR);
    let layer = RateLimitLayer::from(limit.clone()).grpc();
    let server = grpc_server(Server::builder().layer(layer).add_service(HealthServer::new(Script::new()))).await;
    let mut bare = HealthClient::new(channel(&server));
    soon(bare.check(ask("ok"))).await.unwrap();
    let status = soon(bare.check(ask("ok"))).await.unwrap_err();
    let pushback: u64 = status.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap().parse().unwrap();
    assert_eq!((status.code(), pushback > 3_000_000), (Code::ResourceExhausted, true), "{pushback}");

    limit.reload(Quota::new(1, Duration::from_millis(200))).unwrap();
    let retry = RetryLayer::new(10).grpc_client();
    let stats = retry.stats();
    let stack = ServiceBuilder::new().layer(StatusLayer).layer(retry).service(channel(&server));
    let (mut first, mut second) = (HealthClient::new(stack.clone()), HealthClient::new(stack));
    soon(async {
        while stats.retries() == 0 {
            tokio::try_join!(first.check(ask("ok")), second.check(ask("ok"))).unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_learns_from_a_server_that_rejects_for_its_rate_or_its_places() {
    let service = || HealthServer::new(Script::new());
    let rate = || RateLimitLayer::per_second(0);
    let places = || BulkheadLayer::new(0);
    let app = || Router::new().fallback(async || "here");
    let http = [axum_server(app().layer(rate().http())).await, axum_server(app().layer(places().http())).await];
    for server in http {
        let (throttle, rate) = (Throttle::new("backend"), AdaptiveRate::new());
        let stack = ServiceBuilder::new()
            .layer(ThrottleLayer::from(throttle.clone()).http_client())
            .layer(AdaptiveRateLayer::from(rate.clone()).http_client())
            .service(client());
        let status = soon(stack.oneshot(get(server.uri("/")))).await.unwrap().status();
        assert!(matches!(status.as_u16(), 429 | 503));
        assert_eq!((throttle.counts().requests, throttle.counts().accepted, rate.throttled()), (1, 0, 1));
    }
    let grpc = [
        grpc_server(Server::builder().layer(rate().grpc()).add_service(service())).await,
        grpc_server(Server::builder().layer(places().grpc()).add_service(service())).await,
    ];
    for server in grpc {
        let (throttle, rate) = (Throttle::new("backend"), AdaptiveRate::new());
        let stack = ServiceBuilder::new()
            .layer(ThrottleLayer::from(throttle.clone()).grpc_client())
            .layer(AdaptiveRateLayer::from(rate.clone()).grpc_client())
            .service(channel(&server));
        let status = soon(HealthClient::new(stack).check(ask("ok"))).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!((throttle.counts().requests, throttle.counts().accepted, rate.throttled()), (1, 0, 1));
    }
}
