use super::*;
use crate::prelude::*;
use buttress::{
    Error,
    deadline::{EXCEEDED, EXPIRED, Mode},
    error::find_rejection,
    policy::{CallContext, Clock, TokioClock},
};
use buttress_test::{Part, TestBody};
use http::{HeaderMap, Response};
use http_body_util::{BodyExt, Full};
use std::{
    convert::Infallible,
    io,
    sync::{Arc, Mutex},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

type Seen = Arc<Mutex<Vec<HeaderMap>>>;

fn left() -> Option<Duration> {
    CallContext::current().deadline.map(|deadline| deadline - TokioClock.now())
}

fn request(headers: &[(&'static str, &str)]) -> Request<TestBody> {
    let mut request = Request::new(TestBody::default());
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    request
}

/// Answers with this body, and keeps the headers of each request.
fn backend<const N: usize>(
    seen: &Seen,
    kind: &'static str,
    parts: [Part; N],
) -> impl Service<Request<TestBody>, Response = Response<TestBody>, Error = Infallible, Future: Send> + Clone {
    let (seen, parts) = (seen.clone(), parts.to_vec());
    service_fn(move |request: Request<TestBody>| {
        seen.lock().unwrap().push(request.headers().clone());
        let response = Response::builder().header("content-type", kind).body(TestBody::new(parts.clone()));
        std::future::ready(Ok::<_, Infallible>(response.unwrap()))
    })
}

fn of<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_server_takes_the_shortest_header_and_its_limits_and_hands_it_to_the_handler() {
    let handler = service_fn(async |request: Request<TestBody>| {
        let extension = request.extensions().get::<Deadline>().map(|deadline| deadline.left(TokioClock.now()));
        assert_eq!(extension, left());
        Ok::<_, Infallible>(Response::new(format!("{:?}", left())))
    });
    let server = DeadlineLayer::server().default_limit(9 * SECOND).max_limit(5 * SECOND).http().layer(handler);
    for (headers, expected) in [
        (&[("x-request-timeout-ms", "1500")][..], "Some(1.5s)"),
        (&[("x-envoy-expected-rq-timeout-ms", "250")], "Some(250ms)"),
        (&[("grpc-timeout", "3S"), ("x-request-timeout-ms", "4000")], "Some(3s)"),
        (&[("grpc-timeout", "1H")], "Some(5s)"),
        (&[("grpc-timeout", "soon")], "Some(5s)"),
        (&[("grpc-timeout", "99999999H"), ("x-request-timeout-ms", "18446744073709551615")], "Some(5s)"),
        (&[], "Some(5s)"),
    ] {
        let response = server.clone().oneshot(request(headers)).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), expected, "{headers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_call_is_answered_in_its_protocol_and_says_that_it_was_not_processed() {
    let seen = Seen::default();
    let server = DeadlineLayer::server().mode(Mode::EnforceAll).http().layer(backend(&seen, "text/plain", []));
    let http = server.clone().oneshot(request(&[("x-request-timeout-ms", "0")])).await.unwrap();
    assert_eq!(
        (http.status().as_u16(), &http.headers()["x-buttress-rejected"]),
        (504, &"deadline_expired".parse().unwrap())
    );
    let kind = ("content-type", "application/grpc");
    let grpc = server.oneshot(request(&[kind, ("grpc-timeout", "0n")])).await.unwrap();
    assert_eq!((of(grpc.headers(), "grpc-status"), grpc.status().as_u16()), (vec!["4"], 200));
    assert!(seen.lock().unwrap().is_empty());
    for (response, is_grpc) in [(http, false), (grpc, true)] {
        let outcome = if is_grpc {
            crate::classify::grpc_headers(response.headers()).unwrap()
        } else {
            crate::classify::http_status(response.status(), response.headers())
        };
        let failure = outcome.failure().unwrap();
        assert!(failure.no_retry && !failure.overload, "a client does not repeat it: {failure:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_takes_too_long_is_answered_with_504_or_deadline_exceeded() {
    let never = || service_fn(|_: Request<TestBody>| std::future::pending::<Result<Response<TestBody>, Infallible>>());
    let http = DeadlineLayer::server().http().layer(never()).oneshot(request(&[("x-request-timeout-ms", "100")]));
    let http = http.await.unwrap();
    assert_eq!((http.status().as_u16(), of(http.headers(), "x-buttress-rejected")), (504, vec![]));
    let grpc = DeadlineLayer::server().grpc().layer(never()).oneshot(request(&[("grpc-timeout", "100m")]));
    assert_eq!(of(grpc.await.unwrap().headers(), "grpc-status"), ["4"]);
}

#[tokio::test(start_paused = true)]
async fn a_client_writes_the_header_of_its_protocol() {
    let seen = Seen::default();
    let http = DeadlineLayer::new(2 * SECOND).http_client().layer(backend(&seen, "text/plain", []));
    http.clone().oneshot(request(&[])).await.unwrap();
    http.oneshot(request(&[("content-type", "application/grpc")])).await.unwrap();
    let grpc = DeadlineLayer::new(2 * SECOND).grpc_client().layer(backend(&seen, "application/grpc", []));
    grpc.oneshot(request(&[("x-request-timeout-ms", "1500")])).await.unwrap();
    let seen = seen.lock().unwrap();
    let sent = |n: usize| (of(&seen[n], "x-request-timeout-ms"), of(&seen[n], "grpc-timeout"));
    assert_eq!(sent(0), (vec!["2000"], vec![]));
    assert_eq!(sent(1), (vec![], vec!["2000000u"]));
    assert_eq!(sent(2), (vec![], vec!["1500000u"]));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_and_a_deadline_that_the_caller_set_shorten_that_of_the_client() {
    let seen = Seen::default();
    let grpc = DeadlineLayer::new(2 * SECOND).grpc_client().layer(backend(&seen, "application/grpc", []));
    grpc.clone().oneshot(request(&[("grpc-timeout", "500m")])).await.unwrap();
    grpc.clone().oneshot(request(&[("grpc-timeout", "5S")])).await.unwrap();
    let mut until = request(&[]);
    until.extensions_mut().insert(Deadline(TokioClock.now() + SECOND));
    grpc.clone().oneshot(until).await.unwrap();
    let error = grpc.oneshot(request(&[("grpc-timeout", "0n")])).await.unwrap_err();
    assert_eq!(error.rejection().unwrap().reason(), &EXPIRED);
    let seen = seen.lock().unwrap();
    let sent: Vec<_> = seen.iter().map(|headers| of(headers, "grpc-timeout").join("|")).collect();
    assert_eq!(sent, ["500000u", "2000000u", "1000000u"]);
}

#[tokio::test(start_paused = true)]
async fn every_attempt_is_sent_with_what_is_left_after_the_pause() {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let backend = {
        let sent = sent.clone();
        service_fn(move |request: Request<crate::ReplayBody<TestBody>>| {
            sent.lock().unwrap().push(of(request.headers(), "x-request-timeout-ms").join("|"));
            async {
                tokio::time::sleep(300 * MS).await;
                Err::<Response<TestBody>, _>(io::Error::from(io::ErrorKind::ConnectionReset))
            }
        })
    };
    let layers = || {
        let retry = RetryLayer::new(3).backoff(Backoff::constant(200 * MS)).http_client();
        ServiceBuilder::new()
            .layer(DeadlineLayer::new(2 * SECOND).http_client())
            .layer(retry.map_request_body(|body: crate::ReplayBody<TestBody>| body))
    };
    layers().service(backend.clone()).oneshot(request(&[])).await.map(drop).unwrap_err();
    assert_eq!(std::mem::take(&mut *sent.lock().unwrap()), ["2000", "1500", "1000"]);
    let with_attempts = layers().layer(TimeoutLayer::attempt(SECOND).http_client()).service(backend);
    with_attempts.oneshot(request(&[])).await.map(drop).unwrap_err();
    assert_eq!(*sent.lock().unwrap(), ["2000", "1500", "1000"]);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_waited_in_a_queue_is_sent_with_what_is_left() {
    let seen = Seen::default();
    let slow = backend(&seen, "text/plain", []);
    let slow = service_fn(move |request| {
        let slow = slow.clone();
        async move {
            let response = slow.oneshot(request).await;
            tokio::time::sleep(300 * MS).await;
            response
        }
    });
    let client = ServiceBuilder::new()
        .layer(DeadlineLayer::new(2 * SECOND).http_client())
        .layer(BulkheadLayer::new(1).queue(9, 9 * SECOND).http_client())
        .layer(TimeoutLayer::attempt(SECOND).http_client())
        .service(slow);
    let call = || async { client.clone().oneshot(request(&[])).await.map(drop) };
    let (first, second) = tokio::join!(call(), call());
    assert!(first.is_ok() && second.is_ok());
    let seen = seen.lock().unwrap();
    let sent: Vec<_> = seen.iter().map(|headers| of(headers, "x-request-timeout-ms").join("|")).collect();
    assert_eq!(sent, ["2000", "1700"]);
}

async fn error_of<B: http_body::Body<Error = buttress::BoxError>>(
    body: B,
) -> (usize, Option<&'static buttress::Reason>) {
    let mut body = std::pin::pin!(body);
    let mut frames = 0;
    loop {
        match body.frame().await {
            Some(Ok(_)) => frames += 1,
            Some(Err(error)) => return (frames, find_rejection(&*error).map(buttress::Rejection::reason)),
            None => return (frames, None),
        }
    }
}

fn parts() -> [Part; 4] {
    [Part::Data("one"), Part::Wait(SECOND), Part::Data("two"), Part::Never]
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_a_grpc_call_bounds_its_stream_and_that_of_an_http_call_on_request() {
    let seen = Seen::default();
    let limit = DeadlineLayer::new(1500 * MS).named("payments");
    let started = TokioClock.now();
    let grpc = limit.clone().grpc_client().layer(backend(&seen, "application/grpc", parts()));
    let response = grpc.oneshot(request(&[])).await.unwrap();
    assert_eq!(error_of(response.into_body()).await, (2, Some(&EXCEEDED)));
    assert_eq!(TokioClock.now() - started, 1500 * MS, "counted from the call");
    let detected = limit.clone().http_client().layer(backend(&seen, "application/grpc+proto", parts()));
    let response = detected.oneshot(request(&[("content-type", "application/grpc")])).await.unwrap();
    assert_eq!(error_of(response.into_body()).await, (2, Some(&EXCEEDED)));
    let whole = limit.clone().through_body().http_client().layer(backend(&seen, "text/plain", parts()));
    let response = whole.oneshot(request(&[])).await.unwrap();
    assert_eq!(error_of(response.into_body()).await, (2, Some(&EXCEEDED)));
    let head = limit.http_client().layer(backend(&seen, "text/plain", [Part::Wait(9 * SECOND), Part::Data("late")]));
    let response = head.oneshot(request(&[])).await.unwrap();
    assert_eq!(error_of(response.into_body()).await, (1, None));
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_a_server_ends_with_deadline_exceeded_in_its_trailers_and_runs_in_the_context() {
    let handler = service_fn(async |_: Request<TestBody>| {
        let frames = futures_util::stream::unfold((), async |()| {
            tokio::time::sleep(400 * MS).await;
            let frame = http_body::Frame::data(bytes::Bytes::from(format!("{:?}", left().unwrap())));
            Some((Ok::<_, Infallible>(frame), ()))
        });
        let body = http_body_util::StreamBody::new(Box::pin(frames));
        Ok::<_, Infallible>(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
    });
    let server = DeadlineLayer::server().grpc().layer(handler);
    let response = server.oneshot(request(&[("grpc-timeout", "1S")])).await.unwrap();
    let collected = response.into_body().collect().await.unwrap();
    let trailers = collected.trailers().unwrap().clone();
    assert_eq!(of(&trailers, "grpc-status"), ["4"]);
    assert_eq!(trailers["grpc-message"], "deadline: the deadline passed before the call ended (1s)");
    assert_eq!(collected.to_bytes(), "600ms200ms");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_nobody_reads_is_dropped_at_the_deadline() {
    let dropped = Arc::new(());
    let held = dropped.clone();
    let handler = service_fn(move |_: Request<TestBody>| {
        let held = held.clone();
        let body = TestBody::new(parts()).map_frame(move |frame| {
            let _held = &held;
            frame
        });
        std::future::ready(Ok::<_, Infallible>(Response::new(body)))
    });
    let client = DeadlineLayer::new(SECOND).grpc_client().layer(handler);
    let response = client.clone().oneshot(request(&[])).await.unwrap();
    drop(client);
    assert_eq!(Arc::strong_count(&dropped), 2);
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(Arc::strong_count(&dropped), 1);
    drop(response);
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_inner_service_keeps_its_type() {
    let client = DeadlineLayer::new(SECOND).http_client().layer(service_fn(async |_: Request<TestBody>| {
        Err::<Response<Full<bytes::Bytes>>, _>(io::Error::from(io::ErrorKind::BrokenPipe))
    }));
    let error: Error = client.oneshot(request(&[])).await.map(drop).unwrap_err();
    assert!(error.rejection().is_none());
}
