//! Uploads that their caller aborts: no failure on either side, and all resources are released.

use axum::{Router, body::Body};
use buttress::circuit_breaker::State;
use buttress_http::prelude::*;
use buttress_stack_tests::{
    Door, Script, Server, axum_server, channel, client, client_h2, eventually, grpc_server, post, soon,
};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, channel::Channel};
use std::io;
use tokio::net::TcpStream;
use tonic_health::pb::health_server::HealthServer;
use tower::{Layer, Service, ServiceBuilder, ServiceExt};

/// Reads a whole upload, after the test was notified that it has begun.
fn reads_all(door: &Door) -> Router {
    let door = door.clone();
    door.open_wide();
    Router::new().fallback(async move |body: Body| {
        door.pass().await;
        match body.collect().await {
            Ok(_) => StatusCode::OK,
            Err(_) => StatusCode::BAD_REQUEST,
        }
    })
}

/// Starts an upload. Returns the sender of its body and the call.
async fn begun<S, B>(
    service: S,
    server: &Server,
    door: &Door,
) -> (http_body_util::channel::Sender<Bytes, io::Error>, tokio::task::JoinHandle<Result<S::Response, S::Error>>)
where
    S: Service<Request<Body>, Response = Response<B>, Error: Send, Future: Send> + Send + 'static,
    B: Send + 'static,
{
    let (mut sender, body) = Channel::new(8);
    let call = tokio::spawn(service.oneshot(post(server.uri("/"), Body::new(body))));
    sender.send_data(Bytes::from_static(b"half")).await.unwrap();
    door.arrival().await;
    (sender, call)
}

#[tokio::test]
async fn a_client_whose_caller_breaks_its_upload_off_learns_nothing_of_the_backend() {
    for (client, attempts) in [(client(), 1), (client_h2(), 1), (client(), 3), (client_h2(), 3)] {
        let door = Door::new();
        let server = axum_server(reads_all(&door)).await;
        let (breaker, bulkhead, retry) = (CircuitBreaker::new("backend"), Bulkhead::new(1), RetryLayer::new(attempts));
        let stats = retry.stats();
        let service = ServiceBuilder::new()
            .layer(retry.http_client())
            .layer(CircuitBreakerLayer::from(breaker.clone()).http_client())
            .layer(BulkheadLayer::from(bulkhead.clone()).http_client())
            .service(client);
        // The body fails, or the caller closes the connection.
        for fails in [true, false] {
            let (sender, call) = begun(service.clone(), &server, &door).await;
            if fails {
                sender.abort(io::Error::other("the disk is gone"));
                assert!(soon(call).await.unwrap().is_err());
            } else {
                call.abort();
                assert!(call.await.unwrap_err().is_cancelled());
            }
            assert_eq!((bulkhead.in_flight(), stats.retries() + stats.transparent()), (0, 0));
            assert_eq!((breaker.snapshot().counts.total(), breaker.state()), (0, State::Closed));
        }
    }
}

#[tokio::test]
async fn a_server_whose_client_breaks_its_upload_off_gives_the_place_back_and_counts_no_failure() {
    let (breaker, bulkhead) = (CircuitBreaker::new("handler"), Bulkhead::new(1));
    let layers = ServiceBuilder::new()
        .layer(BulkheadLayer::from(bulkhead.clone()).http())
        .layer(CircuitBreakerLayer::from(breaker.clone()).http());
    let door = Door::new();
    let server = axum_server(reads_all(&door).layer(layers)).await;
    for client in [client(), client_h2()] {
        let (sender, call) = begun(client.clone(), &server, &door).await;
        assert_eq!(bulkhead.in_flight(), 1);
        sender.abort(io::Error::other("the disk is gone"));
        assert!(soon(call).await.unwrap().is_err());
        eventually(|| bulkhead.in_flight() == 0).await;

        let (_sender, call) = begun(client, &server, &door).await;
        call.abort();
        eventually(|| bulkhead.in_flight() == 0).await;
    }
    assert_eq!((breaker.snapshot().counts.failed, breaker.state()), (0, State::Closed));
}

#[tokio::test]
async fn a_grpc_client_whose_caller_breaks_its_stream_off_learns_nothing_of_the_backend() {
    let door = Door::new();
    let routes = tonic::service::Routes::from(reads_all(&door));
    let server = grpc_server(tonic::transport::Server::builder().add_routes(routes)).await;
    let breaker = CircuitBreaker::new("backend");
    let channel = channel(&server).map_request(|request: Request<Body>| request.map(tonic::body::Body::new));
    let service = CircuitBreakerLayer::from(breaker.clone()).grpc_client().layer(channel);
    let (sender, call) = begun(service.clone(), &server, &door).await;
    sender.abort(io::Error::other("the disk is gone"));
    assert!(soon(call).await.unwrap().is_err());
    let (_sender, call) = begun(service, &server, &door).await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    assert_eq!((breaker.snapshot().counts.total(), breaker.state()), (0, State::Closed));
}

#[tokio::test]
async fn a_grpc_server_whose_client_breaks_a_message_off_gives_the_place_back_and_counts_no_failure() {
    let (bulkhead, breaker) = (Bulkhead::new(1), CircuitBreaker::new("handler"));
    let layer = ServiceBuilder::new()
        .layer(BulkheadLayer::from(bulkhead.clone()).grpc())
        .layer(CircuitBreakerLayer::from(breaker.clone()).grpc())
        .into_inner();
    let router = tonic::transport::Server::builder().layer(layer).add_service(HealthServer::new(Script::new()));
    let server = grpc_server(router).await;
    for resets in [true, false] {
        let tcp = TcpStream::connect(server.address).await.unwrap();
        let (send, connection) = h2::client::handshake(tcp).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut send = soon(send.ready()).await.unwrap();
        let request = Request::post(server.uri("/grpc.health.v1.Health/Check")).header("te", "trailers");
        let request = request.header("content-type", "application/grpc").body(()).unwrap();
        let (_response, mut body) = send.send_request(request, false).unwrap();
        // Two bytes of a message of four.
        body.send_data(Bytes::from_static(b"\0\0\0\0\x04\x0a\x02"), false).unwrap();
        eventually(|| bulkhead.in_flight() == 1).await;
        if resets {
            body.send_reset(h2::Reason::CANCEL);
        } else {
            connection.abort();
        }
        eventually(|| bulkhead.in_flight() == 0).await;
    }
    assert_eq!((breaker.snapshot().counts.failed, breaker.state()), (0, State::Closed));
}
