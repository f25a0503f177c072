//! Retries over hyper's client.

use axum::{Router, body::Body, extract::State, http::HeaderMap, routing::any};
use buttress::{BoxError, retry::RetryStats};
use buttress_http::prelude::*;
use buttress_stack_tests::{Server, axum_server, client, client_h2, get, post, reply, soon, text};
use bytes::Bytes;
use http::{Method, Request, Response, Uri, header::RETRY_AFTER};
use http_body_util::{BodyExt, channel::Channel};
use std::{
    convert::Infallible,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt};

/// Returns these responses in order, then echoes. `Unread` responses are sent before the request
/// body was read.
#[derive(Clone, Default)]
struct Answers {
    planned: Arc<Mutex<Vec<Planned>>>,
    attempts: Arc<Mutex<Vec<Option<String>>>>,
}

type Planned = (Read, Response<Body>);

enum Read {
    All,
    Nothing,
}

impl Answers {
    fn then(self, read: Read, status: u16, retry_after: Option<&'static str>) -> Self {
        let mut response = reply(status, "no");
        response.headers_mut().extend(retry_after.map(|after| (RETRY_AFTER, after.parse().unwrap())));
        self.planned.lock().unwrap().insert(0, (read, response));
        self
    }

    async fn serve(&self) -> Server {
        let router = Router::new().fallback(any(answer)).with_state(self.clone());
        axum_server(router).await
    }

    fn attempts(&self) -> usize {
        self.attempts.lock().unwrap().len()
    }
}

async fn answer(State(answers): State<Answers>, headers: HeaderMap, body: Body) -> Response<Body> {
    let attempt = headers.get("x-retry-attempt").map(|attempt| attempt.to_str().unwrap().to_owned());
    answers.attempts.lock().unwrap().push(attempt);
    let planned = answers.planned.lock().unwrap().pop();
    match planned {
        Some((Read::Nothing, response)) => response,
        Some((Read::All, response)) => {
            body.collect().await.unwrap();
            response
        }
        None => Response::new(Body::from(body.collect().await.unwrap().to_bytes())),
    }
}

fn retry() -> RetryLayer {
    RetryLayer::new(3).backoff(Backoff::constant(Duration::ZERO))
}

fn around<S, B>(
    retry: RetryLayer,
    service: S,
) -> (RetryStats, impl Service<Request<Body>, Response = S::Response, Error = buttress::Error> + Clone)
where
    S: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>> + Clone,
    B: http_body::Body,
{
    (retry.stats(), retry.http_client().layer(service))
}

fn keyed(mut request: Request<Body>) -> Request<Body> {
    request.headers_mut().insert("idempotency-key", "1".parse().unwrap());
    request
}

#[tokio::test]
async fn a_streaming_body_is_sent_again_whole_whether_it_was_read_or_not() {
    for read in [|| Read::Nothing, || Read::All] {
        let answers = Answers::default().then(read(), 503, None).then(read(), 502, None);
        let server = answers.serve().await;
        let (mut sender, body) = Channel::<Bytes, Infallible>::new(8);
        for chunk in ["one ", "two ", "three"] {
            sender.send_data(chunk.into()).await.unwrap();
        }
        drop(sender);
        let (stats, service) = around(retry(), client());
        let response = soon(service.oneshot(keyed(post(server.uri("/"), Body::new(body))))).await.unwrap();
        assert_eq!(text(response).await, "one two three");
        assert_eq!(stats.retries(), 2);
        assert_eq!(*answers.attempts.lock().unwrap(), [None, Some("1".to_owned()), Some("2".to_owned())]);
    }
}

#[tokio::test]
async fn a_body_over_the_cap_is_sent_once_and_whole() {
    let answers = Answers::default().then(Read::All, 503, None);
    let server = answers.serve().await;
    let service = retry().http_client().max_body(4).layer(client());
    let response = soon(service.clone().oneshot(keyed(post(server.uri("/"), "12345")))).await.unwrap();
    assert_eq!((response.status().as_u16(), answers.attempts()), (503, 1));
    let response = soon(service.oneshot(keyed(post(server.uri("/"), "12345")))).await.unwrap();
    assert_eq!(text(response).await, "12345");
}

#[tokio::test]
async fn what_may_have_been_done_is_done_again_only_when_it_is_idempotent() {
    for (request, attempts) in [(get as fn(Uri) -> _, 2), (|uri| post(uri, ""), 1), (|uri| keyed(post(uri, "")), 2)] {
        let answers = Answers::default().then(Read::All, 500, None);
        let server = answers.serve().await;
        soon(around(retry(), client()).1.oneshot(request(server.uri("/")))).await.unwrap();
        assert_eq!(answers.attempts(), attempts);
    }
}

