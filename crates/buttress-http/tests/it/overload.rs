//! Load shedding and throttling on the wire.

use buttress::{
    load_shed::{OVERLOADED, TOO_LATE, monitor_fn},
    policy::{CallContext, Clock, TokioClock},
};
use buttress_http::{is_probe, prelude::*};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use std::{convert::Infallible, time::Duration};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};

const TICK: Duration = Duration::from_millis(100);

fn request(path: &str, priority: &str, grpc: bool) -> Request<Full<Bytes>> {
    let kind = if grpc { "application/grpc" } else { "text/plain" };
    let request = Request::post(path).header("content-type", kind).header("x-priority", priority);
    request.body(Full::default()).unwrap()
}

/// Returns a load shed that rejects nearly all calls.
async fn overloaded() -> LoadShed {
    let shed = LoadShed::builder("orders").monitor(monitor_fn("pool", || 1.0)).max_share(0.9).seed(7).build().unwrap();
    let service = LoadShedLayer::from(shed.clone()).plain().layer(service_fn(async |()| Ok::<_, Infallible>(())));
    for _interval in 0..100 {
        tokio::time::advance(TICK).await;
        for _call in 0..10 {
            let _rejected_or_not = service.clone().oneshot(()).await;
        }
    }
    shed
}

#[tokio::test(start_paused = true)]
async fn an_overloaded_server_answers_http_and_grpc_by_priority_and_probes_always() {
    let shed = overloaded().await;
    let server = ServiceBuilder::new()
        .layer(ContextLayer::new().trust_priority().http())
        .layer(LoadShedLayer::from(shed.clone()).exempt(is_probe::<Full<Bytes>>).http())
        .service_fn(async |_: Request<_>| Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())));

    let rejected = server.clone().oneshot(request("/orders", "3", false)).await.unwrap();
    assert_eq!(rejected.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(rejected.headers()["x-buttress-rejected"], OVERLOADED.word());
    let seconds: u64 = rejected.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=3).contains(&seconds), "{seconds}");

    let rejected = server.clone().oneshot(request("/orders.Orders/Place", "3", true)).await.unwrap();
    assert_eq!((rejected.status(), &rejected.headers()["grpc-status"]), (StatusCode::OK, &"8".parse().unwrap()));
    let millis: u64 = rejected.headers()["grpc-retry-pushback-ms"].to_str().unwrap().parse().unwrap();
    assert!((1_000..=3_000).contains(&millis), "{millis}");

    for (path, priority, grpc) in [
        ("/orders", "0", false),
        ("/orders.Orders/Place", "0", true),
        ("/grpc.health.v1.Health/Check", "3", true),
        ("/livez", "3", false),
    ] {
        let admitted = server.clone().oneshot(request(path, priority, grpc)).await.unwrap();
        assert!(admitted.status() == 200 && !admitted.headers().contains_key("grpc-status"), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_would_be_late_is_a_504_or_deadline_exceeded_and_was_not_processed() {
    let server = LoadShedLayer::new("orders").http().layer(service_fn(async |_: Request<Full<Bytes>>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    }));
    let late = CallContext::default().with_deadline(TokioClock.now());
    let call = |grpc| buttress::context::with(late, server.clone().oneshot(request("/orders", "0", grpc)));
    let http = call(false).await.unwrap();
    assert_eq!((http.status(), http.headers().get("retry-after")), (StatusCode::GATEWAY_TIMEOUT, None));
    assert_eq!(http.headers()["x-buttress-rejected"], TOO_LATE.word());
    assert_eq!(call(true).await.unwrap().headers()["grpc-status"], "4");
}

#[tokio::test(start_paused = true)]
async fn a_client_is_throttled_by_429_and_by_rejections_of_ours_and_not_by_failures() {
    for (status, header, is_overload) in [
        (429, None, true),
        (503, Some("x-buttress-rejected"), true),
        (503, None, false),
        (404, None, false),
        (200, None, false),
    ] {
        let backend = service_fn(move |_: Request<Full<Bytes>>| async move {
            let mut response = Response::builder().status(status);
            if let Some(header) = header {
                response = response.header(header, "overloaded");
            }
            Ok::<_, Infallible>(response.body(Full::<Bytes>::default()).unwrap())
        });
        let throttle = Throttle::builder("backend").seed(7).build().unwrap();
        let client = ThrottleLayer::from(throttle.clone()).http_client().layer(backend);
        for _call in 0..100 {
            tokio::time::advance(TICK).await;
            let _rejected_or_not = client.clone().oneshot(request("/", "1", false)).await;
        }
        assert_eq!(throttle.rejected() > 50, is_overload, "{status} {header:?}: {:?}", throttle.counts());
    }
}
