//! reqwest's client: bare, with its own types, and as a `ReqwestService`.

use crate::{repeats::refuses_streams, upgrades};
use axum::{
    Router,
    body::Body,
    extract::DefaultBodyLimit,
    http::header::{LOCATION, RETRY_AFTER},
    routing::any,
};
use buttress::{
    BoxError, Error, Rejection,
    circuit_breaker::{Event, State},
    ending::Plain,
    outcome::{FailureKind, Sent},
};
use buttress_http::{classify, prelude::*, reqwest::ReqwestService};
use buttress_stack_tests::{Door, PATIENCE, Server, axum_server, eventually, hyper_server, refuses, reply, soon, text};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt, Channel, Empty, Full};
use std::{
    convert::Infallible,
    fmt::Debug,
    future, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::Instant,
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_http::follow_redirect::FollowRedirectLayer;

/// The results that a circuit breaker records: failures, or `None` for a success.
type Seen = Arc<Mutex<Vec<Option<(FailureKind, Sent)>>>>;

fn watch(breaker: &CircuitBreaker) -> Seen {
    let seen = Seen::default();
    let log = seen.clone();
    breaker.on_event(move |event| {
        if let Event::Called { outcome, .. } = event {
            log.lock().unwrap().push(outcome.failure().map(|failure| (failure.kind, failure.sent)));
        }
    });
    seen
}

/// A resolver that resolves no name.
struct NoNames;

impl reqwest::dns::Resolve for NoNames {
    fn resolve(&self, _: reqwest::dns::Name) -> reqwest::dns::Resolving {
        Box::pin(std::future::ready(Err(io::Error::other("no such name").into())))
    }
}

/// Without proxies from the environment, because the servers are local.
fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder().no_proxy().dns_resolver(Arc::new(NoNames))
}

fn client() -> reqwest::Client {
    builder().build().unwrap()
}

/// Over HTTP/1, and over HTTP/2 with prior knowledge.
fn clients() -> [(Version, ReqwestService); 2] {
    let of = |builder| ReqwestService::build(builder).unwrap();
    [(Version::HTTP_11, of(builder())), (Version::HTTP_2, of(builder().http2_prior_knowledge()))]
}

fn get(url: impl std::fmt::Display) -> reqwest::Request {
    reqwest::Request::new(reqwest::Method::GET, url.to_string().parse().unwrap())
}

/// Three failures: a refused connection, an unresolvable name, and a timeout.
async fn fails_thrice<S>(service: S)
where
    S: Service<reqwest::Request, Response: Debug, Error = Error> + Clone,
{
    let (_deaf, refuses) = refuses();
    let refused = get(refuses);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut late = get(format!("http://{}/", silent.local_addr().unwrap()));
    *late.timeout_mut() = Some(Duration::from_millis(5));
    for request in [refused, get("http://a-name.invalid/"), late] {
        soon(service.clone().oneshot(request)).await.unwrap_err();
    }
}

#[tokio::test]
async fn its_errors_are_looked_into_by_a_plain_circuit() {
    let breaker = CircuitBreaker::new("backend");
    let seen = watch(&breaker);
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::total(PATIENCE).plain())
        .layer(CircuitBreakerLayer::from(breaker).plain())
        .layer(BulkheadLayer::new(1).plain())
        .layer(TimeoutLayer::attempt(PATIENCE).plain())
        .service(client());
    fails_thrice(service).await;
    let unknown = Some((FailureKind::Transport, Sent::MaybeProcessed));
    // Without a protocol, only a refused connection is known never to have been sent.
    assert_eq!(*seen.lock().unwrap(), [Some((FailureKind::Connect, Sent::Never)), unknown, unknown]);
}

#[tokio::test]
async fn a_plain_circuit_reads_statuses_and_errors_with_the_tables_of_http() {
    let server = axum_server(Router::new().fallback(async || reply(503, "no"))).await;
    let breaker = CircuitBreaker::new("backend");
    let seen = watch(&breaker);
    let ending = Plain::new().classify(|result: Result<&reqwest::Response, &Error>| match result {
        Ok(response) => classify::http_status(response.status(), response.headers()),
        Err(error) => classify::error(error),
    });
    let service = ServiceBuilder::new().layer(CircuitBreakerLayer::from(breaker.clone()).end(ending)).service(client());
    fails_thrice(service.clone()).await;
    for _ in 0..2 {
        assert_eq!(soon(service.clone().oneshot(get(server.uri("/")))).await.unwrap().status(), 503);
    }
    assert_eq!(breaker.state(), State::Open);
    let (never, http) =
        (Some((FailureKind::Connect, Sent::Never)), Some((FailureKind::Http(503), Sent::MaybeProcessed)));
    let late = Some((FailureKind::Timeout, Sent::MaybeProcessed));
    assert_eq!(*seen.lock().unwrap(), [never, never, late, http, http]);
}

