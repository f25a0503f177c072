use super::*;
use crate::{Bulkhead, CircuitBreaker, policy::Policy};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use std::collections::BTreeMap;

/// Returns the values of a metric with their labels, sorted by label.
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
        exporter.add(&breaker);
        exporter.publish();
        breaker.force_open();
        assert!(breaker.admit(&()).is_err());
        exporter.publish();
    });
    // A snapshot resets counters, so each metric is read once, the gauges first.
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
        exporter.add(&breaker);
        breaker.force_open();
        breaker.reset();
        exporter.publish();
    });
    let expected =
        [(labels(["payments", "closed", "forced-open"]), 1.0), (labels(["payments", "forced-open", "closed"]), 1.0)];
    assert_eq!(values(&snapshotter, "resilience.breaker.transitions"), expected);
}

#[tokio::test(start_paused = true)]
async fn calls_are_published_with_their_times_where_that_is_asked_for() {
    use buttress_core::{Failure, FailureKind, Outcome, Permit};
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let (exporter, breaker) = (Exporter::new(), CircuitBreaker::new("payments"));
    exporter.circuit_breaker_calls(&breaker);
    let failure = Failure::new(FailureKind::Transport).into();
    let outcomes = [failure, Outcome::Success, Outcome::CANCELLED];
    for (mut permit, outcome) in outcomes.map(|outcome| (breaker.admit(&()).unwrap(), outcome)) {
        tokio::time::advance(std::time::Duration::from_millis(1500)).await;
        metrics::with_local_recorder(&recorder, || permit.settle(&outcome));
    }
    let expected = [
        (labels(["payments", "failure"]), 1.5),
        (labels(["payments", "ignored"]), 4.5),
        (labels(["payments", "success"]), 3.0),
    ];
    assert_eq!(values(&snapshotter, "resilience.breaker.calls"), expected);
}

#[test]
fn rejections_of_a_circuit_are_counted_by_reason_where_that_is_asked_for() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let (exporter, breaker) = (Exporter::new(), CircuitBreaker::new("payments"));
    exporter.circuit_breaker_calls(&breaker);
    metrics::with_local_recorder(&recorder, || {
        breaker.force_open();
        assert!(breaker.admit(&()).is_err());
        breaker.open_for(std::time::Duration::from_secs(3600));
        assert!((0..2).all(|_| breaker.admit(&()).is_err()));
    });
    let expected = [(labels(["payments", "circuit_open"]), 2.0), (labels(["payments", "forced_open"]), 1.0)];
    assert_eq!(values(&snapshotter, "resilience.breaker.not_permitted"), expected);
}

#[tokio::test(start_paused = true)]
async fn what_retries_count_is_published_each_under_its_own_name() {
    use crate::{Backoff, Ending, Error, RetryBudget, RetryLayer, ending::Plain};
    use buttress_core::{Failure, FailureKind, Outcome, Sent};
    use tower::ServiceExt;
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    // A letter of the script is the result of one attempt.
    let ending = Plain::new().classify(|result: Result<&(), &Error>| match result {
        Ok(()) => Outcome::Success,
        Err(refused) if refused.to_string() == "r" => {
            Failure::new(FailureKind::Transport).sent(Sent::NotProcessed).into()
        }
        Err(_) => Failure::new(FailureKind::Transport).into(),
    });
    let budget = RetryBudget::builder().percent(0.0).min_per_second(0.0).burst(5).build().unwrap();
    let backoff = Backoff::constant(std::time::Duration::ZERO);
    let layer = RetryLayer::new(2).named("payments").backoff(backoff).budget(budget);
    let exporter = Exporter::new();
    exporter.add(&layer.stats());
    let script = Arc::new(Mutex::new("fs ff ff ff ff rs rs rs f f".replace(' ', "").chars().rev().collect::<Vec<_>>()));
    let next = tower::service_fn(move |()| {
        let letter = script.lock().unwrap().pop().unwrap();
        std::future::ready(if letter == 's' { Ok(()) } else { Err(std::io::Error::other(letter.to_string())) })
    });
    let service = tower::Layer::layer(&layer.end(ending), next);
    for _ in 0..10 {
        let _ = service.clone().oneshot(()).await;
    }
    metrics::with_local_recorder(&recorder, || exporter.publish());
    let all = snapshotter.snapshot().into_vec().into_iter();
    let counts: BTreeMap<_, _> = all
        .map(|(key, _, _, value)| (key.key().name().to_owned(), if let DebugValue::Counter(n) = value { n } else { 0 }))
        .collect();
    let expected = [
        ("out_of_attempts", 4),
        ("out_of_budget", 2),
        ("out_of_time", 0),
        ("retried_below", 0),
        ("retries", 5),
        ("transparent", 3),
    ];
    assert_eq!(counts, expected.map(|(name, n)| (format!("resilience.retry.{name}"), n)).into());
}

