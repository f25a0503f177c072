//! The metrics of a circuit.

use super::*;
use crate::report::{LabelValues, Report, Value};
use crate::testing::reported;

/// Returns the values of a metric, with the values of its labels.
fn values(breaker: &CircuitBreaker, name: &str) -> Vec<(LabelValues, Value)> {
    let of_name = |(metric, labels, value): (&str, _, _)| (metric == name).then_some((labels, value));
    reported(breaker).into_iter().filter_map(of_name).collect()
}

/// Returns the value of a metric without labels.
fn value(breaker: &CircuitBreaker, name: &str) -> Value {
    match values(breaker, name)[..] {
        [(["", ""], value)] => value,
        ref others => panic!("{name}: {others:?}"),
    }
}

#[test]
fn every_metric_has_its_value() {
    let bench = Bench::new(|builder| builder.consecutive_failures(None).slow_threshold(100 * MS));
    let breaker = &bench.breaker;
    let late = bench.admit();
    breaker.force_open();
    (0..3).for_each(|_| assert!(bench.try_admit().is_err()));
    breaker.reset();
    bench.settle(late, Outcome::Success);
    bench.calls(10, Outcome::Success);
    bench.calls(6, FAILURE);
    for _ in 0..4 {
        let slow = bench.admit();
        bench.wait(101 * MS);
        bench.settle(slow, Outcome::Success);
    }
    let _in_flight = (bench.admit(), bench.admit());

    assert_eq!(Report::name(breaker), Some("test"));
    assert_eq!(value(breaker, "resilience.breaker.in_flight"), Value::Gauge(2.0));
    assert_eq!(value(breaker, "resilience.breaker.rejected"), Value::Counter(3));
    assert_eq!(value(breaker, "resilience.breaker.stale"), Value::Counter(1));
    assert_eq!(value(breaker, "resilience.breaker.failure_rate"), Value::Rate { part: 6, whole: 20 });
    assert_eq!(value(breaker, "resilience.breaker.slow_rate"), Value::Rate { part: 4, whole: 20 });
    let transitions = [(["closed", "forced-open"], Value::Counter(1)), (["forced-open", "closed"], Value::Counter(1))];
    assert_eq!(values(breaker, "resilience.breaker.transitions"), transitions);
}

#[test]
fn the_metrics_are_those_that_every_circuit_has_and_their_labels_have_values() {
    let bench = Bench::new(|builder| builder);
    bench.breaker.reset();
    let metrics = <CircuitBreaker as Report>::metrics();
    assert_eq!(metrics, METRICS);
    for metric in &metrics {
        let labels: Vec<_> = values(&bench.breaker, metric.name).into_iter().map(|(labels, _)| labels).collect();
        let given = |labels: &LabelValues| labels.iter().filter(|label| !label.is_empty()).count();
        assert!(!labels.is_empty(), "{}", metric.name);
        assert!(labels.iter().all(|labels| given(labels) == metric.labels.len()), "{}: {labels:?}", metric.name);
    }
}

#[test]
fn it_is_in_one_state_and_in_no_other() {
    let bench = Bench::consecutive(1, |builder| builder);
    let is_in = || {
        let states = values(&bench.breaker, "resilience.breaker.state");
        assert_eq!(states.len(), State::ALL.len());
        assert!(states.iter().all(|(_, value)| [Value::Gauge(0.0), Value::Gauge(1.0)].contains(value)));
        let current = states.into_iter().filter(|(_, value)| *value == Value::Gauge(1.0));
        current.map(|([state, _], _)| state).collect::<Vec<_>>()
    };
    assert_eq!(is_in(), ["closed"]);
    bench.call(FAILURE);
    assert_eq!(is_in(), ["open"]);
    bench.wait_open();
    assert_eq!(is_in(), ["open"], "until a call comes");
    drop(bench.admit());
    assert_eq!(is_in(), ["half-open"]);
    bench.breaker.metrics_only();
    assert_eq!(is_in(), ["metrics-only"]);
    bench.breaker.disable();
    assert_eq!(is_in(), ["disabled"]);
    bench.breaker.force_open();
    assert_eq!(is_in(), ["forced-open"]);
}

/// Rates of circuits with the same name are added, so failures without their calls would raise the
/// rate of the others.
#[test]
fn a_rate_below_the_minimum_throughput_adds_nothing() {
    let bench = Bench::new(|builder| builder.consecutive_failures(None).slow_threshold(100 * MS));
    let permits: Vec<_> = (0..19).map(|_| bench.admit()).collect();
    bench.wait(200 * MS);
    permits.into_iter().for_each(|permit| bench.settle(permit, FAILURE));
    for rate in ["resilience.breaker.failure_rate", "resilience.breaker.slow_rate"] {
        assert_eq!(value(&bench.breaker, rate), Value::Rate { part: 0, whole: 0 });
    }
    bench.breaker.metrics_only();
    bench.calls(20, FAILURE);
    let rate = |breaker: &CircuitBreaker| value(breaker, "resilience.breaker.failure_rate");
    assert_eq!(rate(&bench.breaker), Value::Rate { part: 20, whole: 20 });
    bench.wait(60 * SECOND);
    assert_eq!(rate(&bench.breaker), Value::Rate { part: 0, whole: 0 }, "the window is empty again");
}

#[test]
fn transitions_are_counted_by_the_states_before_and_after() {
    let bench = Bench::consecutive(1, |builder| builder);
    assert_eq!(bench.breaker.transitions(), []);
    assert_eq!(values(&bench.breaker, "resilience.breaker.transitions"), []);
    for _ in 0..3 {
        bench.call(FAILURE);
        bench.wait_open();
        bench.call(FAILURE);
        bench.wait_open();
        bench.call(Outcome::Success);
    }
    let expected = [
        (State::Closed, State::Open, 3),
        (State::Open, State::HalfOpen, 6),
        (State::HalfOpen, State::Closed, 3),
        (State::HalfOpen, State::Open, 3),
    ];
    assert_eq!(bench.breaker.transitions(), expected);
    assert_eq!(bench.breaker.snapshot().generation, 15, "each change begins a generation");
    let reported = expected.map(|(from, to, times)| ([from.as_str(), to.as_str()], Value::Counter(times.into())));
    assert_eq!(values(&bench.breaker, "resilience.breaker.transitions"), reported);

    bench.breaker.disable();
    bench.breaker.disable();
    bench.breaker.reset();
    bench.breaker.reset();
    let of = |from, to| bench.breaker.transitions().into_iter().find(|change| (change.0, change.1) == (from, to));
    assert_eq!(
        of(State::Closed, State::Disabled),
        Some((State::Closed, State::Disabled, 1)),
        "counted once if repeated"
    );
    assert_eq!(of(State::Disabled, State::Closed), Some((State::Disabled, State::Closed, 1)));
    assert_eq!(of(State::Closed, State::Closed), Some((State::Closed, State::Closed, 1)), "a reset is counted");
}