fn retry() -> RetryLayer {
    RetryLayer::new(3).backoff(Backoff::constant(Duration::ZERO))
}

/// A complete stack around a client, with these layers.
macro_rules! stack {
    ($retry:expr, $breaker:expr, $bulkhead:expr, $client:expr) => {
        ServiceBuilder::new()
            .layer(TimeoutLayer::total(PATIENCE).http_client())
            .layer($retry.http_client().max_body(8 << 20))
            .layer(CircuitBreakerLayer::from($breaker.clone()).http_client())
            .layer(BulkheadLayer::from($bulkhead.clone()).http_client())
            .layer(TimeoutLayer::attempt(PATIENCE).http_client())
            .service($client)
    };
    ($retry:expr, $breaker:expr, $client:expr) => {
        stack!($retry, $breaker, Bulkhead::new(10), $client)
    };
}

/// Answers 503 to the first two requests, and records the bodies.
async fn well_at_the_third() -> (Server, Arc<Mutex<Vec<Bytes>>>) {
    let bodies = Arc::<Mutex<Vec<Bytes>>>::default();
    let log = bodies.clone();
    let handler = async move |body: Bytes| {
        let mut log = log.lock().unwrap();
        log.push(body);
        reply(if log.len() < 3 { 503 } else { 200 }, "done")
    };
    (axum_server(Router::new().fallback(handler).layer(DefaultBodyLimit::disable())).await, bodies)
}

#[tokio::test]
async fn a_large_body_of_any_type_arrives_identical_thrice() {
    let sent = Bytes::from_iter((0..4_000_000_u32).map(|i| (i % 251) as u8));
    // The service gets the body as retry wraps it. The last two have their own body types; axum's
    // is not `Sync`.
    macro_rules! arrives {
        ($body:expr) => {
            for (version, client) in clients() {
                let ((server, bodies), breaker) = (well_at_the_third().await, CircuitBreaker::new("backend"));
                let service = stack!(retry(), breaker, client);
                let request = Request::put(server.uri("/")).body($body).unwrap();
                let response = soon(service.oneshot(request)).await.unwrap();
                assert_eq!((response.status().as_u16(), response.version()), (200, version));
                assert_eq!(text(response).await, "done");
                assert!(*bodies.lock().unwrap() == vec![sent.clone(); 3]);
                let counts = breaker.snapshot().counts;
                assert_eq!((counts.succeeded, counts.failed), (1, 2));
            }
        };
    }
    arrives!(Full::<Bytes>::from(sent.clone()));
    arrives!(Full::<Bytes>::from(sent.clone()).boxed_unsync());
    arrives!(reqwest::Body::from(sent.clone()));
    arrives!(Body::from(sent.clone()));
}

#[tokio::test]
async fn a_post_that_was_never_sent_is_tried_again() {
    // A resolver that never answers, so connecting times out.
    struct Silent;
    impl reqwest::dns::Resolve for Silent {
        fn resolve(&self, _: reqwest::dns::Name) -> reqwest::dns::Resolving {
            Box::pin(future::pending())
        }
    }
    let slow = builder().dns_resolver(Arc::new(Silent)).connect_timeout(Duration::from_millis(5)).build().unwrap();
    let (_deaf, refuses) = refuses();
    let name = "http://a-name.invalid/".to_owned();
    for (client, uri) in [(client(), refuses.to_string()), (client(), name.clone()), (slow, name)] {
        let breaker = CircuitBreaker::new("backend");
        let seen = watch(&breaker);
        let layer = retry();
        let stats = layer.stats();
        let service = stack!(layer, breaker, ReqwestService::new(client));
        let request = Request::post(&uri).body(Full::<Bytes>::from("a transfer")).unwrap();
        let error = soon(service.oneshot(request)).await.unwrap_err();
        assert_eq!(*seen.lock().unwrap(), [Some((FailureKind::Connect, Sent::Never)); 3], "{uri}");
        assert_eq!(stats.retries() + stats.transparent(), 2, "{uri}");
        // The error keeps its type.
        let Error::Inner(error) = error else { panic!("{error}") };
        assert!(error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_connect), "{error:?}");
    }
}