#[tokio::test(start_paused = true)]
async fn a_hedge_is_published_with_its_delay() {
    use crate::{HedgeLayer, PlainExt};
    use std::time::Duration;
    use tower::ServiceExt;
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let exporter = Exporter::new();
    let layer = HedgeLayer::after(Duration::from_millis(250)).named("search");
    exporter.add(&layer.stats());
    let slow = tower::service_fn(|millis: u64| async move {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        Ok::<_, std::convert::Infallible>(())
    });
    let service = tower::Layer::layer(&layer.plain(), slow);
    for millis in [100, 300, 900] {
        service.clone().oneshot(millis).await.unwrap();
    }
    metrics::with_local_recorder(&recorder, || exporter.publish());
    let all: BTreeMap<_, _> = snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .map(|(key, _, _, value)| {
            let value = match value {
                DebugValue::Counter(n) => n as f64,
                DebugValue::Gauge(x) => x.into_inner(),
                DebugValue::Histogram(_) => unreachable!("it has none"),
            };
            (key.key().name().to_owned(), value)
        })
        .collect();
    let expected = [("delay", 0.25), ("hedges", 2.0), ("out_of_budget", 0.0), ("retries", 0.0), ("wins", 0.0)];
    assert_eq!(all, expected.map(|(name, value)| (format!("resilience.hedge.{name}"), value)).into());
}

#[tokio::test(start_paused = true)]
async fn a_timeout_is_published_under_its_name() {
    use crate::{PlainExt, TimeoutLayer};
    use tower::ServiceExt;
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let exporter = Exporter::new();
    let slow = tower::service_fn(|()| std::future::pending::<Result<(), std::io::Error>>());
    for (name, calls) in [("payments", 2), ("stock", 3)] {
        let layer = TimeoutLayer::total(std::time::Duration::from_secs(1)).named(name);
        exporter.add(&layer.stats().unwrap());
        for _ in 0..calls {
            tower::Layer::layer(&layer.clone().plain(), slow).oneshot(()).await.unwrap_err();
        }
    }
    metrics::with_local_recorder(&recorder, || exporter.publish());
    let expected = [(labels(["payments"]), 2.0), (labels(["stock"]), 3.0)];
    assert_eq!(values(&snapshotter, "resilience.timeout.timed_out"), expected);
}

