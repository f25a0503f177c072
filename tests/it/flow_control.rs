//! Flow control of HTTP/2: readers that stop, stalled bodies, and uploads that wait in a queue.

use axum::{Router, body::Body, routing::get};
use buttress::{error::find_rejection, policy::TimeoutKind};
use buttress_http::prelude::*;
use buttress_stack_tests::{
    Door, PATIENCE, Script, Server, ask, axum_server, channel, client, client_h2, eventually, get as get_request,
    grpc_server, post, soon, streams, text,
};
use bytes::Bytes;
use h2::{RecvStream, client::SendRequest};
use http::{HeaderValue, Request, Response, Uri, header::CONTENT_TYPE};
use http_body_util::BodyExt;
use std::{convert::Infallible, error::Error as StdError, fmt, time::Duration};
use tokio::{net::TcpStream, task::JoinSet};
use tokio_stream::StreamExt;
use tonic_health::pb::{health_client::HealthClient, health_server::HealthServer};
use tower::{Service, ServiceBuilder, ServiceExt};

/// An HTTP/2 client with a window of 0: no part of a body can be sent to it.
async fn never_reads(server: &Server) -> SendRequest<Bytes> {
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let (send, connection) = h2::client::Builder::new().initial_window_size(0).handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    send
}

/// Starts four responses whose bodies cannot be sent.
async fn four_stalled(server: &Server, request: impl Fn() -> (Request<()>, Bytes)) -> Vec<Response<RecvStream>> {
    let mut send = never_reads(server).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        send = soon(send.ready()).await.unwrap();
        let (request, content) = request();
        let (response, mut body) = send.send_request(request, false).unwrap();
        body.send_data(content, true).unwrap();
        held.push(soon(response).await.unwrap());
    }
    held
}

fn in_chunks() -> Body {
    Body::from_stream(tokio_stream::iter(["hi", "there"].map(Ok::<_, Infallible>)))
}

#[tokio::test]
async fn a_reader_that_stops_does_not_hold_a_servers_places() {
    let bulkhead = Bulkhead::new(4);
    let layers = ServiceBuilder::new()
        .layer(TimeoutLayer::total(PATIENCE).reader_stall(Duration::from_millis(20)).http())
        .layer(BulkheadLayer::from(bulkhead.clone()).http());
    let server = axum_server(Router::new().route("/", get(async || in_chunks())).layer(layers)).await;
    let stalled = four_stalled(&server, || (Request::get(server.uri("/")).body(()).unwrap(), Bytes::new())).await;
    eventually(|| bulkhead.in_flight() == 0).await;
    assert_eq!(text(soon(client().request(get_request(server.uri("/")))).await.unwrap()).await, "hithere");
    drop(stalled);
}

#[tokio::test]
async fn a_reader_that_stops_does_not_hold_the_places_of_an_adaptive_limit() {
    let limit = AdaptiveLimit::builder("handlers").limits(4..=4).build().unwrap();
    let layers = ServiceBuilder::new()
        .layer(TimeoutLayer::total(PATIENCE).reader_stall(Duration::from_millis(20)).http())
        .layer(AdaptiveLimitLayer::from(limit.clone()).http());
    let server = axum_server(Router::new().route("/", get(async || in_chunks())).layer(layers)).await;
    let stalled = four_stalled(&server, || (Request::get(server.uri("/")).body(()).unwrap(), Bytes::new())).await;
    eventually(|| limit.in_flight() == 0).await;
    assert_eq!(limit.snapshot().streaming, 0);
    assert_eq!(text(soon(client().request(get_request(server.uri("/")))).await.unwrap()).await, "hithere");
    drop(stalled);
}

#[tokio::test]
async fn a_grpc_reader_that_stops_does_not_hold_a_servers_places() {
    let (script, bulkhead) = (Script::new(), Bulkhead::new(4));
    let layers = ServiceBuilder::new()
        .layer(TimeoutLayer::total(PATIENCE).reader_stall(Duration::from_millis(20)).grpc())
        .layer(BulkheadLayer::from(bulkhead.clone()).grpc());
    let router = tonic::transport::Server::builder().layer(layers).add_service(HealthServer::new(script));
    let server = grpc_server(router).await;
    let stalled = four_stalled(&server, || {
        let request = Request::post(server.uri("/grpc.health.v1.Health/Check"));
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        (request.body(()).unwrap(), Bytes::from_static(b"\0\0\0\0\x04\x0a\x02ok"))
    })
    .await;
    eventually(|| bulkhead.in_flight() == 0).await;
    soon(HealthClient::new(channel(&server)).check(ask("ok"))).await.unwrap();
    drop(stalled);
}

