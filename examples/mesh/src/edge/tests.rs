mod http2;

use std::collections::VecDeque;
use std::io;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::*;
use crate::problem;

/// Longer than any test takes.
const NEVER: Duration = Duration::from_secs(600);
const SOON: Duration = Duration::from_millis(50);

/// No deadline, so that each test shows the effect of the one that it sets.
fn limits() -> Limits {
    Limits { head: NEVER, body: NEVER, idle: NEVER, write: NEVER, ..Limits::default() }
}

struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    /// Ends the requests of `/wait`.
    release: Arc<Notify>,
}

impl Server {
    async fn start(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self::serve(listener, address, limits)
    }

    fn serve(listener: impl Listener, address: SocketAddr, limits: Limits) -> Self {
        let (stop, release) = (CancellationToken::new(), Arc::new(Notify::new()));
        let waited = release.clone();
        let app = Router::new()
            .route("/", get(async || "hello"))
            .route("/wait", get(async move || waited.notified().await))
            .route("/large", get(async || vec![b'x'; 64 << 20]))
            .route("/echo", post(async |body: String| body))
            .layer(from_fn_with_state(1000, upload::read))
            .layer(from_fn(problem::render))
            .with_state(());
        let serving = tokio::spawn(serve(listener, app, limits, stop.clone()));
        Self { address, stop, serving, release }
    }

    async fn send(&self, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // A server that refuses the connection may have closed it by now.
        let _ = stream.write_all(text.as_bytes()).await;
        stream
    }

    /// Sends a text and returns what the server sends until it closes the connection.
    async fn ask(&self, text: &str) -> String {
        rest(&mut self.send(text).await).await
    }

