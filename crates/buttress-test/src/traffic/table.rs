//! The shapes of the rows that are sequences of equal calls.

use super::{
    Caller::{HangsUpAfter, IdlesWhenReady, LeavesWhenReady, Polls, ReadsFrames},
    Means::{Anything, Failure, Nothing, Success},
    Protocol::{self, Grpc, Http, Plain},
    Row, Shape,
    shape::Outgoing,
};
use crate::{Answer, MakeError, Part, Plan, Ready};
use buttress::{Error, Reason, Rejection, policy::Class};
use http::{HeaderMap, HeaderName, Method, Response, StatusCode};
use std::{io, time::Duration};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// 60 days: longer than 2^32 milliseconds, so that a truncated time fails.
const LONG: Duration = Duration::from_secs(60 * 24 * 3600);

/// Returns all shapes for a protocol.
pub(super) fn shapes(protocol: Protocol) -> Vec<Shape> {
    let mut shapes = Vec::new();
    let table = [
        rare(protocol),
        long(protocol),
        streams(protocol),
        unread(protocol),
        empty(protocol),
        hang_ups(protocol),
        rejections(protocol),
        panics(protocol),
        readiness(protocol),
        limits(protocol),
    ];
    for row in table {
        shapes.extend(row.into_iter().map(|shape| if protocol == Grpc { as_grpc(shape) } else { shape }));
    }
    shapes
}

fn as_grpc(mut shape: Shape) -> Shape {
    shape.request = grpc(shape.request);
    shape
}

/// Makes a unary gRPC request: a POST with a message.
pub(super) fn grpc(request: Outgoing) -> Outgoing {
    let body = if request.body.is_empty() { vec![Part::Data("message")] } else { request.body.clone() };
    let request = Outgoing { method: Method::POST, ..request };
    request.header("content-type", "application/grpc").header("te", "trailers").body(&body)
}

/// Returns the plan of a healthy backend.
pub(super) fn healthy(protocol: Protocol) -> Plan {
    ok(protocol, vec![Part::Data("hello "), Part::Pause, Part::Data("world")])
}

/// Returns the plan of a successful response with this body.
fn ok(protocol: Protocol, mut body: Vec<Part>) -> Plan {
    if protocol == Grpc {
        body.push(trailers("0"));
    }
    Plan::of(Answer::Body(body))
}

fn trailers(status: &str) -> Part {
    Part::Trailers(HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), status.parse().expect("a status"))]))
}

/// Returns the plan of a response without a body.
pub(super) fn head(status: u16, headers: &[(&'static str, &'static str)]) -> Plan {
    with_body(status, headers, vec![])
}

pub(super) fn with_body(status: u16, headers: &[(&'static str, &'static str)], body: Vec<Part>) -> Plan {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    for (name, value) in headers {
        response.headers_mut().insert(*name, value.parse().expect("a header value"));
    }
    Plan::of(Answer::Response(response))
}

/// Returns the plan of a backend that fails with an error.
pub(super) fn error<E: Into<crate::BoxError>>(make: impl Fn() -> E + Send + Sync + 'static) -> Plan {
    Plan::of(Answer::Fails(MakeError::new(make)))
}

/// Returns a body with one frame per second.
fn a_frame_a_second(frames: usize) -> Vec<Part> {
    (0..frames).flat_map(|_| [Part::Wait(SECOND), Part::Data("tick ")]).collect()
}

/// Returns the meaning of a response: a layer that does not read responses counts each as a
/// success.
fn unless_plain(protocol: Protocol, means: super::Means) -> super::Means {
    if protocol == Plain { Success } else { means }
}

fn rare(protocol: Protocol) -> Vec<Shape> {
    let mut shapes = Vec::new();
    for every in [SECOND * 30, MINUTE, MINUTE * 10] {
        let shape = |name: &str| Shape::new(Row::Rare, format!("{name} every {every:?}")).every(every);
        shapes.push(shape("a success").backend(healthy(protocol)));
        shapes.push(shape("an error").backend(Plan::of(Answer::Error)).means(Failure));
    }
    shapes
}

fn long(protocol: Protocol) -> Vec<Shape> {
    let slow = |time| {
        Shape::new(Row::Long, format!("an answer after {time:?}")).backend(healthy(protocol).slow(time)).every(SECOND)
    };
    vec![slow(SECOND * 20), slow(HOUR * 2), slow(LONG)]
}