#[tokio::test]
async fn a_handler_that_stands_still_in_its_body_is_cut_off() {
    let (mut sender, route) = streams(());
    let bulkhead = Bulkhead::new(1);
    let layers = ServiceBuilder::new()
        .layer(TimeoutLayer::total(PATIENCE).body_idle(Duration::from_millis(20)).http())
        .layer(BulkheadLayer::from(bulkhead.clone()).http());
    let server = axum_server(Router::new().route("/", route).layer(layers)).await;
    sender.send_data(Bytes::from_static(b"half")).await.unwrap();
    let mut body = soon(client().request(get_request(server.uri("/")))).await.unwrap().into_body();
    assert_eq!(soon(body.frame()).await.unwrap().unwrap().into_data().unwrap(), "half");
    assert!(soon(body.frame()).await.unwrap().is_err(), "the connection breaks, so that half is not taken for all");
    eventually(|| bulkhead.in_flight() == 0).await;
    assert!(sender.send_data(Bytes::from_static(b"too late")).await.is_err());
}

#[tokio::test]
async fn a_body_without_an_end_is_cut_off_although_it_goes_on() {
    let endless = async || Body::from_stream(ticks().map(Ok::<_, Infallible>));
    let bulkhead = Bulkhead::new(1);
    let layers = ServiceBuilder::new()
        .layer(TimeoutLayer::total(PATIENCE).body_total(Duration::from_millis(50)).http())
        .layer(BulkheadLayer::from(bulkhead.clone()).http());
    for client in [client(), client_h2()] {
        let server = axum_server(Router::new().route("/", get(endless)).layer(layers.clone())).await;
        let response = soon(client.request(get_request(server.uri("/")))).await.unwrap();
        assert!(soon(response.into_body().collect()).await.is_err());
        eventually(|| bulkhead.in_flight() == 0).await;
    }
}

/// One chunk per millisecond.
fn ticks() -> impl tokio_stream::Stream<Item = &'static str> + Send {
    tokio_stream::wrappers::IntervalStream::new(tokio::time::interval(Duration::from_millis(1))).map(|_| "tick")
}

