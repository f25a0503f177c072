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
//! The hot paths know nothing of it: what they count anyway is read when it is published, and only
//! changes of state are counted as they happen. The exporter may be made before a recorder is
//! installed.
//!
//! | metric | kind, unit | labels |
//! |---|---|---|
//! | `resilience.breaker.state` | gauge, circuits: 1 for the state it is in and 0 for the others | `policy`, `state` |
//! | `resilience.breaker.transitions` | counter | `policy`, `from`, `to` |
//! | `resilience.breaker.rejected`, `.stale` | counter, calls | `policy` |
//! | `resilience.breaker.calls`, where [asked for](Exporter::circuit_breaker_calls) | histogram, seconds | `policy`, `outcome`: `success`, `failure`, `ignored` |
//! | `resilience.breaker.not_permitted`, likewise | counter, calls | `policy`, `reason` |
//! | `resilience.breaker.failure_rate`, `.slow_rate` | gauge, 0 to 1 | `policy` |
//! | `resilience.bulkhead.in_flight`, `.waiting`, `.limit` | gauge, calls | `policy` |
//! | `resilience.bulkhead.rejected` | counter, calls | `policy` |
//! | `resilience.keyed.keys`, `.in_flight`, `.open`, `.half_open` | gauge | `policy` |
//! | `resilience.keyed.rejected`, `.untracked` | counter, calls | `policy` |
//! | `resilience.keyed.evicted` | counter, keys | `policy` |
//! | `resilience.retry.retries`, `.out_of_budget`, `.out_of_attempts` | counter | `policy` |
//! | `resilience.budget.balance` | gauge, retries | `policy` |
//!
//! Rates are absent until the window holds enough calls, and NaN, which charts leave out, once it
//! no longer does.
//!
//! Timeouts and health are not published:
//! [`TimeoutLayer::stats`](crate::TimeoutLayer::stats) and
//! [`Health::report`](crate::Health::report) have what they know. A retry layer is published with
//! the budget that it was given; the one that a layer makes for itself cannot be had.
//!
//! At most 100 values of `policy` are published under their names; further ones are published
//! together as `other`. What is published under one name is summed, and rates are those of all
//! calls together. A keyed policy is published as one: its keys are not bounded.