#[tokio::test]
async fn a_post_that_was_answered_503_is_not_repeated() {
    for retry_after in [None, Some("0")] {
        let hits = Arc::new(AtomicUsize::new(0));
        let seen = hits.clone();
        let server = axum_server(Router::new().fallback(async move || {
            seen.fetch_add(1, SeqCst);
            let mut response = reply(503, "no");
            response.headers_mut().extend(retry_after.map(|after| (RETRY_AFTER, after.parse().unwrap())));
            response
        }))
        .await;
        let service = stack!(retry(), CircuitBreaker::new("backend"), ReqwestService::new(client()));
        let request = Request::post(server.uri("/")).body(Full::<Bytes>::from("a transfer")).unwrap();
        let response = soon(service.oneshot(request)).await.unwrap();
        assert_eq!((response.status().as_u16(), hits.load(SeqCst)), (503, 1));
        assert_eq!(text(response).await, "no");
    }
}

#[tokio::test]
async fn a_post_that_an_http_2_server_refused_is_repeated_once_for_free() {
    let seen = Arc::<Mutex<Vec<Vec<u8>>>>::default();
    let (server, breaker, layer) = (refuses_streams(1, seen.clone()).await, CircuitBreaker::new("backend"), retry());
    let stats = layer.stats();
    let [_, (_, client)] = clients();
    let service = stack!(layer, breaker, client);
    let request = Request::post(server.uri("/")).body(Full::<Bytes>::from("a transfer")).unwrap();
    assert_eq!(soon(service.oneshot(request)).await.unwrap().status(), 200);
    assert_eq!(*seen.lock().unwrap(), [b"a transfer"]);
    assert_eq!((stats.transparent(), breaker.snapshot().counts.failed), (1, 0));
}

/// Connections are not kept, so that the pause is the only timer.
#[tokio::test(start_paused = true)]
async fn a_get_that_was_answered_503_is_repeated_after_the_time_that_the_server_asks_for() {
    let times = Arc::<Mutex<Vec<Instant>>>::default();
    let log = times.clone();
    let server = axum_server(Router::new().fallback(async move || {
        let mut log = log.lock().unwrap();
        #[expect(clippy::disallowed_methods, reason = "the paused clock, on the server's side")]
        log.push(Instant::now());
        let mut response = reply(if log.len() == 1 { 503 } else { 200 }, "done");
        response.headers_mut().insert(RETRY_AFTER, "30".parse().unwrap());
        response
    }))
    .await;
    let client = builder().pool_max_idle_per_host(0).build().unwrap();
    let service = retry().http_client().layer(ReqwestService::new(client));
    let response = service.oneshot(Request::get(server.uri("/")).body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    let times = times.lock().unwrap();
    assert_eq!(times.len(), 2);
    assert!(times[1] - times[0] >= Duration::from_secs(30), "{times:?}");
}

#[tokio::test]
async fn bodies_stream_both_ways_at_once() {
    for (version, client) in clients() {
        let echo = service_fn(async |request: Request<hyper::body::Incoming>| {
            Ok::<_, Infallible>(Response::new(request.into_body()))
        });
        let (server, breaker, bulkhead) = (hyper_server(echo).await, CircuitBreaker::new("echo"), Bulkhead::new(1));
        let service = stack!(retry(), breaker, bulkhead, client);
        let (mut sender, body) = Channel::<Bytes, io::Error>::new(1);
        let call = soon(service.oneshot(Request::post(server.uri("/")).body(body).unwrap()));
        let mut body = call.await.unwrap().into_body();
        for chunk in ["one", "two", "three"] {
            sender.send_data(chunk.into()).await.unwrap();
            let frame = soon(body.frame()).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), chunk, "{version:?}");
        }
        assert_eq!((bulkhead.in_flight(), breaker.snapshot().counts.total()), (1, 0));
        drop(sender);
        assert_eq!(soon(body.collect()).await.unwrap().to_bytes(), "", "{version:?}");
        assert_eq!((bulkhead.in_flight(), breaker.snapshot().counts.succeeded), (0, 1));
    }
}

