//! Pauses, retry hints and budgets, on a paused clock.

use buttress::BoxError;
use buttress_http::{ReplayBody, prelude::*};
use bytes::Bytes;
use http::{Request, Response, header::RETRY_AFTER};
use http_body_util::{BodyExt, Channel, Full};
use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::timeout;
use tower::{Layer, ServiceExt, service_fn};

fn unavailable(retry_after: Option<&'static str>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().extend(retry_after.map(|after| (RETRY_AFTER, after.parse().unwrap())));
    response
}

#[tokio::test(start_paused = true)]
async fn a_hint_of_zero_does_not_lengthen_a_pause_beyond_the_cap() {
    let cap = Duration::from_millis(400);
    for seed in 0..100 {
        for hint in [None, Some("0")] {
            let retry = RetryLayer::new(6).seed(seed).backoff(Backoff::exponential(Duration::from_millis(100), cap));
            let stats = retry.stats();
            let backend = service_fn(move |_: Request<ReplayBody<Full<Bytes>>>| {
                std::future::ready(Ok::<_, Infallible>(unavailable(hint)))
            });
            let call = retry.http_client().layer(backend).oneshot(Request::get("/").body(Full::default()).unwrap());
            // At most five pauses of the cap, each rounded up to whole milliseconds by a timer.
            timeout(5 * cap + Duration::from_millis(50), call).await.expect("the cap holds").unwrap();
            assert_eq!(stats.retries(), 5);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_hint_longer_than_time_itself_is_waited_for_without_a_panic() {
    let backend = service_fn(|_: Request<ReplayBody<Full<Bytes>>>| {
        std::future::ready(Ok::<_, Infallible>(unavailable(Some("18446744073709551615"))))
    });
    let service = RetryLayer::new(2).max_hint(Duration::MAX).http_client().layer(backend);
    let call = tokio::spawn(service.oneshot(Request::get("/").body(Full::default()).unwrap()));
    timeout(Duration::from_secs(86_400 * 365), call).await.expect_err("it waits");
}

/// The response head arrives during the upload, which HTTP/2 allows.
#[tokio::test(start_paused = true)]
async fn a_failure_that_is_not_repeated_does_not_cut_its_upload_off() {
    for (attempts, is_empty) in [(1, false), (2, true)] {
        let budget = RetryBudget::builder().percent(0.0).min_per_second(0.0).burst(1).build().unwrap();
        if is_empty {
            budget.try_withdraw().unwrap().spend();
        }
        let stash = Arc::new(Mutex::new(None));
        let upload = stash.clone();
        let backend = service_fn(move |request: Request<ReplayBody<Channel<Bytes, Infallible>>>| {
            let upload = upload.clone();
            async move {
                let mut body = request.into_body();
                body.frame().await.unwrap()?;
                *upload.lock().unwrap() = Some(body);
                Ok::<_, BoxError>(unavailable(None))
            }
        });
        let (mut sender, body) = Channel::new(8);
        for chunk in ["a", "b", "c"] {
            sender.send_data(Bytes::from(chunk)).await.unwrap();
        }
        drop(sender);
        let retry = RetryLayer::new(attempts).budget(budget).http_client();
        let response = retry.layer(backend).oneshot(Request::put("/").body(body).unwrap()).await.unwrap();
        assert_eq!(response.status(), 503);
        let rest = stash.lock().unwrap().take().unwrap();
        assert_eq!(rest.collect().await.unwrap().to_bytes(), "bc");
    }
}