use metrics::{Label, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// How many policies have a label of their own.
const MAX_LABELS: usize = 100;

/// The label of the others.
const OTHER: &str = "other";

/// Publishes the numbers of policies. A cheap handle; clones share the list.
#[derive(Clone, Default)]
pub struct Exporter(Arc<Mutex<List>>);

#[derive(Default)]
struct List {
    labels: Vec<Arc<str>>,
    sources: Vec<Source>,
    /// Rates that have a value at the recorder.
    shown: BTreeSet<Name>,
}

type Source = Arc<dyn Fn(&mut Batch) + Send + Sync>;

impl Exporter {
    /// Publishes nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Publishes all that is on the list, to the recorder that is installed now.
    pub fn publish(&self) {
        describe();
        let sources = self.list().sources.clone();
        let mut batch = Batch::default();
        // Outside the lock: a look at a circuit may change its state, and a listener may look at
        // the exporter.
        sources.iter().for_each(|source| source(&mut batch));
        batch.publish(&mut self.list().shown);
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The label under which `name` is published.
    fn label(&self, name: &str) -> Arc<str> {
        let labels = &mut self.list().labels;
        if let Some(label) = labels.iter().find(|label| &***label == name) {
            return label.clone();
        }
        if labels.len() >= MAX_LABELS {
            return OTHER.into();
        }
        labels.push(name.into());
        labels[labels.len() - 1].clone()
    }

    fn add(&self, source: impl Fn(&mut Batch) + Send + Sync + 'static) {
        self.list().sources.push(Arc::new(source));
    }

    /// Adds a circuit breaker, under its name.
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
        self.add(move |batch| {
            let (snapshot, mut batch) = (breaker.snapshot(), batch.of(&label));
            for state in STATES {
                let is = f64::from(u8::from(state == snapshot.state));
                batch.add("resilience.breaker.state", Some(("state", state.as_str())), Value::Gauge(is));
            }
            batch.counter("resilience.breaker.rejected", snapshot.rejected);
            batch.counter("resilience.breaker.stale", snapshot.stale);
            let counts = snapshot.counts;
            let known = counts.total() >= snapshot.minimum_throughput;
            batch.rate("resilience.breaker.failure_rate", known, counts.failures(), counts.total());
            batch.rate("resilience.breaker.slow_rate", known, counts.slow_calls(), counts.total());
        });
    }

    /// Adds every call of a circuit breaker, with its time. Unlike all else here this is done as
    /// the calls end, and makes the circuit read the clock twice for each.
    pub fn circuit_breaker_calls(&self, breaker: &crate::CircuitBreaker) {
        use crate::circuit_breaker::Event;
        use buttress_core::Outcome;
        use metrics::{Key, Level, Metadata};
        const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));
        let policy = self.label(breaker.name());
        // Keys and not handles: a handle belongs to the recorder that was installed when it was
        // made, or to none.
        let [success, failure, ignored] = ["success", "failure", "ignored"].map(|outcome| {
            let labels = vec![Label::new("policy", policy.clone()), Label::new("outcome", outcome)];
            Key::from_parts("resilience.breaker.calls", labels)
        });
        breaker.on_event(move |event| match event {
            Event::Called { outcome, elapsed, .. } => {
                let key = match outcome {
                    Outcome::Success => &success,
                    Outcome::Failure(_) => &failure,
                    _ => &ignored,
                };
                metrics::with_recorder(|recorder| recorder.register_histogram(key, &METADATA)).record(*elapsed);
            }
            Event::NotPermitted { reason, .. } => {
                let name = "resilience.breaker.not_permitted";
                counter!(name, "policy" => policy.clone(), "reason" => reason.as_str()).increment(1);
            }
            _ => {}
        });
    }

    /// Adds a bulkhead.
    pub fn bulkhead(&self, name: &str, bulkhead: &crate::Bulkhead) {
        let (label, bulkhead) = (self.label(name), bulkhead.clone());
        self.add(move |batch| {
            let mut batch = batch.of(&label);
            batch.gauge("resilience.bulkhead.in_flight", bulkhead.in_flight() as f64);
            batch.gauge("resilience.bulkhead.waiting", bulkhead.waiting() as f64);
            batch.gauge("resilience.bulkhead.limit", bulkhead.limit() as f64);
            batch.counter("resilience.bulkhead.rejected", bulkhead.rejected());
        });
    }

    /// Adds a keyed policy, as one.
    pub fn keyed<K, A, G>(&self, name: &str, keyed: &crate::keyed::Keyed<K, A, G>)
    where
        K: std::hash::Hash + Eq + Send + Sync + 'static,
        A: crate::keyed::Idle + Send + Sync + 'static,
        G: Send + Sync + 'static,
    {
        let (label, keyed) = (self.label(name), keyed.clone());
        self.add(move |batch| {
            let (stats, mut batch) = (keyed.stats(), batch.of(&label));
            batch.gauge("resilience.keyed.keys", stats.keys as f64);
            batch.gauge("resilience.keyed.in_flight", stats.sum.in_flight as f64);
            batch.gauge("resilience.keyed.open", stats.sum.open as f64);
            batch.gauge("resilience.keyed.half_open", stats.sum.half_open as f64);
            batch.counter("resilience.keyed.rejected", stats.sum.rejected);
            batch.counter("resilience.keyed.untracked", stats.untracked);
            batch.counter("resilience.keyed.evicted", stats.evicted);
        });
    }

    /// Adds the counters of a retry layer, and the budget it draws on. A budget that several layers
    /// share belongs under one of their names only: balances under one name are summed.
    pub fn retry(&self, name: &str, stats: crate::retry::RetryStats, budget: &crate::RetryBudget) {
        let (label, budget) = (self.label(name), budget.clone());
        self.add(move |batch| {
            let mut batch = batch.of(&label);
            batch.counter("resilience.retry.retries", stats.retries());
            batch.counter("resilience.retry.out_of_budget", stats.out_of_budget());
            batch.counter("resilience.retry.out_of_attempts", stats.out_of_attempts());
            batch.gauge("resilience.budget.balance", budget.balance());
        });
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").field("sources", &self.list().sources.len()).finish()
    }
}

/// A metric with its labels.
#[derive(Clone, Eq, Ord, PartialEq, PartialOrd)]
struct Name {
    metric: &'static str,
    policy: Arc<str>,
    label: Option<(&'static str, &'static str)>,
}

impl Name {
    fn labels(&self) -> Vec<Label> {
        let more = self.label.map(|(name, value)| Label::new(name, value));
        std::iter::once(Label::new("policy", self.policy.clone())).chain(more).collect()
    }
}

enum Value {
    Counter(u64),
    Gauge(f64),
    /// `part` of `whole`; unknown when `whole` is 0.
    Rate {
        part: u64,
        whole: u64,
    },
}

/// The values of one publication, summed by name. Counters only grow and policies stay on the list,
/// so sums of counters only grow too.
#[derive(Default)]
struct Batch(BTreeMap<Name, Value>);