/// The timeout of a single request, set with its builder, applies to each attempt up to the end of
/// its body.
#[tokio::test]
async fn its_own_timeout_is_a_timeout_of_an_attempt() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let breaker = CircuitBreaker::new("backend");
    let seen = watch(&breaker);
    let uri = format!("http://{}/", silent.local_addr().unwrap());
    let request = client().get(uri).timeout(Duration::from_millis(5)).build().unwrap();
    let service = stack!(retry(), breaker, ReqwestService::new(client()));
    soon(service.oneshot(Request::try_from(request).unwrap())).await.unwrap_err();
    assert_eq!(*seen.lock().unwrap(), [Some((FailureKind::Timeout, Sent::MaybeProcessed)); 3]);
}

#[tokio::test]
async fn a_uri_that_it_cannot_call_is_an_error_that_nothing_is_learnt_from() {
    let (breaker, layer) = (CircuitBreaker::new("backend"), retry());
    let stats = layer.stats();
    let service = stack!(layer, breaker, ReqwestService::new(client()));
    for uri in ["/pay", "*", "pay.example", "pay.example:80", "ftp://pay.example/", "http://user@/", "http://:80/"] {
        // Some of these are not URIs even for `http`.
        let Ok(request) = Request::put(uri).body(Full::<Bytes>::from("a transfer")) else { continue };
        let Err(Error::Inner(error)) = soon(service.clone().oneshot(request)).await else { panic!("{uri}") };
        assert!(error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_builder), "{uri}: {error:?}");
    }
    assert_eq!((breaker.snapshot().counts.total(), stats.retries() + stats.transparent()), (0, 0));
}

#[tokio::test]
async fn a_status_that_was_made_an_error_counts_as_that_status() {
    for (status, kind) in [(404, None), (501, Some(FailureKind::Http(501))), (503, Some(FailureKind::Http(503)))] {
        let response = reqwest::Response::from(reply(status, "").map(|_| ""));
        let outcome = classify::error(&response.error_for_status().unwrap_err());
        assert_eq!(outcome.failure().map(|failure| failure.kind), kind, "{status}");
    }
}

