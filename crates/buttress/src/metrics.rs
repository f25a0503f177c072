//! Metrics of policies, through the [`metrics`] facade.
//!
//! ```
//! use buttress::{Bulkhead, CircuitBreaker, metrics::Exporter};
//!
//! let (breaker, bulkhead) = (CircuitBreaker::new("payments"), Bulkhead::named("payments", 10));
//! let exporter = Exporter::new();
//! exporter.add(&breaker);
//! exporter.add(&bulkhead);
//! // before each scrape, or on a timer:
//! exporter.publish();
//! ```
//!
//! Everything that implements [`Report`] can be added: circuit breakers, bulkheads, budgets, keyed
//! policies, health, the counters of [retry](crate::RetryLayer::stats) and
//! [timeout](crate::TimeoutLayer::stats) layers, and policies of your own. The name of the handle
//! becomes the label `policy`; what has no name is published without that label.
//!
//! The hot paths know nothing of it: what they count anyway is read when it is published. The
//! exporter may be made before a recorder is installed.
//!
#![doc = include_str!("metrics/table.md")]
//!
//! Rates are absent until the window holds enough calls, and NaN, which charts leave out, once it
//! no longer does.
//!
//! At most 100 values of `policy` are published under their names; further ones are published
//! together as `other`. What is published under one name is summed, and rates are those of all
//! calls together. A keyed policy is published as one, with the sums over its keys, whose number is
//! not bounded.

mod batch;

use crate::circuit_breaker::{CircuitBreaker, Event};
use batch::{Batch, Name, PolicySink};
use buttress_core::{
    Outcome,
    report::{Metric, MetricKind, Report},
};
use metrics::{Key, Label, Level, Metadata, Unit, counter, describe_counter, describe_gauge, describe_histogram};
use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// How many policies have a label of their own.
const MAX_LABELS: usize = 100;

/// The label of the others.
const OTHER: &str = "other";

const CALLS: Metric =
    Metric::histogram("resilience.breaker.calls", "seconds", "Calls that the circuit admitted, where asked for")
        .labels(&["outcome"]);
const NOT_PERMITTED: Metric = Metric::counter(
    "resilience.breaker.not_permitted",
    "calls",
    "Calls that the circuit rejected, by reason, where asked for",
)
.labels(&["reason"]);

/// All metrics of this crate.
pub fn all() -> Vec<Metric> {
    let mut all = [
        CircuitBreaker::metrics(),
        vec![CALLS, NOT_PERMITTED],
        crate::Bulkhead::metrics(),
        crate::keyed::Keyed::<(), NoPolicy, ()>::metrics(),
        crate::retry::RetryStats::metrics(),
        crate::RetryBudget::metrics(),
        crate::timeout::TimeoutStats::metrics(),
        crate::Health::metrics(),
        crate::policy::Counted::<()>::metrics(),
    ]
    .concat();
    all.sort();
    all
}

/// In place of the policies of a keyed policy, which have metrics of their own.
struct NoPolicy;

impl Report for NoPolicy {
    fn metrics() -> Vec<Metric> {
        Vec::new()
    }

    fn name(&self) -> Option<&str> {
        None
    }

    fn report(&self, _: &mut dyn buttress_core::report::Sink) {}
}

/// Publishes the numbers of policies. A cheap handle; clones share the list.
#[derive(Clone, Default)]
pub struct Exporter(Arc<Mutex<List>>);

#[derive(Default)]
struct List {
    labels: Vec<Arc<str>>,
    sources: Vec<Source>,
    /// What the sources have.
    metrics: BTreeSet<Metric>,
    /// Rates that have a value at the recorder.
    shown: BTreeSet<Name>,
}

type Source = Arc<dyn Fn(&mut Batch) + Send + Sync>;

impl Exporter {
    /// Publishes nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a policy, or the counters of a layer, under its name.
    pub fn add<R: Report + Clone + Send + Sync + 'static>(&self, source: &R) {
        let policy = source.name().map(|name| self.label(name));
        let source = source.clone();
        let mut list = self.list();
        list.metrics.extend(R::metrics());
        list.sources.push(Arc::new(move |batch| {
            source.report(&mut PolicySink { batch, policy: policy.as_ref() });
        }));
    }

    /// Publishes all that was added, to the recorder that is installed now.
    pub fn publish(&self) {
        let (sources, metrics) = {
            let list = self.list();
            (list.sources.clone(), list.metrics.clone())
        };
        describe(&metrics);
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

    /// Adds every call of a circuit breaker, with its time. Unlike all else here this is done as
    /// the calls end, and makes the circuit read the clock twice for each.
    pub fn circuit_breaker_calls(&self, breaker: &crate::CircuitBreaker) {
        const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));
        self.list().metrics.extend([CALLS, NOT_PERMITTED]);
        let policy = self.label(breaker.name());
        // Keys and not handles: a handle belongs to the recorder that was installed when it was
        // made, or to none.
        let [success, failure, ignored] = ["success", "failure", "ignored"].map(|outcome| {
            let labels = vec![Label::new("policy", policy.clone()), Label::new("outcome", outcome)];
            Key::from_parts(CALLS.name, labels)
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
                counter!(NOT_PERMITTED.name, "policy" => policy.clone(), "reason" => reason.word()).increment(1);
            }
            _ => {}
        });
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").field("sources", &self.list().sources.len()).finish()
    }
}

/// Describes the metrics to the recorder: with each publication, since it may have been installed
/// since the last one.
fn describe(metrics: &BTreeSet<Metric>) {
    for Metric { name, kind, help, .. } in metrics {
        match kind {
            MetricKind::Counter => describe_counter!(*name, Unit::Count, *help),
            MetricKind::Histogram => describe_histogram!(*name, Unit::Seconds, *help),
            // The facade has no unit for shares of 1: its percent are hundredths.
            MetricKind::Rate => describe_gauge!(*name, *help),
            _ => describe_gauge!(*name, Unit::Count, *help),
        }
    }
}

#[cfg(test)]
mod tests;