fn streams(protocol: Protocol) -> Vec<Shape> {
    let shape = |name: &str| Shape::new(Row::Streams, name).times(30);
    let minutes = a_frame_a_second(180);
    let mut breaks = minutes.clone();
    breaks.push(Part::Error("broken off"));
    let mut shapes = vec![
        shape("a frame a second, for three minutes").backend(ok(protocol, minutes.clone())),
        shape("a stream whose first frame takes 20 seconds")
            .backend(ok(protocol, [vec![Part::Wait(SECOND * 20)], minutes.clone()].concat())),
        shape("a stream that breaks after three minutes")
            .backend(Plan::of(Answer::Body(breaks)))
            .means(unless_plain(protocol, Failure)),
    ];
    if protocol == Grpc {
        let failed = [minutes, vec![trailers("14")]].concat();
        shapes
            .push(shape("a stream that ends with UNAVAILABLE").backend(Plan::of(Answer::Body(failed))).means(Failure));
        let none = Plan::of(Answer::Body(vec![Part::Data("message")]));
        shapes.push(shape("a stream that ends without a status").backend(none).means(Failure));
    }
    shapes
}

fn unread(protocol: Protocol) -> Vec<Shape> {
    // A gRPC call has no outcome before its status.
    let means = if protocol == Grpc { Nothing } else { Success };
    let shape = |name: &str, frames| {
        let backend = ok(protocol, [vec![Part::Data("first")], a_frame_a_second(60)].concat());
        Shape::new(Row::Unread, name).backend(backend).caller(ReadsFrames(frames)).means(means)
    };
    vec![
        shape("a body that is dropped unread", 0),
        shape("a body that is dropped after a frame", 1),
        shape("a body that is dropped in the middle", 30),
    ]
}

fn empty(protocol: Protocol) -> Vec<Shape> {
    let shape = |name: &str| Shape::new(Row::Empty, name);
    match protocol {
        Plain => vec![],
        Grpc => {
            let code = |code| head(200, &[("content-type", "application/grpc"), ("grpc-status", code)]);
            let codes = ["0", "1", "3", "5", "6", "7", "9", "10", "11", "12", "16"];
            let of = |status| shape(&format!("grpc-status {status} without a body")).backend(code(status));
            codes.into_iter().map(of).collect()
        }
        Http => {
            let mut shapes = vec![
                shape("HEAD").method(Method::HEAD).backend(head(200, &[("content-length", "5")])),
                shape("a body with a length that hyper drops unread")
                    .method(Method::HEAD)
                    .backend(with_body(200, &[("content-length", "5")], vec![Part::Data("hello")]))
                    .caller(ReadsFrames(0)),
                shape("304 with a body that is dropped unread")
                    .backend(with_body(304, &[], vec![Part::Never]))
                    .caller(ReadsFrames(0)),
            ];
            for status in [101, 200, 204, 205, 304, 400, 401, 403, 404, 409, 412, 413, 422] {
                shapes.push(shape(&format!("{status} without a body")).backend(head(status, &[])));
            }
            shapes
        }
    }
}

fn hang_ups(protocol: Protocol) -> Vec<Shape> {
    let shape = |name: String| Shape::new(Row::HangUps, name).means(Nothing).backend(healthy(protocol).slow(MINUTE));
    let mut shapes: Vec<_> =
        [0, 1, 2, 5].map(|polls| shape(format!("the caller hangs up after {polls} polls")).caller(Polls(polls))).into();
    let stream = ok(protocol, a_frame_a_second(60));
    for millis in [1, 450, 30_500] {
        let time = Duration::from_millis(millis);
        let hangs_up = |what: &str| shape(format!("the caller hangs up {what} after {time:?}"));
        shapes.push(hangs_up("before the head").caller(HangsUpAfter(time)));
        shapes.push(hangs_up("in the stream").caller(HangsUpAfter(time)).backend(stream.clone()));
    }
    let upload = |name: &str, end| {
        let body = [Part::Data("half "), Part::Wait(SECOND), end];
        shape(name.to_owned()).method(Method::POST).body(body)
    };
    shapes.push(upload("an upload that breaks", Part::Error("reset by the client")));
    shapes.push(upload("an upload that stops", Part::Never).caller(HangsUpAfter(MINUTE)));
    shapes
}

/// The reason of a user's own policy.
static REFUSED: Reason = Reason::new("refused", "refused", Class::Refused);

