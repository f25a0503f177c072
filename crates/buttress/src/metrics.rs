//! Metrics of policies, through the [`metrics`] facade.
//!
//! ```
//! use buttress::{Bulkhead, CircuitBreaker, metrics::Exporter};
//!
//! let (breaker, bulkhead) = (CircuitBreaker::new("payments"), Bulkhead::named("payments", 10));
//! let exporter = Exporter::new();
//! exporter.add(&breaker);
//! exporter.add(&bulkhead);
//! // Before each scrape, or on a timer:
//! exporter.publish();
//! ```
//!
//! Everything that implements [`Report`] can be added: circuit breakers, bulkheads, budgets, keyed
//! policies, health, the counters of [retry](crate::RetryLayer::stats) and
//! [timeout](crate::TimeoutLayer::stats) layers, and custom policies. The name of the handle is the
//! value of the label `policy`; without a name there is no such label.
//!
//! Metrics add no cost to calls, apart from [`circuit_breaker_calls`]: `publish` reads counters
//! that exist anyway. The exporter may be made before a recorder is installed.
//!
//! [`circuit_breaker_calls`]: Exporter::circuit_breaker_calls
//!
#![doc = include_str!("metrics/table.md")]
//!
//! Rates are absent until the window holds enough calls, and NaN, which charts skip, when it no
//! longer does.
//!
//! At most 100 values of the label `policy` are published; further policies are summed under
//! `other`. Policies of the same name are summed, and their rates are those of all their calls. A
//! keyed policy is published as one policy with the sums over its keys, because the number of keys
//! is not bounded.

mod batch;

use crate::circuit_breaker::Event;
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

/// Number of policies with their own value of the label `policy`. Bounds the number of time series.
const MAX_LABELS: usize = 100;

/// Value of the label for all other policies.
const OTHER: &str = "other";

const CALLS: Metric =
    Metric::histogram("resilience.breaker.calls", "seconds", "Duration of admitted calls, if enabled for the circuit")
        .labels(&["outcome"]);
const NOT_PERMITTED: Metric = Metric::counter(
    "resilience.breaker.not_permitted",
    "calls",
    "Calls that the circuit rejected, by reason, if enabled for the circuit",
)
.labels(&["reason"]);

/// Returns the descriptions of all metrics of this crate.
///
/// ```
/// let names: Vec<_> = buttress::metrics::all().iter().map(|metric| metric.name).collect();
/// assert!(names.contains(&"resilience.bulkhead.in_flight"));
/// ```
pub fn all() -> Vec<Metric> {
    let mut all: Vec<_> = crate::METRICS.iter().flat_map(|metrics| metrics()).chain([CALLS, NOT_PERMITTED]).collect();
    all.sort();
    all
}

/// Publishes metrics of policies. A cheap handle; clones share the list of policies.
///
/// ```
/// use buttress::{Bulkhead, metrics::Exporter};
///
/// let exporter = Exporter::new();
/// exporter.add(&Bulkhead::named("payments", 10));
/// exporter.publish();
/// ```
#[derive(Clone, Default)]
pub struct Exporter(Arc<Mutex<List>>);

#[derive(Default)]
struct List {
    labels: Vec<Arc<str>>,
    sources: Vec<Source>,
    /// The metrics of the sources.
    metrics: BTreeSet<Metric>,
    /// Rates to which the recorder has a value.
    shown: BTreeSet<Name>,
}

type Source = Arc<dyn Fn(&mut Batch) + Send + Sync>;

impl Exporter {
    /// Creates an exporter without policies.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a policy or the counters of a layer, under its name.
    ///
    /// ```
    /// use buttress::{RetryLayer, metrics::Exporter};
    ///
    /// let (exporter, layer) = (Exporter::new(), RetryLayer::new(3).named("payments"));
    /// exporter.add(&layer.stats());
    /// exporter.add(layer.stats().budget());
    /// ```
    pub fn add<R: Report + Clone + Send + Sync + 'static>(&self, source: &R) {
        let policy = source.name().map(|name| self.label(name));
        // Outside the lock: the code of a user may use the exporter.
        let (source, metrics) = (source.clone(), R::metrics());
        let mut list = self.list();
        list.metrics.extend(metrics);
        list.sources.push(Arc::new(move |batch| {
            source.report(&mut PolicySink { batch, policy: policy.as_ref() });
        }));
    }

    /// Publishes the current values of all added policies to the installed recorder.
    pub fn publish(&self) {
        let (sources, metrics) = {
            let list = self.list();
            (list.sources.clone(), list.metrics.clone())
        };
        describe(&metrics);
        let mut batch = Batch::default();
        // Not under the lock: reading a circuit may change its state, and a listener may use the
        // exporter.
        sources.iter().for_each(|source| source(&mut batch));
        batch.publish(&mut self.list().shown);
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the value of the label `policy` for `name`.
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

    /// Adds a histogram of all calls of a circuit breaker, and a counter of its rejections by
    /// reason.
    ///
    /// Unlike the other metrics it is updated when calls end, and the circuit reads the clock twice
    /// for each call.
    ///
    /// ```
    /// use buttress::{CircuitBreaker, metrics::Exporter};
    ///
    /// let (exporter, breaker) = (Exporter::new(), CircuitBreaker::new("payments"));
    /// exporter.add(&breaker);
    /// exporter.circuit_breaker_calls(&breaker);
    /// ```
    pub fn circuit_breaker_calls(&self, breaker: &crate::CircuitBreaker) {
        const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));
        self.list().metrics.extend([CALLS, NOT_PERMITTED]);
        let policy = self.label(breaker.name());
        // Keys, not handles: a handle belongs to the recorder that was installed when it was made.
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

/// Describes the metrics to the recorder. Done with each publication, because a recorder may have
/// been installed since the last one.
fn describe(metrics: &BTreeSet<Metric>) {
    for Metric { name, kind, unit, help, .. } in metrics {
        // Units of the facade have names of their own. Everything else is counted.
        let unit = Unit::from_string(unit).unwrap_or(Unit::Count);
        match kind {
            MetricKind::Counter => describe_counter!(*name, unit, *help),
            MetricKind::Histogram => describe_histogram!(*name, unit, *help),
            // The facade has no unit for a share from 0 to 1. Its percent are from 0 to 100.
            MetricKind::Rate => describe_gauge!(*name, *help),
            _ => describe_gauge!(*name, unit, *help),
        }
    }
}

#[cfg(test)]
mod tests;
