//! Row 6: the number of times a request with a body is sent, and whether its body arrives whole.

use super::{Caller, Field, Protocol, Row, Traffic, field::Stopwatch, shape::Outgoing, table};
use crate::{Answer, Part, Plan};
use http::Method;
use std::{io, time::Duration};
use tokio::time::sleep;

/// How many times a layer with retries sends a request.
#[derive(Clone, Copy)]
enum Sent {
    Once,
    /// As many times as the layer has attempts.
    Attempts,
    /// Three times: the request never left this process, which is repeated at most twice.
    ThreeTimes,
}
use Sent::{Attempts, Once, ThreeTimes};

/// A request body of several frames, as an upload sends it.
const BODY: [Part; 5] =
    [Part::Data("one, "), Part::Pause, Part::Data("two, "), Part::Wait(Duration::from_millis(5)), Part::Data("three")];
const WHOLE: &str = "one, two, three";

pub(super) fn all(traffic: &Traffic) {
    for (name, request, backend, sent) in cases(traffic.protocol) {
        traffic.run(Row::Uploads, &name, arrives(traffic, &request.body(&BODY), &backend, sent));
    }
}

async fn arrives(traffic: &Traffic, request: &Outgoing, backend: &Plan, sent: Sent) {
    let field = Field::new(traffic);
    let expected = match sent {
        _ if traffic.attempts == 1 => 1,
        Once => 1,
        Attempts => traffic.attempts,
        ThreeTimes => 3,
    };
    for _ in 0..3 {
        let before = field.inner.received().len();
        let began = Stopwatch::start();
        let seen = field.call(backend, request, Caller::ReadsAll).await;
        let is_over = traffic.answers_within.is_some_and(|within| began.elapsed() >= within);
        let is_expected = seen.reached == expected || (is_over && (1..expected).contains(&seen.reached));
        assert!(is_expected, "the request is sent {} times, expected {expected}: {seen}", seen.reached);
        let received = field.inner.received().split_off(before);
        assert_eq!(received.len(), seen.reached, "a body does not arrive");
        for (number, received) in received.iter().enumerate() {
            assert_eq!(received.body, WHOLE, "the body of attempt {} is not whole", number + 1);
            assert_eq!(received.method, request.method, "attempt {} has another method", number + 1);
        }
        field.holds_nothing();
        // A success and a pause between the failures, so that a circuit in the stack does not open.
        let well = field.call(&field.healthy(), request, Caller::ReadsAll).await;
        assert_eq!(well.reached, 1, "a request that succeeds is sent {} times", well.reached);
        sleep(Duration::from_secs(120)).await;
    }
}

fn cases(protocol: Protocol) -> Vec<(String, Outgoing, Plan, Sent)> {
    let refused = || table::error(|| io::Error::from(io::ErrorKind::ConnectionRefused));
    let errors = |idempotent: Sent| {
        vec![("an error", Plan::of(Answer::Error), idempotent), ("no connection", refused(), ThreeTimes)]
    };
    let mut cases = Vec::new();
    let mut add = |name: &str, request: Outgoing, answers: Vec<(&str, Plan, Sent)>| {
        for (answer, plan, sent) in answers {
            cases.push((format!("{name}, and {answer}"), request.clone(), plan, sent));
        }
    };
    match protocol {
        Protocol::Plain => add("a request", Outgoing::new(Method::POST), errors(Attempts)),
        Protocol::Http => {
            let answers = |idempotent| {
                let mut answers = errors(idempotent);
                answers.extend([
                    ("200", table::head(200, &[]), Once),
                    ("404", table::head(404, &[]), Once),
                    ("408", table::head(408, &[]), idempotent),
                    ("429", table::head(429, &[]), Attempts),
                    ("500", table::head(500, &[]), idempotent),
                    ("501", table::head(501, &[]), Once),
                    ("503", table::head(503, &[]), idempotent),
                    ("503 with Retry-After", table::head(503, &[("retry-after", "1")]), idempotent),
                    ("503 at admission", table::head(503, &[("x-buttress-rejected", "bulkhead_full")]), Attempts),
                    ("503 of Envoy", table::head(503, &[("x-envoy-overloaded", "true")]), Attempts),
                ]);
                answers
            };
            add("a POST", Outgoing::new(Method::POST), answers(Once));
            add("a PATCH", Outgoing::new(Method::PATCH), answers(Once));
            add("a PUT", Outgoing::new(Method::PUT), answers(Attempts));
            let keyed = Outgoing::new(Method::POST).header("idempotency-key", "1");
            add("a POST with an Idempotency-Key", keyed, answers(Attempts));
        }
        Protocol::Grpc => {
            let answers = |idempotent| {
                let code = |code| table::head(200, &[("grpc-status", code)]);
                let with = |code, name, value| table::head(200, &[("grpc-status", code), (name, value)]);
                let mut answers = errors(idempotent);
                answers.extend([
                    ("NOT_FOUND", code("5"), Once),
                    ("DEADLINE_EXCEEDED", code("4"), idempotent),
                    ("RESOURCE_EXHAUSTED", code("8"), idempotent),
                    ("UNAVAILABLE", code("14"), idempotent),
                    ("UNAVAILABLE with a pushback", with("14", "grpc-retry-pushback-ms", "10"), Attempts),
                    ("UNAVAILABLE at admission", with("14", "x-buttress-rejected", "circuit_open"), Attempts),
                    ("UNAVAILABLE that forbids it", with("14", "grpc-retry-pushback-ms", "-1"), Once),
                    ("INTERNAL", code("13"), Once),
                    ("UNKNOWN", code("2"), Once),
                ]);
                answers
            };
            let unary = table::grpc(Outgoing::new(Method::POST));
            add("a unary call", unary.clone(), answers(Once));
            add("a unary call with an Idempotency-Key", unary.header("idempotency-key", "1"), answers(Attempts));
        }
    }
    cases
}