#[test]
fn policies_beyond_the_hundredth_are_summed_as_the_others() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        let exporter = Exporter::new();
        for n in 0..150 {
            exporter.add(&Bulkhead::named(format!("b{n}"), n));
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
    let (exporter, pair) = (Exporter::new(), [(); 2].map(|()| Bulkhead::named("tenant", 0)));
    pair.iter().for_each(|bulkhead| exporter.add(bulkhead));
    for (rejections, sum) in [([5, 3], 8.0), ([0, 2], 10.0)] {
        for (bulkhead, n) in pair.iter().zip(rejections) {
            (0..n).for_each(|_| assert!(bulkhead.admit(&()).is_err()));
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
        breaker.admit(&()).unwrap().settle(outcome);
    }
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_absent_below_the_minimum_and_nan_once_it_is_unknown_again() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let (exporter, breaker) = (Exporter::new(), CircuitBreaker::new("payments"));
    exporter.add(&breaker);
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
    exporter.add(&breaker);
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

/// A counter of a user, in seconds.
#[derive(Clone)]
struct Waited;

const WAITED: Metric = Metric::counter("shop.waited", "seconds", "Time that customers waited");
const QUEUE: Metric = Metric::gauge("shop.queue", "customers", "Customers in the queue");

impl Report for Waited {
    fn metrics() -> Vec<Metric> {
        vec![WAITED, QUEUE]
    }

    fn name(&self) -> Option<&str> {
        None
    }

    fn report(&self, sink: &mut dyn buttress_core::report::Sink) {
        sink.counter(&WAITED, 60);
        sink.gauge(&QUEUE, 3.0);
    }
}

#[test]
fn a_metric_of_a_user_is_published_with_its_own_unit() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let exporter = Exporter::new();
    exporter.add(&Waited);
    metrics::with_local_recorder(&recorder, || exporter.publish());
    let units =
        snapshotter.snapshot().into_vec().into_iter().map(|(key, unit, ..)| (key.key().name().to_owned(), unit));
    let expected = [("shop.queue", Unit::Count), ("shop.waited", Unit::Seconds)];
    assert_eq!(units.collect::<BTreeMap<_, _>>(), expected.map(|(name, unit)| (name.to_owned(), Some(unit))).into());
}

#[test]
fn the_budget_that_a_named_retry_layer_made_is_published_under_its_name() {
    use crate::{PlainExt, RetryBudget, RetryLayer};
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let shared = RetryBudget::builder().name("shared").burst(8).build().unwrap();
    let layers = [
        RetryLayer::new(3).named("payments").seed(7),
        RetryLayer::new(3).named("stock"),
        RetryLayer::new(3).named("mail").budget(shared.clone()),
        RetryLayer::new(3).budget(shared).named("news"),
    ];
    let exporter = Exporter::new();
    for layer in layers.map(PlainExt::plain) {
        exporter.add(layer.stats().budget());
    }
    metrics::with_local_recorder(&recorder, || exporter.publish());
    let balances = [("payments", 100.0), ("shared", 16.0), ("stock", 100.0)];
    assert_eq!(
        values(&snapshotter, "resilience.budget.balance"),
        balances.map(|(name, balance)| (labels([name]), balance))
    );
}

#[test]
fn a_keyed_policy_is_published_as_one() {
    use crate::keyed::Keyed;
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let tenants = Keyed::builder(|key: &u32| *key, |_: &u32| CircuitBreaker::new("tenant")).name("tenants");
    let keyed = tenants.build().unwrap();
    let exporter = Exporter::new();
    exporter.add(&keyed);
    (0..10).for_each(|key| drop(keyed.admit(&key)));
    keyed.get(&3).unwrap().force_open();
    assert!(keyed.admit(&3).is_err());
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
            let labels: Vec<_> = key.key().labels().map(|label| label.value().to_owned()).collect();
            (format!("{} {}", key.key().name().replace("resilience.", ""), labels.join(" ")), value)
        })
        .collect();
    let expected = [
        ("breaker.in_flight tenants", 0.0),
        ("breaker.rejected tenants", 1.0),
        ("breaker.stale tenants", 0.0),
        ("breaker.state tenants closed", 9.0),
        ("breaker.state tenants disabled", 0.0),
        ("breaker.state tenants forced-open", 1.0),
        ("breaker.state tenants half-open", 0.0),
        ("breaker.state tenants metrics-only", 0.0),
        ("breaker.state tenants open", 0.0),
        ("breaker.transitions tenants closed forced-open", 1.0),
        ("keyed.evicted tenants", 0.0),
        ("keyed.keys tenants", 10.0),
        ("keyed.untracked tenants", 0.0),
    ];
    assert_eq!(all, expected.map(|(name, value)| (name.to_owned(), value)).into());
}

/// Returns the table for the documentation, made from the descriptions.
/// A policy of a user that describes its metric with this text.
#[derive(Clone)]
struct Describes(&'static str);

impl Report for Describes {
    fn metrics() -> Vec<Metric> {
        Vec::new()
    }

    fn name(&self) -> Option<&str> {
        Some("twins")
    }

    fn report(&self, sink: &mut dyn buttress_core::report::Sink) {
        sink.gauge(&Metric::gauge("shop.lanes", "lanes", self.0), 1.0);
    }
}

#[test]
fn one_metric_in_two_descriptions_is_one_sum() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let exporter = Exporter::new();
    exporter.add(&Describes("Open lanes"));
    exporter.add(&Describes("Lanes that are open"));
    metrics::with_local_recorder(&recorder, || exporter.publish());
    assert_eq!(values(&snapshotter, "shop.lanes"), [(labels(["twins"]), 2.0)]);
}