impl Batch {
    fn of<'a>(&'a mut self, policy: &'a Arc<str>) -> PolicyBatch<'a> {
        PolicyBatch { batch: self, policy }
    }

    fn publish(self, shown: &mut BTreeSet<Name>) {
        for (name, value) in self.0 {
            let labels = name.labels();
            match value {
                Value::Counter(n) => counter!(name.metric, labels).absolute(n),
                Value::Gauge(x) => gauge!(name.metric, labels).set(x),
                Value::Rate { part, whole } if whole > 0 => {
                    gauge!(name.metric, labels).set(part as f64 / whole as f64);
                    shown.insert(name);
                }
                // A gauge cannot be taken back.
                Value::Rate { .. } if shown.remove(&name) => gauge!(name.metric, labels).set(f64::NAN),
                Value::Rate { .. } => {}
            }
        }
    }
}

/// A [`Batch`], for the values of one policy.
struct PolicyBatch<'a> {
    batch: &'a mut Batch,
    policy: &'a Arc<str>,
}

impl PolicyBatch<'_> {
    fn counter(&mut self, metric: &'static str, n: u64) {
        self.add(metric, None, Value::Counter(n));
    }

    fn gauge(&mut self, metric: &'static str, x: f64) {
        self.add(metric, None, Value::Gauge(x));
    }

    fn rate(&mut self, metric: &'static str, known: bool, part: u64, whole: u64) {
        let value = if known { Value::Rate { part, whole } } else { Value::Rate { part: 0, whole: 0 } };
        self.add(metric, None, value);
    }

    fn add(&mut self, metric: &'static str, label: Option<(&'static str, &'static str)>, value: Value) {
        let name = Name { metric, policy: self.policy.clone(), label };
        match (self.batch.0.get_mut(&name), value) {
            (Some(Value::Counter(sum)), Value::Counter(n)) => *sum = sum.saturating_add(n),
            (Some(Value::Gauge(sum)), Value::Gauge(x)) => *sum += x,
            (Some(Value::Rate { part, whole }), Value::Rate { part: more_part, whole: more }) => {
                *part = part.saturating_add(more_part);
                *whole = whole.saturating_add(more);
            }
            (_, value) => {
                self.batch.0.insert(name, value);
            }
        }
    }
}

/// Tells the recorder what the metrics mean: with each publication, since it may have been
/// installed since the last one.
fn describe() {
    for (name, help) in [
        ("resilience.breaker.transitions", "Changes of the circuit's state"),
        ("resilience.breaker.rejected", "Calls that the circuit rejected"),
        ("resilience.breaker.stale", "Results of calls from before the last change of state"),
        ("resilience.breaker.not_permitted", "Calls that the circuit rejected, by reason"),
        ("resilience.bulkhead.rejected", "Calls that the bulkhead rejected"),
        ("resilience.keyed.rejected", "Calls that the policies of all keys rejected"),
        ("resilience.keyed.untracked", "Calls of keys for which there was no room"),
        ("resilience.keyed.evicted", "Keys whose policy was evicted"),
        ("resilience.retry.retries", "Attempts after the first"),
        ("resilience.retry.out_of_budget", "Retries denied by the budget"),
        ("resilience.retry.out_of_attempts", "Calls whose last allowed attempt failed"),
    ] {
        describe_counter!(name, Unit::Count, help);
    }
    for (name, help) in [
        ("resilience.breaker.state", "Circuits that are in the state: 1 or 0 for a single circuit"),
        ("resilience.bulkhead.in_flight", "Calls that hold a permit"),
        ("resilience.bulkhead.waiting", "Calls in the queue"),
        ("resilience.bulkhead.limit", "Calls that may be in flight"),
        ("resilience.keyed.keys", "Keys that have a policy"),
        ("resilience.keyed.in_flight", "Calls in flight, of all keys"),
        ("resilience.keyed.open", "Keys whose circuit is open"),
        ("resilience.keyed.half_open", "Keys whose circuit is half-open"),
        ("resilience.budget.balance", "Retries that the budget has left"),
    ] {
        describe_gauge!(name, Unit::Count, help);
    }
    // Shares of 1, for which the facade has no unit: its percent are hundredths.
    describe_gauge!("resilience.breaker.failure_rate", "Failures among the calls in the window, 0 to 1");
    describe_gauge!("resilience.breaker.slow_rate", "Slow calls among the calls in the window, 0 to 1");
    describe_histogram!("resilience.breaker.calls", Unit::Seconds, "Calls that the circuit admitted");
}

#[cfg(test)]
mod tests;
