//! Our layers inside and outside tower-http's layers.

use axum::{
    Router,
    body::Body,
    routing::{get, post as post_route},
};
use buttress::{Rejection, circuit_breaker::State};
use buttress_http::prelude::*;
use buttress_stack_tests::{
    PATIENCE, Script, Server, ask, axum_server, channel, client, eventually, get as get_request, grpc_server, post,
    soon, text,
};
use bytes::Bytes;
use http::{
    Method, Request, Response, StatusCode,
    header::{
        ACCEPT_ENCODING, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_REQUEST_METHOD, CONTENT_ENCODING, CONTENT_TYPE,
        ORIGIN, RETRY_AFTER,
    },
};
use http_body_util::BodyExt;
use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};
use tonic_health::pb::{health_client::HealthClient, health_server::HealthServer};
use tower::ServiceBuilder;
use tower_http::{
    catch_panic::CatchPanicLayer, compression::CompressionLayer, cors::CorsLayer, limit::RequestBodyLimitLayer,
    timeout::TimeoutLayer as HttpTimeoutLayer, trace::TraceLayer,
};
use tracing::Span;

/// A circuit and a bulkhead with one place, as handles.
struct Ours {
    breaker: CircuitBreaker,
    bulkhead: Bulkhead,
}

impl Ours {
    fn new() -> Self {
        let breaker = CircuitBreaker::builder("handler").consecutive_failures(2).build().unwrap();
        Self { breaker, bulkhead: Bulkhead::new(1) }
    }

    /// Applies our layers to the router, with a timeout outermost.
    fn around(&self, router: Router) -> Router {
        router.layer(
            ServiceBuilder::new()
                .layer(TimeoutLayer::total(PATIENCE).http())
                .layer(CircuitBreakerLayer::from(self.breaker.clone()).http())
                .layer(BulkheadLayer::from(self.bulkhead.clone()).http()),
        )
    }

    /// Waits until all calls have ended. Returns the numbers of successes and failures.
    async fn counts(&self) -> (u64, u64) {
        eventually(|| self.bulkhead.in_flight() == 0).await;
        let counts = self.breaker.snapshot().counts;
        (counts.succeeded, counts.failed)
    }
}

/// The router inside both, with tower-http's layers outside or inside ours.
macro_rules! layered {
    ($ours:expr, $router:expr, $theirs:expr, $outside:expr) => {
        if $outside { $ours.around($router).layer($theirs) } else { $ours.around($router.layer($theirs)) }
    };
}

async fn status(server: &Server) -> u16 {
    soon(client().request(get_request(server.uri("/")))).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn a_trace_layer_outside_finds_the_rejection_in_the_response() {
    type Seen = Arc<Mutex<Vec<(u16, Option<String>)>>>;
    fn note<B>(seen: &Seen) -> impl Fn(&Response<B>, Duration, &Span) + Clone + use<B> {
        let seen = seen.clone();
        move |response: &Response<B>, _: Duration, _: &Span| {
            let rejection = response.extensions().get::<Rejection>().map(ToString::to_string);
            seen.lock().unwrap().push((response.status().as_u16(), rejection));
        }
    }
    let full = || Router::new().route("/", get(async || "here")).layer(BulkheadLayer::new(0).http());
    let slow = Router::new().route("/", get(std::future::pending::<&str>));
    let late = slow.layer(TimeoutLayer::total(Duration::from_millis(5)).http());
    for (router, expected) in [
        (full(), (503, "bulkhead: full")),
        (full().layer(CompressionLayer::new()), (503, "bulkhead: full")),
        (late, (504, "timeout: the call took too long, all attempts included (5ms)")),
    ] {
        let seen = Seen::default();
        let server = axum_server(router.layer(TraceLayer::new_for_http().on_response(note(&seen)))).await;
        assert_eq!(status(&server).await, expected.0);
        assert_eq!(*seen.lock().unwrap(), [(expected.0, Some(expected.1.to_owned()))]);
    }
}

#[tokio::test]
async fn cors_outside_answers_preflights_and_marks_rejections_and_inside_does_neither() {
    for (outside, preflight) in [(true, 200), (false, 503)] {
        let (router, full, cors) =
            (Router::new().route("/", get(async || "here")), BulkheadLayer::new(0).http(), CorsLayer::permissive());
        let server =
            axum_server(if outside { router.layer(full).layer(cors) } else { router.layer(cors).layer(full) }).await;
        let call = async |method: Method| {
            let request = Request::builder().method(method).uri(server.uri("/")).header(ORIGIN, "http://example.org");
            let request = request.header(ACCESS_CONTROL_REQUEST_METHOD, "GET").body(Body::empty()).unwrap();
            soon(client().request(request)).await.unwrap()
        };
        assert_eq!(call(Method::OPTIONS).await.status(), preflight);
        let response = call(Method::GET).await;
        assert_eq!((response.status().as_u16(), &response.headers()[RETRY_AFTER]), (503, &"1".parse().unwrap()));
        assert_eq!(response.headers().contains_key(ACCESS_CONTROL_ALLOW_ORIGIN), outside);
    }
}

#[tokio::test]
async fn compression_on_either_side_keeps_counts_and_places() {
    for outside in [true, false] {
        for method in [Method::GET, Method::HEAD] {
            let handler = get(async || ([(CONTENT_TYPE, "text/plain")], "hello ".repeat(20_000)));
            let ours = Ours::new();
            let router = Router::new().route("/", handler);
            let server = axum_server(layered!(ours, router, CompressionLayer::new(), outside)).await;
            for done in 1..=3 {
                let request = Request::builder().method(&method).uri(server.uri("/")).header(ACCEPT_ENCODING, "gzip");
                let response = soon(client().request(request.body(Body::empty()).unwrap())).await.unwrap();
                assert_eq!(
                    (response.status().as_u16(), &response.headers()[CONTENT_ENCODING]),
                    (200, &"gzip".parse().unwrap())
                );
                let bytes = response.into_body().collect().await.unwrap().to_bytes().len();
                assert_eq!(bytes > 0, method == Method::GET);
                assert_eq!(ours.counts().await, (done, 0));
            }
        }
    }
}

#[tokio::test]
async fn a_timeout_of_tower_http_outside_is_no_evidence_and_inside_is_a_408() {
    // Opening a circuit resets its counts.
    for (outside, statuses, state) in [(true, [408, 408, 408], State::Closed), (false, [408, 408, 503], State::Open)] {
        let theirs = HttpTimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, Duration::from_millis(5));
        let ours = Ours::new();
        let router = Router::new().route("/", get(std::future::pending::<&str>));
        let server = axum_server(layered!(ours, router, theirs, outside)).await;
        assert_eq!([status(&server).await, status(&server).await, status(&server).await], statuses);
        assert_eq!((ours.counts().await, ours.breaker.state()), ((0, 0), state));
    }
}