/// Records the heads of requests and answers each with an empty 200.
async fn heads() -> (Server, Arc<Mutex<Vec<String>>>) {
    let heads = Arc::<Mutex<Vec<String>>>::default();
    let log = heads.clone();
    let server = Server::start(async move |listener| {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(socket.read_u8().await.unwrap());
            }
            log.lock().unwrap().push(String::from_utf8(head).unwrap());
            socket.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    (server, heads)
}

#[tokio::test]
async fn a_request_looks_as_if_it_was_sent_by_reqwest_itself() {
    let (server, heads) = heads().await;
    let url = server.uri("/a/path?with=query").to_string();
    let client = client();
    let service = stack!(retry(), CircuitBreaker::new("backend"), ReqwestService::new(client.clone()));
    for method in [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE] {
        for body in [None, Some(""), Some("a transfer")] {
            let request = || {
                let builder = client.request(method.clone(), &url).header("x-one", "1").bearer_auth("secret");
                match body {
                    Some(body) => builder.body(body).build().unwrap(),
                    None => builder.build().unwrap(),
                }
            };
            soon(client.execute(request())).await.unwrap();
            soon(service.clone().oneshot(Request::try_from(request()).unwrap())).await.unwrap();
            let full = Request::try_from(request()).unwrap().map(|_| Full::<Bytes>::from(body.unwrap_or_default()));
            soon(service.clone().oneshot(full)).await.unwrap();
            let heads = std::mem::take(&mut *heads.lock().unwrap());
            assert_eq!(heads.len(), 3);
            assert!(heads.iter().all(|head| *head == heads[0]), "{heads:#?}");
        }
    }
}

/// Redirects with this status to a path that echoes the request.
async fn redirects(status: StatusCode) -> Server {
    let echo = async |method: Method, body: String| format!("{method} {body}");
    let moved = async move || (status, [(LOCATION, "/there")], "moved");
    axum_server(Router::new().route("/here", any(moved)).route("/there", any(echo))).await
}

/// Sends a POST to `/here`. Returns the final status, path and body.
async fn follow<S, B>(service: S, server: &Server, body: &'static str) -> (u16, String, String)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error: Debug>,
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + Sync + 'static,
{
    let request = Request::post(server.uri("/here")).body(Full::from(body)).unwrap();
    let response = soon(service.oneshot(request)).await.unwrap();
    let response = reqwest::Response::from(response.map(reqwest::Body::wrap));
    assert_eq!(response.remote_addr(), Some(server.address));
    let (status, path) = (response.status().as_u16(), response.url().path().to_owned());
    (status, path, soon(response.text()).await.unwrap())
}

#[tokio::test]
async fn a_redirect_that_it_follows_itself_is_one_call_whose_response_knows_its_url() {
    let breaker = CircuitBreaker::new("backend");
    let service = stack!(retry(), breaker, ReqwestService::new(client()));
    let (see, same) = (redirects(StatusCode::SEE_OTHER).await, redirects(StatusCode::TEMPORARY_REDIRECT).await);
    assert_eq!(follow(service.clone(), &see, "body").await, (200, "/there".into(), "GET ".into()));
    assert_eq!(follow(service.clone(), &same, "").await, (200, "/there".into(), "POST ".into()));
    // reqwest cannot send a streaming body twice.
    assert_eq!(follow(service, &same, "body").await, (307, "/here".into(), "moved".into()));
    assert_eq!(breaker.snapshot().counts.succeeded, 3);
}

#[tokio::test]
async fn a_redirect_that_is_followed_around_the_stack_is_two_calls() {
    let breaker = CircuitBreaker::new("backend");
    let service = stack!(retry(), breaker, ReqwestService::build(builder()).unwrap());
    let server = redirects(StatusCode::SEE_OTHER).await;
    assert_eq!(follow(service.clone(), &server, "body").await, (303, "/here".into(), "moved".into()));
    let service = FollowRedirectLayer::new().layer(service);
    assert_eq!(follow(service, &server, "body").await, (200, "/there".into(), "GET ".into()));
    assert_eq!(breaker.snapshot().counts.succeeded, 3);
}

#[tokio::test]
async fn a_response_without_a_body_gives_its_place_back_at_its_head() {
    for (version, client) in clients() {
        let server = axum_server(Router::new().fallback(async |method: Method| {
            if method == Method::HEAD { reply(200, "a body") } else { reply(204, "") }
        }))
        .await;
        for method in [Method::HEAD, Method::GET] {
            let (breaker, bulkhead) = (CircuitBreaker::new("backend"), Bulkhead::new(1));
            let service = stack!(retry(), breaker, bulkhead, client.clone());
            let request =
                Request::builder().method(&method).uri(server.uri("/")).body(reqwest::Body::default()).unwrap();
            let response = soon(service.oneshot(request)).await.unwrap();
            assert!(response.body().is_end_stream(), "{method} {version:?}");
            assert_eq!((bulkhead.in_flight(), breaker.snapshot().counts.succeeded), (0, 1), "{method} {version:?}");
        }
    }
}

#[tokio::test]
async fn an_upgraded_connection_of_a_response_that_was_converted_holds_its_place_until_it_closes() {
    let (server, bulkhead) = (hyper_server(service_fn(upgrades::echo)).await, Bulkhead::new(1));
    let service = stack!(retry(), CircuitBreaker::new("echo"), bulkhead, ReqwestService::build(builder()).unwrap());
    let request = client().get(server.uri("/").to_string()).header("connection", "upgrade").header("upgrade", "echo");
    let request = Request::try_from(request.build().unwrap()).unwrap();
    let response = soon(service.oneshot(request)).await.unwrap();
    let response = reqwest::Response::from(response.map(reqwest::Body::wrap));
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut connection = soon(response.upgrade()).await.unwrap();
    connection.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    soon(connection.read_exact(&mut heard)).await.unwrap();
    assert_eq!((&heard, bulkhead.in_flight()), (b"hello", 1));
    drop(connection);
    eventually(|| bulkhead.in_flight() == 0).await;
}

#[tokio::test]
async fn a_call_or_a_body_that_is_dropped_gives_its_place_back() {
    for (version, client) in clients() {
        let door = Door::new();
        let inside = door.clone();
        let server = axum_server(Router::new().fallback(async move || {
            inside.pass().await;
            Body::new(Channel::<Bytes, Infallible>::new(1).1.with_trailers(future::pending()))
        }))
        .await;
        let (breaker, bulkhead) = (CircuitBreaker::new("backend"), Bulkhead::new(1));
        let service = stack!(retry(), breaker, bulkhead, client);
        let request = || Request::get(server.uri("/")).body(Empty::<Bytes>::new()).unwrap();

        let call = tokio::spawn(service.clone().oneshot(request()));
        door.arrival().await;
        assert_eq!(bulkhead.in_flight(), 1);
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        assert_eq!((bulkhead.in_flight(), breaker.snapshot().counts.total()), (0, 0), "{version:?}");

        door.open_wide();
        let response = soon(service.oneshot(request())).await.unwrap();
        assert_eq!(bulkhead.in_flight(), 1);
        drop(response);
        assert_eq!((bulkhead.in_flight(), breaker.snapshot().counts.succeeded), (0, 1), "{version:?}");
    }
}

/// An uploaded body may be a reqwest body that fails by reqwest's timeout.
/// A server that goes through the door, reads the request's body, and answers 400 if it breaks.
async fn reads_uploads(door: &Door) -> Server {
    let door = door.clone();
    axum_server(Router::new().fallback(async move |body: Body| {
        door.pass().await;
        body.collect().await.map_or(StatusCode::BAD_REQUEST, |_| StatusCode::OK)
    }))
    .await
}

#[tokio::test]
async fn an_upload_that_its_caller_breaks_off_is_no_evidence_whatever_broke_it() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let late = client().get(format!("http://{}/", silent.local_addr().unwrap())).timeout(Duration::from_millis(5));
    let late = soon(late.send()).await.unwrap_err();
    assert!(late.is_timeout());
    for error in [io::Error::other(late), io::Error::other("the disk is gone")] {
        let error = Arc::new(error);
        for (version, client) in clients() {
            let door = Door::new();
            door.open_wide();
            let server = reads_uploads(&door).await;
            let (breaker, layer) = (CircuitBreaker::new("backend"), retry());
            let stats = layer.stats();
            let (mut sender, body) = Channel::<Bytes, Arc<io::Error>>::new(1);
            let service = stack!(layer, breaker, client);
            let call = tokio::spawn(service.oneshot(Request::put(server.uri("/")).body(body).unwrap()));
            sender.send_data("half".into()).await.unwrap();
            door.arrival().await;
            sender.abort(error.clone());
            soon(call).await.unwrap().unwrap_err();
            assert_eq!((breaker.snapshot().counts.total(), stats.retries()), (0, 0), "{version:?}");
        }
    }
}

/// A proxy passes a request on with its version. hyper refuses HTTP/2 on a connection of HTTP/1.
#[tokio::test]
async fn a_request_whose_version_its_connection_does_not_speak_is_no_evidence() {
    let server = axum_server(Router::new().fallback(async || "here")).await;
    for version in [Version::HTTP_09, Version::HTTP_2, Version::HTTP_3] {
        let request = || Request::put(server.uri("/")).version(version).body(Body::from("a transfer")).unwrap();
        let (breaker, layer) = (CircuitBreaker::new("backend"), retry());
        let stats = layer.stats();
        let service = stack!(layer.clone(), breaker, ReqwestService::build(builder()).unwrap());
        soon(service.oneshot(request())).await.unwrap_err();
        let service = stack!(layer, breaker, buttress_stack_tests::client());
        soon(service.oneshot(request())).await.unwrap_err();
        assert_eq!((breaker.snapshot().counts.failed, stats.retries()), (0, 0), "{version:?}");
    }
}

#[tokio::test]
async fn a_download_that_breaks_is_a_failure_and_gives_its_place_back() {
    let broken = [
        "content-length: 10\r\n\r\n1234",
        "transfer-encoding: chunked\r\n\r\n4\r\n1234\r\n",
        "transfer-encoding: chunked\r\n\r\nxyz",
    ];
    for rest in broken {
        let server = Server::start(async move |listener| {
            while let Ok((mut socket, _)) = listener.accept().await {
                let _ = socket.read(&mut [0; 4096]).await;
                let _ = socket.write_all(format!("HTTP/1.1 200 OK\r\n{rest}").as_bytes()).await;
            }
        })
        .await;
        let (breaker, bulkhead) = (CircuitBreaker::new("backend"), Bulkhead::new(1));
        let seen = watch(&breaker);
        let layer = TimeoutLayer::attempt(PATIENCE).body_idle(PATIENCE).body_total(PATIENCE).http_client();
        let service = stack!(retry(), breaker, bulkhead, layer.layer(ReqwestService::new(client())));
        let response = soon(service.oneshot(Request::get(server.uri("/")).body(Empty::<Bytes>::new()).unwrap())).await;
        let error = soon(response.unwrap().into_body().collect()).await.unwrap_err();
        assert_eq!(bulkhead.in_flight(), 0, "{error:?}");
        assert_eq!(*seen.lock().unwrap(), [Some((FailureKind::Body, Sent::MaybeProcessed))], "{error:?}");
    }
}

#[tokio::test]
async fn an_answer_before_the_end_of_an_upload_is_the_answer() {
    for (version, client) in clients() {
        let server = axum_server(Router::new().fallback(async || reply(413, "too much"))).await;
        let (breaker, bulkhead, layer) = (CircuitBreaker::new("backend"), Bulkhead::new(1), retry());
        let stats = layer.stats();
        let service = stack!(layer, breaker, bulkhead, client);
        let (mut sender, body) = Channel::<Bytes, io::Error>::new(1);
        let call = tokio::spawn(service.oneshot(Request::put(server.uri("/")).body(body).unwrap()));
        sender.send_data("half".into()).await.unwrap();
        let response = soon(call).await.unwrap().unwrap();
        assert_eq!((response.status().as_u16(), bulkhead.in_flight()), (413, 1), "{version:?}");
        assert_eq!(text(response).await, "too much");
        assert_eq!((bulkhead.in_flight(), breaker.snapshot().counts.succeeded, stats.retries()), (0, 1, 0));
        // The upload is dropped.
        soon(async { while sender.send_data("rest".into()).await.is_ok() {} }).await;
    }
}

#[tokio::test]
async fn trailers_and_large_heads_arrive() {
    let large = "x".repeat(12_000);
    for (version, client) in clients() {
        let server = hyper_server(service_fn(async |request: Request<hyper::body::Incoming>| {
            let large = request.headers()["x-large"].clone();
            let end = http::HeaderMap::from_iter([(http::HeaderName::from_static("x-end"), "here".parse().unwrap())]);
            let body = Full::<Bytes>::from("content").with_trailers(async move { Some(Ok::<_, Infallible>(end)) });
            let head = Response::builder().header("trailer", "x-end").header("x-large", large);
            // Without it, hyper sends the length and no trailers.
            let head =
                if request.version() == Version::HTTP_11 { head.header("transfer-encoding", "chunked") } else { head };
            Ok::<_, Infallible>(head.body(body).unwrap())
        }))
        .await;
        let (breaker, bulkhead) = (CircuitBreaker::new("backend"), Bulkhead::new(1));
        let service = stack!(retry(), breaker, bulkhead, client);
        let request = Request::get(server.uri("/")).header("te", "trailers").header("x-large", &large);
        let response = soon(service.oneshot(request.body(Empty::<Bytes>::new()).unwrap())).await.unwrap();
        assert_eq!(response.headers()["x-large"], large, "{version:?}");
        let body = soon(response.into_body().collect()).await.unwrap();
        assert_eq!(body.trailers().map(|end| &end["x-end"]), Some(&"here".parse().unwrap()), "{version:?}");
        assert_eq!((bulkhead.in_flight(), breaker.snapshot().counts.succeeded), (0, 1));
    }
}

/// An upload that is a download from another service, whose time is over.
#[tokio::test]
async fn an_upload_that_a_bound_of_another_layer_ended_is_no_evidence() {
    for (version, client) in clients() {
        let door = Door::new();
        door.open_wide();
        let server = reads_uploads(&door).await;
        let (breaker, layer) = (CircuitBreaker::new("backend"), retry());
        let stats = layer.stats();
        let (mut sender, body) = Channel::<Bytes, Error>::new(1);
        let service = stack!(layer, breaker, client);
        let call = tokio::spawn(service.oneshot(Request::put(server.uri("/")).body(body).unwrap()));
        sender.send_data("half".into()).await.unwrap();
        door.arrival().await;
        sender.abort(Rejection::new("timeout", &buttress::timeout::BODY_TOTAL).into());
        soon(call).await.unwrap().unwrap_err();
        assert_eq!((breaker.snapshot().counts.total(), stats.retries()), (0, 0), "{version:?}");
    }
}
