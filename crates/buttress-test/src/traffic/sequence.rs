//! Sends the calls of one shape. The rules are in the table of the [module](super).

use super::{
    Caller, Means, Row, Shape, Traffic,
    field::{Came, Field, PROBES_BY, Seen},
};
use crate::{Answer, Part};
use http::StatusCode;
use std::time::Duration;
use tokio::time::sleep;

/// Pause between calls to a half-open circuit: shorter than a lease of a probe, longer than any
/// rounding of times.
const STEP: Duration = Duration::from_secs(1);

/// Number of calls after which a half-open circuit must be closed. The default needs two successes.
const TO_CLOSE: usize = 20;

/// Number of calls that decide about a half-open circuit by default.
const PROBES: usize = 3;

pub(super) fn send(traffic: &Traffic, shape: &Shape) {
    let means = effective_means(traffic, shape);
    traffic.run(shape.row, &shape.name, through_a_closed_circuit(traffic, shape, means));
    if traffic.opens && shape.backend.delay.min(patience(shape)) <= traffic.probe_within {
        let what = format!("{}, to a circuit that is half-open", shape.name);
        traffic.run(shape.row, &what, through_a_half_open_circuit(traffic, shape, means));
    }
}

/// Returns the meaning of a shape for this layer: a timeout of the layer turns a slow answer into a
/// failure or a cancelled call.
fn effective_means(traffic: &Traffic, shape: &Shape) -> Means {
    let delay = shape.backend.delay;
    if traffic.attempt_within.is_some_and(|bound| delay > bound && patience(shape) > bound) {
        return Means::Failure;
    }
    if traffic.answers_within.is_some_and(|bound| delay > bound) && shape.means == Means::Success {
        return Means::Nothing;
    }
    shape.means
}

/// Returns how long the caller waits for an answer.
fn patience(shape: &Shape) -> Duration {
    match shape.caller {
        Caller::HangsUpAfter(time) => time,
        Caller::Polls(_) => Duration::ZERO,
        _ => Duration::MAX,
    }
}

async fn through_a_closed_circuit(traffic: &Traffic, shape: &Shape, means: Means) {
    let field = Field::new(traffic);
    for number in 1..=shape.times {
        let seen = send_once(&field, shape).await;
        if means == Means::Success {
            is_a_success(shape, number, &seen);
        }
        sleep(shape.every).await;
        field.holds_nothing();
    }
    if means == Means::Anything {
        sleep(PROBES_BY).await;
        field.is_as_before().await;
    } else if means == Means::Failure && traffic.opens {
        // If the calls are rare, the circuit is half-open and these calls are probes. Otherwise it
        // is open and rejects them.
        for _ in 0..PROBES {
            send_once(&field, shape).await;
        }
        let seen = field.healthy_call().await;
        assert!(seen.is_refused(), "{} of these calls do not open the circuit: {seen}", shape.times);
    } else {
        field.is_as_before().await;
    }
}

async fn through_a_half_open_circuit(traffic: &Traffic, shape: &Shape, means: Means) {
    let field = Field::new(traffic);
    field.trip().await;
    sleep(PROBES_BY).await;
    match means {
        Means::Success => {
            for number in 1..=TO_CLOSE {
                let seen = send_once(&field, shape).await;
                is_a_success(shape, number, &seen);
                sleep(shape.every.max(STEP)).await;
            }
        }
        Means::Nothing | Means::Anything => {
            for _ in 0..TO_CLOSE {
                send_once(&field, shape).await;
                sleep(shape.every.max(STEP)).await;
            }
            if means == Means::Anything {
                sleep(PROBES_BY).await;
            }
            for _ in 0..TO_CLOSE {
                let seen = field.healthy_call().await;
                assert!(!seen.is_refused(), "a probe after these calls is rejected: {seen}");
                sleep(STEP).await;
            }
        }
        Means::Failure => {
            for _ in 0..TO_CLOSE {
                if send_once(&field, shape).await.is_refused() {
                    return;
                }
            }
            panic!("{TO_CLOSE} of these calls do not open the circuit again");
        }
    }
    field.holds_nothing();
    field.is_closed().await;
}

async fn send_once(field: &Field<'_>, shape: &Shape) -> Seen {
    let seen = field.call(&shape.backend, &shape.request, shape.caller).await;
    assert!(shape.row == Row::Panics || !matches!(seen.came, Came::Panic), "the layer panics");
    seen
}

/// Asserts that the call reached the backend once, and that its response arrived unchanged.
fn is_a_success(shape: &Shape, number: usize, seen: &Seen) {
    assert!(!seen.is_refused(), "call {number} is rejected: {seen}");
    assert_eq!(seen.reached, 1, "call {number} reaches the backend more than once: {seen}");
    if shape.row == Row::Panics {
        return;
    }
    let (status, parts) = match &shape.backend.answer {
        Answer::Body(parts) => (StatusCode::OK, parts),
        Answer::Response(response) => (response.status(), response.body()),
        _ => return,
    };
    let breaks = parts.iter().any(|part| matches!(part, Part::Error(_)));
    match &seen.came {
        Came::Whole(came, text) => {
            let data = |part: &Part| if let Part::Data(text) = part { *text } else { "" };
            let sent: String = parts.iter().map(data).collect();
            assert!(!breaks, "the error in the body of call {number} is lost");
            assert_eq!((*came, &**text), (status, sent.as_bytes()), "the response of call {number} is changed");
        }
        Came::Left => {}
        Came::Broken(_) => assert!(breaks, "the body of call {number} fails: {seen}"),
        _ => panic!("call {number} fails: {seen}"),
    }
}
