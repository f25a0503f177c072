//! Which requests are retried, by the tables of `buttress_http::classify`, over real hyper and
//! tonic, with non-empty bodies.

use axum::{Router, body::Body, extract::Request as AxumRequest};
use buttress::circuit_breaker::State;
use buttress_http::{prelude::*, tonic::StatusLayer};
use buttress_stack_tests::{
    Client, PATIENCE, Script, Server, ask, axum_server, channel, client, client_h2, grpc_server, post, script_server,
    soon, text,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, Response};
use http_body_util::BodyExt;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health as HealthService, HealthServer},
};
use tower::{Layer, ServiceBuilder, ServiceExt};

/// The cap shortens the pauses after overload.
fn retry(attempts: u32) -> RetryLayer {
    RetryLayer::new(attempts).backoff(Backoff::full_jitter(Duration::ZERO, Duration::from_millis(1)))
}

type Pairs = &'static [(&'static str, &'static str)];

fn headers(pairs: Pairs) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
}

/// Answers once with this head, then echoes. Records the bodies it receives.
async fn fails_once(status: u16, head: HeaderMap) -> (Server, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let log = seen.clone();
    let handler = async move |request: AxumRequest| {
        let body = String::from_utf8(request.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
        let mut log = log.lock().unwrap();
        log.push(body.clone());
        let mut response = Response::new(Body::from(body));
        if log.len() == 1 {
            *response.status_mut() = status.try_into().unwrap();
            response.headers_mut().extend(head);
        }
        response
    };
    (axum_server(Router::new().fallback(handler)).await, seen)
}

/// Sends a request with a body. Returns the number of attempts, each of which must arrive complete.
async fn attempts(client: Client, method: Method, status: u16, head: Pairs) -> usize {
    let (server, seen) = fails_once(status, headers(head)).await;
    let mut request = post(server.uri("/"), "a transfer");
    *request.method_mut() = method;
    let response = soon(retry(3).http_client().layer(client).oneshot(request)).await.unwrap();
    let attempts = seen.lock().unwrap().len();
    assert_eq!(response.status().as_u16(), if attempts == 1 { status } else { 200 });
    assert_eq!(text(response).await, "a transfer");
    assert!(seen.lock().unwrap().iter().all(|body| body == "a transfer"));
    attempts
}

#[tokio::test]
async fn http_requests_with_a_body_are_repeated_as_the_table_says() {
    const ADMISSION: [(&str, &str); 3] =
        [("x-buttress-rejected", "bulkhead_full"), ("x-envoy-overloaded", "true"), ("x-envoy-ratelimited", "true")];
    let rows: &[(u16, Pairs, usize, usize)] = &[
        // Status, headers, attempts of a PUT, attempts of a POST.
        (404, &[], 1, 1),
        (408, &[], 2, 1),
        (429, &[], 2, 2),
        (429, &[("retry-after", "0")], 2, 2),
        (500, &[], 2, 1),
        (501, &[], 1, 1),
        (502, &[], 2, 1),
        (503, &[], 2, 1),
        (503, &[("retry-after", "0")], 2, 1),
        (503, &[ADMISSION[0]], 2, 2),
        (503, &[ADMISSION[1]], 2, 2),
        (503, &[ADMISSION[2]], 2, 2),
        (504, &[], 2, 1),
    ];
    for &(status, head, put, post) in rows {
        for client in [client(), client_h2()] {
            let counts = (
                attempts(client.clone(), Method::PUT, status, head).await,
                attempts(client, Method::POST, status, head).await,
            );
            assert_eq!(counts, (put, post), "{status} {head:?}");
        }
    }
}

#[tokio::test]
async fn a_post_that_a_server_of_ours_rejected_is_repeated_and_arrives_once() {
    let (breaker, seen) = (CircuitBreaker::new("handler"), Arc::<Mutex<Vec<Bytes>>>::default());
    let log = seen.clone();
    let handler = async move |body: Bytes| log.lock().unwrap().push(body);
    let layer = CircuitBreakerLayer::from(breaker.clone()).http();
    let server = axum_server(Router::new().fallback(handler).layer(layer)).await;
    breaker.force_open();
    let layer = retry(2);
    let stats = layer.stats();
    // Closes the circuit after the first rejection.
    let service = layer.http_client().layer(client().map_response(move |response: Response<_>| {
        breaker.reset();
        response
    }));
    let response = soon(service.oneshot(post(server.uri("/"), "a transfer"))).await.unwrap();
    assert_eq!((response.status().as_u16(), stats.retries()), (200, 1));
    assert_eq!(*seen.lock().unwrap(), [Bytes::from("a transfer")]);
}

/// Refuses the first `refusals` streams, and reads the bodies of the following ones.
pub(crate) async fn refuses_streams(refusals: usize, seen: Arc<Mutex<Vec<Vec<u8>>>>) -> Server {
    Server::start(async move |listener| {
        let mut left = refusals;
        while let Ok((socket, _)) = listener.accept().await {
            let mut connection = h2::server::handshake(socket).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                if left > 0 {
                    left -= 1;
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                    continue;
                }
                let seen = seen.clone();
                // `accept` drives the connection.
                tokio::spawn(async move {
                    let mut body = request.into_body();
                    let mut content = Vec::new();
                    while let Some(Ok(data)) = body.data().await {
                        content.extend_from_slice(&data);
                    }
                    seen.lock().unwrap().push(content);
                    respond.send_response(Response::new(()), true).unwrap();
                });
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_refused_post_with_a_body_is_repeated_once_for_free_and_is_no_evidence() {
    for (refusals, has_budget, is_ok) in [(1, false, true), (2, false, false), (2, true, true), (3, true, false)] {
        let seen = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let server = refuses_streams(refusals, seen.clone()).await;
        let (breaker, retry) = (CircuitBreaker::new("backend"), retry(2));
        let stats = retry.stats();
        let budget = RetryBudget::builder().percent(0.0).min_per_second(0.0).burst(1).build().unwrap();
        if !has_budget {
            budget.try_withdraw().unwrap().spend();
        }
        let service = ServiceBuilder::new()
            .layer(retry.budget(budget).http_client())
            .layer(CircuitBreakerLayer::from(breaker.clone()).http_client())
            .service(client_h2());
        let result = soon(service.oneshot(post(server.uri("/"), "a transfer"))).await;
        assert_eq!(result.is_ok(), is_ok, "{refusals} refusals, a budget: {has_budget}");
        assert_eq!(*seen.lock().unwrap(), vec![b"a transfer".to_vec(); usize::from(is_ok)]);
        assert_eq!((stats.transparent(), breaker.snapshot().counts.failed, breaker.state()), (1, 0, State::Closed));
    }
}

/// A unary gRPC method that fails once with this status.
#[derive(Clone)]
struct FailsOnce {
    status: Status,
    calls: Arc<Mutex<usize>>,
}

#[tonic::async_trait]
impl HealthService for FailsOnce {
    type WatchStream = tokio_stream::Pending<Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        assert_eq!(request.get_ref().service, "a transfer");
        let mut calls = self.calls.lock().unwrap();
        *calls += 1;
        if *calls == 1 {
            return Err(self.status.clone());
        }
        Ok(tonic::Response::new(HealthCheckResponse { status: 1 }))
    }

    async fn watch(&self, _: tonic::Request<HealthCheckRequest>) -> Result<tonic::Response<Self::WatchStream>, Status> {
        Ok(tonic::Response::new(tokio_stream::pending()))
    }
}

/// Makes a unary call. Returns the number of attempts.
async fn unary(code: Code, metadata: Pairs, is_idempotent: bool) -> usize {
    let mut status = Status::new(code, "not yet");
    for (name, value) in metadata {
        status.metadata_mut().append(*name, value.parse().unwrap());
    }
    let backend = FailsOnce { status, calls: Arc::default() };
    let server = grpc_server(tonic::transport::Server::builder().add_service(HealthServer::new(backend.clone()))).await;
    let retry = retry(3).grpc_client().idempotent(move |_: &http::request::Parts| is_idempotent);
    let stack = ServiceBuilder::new().layer(StatusLayer).layer(retry).service(channel(&server));
    let result = soon(HealthClient::new(stack).check(ask("a transfer"))).await;
    let calls = *backend.calls.lock().unwrap();
    assert_eq!(result.is_ok(), calls > 1);
    calls
}

#[tokio::test]
async fn unary_grpc_calls_are_repeated_as_the_table_says() {
    const PUSHBACK: &str = "grpc-retry-pushback-ms";
    let rows: &[(Code, Pairs, usize, usize)] = &[
        // Code, metadata, attempts of an idempotent call, attempts of another call.
        (Code::Unavailable, &[], 2, 1),
        (Code::Unavailable, &[(PUSHBACK, "1")], 2, 2),
        (Code::Unavailable, &[(PUSHBACK, "-1")], 1, 1),
        (Code::Unavailable, &[(PUSHBACK, "1"), (PUSHBACK, "1")], 1, 1),
        (Code::Unavailable, &[("x-buttress-rejected", "circuit_open")], 2, 2),
        (Code::ResourceExhausted, &[], 2, 1),
        (Code::ResourceExhausted, &[(PUSHBACK, "0")], 2, 2),
        (Code::ResourceExhausted, &[("x-envoy-ratelimited", "true")], 2, 2),
        (Code::DeadlineExceeded, &[], 2, 1),
        (Code::DeadlineExceeded, &[(PUSHBACK, "0")], 2, 1),
        (Code::Internal, &[], 1, 1),
        (Code::Unknown, &[], 1, 1),
        (Code::DataLoss, &[], 1, 1),
        (Code::Aborted, &[], 1, 1),
        (Code::PermissionDenied, &[], 1, 1),
    ];
    for &(code, metadata, idempotent, other) in rows {
        let counts = (unary(code, metadata, true).await, unary(code, metadata, false).await);
        assert_eq!(counts, (idempotent, other), "{code:?} {metadata:?}");
    }
}

#[tokio::test]
async fn the_stack_of_the_readme_repeats_a_call_that_says_that_it_is_idempotent() {
    for (key, code, calls) in [(Some("1"), None, 3), (None, Some(Code::Unavailable), 1)] {
        let script = Script::new();
        *script.failures.lock().unwrap() = 2;
        let (_server, channel) = script_server(&script).await;
        let stack = ServiceBuilder::new()
            .layer(StatusLayer)
            .layer(TimeoutLayer::total(PATIENCE).grpc_client())
            .layer(retry(3).grpc_client())
            .layer(CircuitBreakerLayer::new("payments").grpc_client())
            .layer(BulkheadLayer::new(10).queue(20, PATIENCE).grpc_client())
            .layer(TimeoutLayer::attempt(PATIENCE).grpc_client())
            .service(channel);
        let mut request = tonic::Request::new(ask("ok"));
        if let Some(key) = key {
            request.metadata_mut().insert("idempotency-key", key.parse().unwrap());
        }
        let result = soon(HealthClient::new(stack).check(request)).await;
        assert_eq!((result.err().map(|status| status.code()), script.calls()), (code, calls));
    }
}

/// A request with a streaming body, which hyper sends in chunks over HTTP/1.
#[tokio::test]
async fn a_stream_as_the_body_of_a_post_is_repeated_whole() {
    let (server, seen) = fails_once(429, headers(&[])).await;
    let chunks = ["one ", "two ", "three"].map(Ok::<_, std::convert::Infallible>);
    let request: Request<Body> = post(server.uri("/"), Body::from_stream(tokio_stream::iter(chunks)));
    soon(retry(2).http_client().layer(client()).oneshot(request)).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), ["one two three", "one two three"]);
}
