//! Retries as the bytes of a response ask for them, on a paused clock.

use buttress::{
    BoxError,
    policy::{Clock, TokioClock},
};
use buttress_http::{ReplayBody, prelude::*, replay::tee};
use buttress_test::{Part, TestBody};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use std::{
    future::ready,
    sync::{Arc, Mutex},
    time::Duration,
};
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};

const MS: Duration = Duration::from_millis(1);
const BACKOFF: Duration = Duration::from_millis(100);

type Headers = [(&'static str, &'static str)];

fn retry() -> RetryLayer {
    RetryLayer::new(2).backoff(Backoff::constant(BACKOFF))
}

/// The headers of the requests that a backend received.
type Seen = Arc<Mutex<Vec<HeaderMap>>>;

type Service<B> = BoxCloneSyncService<Request<B>, Response<Full<Bytes>>, BoxError>;

/// Answers the first request with this head and further ones with 200.
fn backend<B>(status: u16, head: &Headers) -> (Seen, Service<B>)
where
    B: http_body::Body<Error = BoxError, Data: Send> + Send + 'static,
{
    let mut bad = Response::new(Full::default());
    *bad.status_mut() = http::StatusCode::from_u16(status).unwrap();
    for (name, value) in head {
        bad.headers_mut().append(*name, value.parse().unwrap());
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    let requests = seen.clone();
    let service = service_fn(move |request: Request<B>| {
        let (head, body) = request.into_parts();
        let mut requests = requests.lock().unwrap();
        requests.push(head.headers);
        let response = if requests.len() == 1 { bad.clone() } else { Response::new(Full::default()) };
        async move {
            body.collect().await?;
            Ok::<_, BoxError>(response)
        }
    });
    (seen, BoxCloneSyncService::new(service))
}

/// Returns the pause before the second attempt of a POST or a GET, or `None` if there was none.
async fn pause(method: &str, status: u16, head: &Headers) -> Option<Duration> {
    let (seen, backend) = backend(status, head);
    let request = Request::builder().method(method).body(Full::<Bytes>::default()).unwrap();
    let start = TokioClock.now();
    retry().http_client().layer(backend).oneshot(request).await.unwrap();
    let attempts: Vec<_> = seen.lock().unwrap().iter().map(|head| head.get("x-retry-attempt").cloned()).collect();
    match &attempts[..] {
        [None] => None,
        [None, Some(number)] if number == "1" => Some(TokioClock.now() - start),
        others => panic!("{others:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_as_long_as_retry_after_asks_for_by_the_clock_of_the_server() {
    const DATE: (&str, &str) = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
    let later = ("retry-after", "Sun, 06 Nov 1994 08:49:57 GMT");
    let earlier = ("retry-after", "Sun, 06 Nov 1994 08:49:17 GMT");
    for (status, head, seconds) in [
        (503, &[("retry-after", "3")][..], 3),
        (500, &[("retry-after", "7")], 7),
        (408, &[("retry-after", "2")], 2),
        (503, &[later, DATE], 20),
        (503, &[("retry-after", "60")], 60),
    ] {
        let (asked, paused) = (Duration::from_secs(seconds), pause("GET", status, head).await.unwrap());
        // Up to a tenth more, so that callers do not come back together.
        assert!((asked..=asked + asked / 10 + MS).contains(&paused), "{status} {head:?}: {paused:?}");
    }
    for (status, head) in [
        (503, &[][..]),
        (503, &[earlier, DATE]),
        (503, &[("retry-after", "0")]),
        (503, &[("retry-after", "soon")]),
        (503, &[("retry-after", "")]),
    ] {
        assert_eq!(pause("GET", status, head).await, Some(BACKOFF), "{status} {head:?}");
    }
    assert_eq!(pause("GET", 503, &[("retry-after", "61")]).await, None, "longer than the longest hint");
    assert_eq!(pause("GET", 501, &[]).await, None);
    assert_eq!(pause("GET", 404, &[("retry-after", "3")]).await, None);
}

#[tokio::test(start_paused = true)]
async fn what_was_rejected_at_admission_is_sent_again_whatever_its_method_and_from_a_second_on() {
    for (status, head) in [
        (429, &[][..]),
        (503, &[("x-buttress-rejected", "bulkhead_full")]),
        (500, &[("x-envoy-overloaded", "true")]),
        (504, &[("x-envoy-ratelimited", "true")]),
    ] {
        let mut longest = Duration::ZERO;
        for seed in 0..20 {
            let (seen, backend) = backend(status, head);
            let long = Backoff::full_jitter(MS, Duration::from_secs(20));
            let request = Request::post("/").body(Full::<Bytes>::default()).unwrap();
            let start = TokioClock.now();
            retry().backoff(long).seed(seed).http_client().layer(backend).oneshot(request).await.unwrap();
            assert_eq!(seen.lock().unwrap().len(), 2, "{status} {head:?}");
            longest = longest.max(TokioClock.now() - start);
        }
        assert!(longest > Duration::from_millis(500), "{status} {head:?} is no overload: {longest:?}");
    }
    for (status, head) in [(503, &[][..]), (503, &[("retry-after", "1")]), (500, &[]), (408, &[])] {
        assert_eq!(pause("POST", status, head).await, None, "{status} {head:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_idempotent_method_is_repeated_and_no_other() {
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"] {
        assert_eq!(pause(method, 500, &[]).await, Some(BACKOFF), "{method}");
    }
    for method in ["POST", "PATCH", "CONNECT", "get", "PURGE"] {
        assert_eq!(pause(method, 500, &[]).await, None, "{method}");
    }
}

/// Returns the pause before the second attempt of a gRPC call, or `None` if there was none.
async fn grpc_pause(idempotent: bool, head: &Headers) -> Option<Duration> {
    let (seen, backend) = backend(200, head);
    let mut request = Request::post("/").body(Full::<Bytes>::default()).unwrap();
    if idempotent {
        request.headers_mut().insert("idempotency-key", "7".parse().unwrap());
    }
    let start = TokioClock.now();
    retry().grpc_client().layer(backend).oneshot(request).await.unwrap();
    let attempts = seen.lock().unwrap();
    assert!(attempts.iter().all(|head| !head.contains_key("x-retry-attempt")));
    let numbers: Vec<_> = attempts.iter().map(|head| head.get("grpc-previous-rpc-attempts").cloned()).collect();
    match &numbers[..] {
        [None] => None,
        [None, Some(number)] if number == "1" => Some(TokioClock.now() - start),
        others => panic!("{others:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_grpc_pushback_is_the_pause_or_forbids_another_attempt() {
    for (code, pushback, paused) in [
        ("14", "250", Some(250 * MS)),
        ("14", "0", Some(Duration::ZERO)),
        ("14", "1", Some(MS)),
        ("8", "3000", Some(3000 * MS)),
        ("14", "60000", Some(60_000 * MS)),
        // Longer than the longest hint.
        ("14", "60001", None),
        ("14", "-1", None),
        ("14", "soon", None),
        ("14", "2147483648", None),
        // No failure, and one that is never repeated.
        ("5", "250", None),
        ("13", "250", None),
    ] {
        let head = [("grpc-status", code), ("grpc-retry-pushback-ms", pushback)];
        assert_eq!(grpc_pause(false, &head).await, paused, "{head:?}");
    }
    let twice = [("grpc-status", "14"), ("grpc-retry-pushback-ms", "250"), ("grpc-retry-pushback-ms", "250")];
    assert_eq!(grpc_pause(false, &twice).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_grpc_call_that_may_have_been_processed_is_repeated_if_it_says_that_it_is_idempotent() {
    for code in ["14", "4"] {
        assert_eq!(grpc_pause(true, &[("grpc-status", code)]).await, Some(BACKOFF), "{code}");
        assert_eq!(grpc_pause(false, &[("grpc-status", code)]).await, None, "{code}");
    }
    assert_eq!(grpc_pause(true, &[("grpc-status", "4"), ("grpc-retry-pushback-ms", "5")]).await, Some(5 * MS));
    assert_eq!(grpc_pause(false, &[("grpc-status", "4"), ("grpc-retry-pushback-ms", "5")]).await, None);
    for never in ["0", "1", "2", "3", "7", "13", "15", "16", "99", "nonsense"] {
        assert_eq!(grpc_pause(true, &[("grpc-status", never)]).await, None, "{never}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_is_sent_again_up_to_its_cap_and_not_beyond() {
    const DEFAULT: usize = 64 * 1024;
    for (cap, size, attempts) in
        [(Some(4), 4, 2), (Some(4), 5, 1), (Some(0), 1, 1), (Some(0), 0, 2), (None, DEFAULT, 2), (None, DEFAULT + 1, 1)]
    {
        for key_by_function in [false, true] {
            let (seen, backend) = backend::<ReplayBody<Full<Bytes>>>(500, &[]);
            let request = Request::put("/").body(Full::from(vec![7; size])).unwrap();
            let layer = retry().http_client();
            let layer = if let Some(cap) = cap { layer.max_body(cap) } else { layer };
            if key_by_function {
                layer.idempotent(|head| head.method == "PUT").layer(backend).oneshot(request).await.unwrap();
            } else {
                layer.layer(backend).oneshot(request).await.unwrap();
            }
            assert_eq!(seen.lock().unwrap().len(), attempts, "{size} bytes of {cap:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn settings_of_a_retry_survive_each_other() {
    let (seen, backend) = backend(500, &[]);
    let retry = retry().grpc_client().idempotent(|_| true).max_body(4);
    let layer = retry.map_request_body(|body: ReplayBody<Full<Bytes>>| body.boxed_unsync());
    for (size, attempts) in [(4, 2), (5, 1)] {
        seen.lock().unwrap().clear();
        let request = Request::post("/").body(Full::from(vec![7; size])).unwrap();
        let mut unavailable = Response::new(Full::<Bytes>::default());
        unavailable.headers_mut().insert("grpc-status", "14".parse().unwrap());
        let service = backend.clone().map_response(move |_: Response<Full<Bytes>>| unavailable);
        layer.layer(service).oneshot(request).await.unwrap();
        assert_eq!(seen.lock().unwrap().len(), attempts, "{size}");
        let last = seen.lock().unwrap().pop().unwrap();
        assert_eq!(last.contains_key("grpc-previous-rpc-attempts"), attempts == 2, "the header is still that of gRPC");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_its_caller_repeats_adds_nothing_to_the_budget() {
    let budget = RetryBudget::builder().percent(100.0).min_per_second(0.0).burst(10).build().unwrap();
    (0..10).for_each(|_| drop(budget.try_withdraw().unwrap().spend()));
    let good = service_fn(|_: Request<ReplayBody<Full<Bytes>>>| ready(Ok::<_, BoxError>(Response::new(String::new()))));
    let (http, grpc) = (retry().budget(budget.clone()).http_client(), retry().budget(budget.clone()).grpc_client());
    // Either header says so in either protocol: a gateway may pass the one on in the other.
    let mut balance = 0.0;
    for (header, value, added) in [
        ("x-other", "1", 1.0),
        ("x-retry-attempt", "1", 0.0),
        ("grpc-previous-rpc-attempts", "1", 0.0),
        ("x-retry-attempt", "0", 1.0),
        ("grpc-previous-rpc-attempts", "0", 1.0),
        ("x-retry-attempt", "nonsense", 0.0),
    ] {
        let request = || Request::get("/").header(header, value).body(Full::<Bytes>::default()).unwrap();
        http.layer(good).oneshot(request()).await.unwrap();
        balance += added;
        assert_eq!(budget.balance(), balance, "{header}: {value} over HTTP");
        grpc.layer(good).oneshot(request()).await.unwrap();
        balance += added;
        assert_eq!(budget.balance(), balance, "{header}: {value} over gRPC");
    }
}

#[tokio::test]
async fn a_replayed_body_is_at_its_end_after_its_trailers_and_not_before() {
    let trailers = HeaderMap::from_iter([(http::header::ETAG, "x".parse().unwrap())]);
    let (first, handle) = tee(TestBody::new([Part::Data("a"), Part::Trailers(trailers)]), 10);
    let mut next = Some(first);
    for _ in 0..3 {
        let mut body = next.take().unwrap();
        for is_at_its_end in [false, false, true] {
            assert_eq!(body.is_end_stream(), is_at_its_end);
            assert_eq!(body.frame().await.is_none(), is_at_its_end);
        }
        next = handle.replay();
    }
}
