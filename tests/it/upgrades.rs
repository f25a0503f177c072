//! WebSockets and tunnels: a place in a bulkhead is held until the upgraded connection closes, on
//! client and server.

use axum::{
    Router,
    body::Body,
    extract::ws::{Message, WebSocketUpgrade},
    routing::any,
};
use buttress::{BoxError, circuit_breaker::State};
use buttress_http::prelude::*;
use buttress_stack_tests::{
    Server, axum_server, client, eventually, fresh_client, get as get_request, hyper_server, soon, text,
};
use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE},
};
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};

/// Echoes the messages of a WebSocket until it is closed.
fn web_socket() -> Router {
    let handler = async |upgrade: WebSocketUpgrade| {
        upgrade.on_upgrade(async |mut socket| {
            while let Some(Ok(message @ Message::Text(_))) = socket.recv().await {
                if socket.send(message).await.is_err() {
                    return;
                }
            }
        })
    };
    Router::new().route("/", any(handler)).route("/plain", any(async || "no upgrade"))
}

/// Upgrades a request, or turns its connection into a tunnel, and echoes what it receives.
pub(crate) async fn echo(mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let is_tunnel = request.method() == Method::CONNECT;
    if !is_tunnel && !request.headers().contains_key(UPGRADE) {
        return Ok(Response::new(Body::from("no upgrade")));
    }
    let connection = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (mut reader, mut writer) = tokio::io::split(TokioIo::new(connection.await.unwrap()));
        // Ends when the peer closes.
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
        let _ = writer.shutdown().await;
    });
    let mut response = Response::new(Body::empty());
    if !is_tunnel {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        response.headers_mut().insert(UPGRADE, HeaderValue::from_static("echo"));
    }
    Ok(response)
}

fn upgrade(server: &Server, protocol: &'static str) -> Request<Body> {
    let mut request = get_request(server.uri("/"));
    let headers = request.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(protocol));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
    request
}

/// A WebSocket text frame: masked with zeros, as a client must mask it, or unmasked.
fn frame(content: &[u8], is_masked: bool) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap();
    assert!(length < 126, "a short frame");
    let mask: &[u8] = if is_masked { &[0; 4] } else { &[] };
    [&[0x81, length | u8::from(is_masked) << 7], mask, content].concat()
}

/// Sends data and waits for the expected answer.
async fn ping(io: &mut (impl AsyncRead + AsyncWrite + Unpin), said: &[u8], heard: &[u8]) {
    io.write_all(said).await.unwrap();
    let mut answer = vec![0; heard.len()];
    soon(io.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer, heard);
}

async fn upgraded<B>(response: Response<B>) -> TokioIo<Upgraded> {
    TokioIo::new(soon(hyper::upgrade::on(response)).await.unwrap())
}

async fn status(server: &Server) -> StatusCode {
    soon(fresh_client().request(get_request(server.uri("/plain")))).await.unwrap().status()
}

