use super::*;
use buttress::{
    BoxError, Error, SingleFlightLayer,
    error::{outcome, sources},
    policy::{Clock, TokioClock},
    single_flight::{CallPanicked, SingleFlightStats},
};
use buttress_test::{Answer, Inner, Part, Plan, TestBody};
use bytes::Bytes;
use http_body_util::BodyExt;
use std::{collections::HashSet, time::Duration};
use tokio::time::timeout;
use tower::{Layer, Service, ServiceExt, util::BoxCloneSyncService};

const S: Duration = Duration::from_secs(1);

type Client = BoxCloneSyncService<Request<TestBody>, Response<SharedBody<TestBody>>, Error>;

fn client(backend: &Inner) -> (Client, SingleFlightStats) {
    client_with(backend, HttpKey::new())
}

fn client_with(backend: &Inner, key: HttpKey) -> (Client, SingleFlightStats) {
    use crate::HttpExt;
    let layer = SingleFlightLayer::with_key(key).max_body(100);
    let stats = layer.stats();
    (BoxCloneSyncService::new(layer.http_client().layer(backend.clone())), stats)
}

fn get() -> Request<TestBody> {
    Request::get("http://rows/7").body(TestBody::default()).unwrap()
}

fn with(name: HeaderName, value: &'static str) -> Request<TestBody> {
    let mut request = get();
    request.headers_mut().append(name, HeaderValue::from_static(value));
    request
}

/// A response of a second, with headers and a body.
fn slow(headers: &[(&'static str, &'static str)], body: Vec<Part>) -> Inner {
    let mut response = Response::new(body);
    for (name, value) in headers {
        response.headers_mut().append(*name, HeaderValue::from_static(value));
    }
    Inner::new(Plan::of(Answer::Response(response)).slow(S))
}

async fn read(response: Result<Response<SharedBody<TestBody>>, Error>) -> Result<Bytes, BoxError> {
    Ok(response?.into_body().collect().await?.to_bytes())
}

/// Makes three calls at once, and returns how many reached the backend.
async fn three_at_once(backend: &Inner, client: &Client, request: fn() -> Request<TestBody>) -> usize {
    let before = backend.received().len();
    let call = || async { read(client.clone().oneshot(request()).await).await };
    let (one, two, three) = tokio::join!(call(), call(), call());
    assert!(one.is_ok() && two.is_ok() && three.is_ok());
    backend.received().len() - before
}

