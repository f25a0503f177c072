use buttress_core::report::{LabelValues, Metric, Sink, Value};
use metrics::{Label, counter, gauge};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The name of a metric with its labels. Not its description: two policies may describe one metric
/// in different words.
#[derive(Clone, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Name {
    metric: &'static str,
    policy: Option<Arc<str>>,
    keys: &'static [&'static str],
    labels: LabelValues,
}

impl Name {
    fn labels(&self) -> Vec<Label> {
        let policy = self.policy.iter().map(|policy| Label::new("policy", policy.clone()));
        let others = self.keys.iter().zip(self.labels).map(|(key, value)| Label::new(*key, value));
        policy.chain(others).collect()
    }
}

/// Values of one publication, summed by name. The sums of counters never fall, because counters
/// only grow and policies are never removed.
#[derive(Default)]
pub(super) struct Batch(BTreeMap<Name, Value>);

impl Batch {
    /// Publishes the values. `shown`: rates to which the recorder has a value.
    pub(super) fn publish(self, shown: &mut BTreeSet<Name>) {
        for (name, value) in self.0 {
            let (metric, labels) = (name.metric, name.labels());
            match value {
                Value::Counter(n) => counter!(metric, labels).absolute(n),
                Value::Gauge(x) => gauge!(metric, labels).set(x),
                Value::Rate { part, whole } if whole > 0 => {
                    gauge!(metric, labels).set(part as f64 / whole as f64);
                    shown.insert(name);
                }
                // The facade cannot remove a gauge.
                Value::Rate { .. } if shown.remove(&name) => gauge!(metric, labels).set(f64::NAN),
                _ => {}
            }
        }
    }
}

/// Adds the values of one policy to a [`Batch`].
pub(super) struct PolicySink<'a> {
    pub(super) batch: &'a mut Batch,
    pub(super) policy: Option<&'a Arc<str>>,
}

impl Sink for PolicySink<'_> {
    fn value(&mut self, metric: &Metric, labels: LabelValues, value: Value) {
        let name = Name { metric: metric.name, policy: self.policy.cloned(), keys: metric.labels, labels };
        self.batch.0.entry(name).and_modify(|sum| sum.add(value)).or_insert(value);
    }
}