#[tokio::test]
async fn a_web_socket_holds_its_place_on_the_server_until_it_closes() {
    let bulkhead = Bulkhead::new(1);
    let server = axum_server(web_socket().layer(BulkheadLayer::from(bulkhead.clone()).http())).await;
    for _ in 0..2 {
        let response = soon(client().request(upgrade(&server, "websocket"))).await.unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let mut socket = upgraded(response).await;
        for word in ["one", "two"] {
            ping(&mut socket, &frame(word.as_bytes(), true), &frame(word.as_bytes(), false)).await;
            assert_eq!((bulkhead.in_flight(), status(&server).await.as_u16()), (1, 503));
        }
        drop(socket);
        eventually(|| bulkhead.in_flight() == 0).await;
        assert_eq!(status(&server).await, StatusCode::OK);
        eventually(|| bulkhead.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn a_web_socket_over_http_2_holds_its_place_on_the_server_until_it_closes() {
    let bulkhead = Bulkhead::new(1);
    let server = axum_server(web_socket().layer(BulkheadLayer::from(bulkhead.clone()).http())).await;
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let (send, mut connection) = h2::client::handshake(tcp).await.unwrap();
    // The server's settings advertise extended CONNECT, so wait for them.
    let mut ping_pong = connection.ping_pong().unwrap();
    tokio::spawn(connection);
    soon(ping_pong.ping(h2::Ping::opaque())).await.unwrap();
    let mut send = soon(send.ready()).await.unwrap();
    assert!(send.is_extended_connect_protocol_enabled());
    let mut request = Request::connect(server.uri("/")).body(()).unwrap();
    request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    request.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    let (response, mut sender) = send.send_request(request, false).unwrap();
    let response = soon(response).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    sender.send_data(Bytes::from(frame(b"one", true)), false).unwrap();
    assert_eq!(soon(body.data()).await.unwrap().unwrap(), frame(b"one", false));
    assert_eq!((bulkhead.in_flight(), status(&server).await.as_u16()), (1, 503));
    sender.send_data(Bytes::new(), true).unwrap();
    eventually(|| bulkhead.in_flight() == 0).await;
    assert_eq!(status(&server).await, StatusCode::OK);
}

#[tokio::test]
async fn a_tunnel_holds_its_place_on_the_server_until_it_closes() {
    let bulkhead = Bulkhead::new(1);
    let server = hyper_server(BulkheadLayer::from(bulkhead.clone()).http().layer(service_fn(echo))).await;
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let request = Request::connect("example.org:443").body(Body::empty()).unwrap();
    let response = soon(send.send_request(request)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut tunnel = upgraded(response).await;
    ping(&mut tunnel, b"ping", b"ping").await;
    assert_eq!((bulkhead.in_flight(), status(&server).await.as_u16()), (1, 503));
    drop(tunnel);
    eventually(|| bulkhead.in_flight() == 0).await;
    assert_eq!(status(&server).await, StatusCode::OK);
}

#[tokio::test]
async fn an_upgraded_connection_holds_its_place_in_the_client_until_it_closes() {
    let server = hyper_server(service_fn(echo)).await;
    let bulkhead = Bulkhead::new(1);
    let service = BulkheadLayer::from(bulkhead.clone()).http_client().layer(client());
    let response = soon(service.clone().oneshot(upgrade(&server, "echo"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut connection = upgraded(response).await;
    for _ in 0..2 {
        ping(&mut connection, b"ping", b"ping").await;
        let refused = service.clone().oneshot(get_request(server.uri("/plain"))).await;
        assert!(refused.unwrap_err().rejection().is_some());
        assert_eq!(bulkhead.in_flight(), 1);
    }
    connection.shutdown().await.unwrap();
    assert_eq!(soon(connection.read(&mut [0])).await.unwrap(), 0);
    drop(connection);
    eventually(|| bulkhead.in_flight() == 0).await;
    let response = soon(service.oneshot(get_request(server.uri("/plain")))).await.unwrap();
    assert_eq!(text(response).await, "no upgrade");
}

#[tokio::test]
async fn an_upgrade_that_the_client_does_not_take_gives_its_place_back() {
    let server = hyper_server(service_fn(echo)).await;
    let bulkhead = Bulkhead::new(1);
    let service = BulkheadLayer::from(bulkhead.clone()).http_client().layer(client());
    drop(soon(service.oneshot(upgrade(&server, "echo"))).await.unwrap());
    eventually(|| bulkhead.in_flight() == 0).await;
}

#[tokio::test]
async fn a_handler_that_does_not_upgrade_gives_its_place_back() {
    let bulkhead = Bulkhead::new(1);
    let refuses = Router::new().route("/", any(async || "not here"));
    let server = axum_server(refuses.layer(BulkheadLayer::from(bulkhead.clone()).http())).await;
    for _ in 0..2 {
        let response = soon(client().request(upgrade(&server, "websocket"))).await.unwrap();
        assert_eq!(text(response).await, "not here");
        eventually(|| bulkhead.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn a_handler_that_drops_its_upgraded_connection_gives_the_place_back() {
    let bulkhead = Bulkhead::new(1);
    let handler = service_fn(async |_: Request<Incoming>| {
        let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS).header(UPGRADE, "echo");
        Ok::<_, BoxError>(response.header(CONNECTION, "upgrade").body(Body::empty()).unwrap())
    });
    let server = hyper_server(BulkheadLayer::from(bulkhead.clone()).http().layer(handler)).await;
    let response = soon(client().request(upgrade(&server, "echo"))).await.unwrap();
    let mut connection = upgraded(response).await;
    assert_eq!(soon(connection.read(&mut [0])).await.unwrap(), 0);
    drop(connection);
    eventually(|| bulkhead.in_flight() == 0).await;
}

#[tokio::test]
async fn a_circuit_alone_counts_an_upgrade_at_its_head_and_leaves_the_connection_alone() {
    let [handler, backend] = ["handler", "backend"].map(CircuitBreaker::new);
    let layer = CircuitBreakerLayer::from(handler.clone()).http();
    let server = axum_server(web_socket().layer(layer)).await;
    let service = CircuitBreakerLayer::from(backend.clone()).http_client().layer(client());
    let response = soon(service.oneshot(upgrade(&server, "websocket"))).await.unwrap();
    for breaker in [&handler, &backend] {
        assert_eq!((breaker.snapshot().counts.succeeded, breaker.state()), (1, State::Closed));
    }
    let mut socket = upgraded(response).await;
    ping(&mut socket, &frame(b"one", true), &frame(b"one", false)).await;
    drop(socket);
    assert_eq!(handler.snapshot().counts.total(), 1);
}

#[tokio::test]
async fn a_whole_stack_on_both_sides_carries_an_upgraded_connection() {
    let [there, here] = [Bulkhead::new(1), Bulkhead::new(1)];
    let patience = buttress_stack_tests::PATIENCE;
    let layers = ServiceBuilder::new()
        .layer(TimeoutLayer::total(patience).http())
        .layer(CircuitBreakerLayer::new("handler").http())
        .layer(BulkheadLayer::from(there.clone()).queue(1, patience).http());
    let server = axum_server(web_socket().layer(layers)).await;
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::total(patience).http_client())
        .layer(RetryLayer::new(2).http_client())
        .layer(CircuitBreakerLayer::new("backend").http_client())
        .layer(BulkheadLayer::from(here.clone()).queue(1, patience).http_client())
        .layer(TimeoutLayer::attempt(patience).http_client())
        .service(client());
    let response = soon(service.oneshot(upgrade(&server, "websocket"))).await.unwrap();
    let mut socket = upgraded(response).await;
    ping(&mut socket, &frame(b"one", true), &frame(b"one", false)).await;
    assert_eq!((there.in_flight(), here.in_flight()), (1, 1));
    drop(socket);
    eventually(|| there.in_flight() + here.in_flight() == 0).await;
}
