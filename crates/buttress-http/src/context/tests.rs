use super::*;
use crate::prelude::*;
use buttress::{PlainExt, context, policy::Criticality};
use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use proptest::prelude::*;
use std::convert::Infallible;
use tower::{Layer, ServiceExt, service_fn};

const HTTP: crate::ending::HttpServer = Server::new();

fn priority(text: &str) -> Priority {
    text.parse().unwrap()
}

fn known(trusts_priority: bool, priority: Option<&str>) -> Known {
    let mut known = Known::default();
    (known.trusts_priority, known.priority) = (trusts_priority, priority.map(self::priority));
    known
}

fn request(headers: &[&str]) -> Request<()> {
    let mut request = Request::new(());
    for value in headers {
        request.headers_mut().append(PRIORITY, value.parse().unwrap());
    }
    request
}

fn sent(request: &Request<()>) -> Vec<&str> {
    request.headers().get_all(PRIORITY).iter().map(|value| value.to_str().unwrap()).collect()
}

#[test]
fn a_server_ignores_and_removes_a_header_that_it_does_not_trust() {
    let mut request = request(&["0"]);
    assert_eq!(HTTP.carry(&mut request, &Known::default()), CallContext::default());
    assert_eq!((sent(&request), extension(request.extensions())), (vec![], None));
}

#[test]
fn a_server_that_trusts_its_caller_takes_the_priority_and_hands_it_on() {
    let mut request = request(&["3;10"]);
    let context = HTTP.carry(&mut request, &known(true, None));
    let given = Some(priority("3;10"));
    assert_eq!((context.priority, extension(request.extensions())), (given, given));
    assert_eq!(sent(&request), ["3;10"]);
}

#[test]
fn hostile_headers_are_as_none() {
    let huge = "0".repeat(100_000);
    let spaces = format!("{}0", " ".repeat(100));
    for headers in [&["0", "0"][..], &["0, 1"], &[""], &["4"], &["0;128"], &["-1"], &[&huge], &[&spaces], &["0;;"]] {
        let mut request = request(headers);
        assert_eq!(HTTP.carry(&mut request, &known(true, None)), CallContext::default(), "{headers:.20?}");
        assert!(sent(&request).is_empty(), "not passed on: {headers:.20?}");
    }
    let mut bytes = Request::new(());
    bytes.headers_mut().insert(PRIORITY, HeaderValue::from_bytes(b"\xff\xfe").unwrap());
    assert_eq!(HTTP.carry(&mut bytes, &known(true, None)), CallContext::default());
}

#[test]
fn what_the_layer_chose_wins_over_an_extension_and_that_over_the_header() {
    let mut chosen = request(&["0"]);
    chosen.extensions_mut().insert(priority("2"));
    assert_eq!(HTTP.carry(&mut chosen, &known(true, Some("3"))).priority, Some(priority("3")));
    assert_eq!((sent(&chosen), extension(chosen.extensions())), (vec![], Some(priority("3"))));
    let mut set = request(&["0"]);
    set.extensions_mut().insert(priority("2"));
    assert_eq!(HTTP.carry(&mut set, &known(true, None)).priority, Some(priority("2")));
    assert!(sent(&set).is_empty(), "a proxy does not pass on a header that did not decide");
}

#[test]
fn a_client_sends_the_priority_of_the_extension_or_else_of_the_context() {
    let client = crate::ending::HttpClient::new();
    let carried = |mut request: Request<()>, known: Known| {
        let context = client.carry(&mut request, &known);
        (sent(&request).join("|"), context.priority.map(|priority| priority.to_string()).unwrap_or_default())
    };
    let pair = |header: &str, context: &str| (header.to_owned(), context.to_owned());
    assert_eq!(carried(request(&[]), known(false, None)), pair("", ""));
    let _entered = CallContext::default().with_priority(priority("2;5")).enter();
    assert_eq!(carried(request(&[]), known(false, None)), pair("2;5", "2;5"));
    let mut set = request(&[]);
    set.extensions_mut().insert(priority("3"));
    assert_eq!(carried(set.clone(), known(false, None)), pair("3", "3;64"));
    assert_eq!(carried(set, known(false, Some("1"))), pair("1", "1;64"));
}

#[test]
fn a_header_that_the_caller_set_is_not_overwritten() {
    let client = crate::ending::HttpClient::new();
    let _entered = CallContext::default().with_priority(priority("2")).enter();
    let mut own = request(&["0"]);
    assert_eq!(client.carry(&mut own, &known(false, Some("3"))).priority, Some(priority("0")));
    assert_eq!(sent(&own), ["0"]);
    let mut of_another_kind = request(&["urgent"]);
    assert_eq!(client.carry(&mut of_another_kind, &known(false, None)).priority, Some(priority("2")));
    assert_eq!(sent(&of_another_kind), ["urgent"]);
}