fn table() -> String {
    let mut table = String::from("| metric | kind, unit | labels | description |\n|---|---|---|---|\n");
    for Metric { name, kind, unit, labels, help } in all() {
        let kind = match kind {
            MetricKind::Counter => format!("counter, {unit}"),
            MetricKind::Gauge => format!("gauge, {unit}"),
            MetricKind::Rate => "gauge, 0 to 1".to_owned(),
            MetricKind::Histogram => format!("histogram, {unit}"),
            _ => unreachable!("a kind of metric without a row in the table"),
        };
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        table += &format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", "));
    }
    table
}

#[test]
fn the_table_of_metrics_is_complete() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/metrics/table.md");
    if std::env::var_os("UPDATE_TABLES").is_some() {
        std::fs::write(path, table()).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), table(), "UPDATE_TABLES=1 writes it anew");
}

/// What is published is in the table, and everything in the table is published.
#[tokio::test(start_paused = true)]
async fn every_metric_in_the_table_is_published_and_no_other() {
    use crate::{Health, RetryBudget, RetryLayer, TimeoutLayer, keyed::Keyed};
    use buttress_core::{Failure, FailureKind, Permit};
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let (exporter, breaker) = (Exporter::new(), CircuitBreaker::new("payments"));
    let budget = RetryBudget::builder().name("payments").in_flight(0.2, 3).grpc_tokens(10.0, 0.1).build().unwrap();
    exporter.add(&breaker);
    let bulkhead = Bulkhead::new(1);
    bulkhead.set_discipline(crate::bulkhead::Discipline::Adaptive); // makes the queue
    bulkhead.reserve(crate::policy::Criticality::CriticalPlus, 0.2).unwrap();
    exporter.add(&bulkhead);
    let limit = crate::AdaptiveLimit::builder("orders").min_samples(1).build().unwrap();
    exporter.add(&limit);
    for _ in 0..2 {
        buttress_core::Permit::settle(&mut limit.admit(&()).unwrap(), &buttress_core::Outcome::Success);
        tokio::time::advance(std::time::Duration::from_millis(250)).await;
    }
    exporter.add(&Keyed::new(|key: &u32| *key, |_: &u32| Bulkhead::new(1)));
    exporter.add(&RetryLayer::new(3).stats());
    exporter.add(&crate::HedgeLayer::after(std::time::Duration::ZERO).stats());
    exporter.add(&crate::SingleFlightLayer::new(|key: &u32| *key).stats());
    exporter.add(&budget);
    exporter.add(&TimeoutLayer::total(std::time::Duration::MAX).named("payments").stats().unwrap());
    exporter.add(&Health::new());
    exporter.add(&crate::Deadlines::new());
    exporter.add(&crate::FallbackLayer::to(()).stats());
    exporter.add(&crate::Chaos::new());
    exporter.add(&crate::RateLimit::per_second(1));
    let adaptive = crate::AdaptiveRate::new();
    let throttled = Failure { overload: true, ..Failure::new(FailureKind::Http(429)) };
    adaptive.admit(&()).unwrap().settle(&throttled.into());
    exporter.add(&adaptive);
    exporter.add(
        &crate::LoadShed::builder("orders").monitor(crate::load_shed::monitor_fn("half", || 0.5)).build().unwrap(),
    );
    let throttle = crate::Throttle::new("search");
    let _call = throttle.admit(&()).unwrap();
    exporter.add(&throttle);
    let counted = crate::policy::Counted::new("mine", Bulkhead::new(0));
    assert!(counted.admit(&()).is_err());
    exporter.add(&counted);
    exporter.circuit_breaker_calls(&breaker);
    metrics::with_local_recorder(&recorder, || {
        failed_calls(&breaker, 40);
        breaker.force_open();
        assert!(breaker.admit(&()).is_err());
        breaker.metrics_only();
        failed_calls(&breaker, 40);
        exporter.publish();
    });
    let published: BTreeMap<_, BTreeSet<_>> = snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .map(|(key, ..)| {
            let labels = key.key().labels().map(|label| label.key().to_owned());
            (key.key().name().to_owned(), labels.filter(|label| label != "policy").collect())
        })
        .collect();
    let described = all()
        .into_iter()
        .map(|metric| (metric.name.to_owned(), metric.labels.iter().map(|label| (*label).to_owned()).collect()));
    assert_eq!(published, described.collect());
}
