//! Responses that end at their head (HEAD, 204, 304), and bodies that are not read: a successful
//! head is a success.

use axum::{Router, body::Body, routing::get};
use buttress::{BoxError, circuit_breaker::State};
use buttress_http::prelude::*;
use buttress_stack_tests::{
    Client, Server, admits, axum_server, client, client_h2, eventually, get as get_request, half_open, hyper_server,
    soon, streams,
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{Channel, Full};
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tower::{Layer, Service, ServiceExt, service_fn};

/// Requests whose response bodies hyper drops unread, and one whose body is sent.
const HEADS: [(Method, u16); 5] =
    [(Method::HEAD, 200), (Method::HEAD, 404), (Method::GET, 204), (Method::GET, 304), (Method::GET, 200)];

/// A server with a body in every response of this status, and with this circuit breaker: an axum
/// router, or plain hyper.
async fn with_a_body(status: u16, breaker: &CircuitBreaker, is_plain: bool) -> Server {
    let status = StatusCode::from_u16(status).unwrap();
    let layer = CircuitBreakerLayer::from(breaker.clone()).http();
    if is_plain {
        let handler = service_fn(move |_: Request<hyper::body::Incoming>| {
            let mut response = Response::new(Full::new(Bytes::from_static(b"hello")));
            *response.status_mut() = status;
            std::future::ready(Ok::<_, Infallible>(response))
        });
        hyper_server(layer.layer(handler)).await
    } else {
        axum_server(Router::new().route("/", get(async move || (status, "hello"))).layer(layer)).await
    }
}

fn clients() -> [Client; 2] {
    [client(), client_h2()]
}

fn request(method: &Method, server: &Server) -> Request<Body> {
    Request::builder().method(method).uri(server.uri("/")).body(Body::empty()).unwrap()
}

#[tokio::test]
async fn a_server_counts_a_response_that_ends_at_its_head_as_a_success() {
    for (method, status) in HEADS {
        for client in clients() {
            for is_plain in [false, true] {
                let breaker = CircuitBreaker::new("handler");
                let server = with_a_body(status, &breaker, is_plain).await;
                for _ in 0..3 {
                    let response = soon(client.request(request(&method, &server))).await.unwrap();
                    assert_eq!(response.status(), status);
                }
                eventually(|| breaker.snapshot().counts.succeeded == 3).await;

                half_open(&breaker).await;
                while breaker.state() != State::Closed {
                    admits(&breaker).await;
                    assert_eq!(soon(client.request(request(&method, &server))).await.unwrap().status(), status);
                }
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_closes_its_circuit() {
    for (method, status) in HEADS {
        for client in clients() {
            let breaker = CircuitBreaker::new("backend");
            let server = with_a_body(status, &CircuitBreaker::new("handler"), true).await;
            let service = CircuitBreakerLayer::from(breaker.clone()).http_client().layer(client);
            for done in 1..=3 {
                drop(soon(service.clone().oneshot(request(&method, &server))).await.unwrap());
                assert_eq!(breaker.snapshot().counts.succeeded, done, "{method} {status}");
            }
            half_open(&breaker).await;
            for _ in 0..3 {
                drop(soon(service.clone().oneshot(request(&method, &server))).await.unwrap());
            }
            assert_eq!(breaker.state(), State::Closed, "{method} {status}");
        }
    }
}

#[tokio::test]
async fn a_server_counts_a_body_that_its_client_stops_reading_as_a_success() {
    for client in clients() {
        let (mut sender, route) = streams(());
        let breaker = CircuitBreaker::new("handler");
        let layer = CircuitBreakerLayer::from(breaker.clone()).http();
        let server = axum_server(Router::new().route("/", route).layer(layer)).await;
        let response = soon(client.request(get_request(server.uri("/")))).await.unwrap();
        drop((response, client));
        // hyper detects it at the next frame at the latest.
        while sender.send_data(Bytes::from_static(b"more")).await.is_ok() {
            tokio::task::yield_now().await;
        }
        eventually(|| breaker.snapshot().counts.total() == 1).await;
        assert_eq!((breaker.snapshot().counts.succeeded, breaker.state()), (1, State::Closed));
    }
}

/// A backend that answers with what `respond` returns.
fn backend<B>(
    respond: impl Fn() -> Response<B> + Clone,
) -> impl Service<Request<()>, Response = Response<B>, Error = BoxError> + Clone {
    service_fn(move |_: Request<()>| std::future::ready(Ok(respond())))
}

fn status(status: u16) -> Response<Full<Bytes>> {
    Response::builder().status(status).body(Full::from("a body")).unwrap()
}

#[tokio::test(start_paused = true)]
async fn unread_probes_close_a_circuit_at_once_when_the_backend_is_well_again() {
    let is_well = Arc::new(AtomicBool::new(false));
    let flag = is_well.clone();
    let breaker = CircuitBreaker::new("hooks");
    let layer = CircuitBreakerLayer::from(breaker.clone()).http_client();
    let service = layer.layer(backend(move || status(if flag.load(SeqCst) { 200 } else { 500 })));
    let call = async || service.clone().oneshot(Request::new(())).await.is_ok();
    while breaker.state() == State::Closed {
        call().await;
    }
    is_well.store(true, SeqCst);
    let mut refused = 0;
    for _ in 0..3600 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        refused += u32::from(!call().await);
    }
    assert_eq!((breaker.state(), breaker.snapshot().openings), (State::Closed, 0));
    // At most the first open time.
    assert!(refused <= 6, "{refused} of 3,600 refused");
}

#[tokio::test(start_paused = true)]
async fn an_unread_success_ends_a_row_of_failures() {
    let calls = Arc::new(AtomicU64::new(0));
    let breaker = CircuitBreaker::new("hooks");
    let layer = CircuitBreakerLayer::from(breaker.clone()).http_client();
    let is_bad = move || calls.fetch_add(1, SeqCst).is_multiple_of(1_000);
    let service = layer.layer(backend(move || status(if is_bad() { 500 } else { 200 })));
    for _ in 0..10_000 {
        drop(service.clone().oneshot(Request::new(())).await.unwrap());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_minutes_is_a_good_probe() {
    /// Two minutes of events, one per second.
    fn events() -> Response<Channel<Bytes, Infallible>> {
        let (mut sender, body) = Channel::new(4);
        tokio::spawn(async move {
            for _ in 0..120 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if sender.send_data(Bytes::from_static(b"event")).await.is_err() {
                    return;
                }
            }
        });
        Response::new(body)
    }
    let breaker = CircuitBreaker::new("events");
    let service = CircuitBreakerLayer::from(breaker.clone()).http_client().layer(backend(events));
    breaker.open_for(Duration::from_secs(5));
    let mut streams = 0;
    for _ in 0..3600 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if let Ok(response) = service.clone().oneshot(Request::new(())).await {
            streams += 1;
            tokio::spawn(http_body_util::BodyExt::collect(response.into_body()));
        }
    }
    assert_eq!((breaker.state(), breaker.snapshot().openings), (State::Closed, 0));
    // Three streams probe one after another. After that, one starts per second.
    assert!(streams > 3_000, "{streams} streams");
}