#[tokio::test]
async fn a_server_that_says_when_to_come_back_is_obeyed() {
    for (status, after, attempts) in [
        // Not processed, so even a POST is retried.
        (429, Some("0"), 2),
        (429, None, 2),
        // It may have been processed in part.
        (503, Some("0"), 1),
        (503, None, 1),
        // Longer than the maximum hint.
        (429, Some("3600"), 1),
        (429, Some("Sat, 06 Nov 2094 08:49:37 GMT"), 1),
        (429, Some("Sun, 06 Nov 1994 08:49:37 GMT"), 2),
    ] {
        let answers = Answers::default().then(Read::All, status, after);
        let server = answers.serve().await;
        // A short cap, because overload has its own pauses.
        let backoff = Backoff::full_jitter(Duration::ZERO, Duration::from_millis(1));
        soon(around(RetryLayer::new(2).backoff(backoff), client()).1.oneshot(post(server.uri("/"), ""))).await.unwrap();
        assert_eq!(answers.attempts(), attempts, "{status} {after:?}");
    }
}

/// A client whose connections are all refused, and the number of its connection attempts.
fn refused() -> (
    Arc<AtomicUsize>,
    hyper_util::client::legacy::Client<impl hyper_util::client::legacy::connect::Connect + Clone, Body>,
) {
    let tries = Arc::new(AtomicUsize::new(0));
    let counter = tries.clone();
    let connector = tower::service_fn(move |_: Uri| {
        counter.fetch_add(1, SeqCst);
        let error = io::Error::from(io::ErrorKind::ConnectionRefused);
        std::future::ready(Err::<hyper_util::rt::TokioIo<tokio::net::TcpStream>, _>(error))
    });
    (tries, hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build(connector))
}

#[tokio::test]
async fn what_was_never_sent_is_tried_again_even_if_it_is_a_post() {
    let request = || post("http://127.0.0.1:1/".parse().unwrap(), "transfer");
    // Directly around the client, whose error is hyper-util's, and around one of our layers.
    let (tries, client) = refused();
    let (stats, service) = around(retry(), client);
    soon(service.oneshot(request())).await.unwrap_err();
    assert_eq!((stats.retries(), tries.load(SeqCst)), (2, 3));

    let (tries, client) = refused();
    let (stats, service) = around(retry(), CircuitBreakerLayer::new("backend").http_client().layer(client));
    soon(service.oneshot(request())).await.unwrap_err();
    assert_eq!((stats.retries(), tries.load(SeqCst)), (2, 3));
}

/// Resets the first `refusals` requests for this reason, then answers.
async fn resetting_server(reason: h2::Reason, refusals: usize, requests: Arc<AtomicUsize>) -> Server {
    Server::start(async move |listener| {
        while let Ok((socket, _)) = listener.accept().await {
            let mut connection = h2::server::handshake(socket).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                if requests.fetch_add(1, SeqCst) < refusals {
                    respond.send_reset(reason);
                } else {
                    respond.send_response(Response::new(()), true).unwrap();
                }
            }
        }
    })
    .await
}

#[tokio::test]
async fn what_the_server_refused_to_look_at_is_tried_again_even_if_it_is_a_post() {
    let requests = Arc::new(AtomicUsize::new(0));
    let server = resetting_server(h2::Reason::REFUSED_STREAM, 2, requests.clone()).await;
    let layer = BulkheadLayer::new(1).http_client();
    let (stats, service) = around(retry(), layer.layer(client_h2()));
    let response = soon(service.oneshot(post(server.uri("/"), ""))).await.unwrap();
    assert_eq!((response.status().as_u16(), requests.load(SeqCst)), (200, 3));
    assert_eq!((stats.transparent(), stats.retries()), (1, 1), "the first repetition does not count");
}

#[tokio::test]
async fn what_the_server_reset_for_another_reason_may_have_been_done_and_is_a_failure() {
    for reason in [h2::Reason::INTERNAL_ERROR, h2::Reason::CANCEL, h2::Reason::ENHANCE_YOUR_CALM] {
        for (method, attempts) in [(Method::POST, 1), (Method::GET, 3)] {
            let (requests, breaker) = (Arc::new(AtomicUsize::new(0)), CircuitBreaker::new("backend"));
            let server = resetting_server(reason, 3, requests.clone()).await;
            let circuit = CircuitBreakerLayer::from(breaker.clone()).http_client();
            let (stats, service) = around(retry(), circuit.layer(client_h2()));
            let request = Request::builder().method(&method).uri(server.uri("/")).body(Body::empty()).unwrap();
            soon(service.oneshot(request)).await.unwrap_err();
            assert_eq!((requests.load(SeqCst), stats.transparent()), (attempts, 0), "{method} {reason:?}");
            assert_eq!(breaker.snapshot().counts.failed, attempts as u64, "{method} {reason:?}");
        }
    }
}

#[tokio::test]
async fn an_open_circuit_ends_the_retrying() {
    let answers = (0..10).fold(Answers::default(), |answers, _| answers.then(Read::All, 500, None));
    let server = answers.serve().await;
    let breaker = CircuitBreaker::builder("backend").consecutive_failures(2).build().unwrap();
    let inner = ServiceBuilder::new().layer(CircuitBreakerLayer::from(breaker).http_client()).service(client());
    let (_, service) = around(RetryLayer::new(5).backoff(Backoff::constant(Duration::ZERO)), inner);
    let error = soon(service.oneshot(get(server.uri("/")))).await.unwrap_err();
    assert_eq!(error.rejection().unwrap().reason(), &buttress::circuit_breaker::OPEN);
    assert_eq!(answers.attempts(), 2);
}