    /// Whether another client is served.
    async fn serves(&self) -> bool {
        self.ask("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.ends_with("hello")
    }

    async fn stopped(self) {
        self.stop.cancel();
        tokio::time::timeout(NEVER / 10, self.serving).await.expect("it stops").unwrap();
    }
}

/// What the server sends until it closes the connection.
async fn rest(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    // A reset is an end as well.
    let _ = tokio::time::timeout(NEVER / 10, stream.read_to_end(&mut all)).await.expect("the connection ends");
    String::from_utf8_lossy(&all).into_owned()
}

const HEAD: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn a_silent_socket_and_half_a_head_are_closed_while_others_are_served() {
    let server = Server::start(Limits { head: SOON, ..limits() }).await;
    for silent in ["", "P", "PRI * HT", "GET / HTTP/1.1\r\nHost: x\r\nX-a: "] {
        let mut slow = server.send(silent).await;
        assert!(server.serves().await);
        assert_eq!(rest(&mut slow).await, "", "{silent:?}");
    }
}

#[tokio::test]
async fn a_head_that_drips_is_closed() {
    let server = Server::start(Limits { head: SOON, ..limits() }).await;
    let mut slow = server.send("GET / HTTP/1.1\r\nX-a: ").await;
    while slow.write_all(b"x").await.is_ok() {
        tokio::time::sleep(SOON / 10).await;
    }
}

#[tokio::test]
async fn a_connection_without_requests_is_closed_after_its_idle_time() {
    let server = Server::start(Limits { idle: SOON, ..limits() }).await;
    assert!(server.ask(HEAD).await.ends_with("hello"), "answered, and closed afterwards");
}

#[tokio::test]
async fn a_second_head_has_the_time_of_a_head() {
    let server = Server::start(Limits { head: SOON, ..limits() }).await;
    let mut slow = server.send(HEAD).await;
    let mut answer = [0; 1024];
    assert!(slow.read(&mut answer).await.unwrap() > 0);
    slow.write_all(b"GET / HT").await.unwrap();
    assert_eq!(rest(&mut slow).await, "");
}

#[tokio::test]
async fn a_request_in_progress_has_no_deadline_of_the_edge() {
    let server = Server::start(Limits { head: SOON, idle: SOON, body: SOON, ..limits() }).await;
    let mut waiting = server.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut answer = [0; 12];
    let early = tokio::time::timeout(SOON * 4, waiting.read_exact(&mut answer)).await;
    assert!(early.is_err(), "{early:?}");
    server.release.notify_one();
    waiting.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[tokio::test]
async fn a_slow_body_is_answered_408_and_closed() {
    let server = Server::start(Limits { body: SOON, ..limits() }).await;
    for body in ["Content-Length: 500\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"] {
        let mut slow = server.send(&format!("POST /echo HTTP/1.1\r\nHost: x\r\n{body}")).await;
        assert!(server.serves().await);
        let answer = rest(&mut slow).await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn a_body_is_read_up_to_its_limit() {
    let server = Server::start(limits()).await;
    let post = async |length: usize| {
        let body = "x".repeat(length);
        let head = "POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close";
        server.ask(&format!("{head}\r\nContent-Length: {length}\r\n\r\n{body}")).await
    };
    assert!(post(1000).await.ends_with(&"x".repeat(1000)));
    assert!(post(1001).await.starts_with("HTTP/1.1 413 "));
}

#[tokio::test]
async fn a_client_that_does_not_read_is_disconnected() {
    let server = Server::start(Limits { write: SOON, ..limits() }).await;
    let mut deaf = server.send("GET /large HTTP/1.1\r\nHost: x\r\n\r\n").await;
    // Does not read until the server has closed the connection, which its own end shows.
    let stop = async {
        server.stop.cancel();
        server.serving.await.unwrap();
    };
    tokio::time::timeout(NEVER / 10, stop).await.expect("the connection ends although it is not read");
    let mut all = Vec::new();
    let _ = deaf.read_to_end(&mut all).await;
    assert!(all.len() < 64 << 20);
}

#[tokio::test]
async fn a_large_head_is_answered_431() {
    let server = Server::start(limits()).await;
    let answer = server.ask(&format!("GET / HTTP/1.1\r\nX-a: {}\r\n\r\n", "x".repeat(64 * 1024))).await;
    assert!(answer.starts_with("HTTP/1.1 431 ") || answer.is_empty(), "{answer}");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_at_once() {
    let server = Server::start(Limits { connections: 2, ..limits() }).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = server.send(HEAD).await;
        assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
        held.push(stream);
    }
    assert_eq!(server.ask("").await, "");
    held.pop();
    while !server.serves().await {}
}

#[tokio::test]
async fn a_stop_closes_quiet_connections_and_finishes_requests_in_progress() {
    let server = Server::start(limits()).await;
    let (mut silent, mut half) = (server.send("").await, server.send("GET / HTTP").await);
    let mut idle = server.send(HEAD).await;
    assert!(idle.read(&mut [0; 1024]).await.unwrap() > 0);
    let mut waiting = server.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(server.serves().await);
    server.stop.cancel();
    for quiet in [&mut silent, &mut half, &mut idle] {
        assert_eq!(rest(quiet).await, "");
    }
    while TcpStream::connect(server.address).await.is_ok() {}
    server.release.notify_one();
    assert!(rest(&mut waiting).await.starts_with("HTTP/1.1 200 "));
    server.stopped().await;
}

#[tokio::test]
async fn http_2_is_served_closed_when_idle_and_closed_by_a_stop() {
    let client = || Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Empty<Bytes>>();
    let get = async |client: &Client<_, Empty<Bytes>>, server: &Server| {
        let answer = client.get(format!("http://{}/", server.address).parse().unwrap()).await.unwrap();
        (answer.version(), answer.into_body().collect().await.unwrap().to_bytes())
    };
    let hello = (http::Version::HTTP_2, Bytes::from_static(b"hello"));
    let server = Server::start(Limits { idle: SOON, linger: SOON, connections: 1, ..limits() }).await;
    let (one, other) = (client(), client());
    assert_eq!(get(&one, &server).await, hello);
    // There is one place, which the first client leaves when it is idle.
    while !server.serves().await {
        tokio::time::sleep(SOON / 10).await;
    }
    let server = Server::start(Limits { linger: SOON, ..limits() }).await;
    assert_eq!(get(&other, &server).await, hello);
    server.stopped().await;
}

#[tokio::test]
async fn an_answer_for_which_an_http_2_client_opens_no_window_ends_its_connection() {
    let server = Server::start(Limits { write: SOON, connections: 1, ..limits() }).await;
    let mut client = Client::builder(TokioExecutor::new());
    let client = client.http2_only(true).http2_initial_stream_window_size(0).build_http::<Empty<Bytes>>();
    let answer = client.get(format!("http://{}/", server.address).parse().unwrap()).await.unwrap();
    let ended = tokio::time::timeout(NEVER / 20, answer.into_body().collect()).await;
    assert!(ended.expect("the connection ends").is_err());
    while !server.serves().await {
        tokio::time::sleep(SOON / 10).await;
    }
}

/// Fails as a process does whose table of descriptors is full, and then accepts.
struct Full(VecDeque<io::Error>, TcpListener);

impl Listener for Full {
    type Io = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        match self.0.pop_front() {
            Some(error) => Err(error),
            None => self.1.accept().await,
        }
    }
}

#[tokio::test]
async fn errors_of_accept_do_not_end_the_service() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let errors = [io::Error::from_raw_os_error(24), io::ErrorKind::ConnectionAborted.into()];
    let server = Server::serve(Full(errors.into(), listener), address, limits());
    assert!(server.serves().await);
}

#[test]
fn a_repeated_event_is_logged_once_in_ten_seconds_with_its_count() {
    let start = now();
    let seldom = Seldom::every(LOGGED);
    let passes = |seconds| seldom.passes((start + Duration::from_secs(seconds)).into_std());
    let at = |seconds| passes(seconds).map(|left_out| left_out + 1);
    assert_eq!(at(0), Some(1));
    assert_eq!((at(1), at(9)), (None, None));
    assert_eq!(at(10), Some(3));
}