#[tokio::test]
async fn a_handler_and_its_stream_run_in_the_context_for_http_and_grpc_on_one_port() {
    for kind in ["text/plain", "application/grpc+proto"] {
        let handler = service_fn(async |_: Request<()>| {
            tokio::task::yield_now().await;
            let head = context::current().priority.unwrap();
            let frames = futures_util::stream::once(async move {
                tokio::task::yield_now().await;
                let frame = context::current().priority.unwrap();
                Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{head} {frame}"))))
            });
            Ok::<_, Infallible>(Response::new(StreamBody::new(frames)))
        });
        let server = ContextLayer::new().trust_priority().http().layer(handler);
        let request = Request::post("/").header("content-type", kind).header("x-priority", "3;1").body(()).unwrap();
        let content = server.oneshot(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
        assert_eq!(content, "3;1 3;1", "{kind}");
        assert_eq!(context::current(), CallContext::default());
    }
}

#[tokio::test]
async fn calls_of_a_handler_carry_its_priority_over_two_hops() {
    let backend = service_fn(async |request: Request<()>| {
        let _ = request;
        let priority = context::current().priority.unwrap();
        Ok::<_, Infallible>(Response::new(priority.to_string()))
    });
    let backend = ContextLayer::new().trust_priority().http().layer(backend);
    let client = ContextLayer::new().grpc_client().layer(backend);
    let edge = ContextLayer::new()
        .priority_by(|request: &Request<()>| request.uri().path().starts_with("/report").then_some(priority("3")))
        .http()
        .layer(service_fn(move |_: Request<()>| client.oneshot(Request::new(()))));
    let report = Request::get("/report").header("x-priority", "0").body(()).unwrap();
    let answer = edge.oneshot(report).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(answer, "3;64");
}

#[tokio::test]
async fn the_sizes_and_ends_of_bodies_stay() {
    let server = ContextLayer::new()
        .http()
        .layer(service_fn(async |body: Request<String>| Ok::<_, Infallible>(Response::new(body.into_body()))));
    for content in ["", "four"] {
        let body = server.oneshot(Request::new(content.to_owned())).await.unwrap().into_body();
        assert_eq!((body.is_end_stream(), body.size_hint().exact()), (content.is_empty(), Some(content.len() as u64)));
    }
}

#[test]
fn every_priority_is_read_as_it_was_written() {
    for rank in 0..Priority::RANKS {
        let priority = Priority::from_rank(rank);
        let headers = HeaderMap::from_iter([(PRIORITY, write(priority).unwrap())]);
        assert_eq!(read(&headers), Some(priority));
    }
    assert_eq!(write(Criticality::Sheddable.into()).unwrap(), "3");
    let _: crate::ending::GrpcServer = Server::new();
    let _ = ContextLayer::new().plain();
}

proptest! {
    /// Reads what callers may send: a priority only where one header is exactly one.
    #[test]
    fn any_headers_are_read_without_an_error(values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..4)) {
        let mut headers = HeaderMap::new();
        for value in values.iter().filter_map(|value| HeaderValue::from_bytes(value).ok()) {
            headers.append(PRIORITY, value);
        }
        let read = read(&headers);
        let one = headers.get_all(PRIORITY).iter().count() == 1;
        let parsed = headers.get(PRIORITY).and_then(|value| value.to_str().ok()?.parse().ok());
        prop_assert!(read.is_none() || (one && read == parsed));
    }

    #[test]
    fn texts_like_priorities_are_read_without_an_error(text in "[0-9; ,\\t+-]{0,8}") {
        let headers = HeaderMap::from_iter([(PRIORITY, HeaderValue::from_str(&text).unwrap())]);
        prop_assert_eq!(read(&headers), text.parse().ok());
    }
}

#[test]
fn a_server_reads_that_its_caller_repeats_the_request_and_a_call_within_it_is_one_too() {
    let mut request = Request::new(());
    request.headers_mut().insert("x-retry-attempt", HeaderValue::from_static("2"));
    let repeated = HTTP.carry(&mut request, &Known::default());
    assert!(repeated.is_repeated);
    assert!(!HTTP.carry(&mut Request::new(()), &Known::default()).is_repeated);
    let _entered = repeated.enter();
    assert!(HTTP.carry(&mut Request::new(()), &Known::default()).is_repeated);
}

/// Returns the mark of a response of a handler for which a call was repeated twice in vain.
async fn mark(response: Response<String>) -> Option<String> {
    let handler = service_fn(move |_: Request<()>| {
        Retried::note(1);
        let response = response.clone();
        async move {
            Retried::note(2);
            tokio::task::yield_now().await;
            Ok::<_, Infallible>(response)
        }
    });
    let response = ContextLayer::new().http().layer(handler).oneshot(Request::new(())).await.unwrap();
    response.headers().get("x-buttress-retried").map(|value| value.to_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_server_marks_failures_only() {
    let status = |status: u16| Response::builder().status(status).body(String::new()).unwrap();
    let grpc = |code: &str| Response::builder().header("grpc-status", code).body(String::new()).unwrap();
    for response in [status(500), status(503), status(429), grpc("14"), grpc("8"), grpc("13")] {
        assert_eq!(mark(response.clone()).await.as_deref(), Some("2"), "{response:?}");
    }
    for response in [status(200), status(404), grpc("0"), grpc("5")] {
        assert_eq!(mark(response.clone()).await, None, "{response:?}");
    }
}

#[tokio::test]
async fn a_mark_of_a_service_below_is_passed_on_as_it_is() {
    let below = Response::builder().status(503).header("x-buttress-retried", "7").body(String::new()).unwrap();
    assert_eq!(mark(below).await.as_deref(), Some("7"));
}

#[tokio::test]
async fn a_client_without_a_retry_layer_notes_what_a_service_below_has_repeated() {
    let backend = service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::builder().status(503).header("x-buttress-retried", "2").body(()).unwrap())
    });
    let handler = service_fn(move |_: Request<()>| async move {
        let client = ContextLayer::new().http_client().layer(backend);
        let status = client.oneshot(Request::new(())).await.unwrap().status();
        Ok::<_, Infallible>(Response::builder().status(status).body(String::new()).unwrap())
    });
    let response = ContextLayer::new().http().layer(handler).oneshot(Request::new(())).await.unwrap();
    assert_eq!(response.headers()["x-buttress-retried"], "0");
}
