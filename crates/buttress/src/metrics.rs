//! Metrics of policies, through the [`metrics`] facade.
//!
//! ```
//! use buttress::{Bulkhead, CircuitBreaker, metrics::Exporter};
//!
//! let (breaker, bulkhead) = (CircuitBreaker::new("payments"), Bulkhead::named("payments", 10));
//! let exporter = Exporter::new();
//! exporter.circuit_breaker(&breaker);
//! exporter.bulkhead("payments", &bulkhead);
//! // before each scrape, or on a timer:
//! exporter.publish();
//! ```
//!
//! The hot paths know nothing of it: what they count anyway is read when it is published, and only changes of state are counted as they happen.
//!
//! | metric | kind | labels |
//! |---|---|---|
//! | `resilience.breaker.state` | gauge, 1 for the state it is in and 0 for the others | `policy`, `state` |
//! | `resilience.breaker.transitions` | counter | `policy`, `from`, `to` |
//! | `resilience.breaker.rejected`, `.stale` | counter | `policy` |
//! | `resilience.breaker.calls`, where [asked for](Exporter::circuit_breaker_calls) | histogram, seconds | `policy`, `outcome`: `success`, `failure`, `ignored` |
//! | `resilience.breaker.not_permitted`, likewise | counter | `policy`, `reason` |
//! | `resilience.breaker.failure_rate`, `.slow_rate` | gauge, absent without calls | `policy` |
//! | `resilience.bulkhead.in_flight`, `.waiting`, `.limit` | gauge | `policy` |
//! | `resilience.bulkhead.rejected` | counter | `policy` |
//! | `resilience.retry.retries`, `.out_of_budget`, `.out_of_attempts` | counter | `policy` |
//! | `resilience.budget.balance` | gauge | `policy` |
//!
//! At most 100 values of `policy` are published under their names; further ones are taken together as `other`, whose gauges are those of the last of them. Keyed policies do not
//! belong here one by one: their keys are not bounded.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

/// How many policies have a label of their own.
const MAX_LABELS: usize = 100;

/// Publishes what policies count. A cheap handle; clones share the list.
#[derive(Clone)]
pub struct Exporter(Arc<Mutex<List>>);

#[derive(Default)]
struct List {
    labels: Vec<String>,
    sources: Vec<Box<dyn Fn() + Send>>,
}

impl Exporter {
    /// Publishes nothing yet, but tells the recorder what the metrics mean.
    pub fn new() -> Self {
        describe();
        Self(Arc::default())
    }

    /// Publishes all that is on the list.
    pub fn publish(&self) {
        self.list().sources.iter().for_each(|publish| publish());
    }

    fn list(&self) -> std::sync::MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The label under which `name` is published.
    fn label(&self, name: &str) -> String {
        let labels = &mut self.list().labels;
        if !labels.iter().any(|label| label == name) {
            if labels.len() >= MAX_LABELS {
                return "other".to_owned();
            }
            labels.push(name.to_owned());
        }
        name.to_owned()
    }

    fn add(&self, publish: impl Fn() + Send + 'static) {
        self.list().sources.push(Box::new(publish));
    }

    /// Adds a circuit breaker, under its name.
    #[cfg(feature = "circuit-breaker")]
    pub fn circuit_breaker(&self, breaker: &crate::CircuitBreaker) {
        use crate::circuit_breaker::State;
        const STATES: [State; 6] =
            [State::Closed, State::MetricsOnly, State::Disabled, State::Open, State::HalfOpen, State::ForcedOpen];
        let label = self.label(breaker.name());
        let policy = label.clone();
        breaker.on_transition(move |transition| {
            let (from, to) = (transition.from.as_str(), transition.to.as_str());
            counter!("resilience.breaker.transitions", "policy" => policy.clone(), "from" => from, "to" => to)
                .increment(1);
        });
        let breaker = breaker.clone();
        self.add(move || {
            let snapshot = breaker.snapshot();
            for state in STATES {
                let is = f64::from(u8::from(state == snapshot.state));
                gauge!("resilience.breaker.state", "policy" => label.clone(), "state" => state.as_str()).set(is);
            }
            counter!("resilience.breaker.rejected", "policy" => label.clone()).absolute(snapshot.rejected);
            counter!("resilience.breaker.stale", "policy" => label.clone()).absolute(snapshot.stale);
            if let (Some(failures), Some(slow)) = (snapshot.counts.failure_rate(), snapshot.counts.slow_rate()) {
                gauge!("resilience.breaker.failure_rate", "policy" => label.clone()).set(failures);
                gauge!("resilience.breaker.slow_rate", "policy" => label.clone()).set(slow);
            }
        });
    }

