//! Graceful shutdowns: requests that the server did not process are retried once, including POST,
//! and do not count as failures.

use axum::{Router, body::Body};
use buttress::{
    circuit_breaker::State,
    outcome::{FailureKind, Sent},
};
use buttress_http::{classify, prelude::*};
use buttress_stack_tests::{Door, Server, client_h2, hyper_server, post, soon};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::{AbortHandle, JoinSet},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Endpoint, Server as TonicServer};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};

/// Complete requests that an application received, by body.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<BTreeMap<String, usize>>>);

impl Seen {
    fn add(&self, content: &Bytes) {
        *self.0.lock().unwrap().entry(String::from_utf8(content.to_vec()).unwrap()).or_default() += 1;
    }

    /// Asserts that each request of this range arrived exactly once.
    fn assert_each_once(&self, ids: std::ops::Range<usize>) {
        let once = ids.map(|id| (id.to_string(), 1)).collect::<BTreeMap<_, _>>();
        assert_eq!(*self.0.lock().unwrap(), once);
    }
}

fn retry() -> RetryLayer {
    RetryLayer::new(2).backoff(Backoff::constant(Duration::from_millis(10)))
}

const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const EMPTY_SETTINGS: [u8; FRAME_HEAD] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
/// Error code `NO_ERROR`, last processed stream 0.
const GOAWAY: [u8; FRAME_HEAD + 8] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Speaks just enough HTTP/2 to send, after `requests` requests, a GOAWAY that none of them was
/// processed.
async fn goes_away(mut socket: TcpStream, requests: usize) -> Option<()> {
    socket.read_exact(&mut [0; 24]).await.ok()?;
    socket.write_all(&EMPTY_SETTINGS).await.ok()?;
    let mut came = 0;
    while came < requests {
        let mut head = [0; FRAME_HEAD];
        socket.read_exact(&mut head).await.ok()?;
        let mut rest = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        socket.read_exact(&mut rest).await.ok()?;
        came += usize::from(head[3] == HEADERS);
    }
    socket.write_all(&GOAWAY).await.ok()?;
    // Reads until the client closes the connection.
    while socket.read(&mut [0; 1024]).await.ok()? > 0 {}
    Some(())
}

