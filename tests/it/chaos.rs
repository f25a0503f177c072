//! Injected faults as they arrive through real hyper and tonic.

use axum::{Router, body::Body, routing::get};
use buttress::chaos::{Fault, Faults, FaultsBuilder};
use buttress_http::prelude::*;
use buttress_stack_tests::{
    Script, Server, ask, axum_server, channel, client, client_h2, get as get_request, grpc_server, soon, text,
};
use http_body_util::BodyExt;
use tonic::{Code, Status};
use tonic_health::pb::{health_client::HealthClient, health_server::HealthServer};

fn chaos(faults: FaultsBuilder) -> Chaos {
    let chaos = Chaos::new();
    chaos.set(faults.build().unwrap());
    chaos
}

/// A server whose answer has a known length, and one whose has not.
async fn server(chaos: &Chaos) -> Server {
    let chunks =
        || async { Body::from_stream(futures_util::stream::iter(["first ", "second"].map(Ok::<_, std::io::Error>))) };
    let routes = Router::new().route("/", get(async || "some content")).route("/chunks", get(chunks));
    axum_server(routes.layer(ChaosLayer::from(chaos.clone()).http())).await
}

/// Returns the content of a response, or `None` if it broke.
async fn content(
    response: Result<http::Response<hyper::body::Incoming>, hyper_util::client::legacy::Error>,
) -> Option<String> {
    let body = soon(response.expect("the head arrives").into_body().collect()).await.ok()?.to_bytes();
    Some(String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_reset_breaks_the_response_after_its_head_over_both_versions_of_http() {
    let chaos = chaos(Faults::builder().resets(1.0));
    let server = server(&chaos).await;
    for path in ["/", "/chunks"] {
        assert_eq!(content(soon(client().request(get_request(server.uri(path)))).await).await, None, "{path}");
        assert_eq!(content(soon(client_h2().request(get_request(server.uri(path)))).await).await, None, "{path}");
    }
    assert_eq!(chaos.injected(Fault::Reset), 4);
    chaos.off();
    let response = soon(client().request(get_request(server.uri("/")))).await.unwrap();
    assert_eq!(text(response).await, "some content");
}

#[tokio::test]
async fn a_truncated_body_is_noticed_where_its_length_was_announced() {
    let chaos = chaos(Faults::builder().truncations(1.0));
    let server = server(&chaos).await;
    let announced = soon(client().request(get_request(server.uri("/")))).await;
    assert_eq!(content(announced).await, None);
    // Without a length a shorter body looks like a whole one.
    let chunked = soon(client().request(get_request(server.uri("/chunks")))).await;
    assert_eq!(content(chunked).await.as_deref(), Some("fir"));
}

async fn check(chaos: &Chaos) -> Result<(), Status> {
    let script = Script::new();
    let layer = ChaosLayer::from(chaos.clone()).grpc();
    let router = tonic::transport::Server::builder().layer(layer).add_service(HealthServer::new(script));
    let server = grpc_server(router).await;
    soon(HealthClient::new(channel(&server)).check(ask("ok"))).await.map(drop)
}

#[tokio::test]
async fn a_grpc_call_fails_by_its_status_by_missing_trailers_and_by_a_reset() {
    check(&chaos(Faults::builder())).await.unwrap();
    let status = check(&chaos(Faults::builder().errors(1.0))).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "injected fault"));
    for faults in
        [Faults::builder().lost_trailers(1.0), Faults::builder().truncations(1.0), Faults::builder().resets(1.0)]
    {
        let chaos = chaos(faults);
        check(&chaos).await.unwrap_err();
        let injected: u64 = Fault::ALL.into_iter().map(|fault| chaos.injected(fault)).sum();
        assert_eq!(injected, 1);
    }
}

#[tokio::test]
async fn a_client_takes_an_injected_fault_for_one_of_its_backend() {
    let none = chaos(Faults::builder());
    let server = server(&none).await;
    let breaker = CircuitBreaker::builder("backend").consecutive_failures(3).build().unwrap();
    let resets = chaos(Faults::builder().resets(1.0));
    let stack = tower::ServiceBuilder::new()
        .layer(CircuitBreakerLayer::from(breaker.clone()).http_client())
        .layer(ChaosLayer::from(resets).http_client())
        .service(client());
    for _ in 0..3 {
        let response = soon(tower::ServiceExt::oneshot(stack.clone(), get_request(server.uri("/")))).await.unwrap();
        soon(response.into_body().collect()).await.unwrap_err();
    }
    assert_eq!(breaker.state(), buttress::circuit_breaker::State::Open);
}
