use crate::{
    message::{Body, Message},
    run,
};
use buttress_http::prelude::*;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use std::{
    io,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use tower::{ServiceBuilder, ServiceExt, service_fn};

/// Three attempts that were sent, and a free one of a request that was returned unprocessed. Each
/// of them may be hedged.
const MOST_ATTEMPTS: u32 = 8;

/// Answers each attempt of a client with all layers of a client, for HTTP and for gRPC. The first
/// line is the status.
pub fn response(data: &[u8]) {
    let message = Message::parse(data);
    let status = std::str::from_utf8(&message.first).ok().and_then(|text| text.trim().parse().ok());
    let Some(status) = status.and_then(|code: u16| StatusCode::from_u16(code).ok()) else { return };
    let respond = || {
        let mut response = Response::new(message.body());
        *response.status_mut() = status;
        *response.headers_mut() = message.headers.clone();
        response
    };
    let attempts = AtomicU32::new(0);
    macro_rules! call {
        ($client:ident, $request:expr) => {{
            attempts.store(0, Ordering::Relaxed);
            let stack = ServiceBuilder::new()
                .layer(ContextLayer::new().$client())
                .layer(DeadlineLayer::new(Duration::from_secs(300)).$client())
                .layer(AdaptiveRateLayer::new().$client())
                .layer(ThrottleLayer::new("backend").$client())
                .layer(RetryLayer::new(3).seed(1).$client())
                .layer(HedgeLayer::after(Duration::from_secs(1)).$client())
                .layer(CircuitBreakerLayer::new("backend").$client())
                .layer(AdaptiveLimitLayer::new("backend").$client())
                .layer(TimeoutLayer::attempt(Duration::from_secs(1)).$client())
                .service(service_fn(|_| {
                    attempts.fetch_add(1, Ordering::Relaxed);
                    std::future::ready(Ok::<Response<Body>, io::Error>(respond()))
                }));
            run(async {
                if let Ok(response) = stack.oneshot($request).await {
                    let _ = response.into_body().collect().await;
                }
            });
            assert!((1..=MOST_ATTEMPTS).contains(&attempts.load(Ordering::Relaxed)), "{attempts:?} attempts");
        }};
    }
    call!(http_client, Request::new(Full::new(Bytes::new())));
    call!(grpc_client, Request::post("/shop.Stock/Take").body(Full::new(Bytes::from_static(b"order"))).expect("valid"));
}