    /// Adds every call of a circuit breaker, with its time. Unlike all else here this is done as the calls end, and makes the circuit read the clock
    /// twice for each.
    #[cfg(feature = "circuit-breaker")]
    pub fn circuit_breaker_calls(&self, breaker: &crate::CircuitBreaker) {
        use crate::circuit_breaker::Event;
        use buttress_core::Outcome;
        let policy = self.label(breaker.name());
        let calls = |outcome: &'static str| {
            let name = "resilience.breaker.calls";
            metrics::histogram!(name, "policy" => policy.clone(), "outcome" => outcome)
        };
        let [success, failure, ignored] = ["success", "failure", "ignored"].map(calls);
        breaker.on_event(move |event| match event {
            Event::Called { outcome, elapsed, .. } => match outcome {
                Outcome::Success => success.record(*elapsed),
                Outcome::Failure(_) => failure.record(*elapsed),
                _ => ignored.record(*elapsed),
            },
            Event::NotPermitted { reason, .. } => {
                let name = "resilience.breaker.not_permitted";
                counter!(name, "policy" => policy.clone(), "reason" => reason.as_str()).increment(1);
            }
            _ => {}
        });
    }

    /// Adds a bulkhead.
    #[cfg(feature = "bulkhead")]
    pub fn bulkhead(&self, name: &str, bulkhead: &crate::Bulkhead) {
        let (label, bulkhead) = (self.label(name), bulkhead.clone());
        self.add(move || {
            gauge!("resilience.bulkhead.in_flight", "policy" => label.clone()).set(bulkhead.in_flight() as f64);
            gauge!("resilience.bulkhead.waiting", "policy" => label.clone()).set(bulkhead.waiting() as f64);
            gauge!("resilience.bulkhead.limit", "policy" => label.clone()).set(bulkhead.limit() as f64);
            counter!("resilience.bulkhead.rejected", "policy" => label.clone()).absolute(bulkhead.rejected());
        });
    }

    /// Adds the counters of a retry layer, and the budget it draws on.
    #[cfg(feature = "retry")]
    pub fn retry(&self, name: &str, stats: crate::retry::RetryStats, budget: &crate::RetryBudget) {
        let (label, budget) = (self.label(name), budget.clone());
        self.add(move || {
            counter!("resilience.retry.retries", "policy" => label.clone()).absolute(stats.retries());
            counter!("resilience.retry.out_of_budget", "policy" => label.clone()).absolute(stats.out_of_budget());
            counter!("resilience.retry.out_of_attempts", "policy" => label.clone()).absolute(stats.out_of_attempts());
            gauge!("resilience.budget.balance", "policy" => label.clone()).set(budget.balance());
        });
    }
}

impl Default for Exporter {
    fn default() -> Self {
        Self::new()
    }
}

fn describe() {
    describe_gauge!("resilience.breaker.state", "1 for the state that the circuit is in");
    describe_counter!("resilience.breaker.transitions", "Changes of the circuit's state");
    describe_counter!("resilience.breaker.rejected", "Calls that the circuit did not permit");
    describe_counter!("resilience.breaker.stale", "Results of calls from before the last change of state");
    describe_histogram!("resilience.breaker.calls", Unit::Seconds, "Calls that the circuit permitted");
    describe_counter!("resilience.breaker.not_permitted", "Calls that the circuit did not permit, by reason");
    describe_gauge!("resilience.breaker.failure_rate", "Failures among the calls in the window, 0 to 1");
    describe_gauge!("resilience.breaker.slow_rate", "Slow calls among those in the window, 0 to 1");
    describe_gauge!("resilience.bulkhead.in_flight", "Calls that hold a permit");
    describe_gauge!("resilience.bulkhead.waiting", "Calls that wait for a permit");
    describe_gauge!("resilience.bulkhead.limit", "Permits there are");
    describe_counter!("resilience.bulkhead.rejected", "Calls that got no permit");
    describe_counter!("resilience.retry.retries", "Attempts after the first");
    describe_counter!("resilience.retry.out_of_budget", "Failures that the budget let stand");
    describe_counter!("resilience.retry.out_of_attempts", "Failures of the last attempt allowed");
    describe_gauge!("resilience.budget.balance", "Retries that the budget has left");
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").field("sources", &self.list().sources.len()).finish()
    }
}

#[cfg(all(test, feature = "bulkhead", feature = "circuit-breaker"))]
mod tests {
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
        let expected = [
            (labels(["payments", "closed", "forced-open"]), 1.0),
            (labels(["payments", "forced-open", "closed"]), 1.0),
        ];
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
        let expected = [
            (labels(["payments", "failure"]), 1.5),
            (labels(["payments", "ignored"]), 0.0),
            (labels(["payments", "success"]), 0.0),
        ];
        assert_eq!(values(&snapshotter, "resilience.breaker.calls"), expected);
    }

    #[test]
    fn the_hundred_and_first_policy_is_one_of_the_others() {
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        metrics::with_local_recorder(&recorder, || {
            let exporter = Exporter::new();
            for n in 0..150 {
                exporter.bulkhead(&format!("b{n}"), &Bulkhead::new(n));
            }
            exporter.publish();
        });
        let limits = values(&snapshotter, "resilience.bulkhead.limit");
        assert_eq!(limits.len(), 101);
        assert!(limits.contains(&(labels(["b99"]), 99.0)) && limits.contains(&(labels(["other"]), 149.0)));
    }
}
