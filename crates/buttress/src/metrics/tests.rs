use super::*;
use crate::{Bulkhead, CircuitBreaker, Policy, TokioClock};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};

/// The values of a metric, by their labels in the order of the table.
fn values(snapshotter: &Snapshotter, name: &str) -> Vec<(Vec<String>, f64)> {
    let mut values: Vec<_> = snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .filter(|(key, ..)| key.key().name() == name)
        .map(|(key, _, _, value)| {
            let value = match value {
                DebugValue::Counter(n) => n as f64,
                DebugValue::Gauge(x) => x.into_inner(),
                DebugValue::Histogram(times) => times.iter().map(|time| time.into_inner()).sum(),
            };
            (key.key().labels().map(|label| label.value().to_owned()).collect::<Vec<_>>(), value)
        })
        .collect();
    values.sort_by(|a, b| a.0.cmp(&b.0));
    values
}

fn labels<const N: usize>(labels: [&str; N]) -> Vec<String> {
    labels.map(str::to_owned).to_vec()
}

#[test]
fn a_circuit_shows_one_state_at_a_time_and_every_change_of_it() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        let (exporter, breaker) = (Exporter::new(), CircuitBreaker::new("payments"));
        exporter.circuit_breaker(&breaker);
        exporter.publish();
        breaker.force_open();
        assert!(breaker.reserve(&TokioClock).is_err());
        exporter.publish();
    });
    // A snapshot takes counters with it, so each metric is asked for once, the gauges first.
    let all: Vec<_> = values(&snapshotter, "resilience.breaker.state");
    let ones: Vec<_> = all.iter().filter(|(_, value)| *value == 1.0).collect();
    assert_eq!(ones, [&(labels(["payments", "forced-open"]), 1.0)]);
    assert_eq!(all.len(), 6);
}

#[test]
fn transitions_and_rejections_are_counted() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        let (exporter, breaker) = (Exporter::new(), CircuitBreaker::new("payments"));
        exporter.circuit_breaker(&breaker);
        breaker.force_open();
        breaker.reset();
    });
    let expected =
        [(labels(["payments", "closed", "forced-open"]), 1.0), (labels(["payments", "forced-open", "closed"]), 1.0)];
    assert_eq!(values(&snapshotter, "resilience.breaker.transitions"), expected);
}

#[test]
fn calls_are_published_with_their_times_where_that_is_asked_for() {
    use buttress_core::{Failure, FailureKind, Outcome, Permit};
    let (recorder, now) = (DebuggingRecorder::new(), buttress_core::Clock::now(&TokioClock));
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        let (exporter, breaker) = (Exporter::new(), CircuitBreaker::new("payments"));
        exporter.circuit_breaker_calls(&breaker);
        breaker.reserve(&now).unwrap().settle(&Outcome::Success, &now);
        let later = now + std::time::Duration::from_secs(2);
        let failure = Failure::new(FailureKind::Transport).into();
        breaker.reserve(&later).unwrap().settle(&failure, &(later + std::time::Duration::from_millis(1500)));
        breaker.force_open();
        assert!(breaker.reserve(&later).is_err());
    });
    let expected = [(labels(["payments", "failure"]), 1.5), (labels(["payments", "success"]), 0.0)];
    assert_eq!(values(&snapshotter, "resilience.breaker.calls"), expected);
}

#[test]
fn policies_beyond_the_hundredth_are_summed_as_the_others() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        let exporter = Exporter::new();
        for n in 0..150 {
            exporter.bulkhead(&format!("b{n}"), &Bulkhead::new(n));
        }
        exporter.publish();
        exporter.publish();
    });
    let limits = values(&snapshotter, "resilience.bulkhead.limit");
    assert_eq!(limits.len(), 101);
    let others: usize = (100..150).sum();
    assert!(limits.contains(&(labels(["b99"]), 99.0)) && limits.contains(&(labels(["other"]), others as f64)));
}

