//! Fallbacks of HTTP and gRPC calls.

use buttress::{BoxError, Ending, fallback::Used, outcome::Outcome};
use buttress_http::{ReplayBody, ending::HttpClient, prelude::*};
use buttress_test::{Answer, Inner, Part, Plan, TestBody};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use std::convert::Infallible;
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};

fn fallback() -> Response<Full<Bytes>> {
    Response::new(Full::from("fallback"))
}

/// A service that answers with this status.
fn answering(
    status: u16,
) -> impl tower::Service<Request<Full<Bytes>>, Response = Response<Full<Bytes>>, Error = BoxError> {
    service_fn(move |_: Request<Full<Bytes>>| {
        let mut response = Response::new(Full::from("original"));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        std::future::ready(Ok(response))
    })
}

async fn content<B: http_body::Body<Data = Bytes, Error: std::fmt::Debug>>(response: Response<B>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_replaced_by_a_marked_response_and_a_404_is_not() {
    for (status, is_replaced) in [(200, false), (404, false), (429, true), (500, true), (503, true)] {
        let layer = FallbackLayer::to(fallback()).named("cached");
        let response = layer.http_client().layer(answering(status)).oneshot(Request::default()).await.unwrap();
        let mark = response.headers().get("x-fallback").map(|name| name.to_str().unwrap());
        let used = response.extensions().get::<Used>().and_then(Used::name);
        assert_eq!((mark, used), if is_replaced { (Some("cached"), Some("cached")) } else { (None, None) });
        assert_eq!(content(response).await, if is_replaced { "fallback" } else { "original" });
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_answers_for_a_full_bulkhead_and_a_handler_that_fails() {
    for limit in [0, 1] {
        let stack = ServiceBuilder::new()
            .layer(FallbackLayer::to(fallback()).http())
            .layer(BulkheadLayer::new(limit).http())
            .service(answering(500));
        let response = stack.oneshot(Request::default()).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["x-fallback"], "fallback");
        assert_eq!(content(response).await, "fallback");
    }
}

#[tokio::test(start_paused = true)]
async fn a_grpc_call_that_ends_with_its_head_is_replaced() {
    let unavailable = service_fn(async |_: Request<()>| {
        Ok::<_, BoxError>(Response::builder().header("grpc-status", "14").body(Full::<Bytes>::default()).unwrap())
    });
    let ok = Response::builder().header("grpc-status", "0").body(Full::<Bytes>::default()).unwrap();
    for layer in [FallbackLayer::to(ok.clone()), FallbackLayer::to(ok).named("cached")] {
        let response = layer.clone().grpc_client().layer(unavailable).oneshot(Request::new(())).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "0");
        let response = layer.grpc().layer(unavailable).oneshot(Request::new(())).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "0");
    }
}

#[tokio::test(start_paused = true)]
async fn an_alternate_gets_the_whole_request_and_a_post_only_if_it_was_not_processed() {
    for (method, kind, is_sent) in [
        ("GET", std::io::ErrorKind::ConnectionReset, true),
        ("POST", std::io::ErrorKind::ConnectionReset, false),
        ("POST", std::io::ErrorKind::ConnectionRefused, true),
    ] {
        let alternate = service_fn(async |request: Request<ReplayBody<Full<Bytes>>>| {
            let (head, body) = request.into_parts();
            assert_eq!(head.uri.path(), "/orders");
            assert_eq!(head.headers["x-tenant"], "acme");
            assert_eq!(head.headers["x-retry-attempt"], "1");
            Ok::<_, BoxError>(Response::new(Full::new(body.collect().await?.to_bytes())))
        });
        let primary = service_fn(move |request: Request<ReplayBody<Full<Bytes>>>| async move {
            request.into_body().collect().await?;
            Err::<Response<Full<Bytes>>, BoxError>(std::io::Error::from(kind).into())
        });
        let layer = FallbackLayer::service(alternate);
        let stats = layer.stats();
        let request = Request::builder().method(method).uri("/orders").header("x-tenant", "acme");
        let response = layer.http_client().layer(primary).oneshot(request.body(Full::from("content")).unwrap()).await;
        match response {
            Ok(response) => assert_eq!((content(response).await, is_sent), ("content".into(), true)),
            Err(error) => assert_eq!((error.to_string().contains("reset"), is_sent), (true, false)),
        }
        assert_eq!((stats.used(), stats.unrepeatable()), if is_sent { (1, 0) } else { (0, 1) });
    }
}

#[tokio::test(start_paused = true)]
async fn an_alternate_that_fails_too_leaves_the_original_response() {
    let layer = FallbackLayer::service(answering_any(502)).http_client();
    let response = layer.layer(answering_any(500)).oneshot(Request::new(Full::default())).await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers().get("x-fallback")), (500, None));
}

/// Answers any request with this status.
fn answering_any(
    status: u16,
) -> impl tower::Service<Request<ReplayBody<Full<Bytes>>>, Response = Response<Full<Bytes>>, Error = BoxError, Future: Send>
+ Clone {
    service_fn(move |_: Request<ReplayBody<Full<Bytes>>>| {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        std::future::ready(Ok(response))
    })
}

#[tokio::test(start_paused = true)]
async fn the_body_of_an_original_response_goes_through_with_its_trailers() {
    let trailers = HeaderMap::from_iter([(http::header::ETAG, "x".parse().unwrap())]);
    let plan = Plan::of(Answer::Body(vec![Part::Data("original"), Part::Trailers(trailers.clone())]));
    let service = FallbackLayer::to(fallback()).http_client().layer(Inner::new(plan));
    let body = service.oneshot(Request::new(TestBody::default())).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(body.trailers(), Some(&trailers));
    assert_eq!(body.to_bytes(), "original");
}

#[tokio::test(start_paused = true)]
async fn the_classification_of_the_ending_decides_what_is_replaced() {
    let ends = HttpClient::new().classify(|head| (head.status == 404).then_some(Outcome::CANCELLED));
    let layer = FallbackLayer::with(async |_| Ok::<_, Infallible>(fallback())).when(|_| true).end(ends);
    let response = layer.layer(answering(404)).oneshot(Request::default()).await.unwrap();
    assert_eq!(response.headers()["x-fallback"], "fallback");
}