fn rejections(protocol: Protocol) -> Vec<Shape> {
    let shape = |name: String| Shape::new(Row::Rejections, name).means(Nothing);
    let reasons = [
        &buttress::circuit_breaker::OPEN,
        &buttress::circuit_breaker::PROBES_EXHAUSTED,
        &buttress::circuit_breaker::RECOVERING,
        &buttress::circuit_breaker::FORCED_OPEN,
        &buttress::bulkhead::FULL,
        &buttress::bulkhead::QUEUE_FULL,
        &buttress::bulkhead::QUEUE_TIMEOUT,
        &buttress::bulkhead::QUEUE_DELAY,
        &buttress::bulkhead::QUEUE_DEADLINE,
        &buttress::policy::NOT_READY,
        &REFUSED,
    ];
    let mut shapes = Vec::new();
    for reason in reasons {
        let rejection = Rejection::new("inner layer", reason);
        let (ours, wrapped) = (rejection.clone(), rejection.clone());
        shapes.push(shape(format!("{reason:?} as an error")).backend(error(move || Error::from(ours.clone()))));
        let wrap = move || io::Error::other(Error::from(wrapped.clone()));
        shapes.push(shape(format!("{reason:?} in an io::Error")).backend(error(wrap)));
        let mut plan = match protocol {
            Grpc => head(200, &[("content-type", "application/grpc"), ("grpc-status", "14")]),
            _ => head(503, &[("retry-after", "1")]),
        };
        if let Answer::Response(response) = &mut plan.answer {
            response.extensions_mut().insert(rejection);
        }
        shapes.push(shape(format!("{reason:?} as a response")).backend(plan));
    }
    shapes.push(shape("tower's Overloaded".to_owned()).backend(error(tower::load_shed::error::Overloaded::new)));
    shapes.push(
        shape("tower's Elapsed, of an attempt".to_owned())
            .backend(error(tower::timeout::error::Elapsed::new))
            .means(Failure),
    );
    shapes
}

fn panics(protocol: Protocol) -> Vec<Shape> {
    let shape = |name: &str, plan| Shape::new(Row::Panics, name).backend(plan);
    let in_body = Plan::of(Answer::Body(vec![Part::Data("first"), Part::Panic]));
    vec![
        shape("a panic in call", Plan::of(Answer::PanicInCall)).means(Failure),
        shape("a panic in poll", Plan::of(Answer::PanicInPoll)).means(Failure),
        shape("a panic in poll, late", Plan::of(Answer::PanicInPoll).slow(Duration::from_millis(1))).means(Failure),
        shape("a panic in the body", in_body).means(unless_plain(protocol, Failure)),
        shape("a panic in poll_ready", healthy(protocol).ready(Ready::Panics)).means(Anything),
    ]
}

fn readiness(protocol: Protocol) -> Vec<Shape> {
    let shape = |name: &str, caller| Shape::new(Row::Ready, name).backend(healthy(protocol)).caller(caller);
    vec![
        shape("ready, and dropped", LeavesWhenReady(Duration::ZERO)).means(Nothing),
        // Enough calls within the window for a rule about slow calls.
        shape("ready and idle for 600 ms, and dropped", LeavesWhenReady(MS * 600)).means(Nothing).every(MS),
        shape("ready and idle for 600 ms", IdlesWhenReady(MS * 600)).every(MS),
        shape("ready and idle for 10 minutes, and dropped", LeavesWhenReady(MINUTE * 10)).means(Nothing),
        shape("ready and idle for 2 seconds", IdlesWhenReady(SECOND * 2)),
        shape("ready and idle for 10 minutes", IdlesWhenReady(MINUTE * 10)),
    ]
}

fn limits(protocol: Protocol) -> Vec<Shape> {
    let hints = ["0", "-1", "1", "4294967296", "18446744073709551615", "99999999999999999999999", "soon", ""];
    let shape = |name: String, plan| Shape::new(Row::Limits, name).backend(plan);
    let mut shapes = Vec::new();
    for hint in hints {
        shapes.extend(match protocol {
            Plain => vec![],
            Http => [429, 503]
                .map(|status| {
                    shape(format!("{status} with Retry-After {hint:?}"), head(status, &[("retry-after", hint)]))
                        .means(if status == 429 { Anything } else { Failure })
                })
                .into(),
            Grpc => ["8", "14"]
                .map(|status| {
                    let plan = head(200, &[("grpc-status", status), ("grpc-retry-pushback-ms", hint)]);
                    let means = if status == "8" { Anything } else { Failure };
                    shape(format!("grpc-status {status} with a pushback of {hint:?}"), plan).means(means)
                })
                .into(),
        });
    }
    if protocol == Grpc {
        for status in ["", "17", "-1", "99999999999", "ok"] {
            let plan = head(200, &[("grpc-status", status)]);
            shapes.push(shape(format!("grpc-status {status:?}"), plan).means(Failure));
        }
    }
    shapes
}