#[test]
fn policies_of_one_name_are_summed_and_their_counters_do_not_fall() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let (exporter, pair) = (Exporter::new(), [Bulkhead::new(0), Bulkhead::new(0)]);
    pair.iter().for_each(|bulkhead| exporter.bulkhead("tenant", bulkhead));
    for (rejections, sum) in [([5, 3], 8.0), ([0, 2], 10.0)] {
        for (bulkhead, n) in pair.iter().zip(rejections) {
            (0..n).for_each(|_| assert!(bulkhead.reserve(&TokioClock).is_err()));
        }
        metrics::with_local_recorder(&recorder, || exporter.publish());
        // Reading a counter resets it.
        let rejected = values(&snapshotter, "resilience.bulkhead.rejected");
        assert_eq!(rejected, [(labels(["tenant"]), sum)]);
    }
}

fn failed_calls(breaker: &CircuitBreaker, calls: u32) {
    use buttress_core::{Failure, FailureKind, Outcome, Permit};
    let failure = Outcome::from(Failure::new(FailureKind::Transport));
    for n in 0..calls {
        let outcome = if n % 4 == 0 { &failure } else { &Outcome::Success };
        breaker.reserve(&TokioClock).unwrap().settle(outcome, &TokioClock);
    }
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_absent_below_the_minimum_and_nan_once_it_is_unknown_again() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let (exporter, breaker) = (Exporter::new(), CircuitBreaker::new("payments"));
    exporter.circuit_breaker(&breaker);
    let publish = || {
        metrics::with_local_recorder(&recorder, || exporter.publish());
        values(&snapshotter, "resilience.breaker.failure_rate")
    };
    failed_calls(&breaker, 8);
    assert_eq!(publish(), [], "8 calls are too few to tell");
    failed_calls(&breaker, 32);
    assert_eq!(publish(), [(labels(["payments"]), 0.25)]);
    tokio::time::sleep(std::time::Duration::from_secs(3600)).await;
    assert!(publish()[0].1.is_nan(), "the window is empty after an hour");
    failed_calls(&breaker, 40);
    assert_eq!(publish(), [(labels(["payments"]), 0.25)]);
}

#[test]
fn an_exporter_made_before_the_recorder_publishes_to_it_with_units() {
    let (exporter, breaker) = (Exporter::new(), CircuitBreaker::new("payments"));
    exporter.circuit_breaker(&breaker);
    exporter.circuit_breaker_calls(&breaker);
    exporter.publish();
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        exporter.publish();
        failed_calls(&breaker, 3);
    });
    let units: BTreeMap<_, _> = snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .map(|(key, unit, help, _)| (key.key().name().to_owned(), (unit, help.is_some())))
        .collect();
    assert_eq!(units["resilience.breaker.calls"], (Some(Unit::Seconds), true));
    assert_eq!(units["resilience.breaker.rejected"], (Some(Unit::Count), true));
    assert_eq!(units["resilience.breaker.state"], (Some(Unit::Count), true));
}

#[test]
fn a_keyed_policy_is_published_as_one() {
    use crate::{Admit, keyed::Keyed};
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let keyed = Keyed::new(|key: &u32| *key, |_: &u32| CircuitBreaker::new("tenant"));
    let exporter = Exporter::new();
    exporter.keyed("tenants", &keyed);
    (0..10).for_each(|key| drop(keyed.admit(&key, &TokioClock)));
    keyed.get(&3).unwrap().force_open();
    assert!(keyed.admit(&3, &TokioClock).is_err());
    metrics::with_local_recorder(&recorder, || exporter.publish());
    let all: BTreeMap<String, f64> = snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .map(|(key, _, _, value)| {
            let value = match value {
                DebugValue::Counter(n) => n as f64,
                DebugValue::Gauge(x) => x.into_inner(),
                DebugValue::Histogram(_) => f64::NAN,
            };
            (key.key().name().replace("resilience.keyed.", ""), value)
        })
        .collect();
    let expected = [
        ("evicted", 0.0),
        ("half_open", 0.0),
        ("in_flight", 0.0),
        ("keys", 10.0),
        ("open", 1.0),
        ("rejected", 1.0),
        ("untracked", 0.0),
    ];
    assert_eq!(all, expected.map(|(name, value)| (name.to_owned(), value)).into());
}