/// A server whose first connection goes away after this many requests. Later connections are
/// served.
async fn goes_away_once(requests: usize, seen: &Seen) -> Server {
    let seen = seen.clone();
    Server::start(async move |listener| {
        let mut connections = JoinSet::new();
        let (socket, _) = listener.accept().await.unwrap();
        connections.spawn(async move {
            goes_away(socket, requests).await;
        });
        while let Ok((socket, _)) = listener.accept().await {
            let seen = seen.clone();
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let seen = seen.clone();
                async move {
                    seen.add(&request.into_body().collect().await?.to_bytes());
                    Ok::<_, hyper::Error>(Response::new(Full::<Bytes>::default()))
                }
            });
            connections.spawn(async move {
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    })
    .await
}

#[tokio::test]
async fn a_graceful_goaway_is_no_evidence() {
    let server = goes_away_once(20, &Seen::default()).await;
    let breaker = CircuitBreaker::new("backend");
    let service = CircuitBreakerLayer::from(breaker.clone()).http_client().layer(client_h2());
    let mut calls = JoinSet::new();
    for id in 0..20 {
        calls.spawn(service.clone().oneshot(post(server.uri("/"), id.to_string())));
    }
    while let Some(result) = soon(calls.join_next()).await {
        let failure = *classify::error(&result.unwrap().unwrap_err()).failure().unwrap();
        assert_eq!((failure.kind, failure.sent), (FailureKind::Transport, Sent::NotProcessed));
        assert!(failure.graceful);
    }
    assert_eq!((breaker.state(), breaker.snapshot().counts.failed), (State::Closed, 0));
}

#[tokio::test]
async fn posts_below_a_graceful_goaway_are_repeated_once_and_done_once() {
    let seen = Seen::default();
    let server = goes_away_once(20, &seen).await;
    let (retry, breaker) = (retry(), CircuitBreaker::new("backend"));
    let stats = retry.stats();
    let service = ServiceBuilder::new()
        .layer(retry.http_client())
        .layer(CircuitBreakerLayer::from(breaker.clone()).http_client())
        .service(client_h2());
    let mut calls = JoinSet::new();
    for id in 0..20 {
        calls.spawn(service.clone().oneshot(post(server.uri("/"), id.to_string())));
    }
    while let Some(result) = soon(calls.join_next()).await {
        assert_eq!(result.unwrap().unwrap().status(), 200);
    }
    seen.assert_each_once(0..20);
    assert_eq!((stats.transparent(), stats.retries()), (20, 0));
    assert_eq!((breaker.state(), breaker.snapshot().counts.failed), (State::Closed, 0));
}

/// Connections of hyper's HTTP/1 client, of which the first ends before anything was written.
#[tokio::test]
async fn a_request_that_was_handed_back_unsent_is_repeated_and_done_once() {
    let seen = Seen::default();
    let app = seen.clone();
    let server = hyper_server(service_fn(move |request: Request<Incoming>| {
        let app = app.clone();
        async move {
            app.add(&request.into_body().collect().await?.to_bytes());
            Ok::<_, hyper::Error>(Response::new(Full::<Bytes>::default()))
        }
    }))
    .await;
    let (address, connections) = (server.address, Arc::new(Mutex::new(0)));
    let connect_and_send = move |request: Request<Body>| {
        let is_first = std::mem::replace(&mut *connections.lock().unwrap(), 1) == 0;
        async move {
            let socket = TcpStream::connect(address).await.unwrap();
            let (mut send, connection) = http1::handshake(TokioIo::new(socket)).await?;
            let response = send.send_request(request);
            if is_first {
                drop(connection);
            } else {
                tokio::spawn(connection);
            }
            response.await
        }
    };
    let (retry, breaker) = (retry(), CircuitBreaker::new("backend"));
    let stats = retry.stats();
    let service = ServiceBuilder::new()
        .layer(retry.http_client())
        .layer(CircuitBreakerLayer::from(breaker.clone()).http_client())
        .service_fn(connect_and_send);
    assert_eq!(soon(service.oneshot(post("/".parse().unwrap(), "0"))).await.unwrap().status(), 200);
    seen.assert_each_once(0..1);
    assert_eq!((stats.transparent(), breaker.snapshot().counts.failed), (1, 0));
}

/// A tonic server that records request bodies. `/hold` waits at the door.
fn application(seen: &Seen, door: &Door) -> tonic::service::Routes {
    let (seen, door) = (seen.clone(), door.clone());
    let unary = async move |body: Body| {
        // A unary request that was reset before its body arrived does not count.
        let status = match body.collect().await {
            Ok(body) => {
                seen.add(&body.to_bytes());
                "0"
            }
            Err(_) => "1",
        };
        [("content-type", "application/grpc"), ("grpc-status", status)]
    };
    let hold = async move || {
        door.pass().await;
        [("content-type", "application/grpc"), ("grpc-status", "0")]
    };
    Router::new().route("/hold", axum::routing::post(hold)).fallback(unary).into()
}

fn unary(path: &str, content: String) -> Request<tonic::body::Body> {
    let request = Request::post(format!("http://x{path}")).header("content-type", "application/grpc");
    request.header("te", "trailers").body(tonic::body::Body::new(Full::from(content))).unwrap()
}

/// Stops an instance, while a long call keeps its connection open, and starts the next at the same
/// address, with 20 calls in flight.
async fn restart(
    ids: std::ops::Range<usize>,
    seen: &Seen,
    retry: RetryLayer,
    breaker: &CircuitBreaker,
    max_streams: Option<u32>,
) {
    let door = Door::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = |listener| TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
    let next = incoming(listener.try_clone().unwrap());
    let (stop, stopped) = oneshot::channel::<()>();
    let mut servers = JoinSet::new();
    let (first, second) = (application(seen, &door), application(seen, &door));
    let listener = incoming(listener);
    servers.spawn(async move {
        let server = TonicServer::builder().max_concurrent_streams(max_streams).add_routes(first);
        server.serve_with_incoming_shutdown(listener, async { drop(stopped.await) }).await
    });
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let held = tokio::spawn(channel.clone().oneshot(unary("/hold", String::new())));
    door.arrival().await;

    servers.spawn(async move { TonicServer::builder().add_routes(second).serve_with_incoming(next).await });
    stop.send(()).unwrap();
    let service = ServiceBuilder::new()
        .layer(retry.grpc_client())
        .layer(CircuitBreakerLayer::from(breaker.clone()).grpc_client())
        .service(channel);
    let mut calls = JoinSet::new();
    for id in ids {
        calls.spawn(service.clone().oneshot(unary("/a.Service/Call", id.to_string())));
    }
    while let Some(result) = soon(calls.join_next()).await {
        let response = result.unwrap().unwrap();
        assert_eq!(response.headers()["grpc-status"], "0");
    }
    door.open_wide();
    assert_eq!(soon(held).await.unwrap().unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_a_tonic_server_loses_no_call_and_does_none_twice() {
    let (seen, breaker) = (Seen::default(), CircuitBreaker::new("backend"));
    for round in 0..40 {
        restart(round * 20..(round + 1) * 20, &seen, retry(), &breaker, None).await;
    }
    seen.assert_each_once(0..800);
    assert_eq!((breaker.state(), breaker.snapshot().counts.failed), (State::Closed, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_wait_for_a_stream_of_a_connection_that_ends_are_not_lost() {
    let (seen, breaker) = (Seen::default(), CircuitBreaker::new("backend"));
    for round in 0..20 {
        restart(round * 20..(round + 1) * 20, &seen, retry(), &breaker, Some(4)).await;
    }
    seen.assert_each_once(0..400);
    assert_eq!((breaker.state(), breaker.snapshot().counts.failed), (State::Closed, 0));
}

#[tokio::test]
async fn a_connection_that_is_dropped_under_a_post_that_was_sent_is_no_evidence_and_no_reason_to_send_it_again() {
    let (seen, door) = (Seen::default(), Door::new());
    let (app, hang) = (seen.clone(), door.clone());
    let server = hyper_server(service_fn(move |request: Request<Incoming>| {
        let (app, hang) = (app.clone(), hang.clone());
        async move {
            app.add(&request.into_body().collect().await?.to_bytes());
            hang.pass().await;
            Ok::<_, hyper::Error>(Response::new(Full::<Bytes>::default()))
        }
    }))
    .await;
    let (address, task) = (server.address, Arc::<Mutex<Option<AbortHandle>>>::default());
    let connections = task.clone();
    let connect_and_send = move |request: Request<Body>| {
        let connections = connections.clone();
        async move {
            let socket = TcpStream::connect(address).await.unwrap();
            let (mut send, connection) = http1::handshake(TokioIo::new(socket)).await?;
            *connections.lock().unwrap() = Some(tokio::spawn(connection).abort_handle());
            send.send_request(request).await
        }
    };
    let (retry, breaker) = (retry(), CircuitBreaker::new("backend"));
    let stats = retry.stats();
    let service = ServiceBuilder::new()
        .layer(retry.http_client())
        .layer(CircuitBreakerLayer::from(breaker.clone()).http_client())
        .service_fn(connect_and_send);
    let call = tokio::spawn(service.oneshot(post("/".parse().unwrap(), "0")));
    door.arrival().await;
    task.lock().unwrap().take().unwrap().abort();
    soon(call).await.unwrap().unwrap_err();
    seen.assert_each_once(0..1);
    assert_eq!((stats.transparent(), stats.retries(), breaker.snapshot().counts.total()), (0, 0, 0));
}