/// The kind of timeout that ended a body.
fn timed_out(error: &(dyn StdError + 'static)) -> TimeoutKind {
    find_rejection(error).expect("one of ours").reason().timeout_kind().expect("a timeout")
}

#[tokio::test]
async fn a_client_gives_up_a_body_that_stands_still_or_goes_on_without_an_end() {
    let short = Duration::from_millis(50);
    for (layer, kind) in [
        (TimeoutLayer::total(PATIENCE).body_idle(short), TimeoutKind::Idle),
        (TimeoutLayer::total(PATIENCE).body_total(short), TimeoutKind::Body),
    ] {
        for client in [client(), client_h2()] {
            let (mut sender, route) = streams(());
            let server = axum_server(Router::new().route("/", route)).await;
            let bulkhead = Bulkhead::new(1);
            let layers = ServiceBuilder::new()
                .layer(layer.clone().http_client())
                .layer(BulkheadLayer::from(bulkhead.clone()).http_client());
            sender.send_data(Bytes::from_static(b"half")).await.unwrap();
            let response = soon(layers.service(client).oneshot(get_request(server.uri("/")))).await.unwrap();
            let error = soon(response.into_body().collect()).await.unwrap_err();
            assert_eq!((timed_out(&*error), bulkhead.in_flight()), (kind, 0));
        }
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_gives_its_place_back_when_it_is_bounded() {
    let (mut sender, route) = streams(());
    let server = axum_server(Router::new().route("/", route)).await;
    let bulkhead = Bulkhead::new(1);
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::total(PATIENCE).reader_stall(Duration::from_millis(20)).http_client())
        .layer(BulkheadLayer::from(bulkhead.clone()).http_client())
        .service(client());
    sender.send_data(Bytes::from_static(b"half")).await.unwrap();
    let response = soon(service.oneshot(get_request(server.uri("/")))).await.unwrap();
    eventually(|| bulkhead.in_flight() == 0).await;
    let error = soon(response.into_body().collect()).await.unwrap_err();
    assert_eq!(timed_out(&*error), TimeoutKind::Reader);
}

/// An upload in chunks of 16 KiB.
fn upload(uri: Uri, chunks: usize) -> Request<Body> {
    let chunk = Bytes::from(vec![7; 16 * 1024]);
    let body = Body::from_stream(tokio_stream::iter((0..chunks).map(move |_| Ok::<_, Infallible>(chunk.clone()))));
    let mut request = post(uri, body);
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    request
}

/// Reads a whole upload behind this door and returns its length in a header. The response is also a
/// valid gRPC status.
fn reads_all(door: &Door) -> Router {
    let door = door.clone();
    Router::new().fallback(async move |body: Body| {
        door.pass().await;
        let length = body.collect().await.unwrap().to_bytes().len();
        ([("x-length", length.to_string()), ("grpc-status", "0".to_owned())], ())
    })
}

/// Sends 100 uploads of 256 KiB on one connection to a server that serves four at a time. The
/// connection's window is smaller than the pending uploads, so the four could not be read if the
/// others were not read ahead.
async fn a_hundred_uploads<S, B>(server: &Server, service: S, bulkhead: &Bulkhead, door: &Door)
where
    S: Service<Request<Body>, Response = Response<B>, Error: fmt::Debug + Send, Future: Send> + Clone + Send + 'static,
    B: Send + 'static,
{
    // Establishes the connection before it is shared.
    let call = |chunks| service.clone().oneshot(upload(server.uri("/a.Service/Upload"), chunks));
    let first = tokio::spawn(call(1));
    door.arrival().await;
    door.open();
    assert_eq!(soon(first).await.unwrap().unwrap().headers()["x-length"], (16 * 1024).to_string());
    let mut calls = JoinSet::new();
    for _ in 0..100 {
        calls.spawn(call(16));
    }
    eventually(|| (bulkhead.in_flight(), bulkhead.waiting()) == (4, 96)).await;
    (0..100).for_each(|_| door.open());
    while let Some(response) = soon(calls.join_next()).await {
        assert_eq!(response.unwrap().unwrap().headers()["x-length"], (256 * 1024).to_string());
    }
    eventually(|| bulkhead.in_flight() == 0).await;
}

#[tokio::test]
async fn uploads_that_wait_in_a_queue_do_not_stall_those_at_work() {
    let (door, bulkhead) = (Door::new(), Bulkhead::new(4));
    let layer = BulkheadLayer::from(bulkhead.clone()).queue(100, PATIENCE);
    let http = axum_server(reads_all(&door).layer(layer.clone().http())).await;
    let routes = tonic::service::Routes::from(reads_all(&door));
    let grpc = grpc_server(tonic::transport::Server::builder().layer(layer.grpc()).add_routes(routes)).await;
    // More in total than the process-wide limit for buffered uploads: buffers must be released.
    for _ in 0..2 {
        a_hundred_uploads(&http, client_h2(), &bulkhead, &door).await;
        let channel = channel(&grpc).map_request(|request: Request<Body>| request.map(tonic::body::Body::new));
        a_hundred_uploads(&grpc, channel, &bulkhead, &door).await;
    }
}

#[tokio::test]
async fn an_upload_that_sends_too_much_while_it_waits_is_rejected_and_holds_up_no_other() {
    let (door, bulkhead) = (Door::new(), Bulkhead::new(1));
    let layer = BulkheadLayer::from(bulkhead.clone()).queue(100, PATIENCE).http();
    let server = axum_server(reads_all(&door).layer(layer)).await;
    let client = client_h2();
    let first = tokio::spawn(client.request(upload(server.uri("/"), 1)));
    door.arrival().await;
    for (content_type, status) in [(None, 503), (Some("application/grpc"), 200)] {
        let mut request = upload(server.uri("/"), 128);
        request.headers_mut().extend(content_type.map(|kind| (CONTENT_TYPE, HeaderValue::from_static(kind))));
        let response = soon(client.request(request)).await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["x-buttress-rejected"], "queue_full");
        // RESOURCE_EXHAUSTED
        assert_eq!(response.headers().get("grpc-status").map(HeaderValue::as_bytes), content_type.map(|_| &b"8"[..]));
    }
    let second = tokio::spawn(client.request(upload(server.uri("/"), 16)));
    eventually(|| bulkhead.waiting() == 1).await;
    door.open_wide();
    assert_eq!(soon(first).await.unwrap().unwrap().headers()["x-length"], (16 * 1024).to_string());
    assert_eq!(soon(second).await.unwrap().unwrap().headers()["x-length"], (256 * 1024).to_string());
}