#[tokio::test(start_paused = true)]
async fn equal_requests_share_a_call_with_its_head_its_frames_and_its_trailers() {
    let trailers = [(HeaderName::from_static("x-end"), HeaderValue::from_static("yes"))].into_iter().collect();
    let body = vec![Part::Data("hello "), Part::Pause, Part::Data("world"), Part::Trailers(trailers)];
    let backend = slow(&[("etag", "\"1\""), ("x-line", "a"), ("x-line", "b")], body);
    let (client, stats) = client(&backend);
    let call = || client.clone().oneshot(get());
    let (one, other) = tokio::join!(call(), call());
    for response in [one.unwrap(), other.unwrap()] {
        assert_eq!(response.headers().get_all("x-line").iter().count(), 2);
        assert_eq!(http_body::Body::size_hint(response.body()).exact(), Some(11));
        let collected = response.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["x-end"], "yes");
        assert_eq!(collected.to_bytes(), "hello world");
    }
    assert_eq!((backend.received().len(), stats.made(), stats.joined()), (1, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn only_safe_requests_without_a_body_and_without_credentials_are_shared() {
    let backend = slow(&[], vec![]);
    let (client, _) = client(&backend);
    let head = || Request::head("http://rows/7").body(TestBody::default()).unwrap();
    assert_eq!(three_at_once(&backend, &client, get).await, 1);
    assert_eq!(three_at_once(&backend, &client, head).await, 1);
    let unshared: [fn() -> Request<TestBody>; 9] = [
        || Request::post("http://rows/7").body(TestBody::default()).unwrap(),
        || Request::get("http://rows/7").body(TestBody::new([Part::Data("query")])).unwrap(),
        || with(header::AUTHORIZATION, "Bearer a"),
        || with(header::COOKIE, "session=1"),
        || with(header::RANGE, "bytes=0-1"),
        || with(header::IF_NONE_MATCH, "\"1\""),
        || with(header::UPGRADE, "websocket"),
        || with(header::CACHE_CONTROL, "no-cache"),
        || with(header::CACHE_CONTROL, "No-Store"),
    ];
    for request in unshared {
        assert_eq!(three_at_once(&backend, &client, request).await, 3, "{:?}", request());
    }
}

#[tokio::test(start_paused = true)]
async fn credentials_in_the_key_are_shared_by_those_who_have_them() {
    let backend = slow(&[], vec![]);
    let (client, _) = client_with(&backend, HttpKey::new().header(header::AUTHORIZATION));
    let call = |token: &'static str| client.clone().oneshot(with(header::AUTHORIZATION, token));
    let (one, same, other) = tokio::join!(call("a"), call("a"), call("b"));
    assert!(one.is_ok() && same.is_ok() && other.is_ok());
    let received = backend.received();
    let tokens: HashSet<_> = received.iter().map(|request| request.headers["authorization"].clone()).collect();
    assert_eq!((received.len(), tokens.len()), (2, 2));
}

#[test]
fn all_lines_of_a_header_are_in_the_key() {
    let lines = |values: &[&'static str]| {
        let mut request = get();
        for value in values {
            request.headers_mut().append(header::ACCEPT, HeaderValue::from_static(value));
        }
        HttpKey::new().key(&request)
    };
    assert_ne!(lines(&["a", "b"]), lines(&["a", "c"]));
    assert_ne!(lines(&["a", "b"]), lines(&["a"]));
    assert_eq!(lines(&["a", "b"]), lines(&["a", "b"]));
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_meant_for_one_caller_is_not_shared() {
    let personal: [(&str, &str); 8] = [
        ("cache-control", "private"),
        ("cache-control", "No-Store"),
        ("cache-control", "no-cache"),
        ("set-cookie", "session=1"),
        ("vary", "x-tenant"),
        ("vary", "*"),
        ("content-type", "Text/Event-Stream; charset=utf-8"),
        ("content-length", "101"),
    ];
    for head in personal {
        let backend = slow(&[head], vec![Part::Data("mine")]);
        let (client, stats) = client(&backend);
        let start = TokioClock.now();
        assert_eq!(three_at_once(&backend, &client, get).await, 3, "{head:?}");
        assert_eq!((stats.unshared(), TokioClock.now() - start), (2, 2 * S), "known at the head");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_can_say_that_it_has_everything() {
    let backend = slow(&[("cache-control", "no-store")], vec![]);
    let (sharing, _) = client_with(&backend, HttpKey::new().ignore_cache_control());
    assert_eq!(three_at_once(&backend, &sharing, get).await, 1);
    let backend = slow(&[("vary", "x-tenant")], vec![]);
    let (client, _) = client_with(&backend, HttpKey::new().header(HeaderName::from_static("x-tenant")));
    assert_eq!(three_at_once(&backend, &client, get).await, 1);
}

const SIXTY: &str = "123456789 123456789 123456789 123456789 123456789 123456789 ";

#[tokio::test(start_paused = true)]
async fn a_body_over_the_limit_goes_to_the_first_caller_whole_and_the_others_call() {
    let backend = slow(&[], vec![Part::Data(SIXTY), Part::Data(SIXTY), Part::Data("end")]);
    let (client, stats) = client(&backend);
    let call = || async { read(client.clone().oneshot(get()).await).await.unwrap() };
    let (one, other) = tokio::join!(call(), call());
    for body in [one, other] {
        assert_eq!(body, format!("{SIXTY}{SIXTY}end"));
    }
    assert_eq!((backend.received().len(), stats.unshared()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_stream_does_not_keep_its_callers_waiting() {
    let backend = slow(&[], vec![Part::Data("event"), Part::Never]);
    let (client, _) = client(&backend);
    let call = || async {
        let mut body = client.clone().oneshot(get()).await.unwrap().into_body();
        body.frame().await.unwrap().unwrap().into_data().unwrap()
    };
    let (start, both) = (TokioClock.now(), async { tokio::join!(call(), call()) });
    let (one, other) = timeout(S * 4, both).await.expect("the callers hang");
    assert_eq!((&*one, &*other), (b"event".as_slice(), b"event".as_slice()));
    assert_eq!(TokioClock.now() - start, S * 5 / 2, "half a second after the head, and a call");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_does_so_for_all_callers() {
    let backend = slow(&[], vec![Part::Data("half"), Part::Error("connection reset")]);
    let (client, _) = client(&backend);
    let (one, other) = tokio::join!(client.clone().oneshot(get()), client.clone().oneshot(get()));
    for response in [one.unwrap(), other.unwrap()] {
        let mut body = response.into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
        let error = body.frame().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("connection reset") && outcome(&*error).is_failure());
        assert!(body.frame().await.is_none());
    }
    assert_eq!(backend.received().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_an_error_of_the_other_callers() {
    let backend = Inner::new(Plan::of(Answer::PanicInPoll).slow(S));
    let (client, _) = client(&backend);
    let (one, other) = (tokio::spawn(client.clone().oneshot(get())), tokio::spawn(client.clone().oneshot(get())));
    let results = [one.await, other.await];
    let told = results
        .iter()
        .flatten()
        .filter(|result| result.as_ref().is_err_and(|error| sources(error).any(|source| source.is::<CallPanicked>())));
    assert_eq!(told.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_response_of_its_own_is_dropped_with_the_first_caller() {
    let backend = slow(&[("set-cookie", "session=1")], vec![]);
    let (client, _) = client(&backend);
    let call = || client.clone().oneshot(get());
    let (leader, joined) = tokio::join!(timeout(S / 2, call()), call());
    assert!(leader.is_err() && joined.is_ok());
    assert_eq!(backend.received().len(), 2, "the cookie was the first caller's");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_caller_needs_no_readiness_of_the_service_that_it_does_not_call() {
    let backend = slow(&[], vec![]);
    let (mut client, _) = client(&backend);
    let first = client.ready().await.unwrap().call(get());
    let second = client.ready().await.unwrap().call(get());
    let (first, second) = tokio::join!(first, second);
    assert!(first.is_ok() && second.is_ok());
    assert_eq!(backend.received().len(), 1);
}