#[tokio::test]
async fn a_handler_that_panics_is_a_failing_one_on_either_side_of_catch_panic() {
    async fn panics() -> &'static str {
        panic!("as asked")
    }
    for outside in [true, false] {
        let ours = Ours::new();
        let router = Router::new().route("/", get(panics));
        let server = axum_server(layered!(ours, router, CatchPanicLayer::new(), outside)).await;
        assert_eq!([status(&server).await, status(&server).await, status(&server).await], [500, 500, 503]);
        assert_eq!((ours.counts().await, ours.breaker.state()), ((0, 0), State::Open));
    }
}

#[tokio::test]
async fn a_body_that_panics_gives_its_place_back() {
    let body = || {
        Body::from_stream(futures_util::stream::poll_fn(|_| -> std::task::Poll<Option<Result<Bytes, Infallible>>> {
            panic!("as asked")
        }))
    };
    let ours = Ours::new();
    let router = Router::new().route("/", get(async move || body()));
    let server = axum_server(ours.around(router).layer(CatchPanicLayer::new())).await;
    // The connection breaks, before or after the head was sent.
    if let Ok(response) = soon(client().request(get_request(server.uri("/")))).await {
        assert!(soon(response.into_body().collect()).await.is_err());
    }
    assert_eq!(ours.counts().await, (0, 1));
}

#[tokio::test]
async fn a_limit_on_request_bodies_is_no_failure_on_either_side() {
    for outside in [true, false] {
        let ours = Ours::new();
        let router = Router::new().route("/", post_route(async |body: Bytes| body.len().to_string()));
        let server = axum_server(layered!(ours, router, RequestBodyLimitLayer::new(100), outside)).await;
        for (chunks, expected) in [(1, 200), (20, 413), (20, 413), (1, 200)] {
            for is_stream in [false, true] {
                let content = vec![vec![7; 10]; chunks];
                let body = if is_stream {
                    Body::from_stream(tokio_stream::iter(content.into_iter().map(Ok::<_, Infallible>)))
                } else {
                    Body::from(content.concat())
                };
                let response = soon(client().request(post(server.uri("/"), body))).await.unwrap();
                assert_eq!(response.status(), expected, "outside: {outside}, {chunks} chunks, stream: {is_stream}");
                assert_eq!((ours.counts().await.1, ours.breaker.state()), (0, State::Closed));
            }
        }
    }
}

#[tokio::test]
async fn one_service_builder_takes_health_outside_and_layers_of_both_kinds() {
    let health = Health::new();
    health.started();
    let layers = ServiceBuilder::new()
        .layer(HealthLayer::new(health.clone()).http())
        .layer(TraceLayer::new_for_http())
        .layer(CorsLayer::permissive())
        .layer(CompressionLayer::new())
        .layer(CatchPanicLayer::new())
        .layer(HttpTimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, PATIENCE))
        .layer(TimeoutLayer::total(PATIENCE).http())
        .layer(HttpTimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, PATIENCE))
        .layer(CircuitBreakerLayer::new("handler").http())
        .layer(CorsLayer::permissive())
        .layer(BulkheadLayer::new(1).queue(1, PATIENCE).http())
        .layer(RequestBodyLimitLayer::new(100));
    let server = axum_server(Router::new().route("/", get(async || "here")).layer(layers)).await;
    let response = client().request(get_request(server.uri("/"))).await.unwrap();
    assert_eq!(text(response).await, "here");
    for (path, status) in [("/livez", 200), ("/readyz", 200), ("/startupz", 200)] {
        assert_eq!(client().request(get_request(server.uri(path))).await.unwrap().status(), status);
    }
    health.drain();
    assert_eq!(client().request(get_request(server.uri("/readyz"))).await.unwrap().status(), 503);
}

#[tokio::test]
async fn health_is_answered_by_a_tonic_server_next_to_its_calls() {
    let health = Health::new();
    health.started();
    let layers = ServiceBuilder::new()
        .layer(HealthLayer::new(health.clone()).http())
        .layer(TraceLayer::new_for_grpc())
        .layer(BulkheadLayer::new(1).grpc());
    let router = tonic::transport::Server::builder()
        .accept_http1(true)
        .layer(layers)
        .add_service(HealthServer::new(Script::new()));
    let server = grpc_server(router).await;
    let mut calls = HealthClient::new(channel(&server));
    soon(calls.check(ask("ok"))).await.unwrap();
    let ready = async || client().request(get_request(server.uri("/readyz"))).await.unwrap().status().as_u16();
    assert_eq!(ready().await, 200);
    health.drain();
    assert_eq!(ready().await, 503);
    soon(calls.check(ask("ok"))).await.unwrap();
}
