//! The numbers that a policy reports about itself, for metrics.
//!
//! A policy lists its [`Metric`]s and hands their values to a [`Sink`], which publishes them. This
//! crate does not depend on a metrics library.

/// The description of a metric: its name, kind, unit, labels and help text.
///
/// ```
/// use buttress_core::report::{Metric, MetricKind};
///
/// const REJECTED: Metric = Metric::counter("shop.quota.rejected", "calls", "Calls over the quota")
///     .labels(&["tenant_class"]);
/// assert_eq!((REJECTED.kind, REJECTED.unit), (MetricKind::Counter, "calls"));
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Metric {
    /// The name: lower case, with dots between its parts.
    pub name: &'static str,
    /// How its value changes.
    pub kind: MetricKind,
    /// The unit, in the plural: `calls`, `retries`, `seconds`. `1` for a rate.
    pub unit: &'static str,
    /// The keys of its labels besides `policy`, at most two.
    pub labels: &'static [&'static str],
    /// The help text, one sentence for operators.
    pub help: &'static str,
}

/// How a metric changes.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum MetricKind {
    /// A number that only grows.
    Counter,
    /// A number that goes up and down.
    Gauge,
    /// A share between 0 and 1, published as a gauge.
    Rate,
    /// A distribution of single values.
    Histogram,
}

impl Metric {
    /// Describes a number that only grows.
    ///
    /// ```
    /// use buttress_core::report::Metric;
    ///
    /// const SHED: Metric = Metric::counter("shop.queue.shed", "calls", "Calls that the queue shed");
    /// assert_eq!(SHED.name, "shop.queue.shed");
    /// ```
    pub const fn counter(name: &'static str, unit: &'static str, help: &'static str) -> Self {
        Self { name, kind: MetricKind::Counter, unit, labels: &[], help }
    }

    /// Describes a number that goes up and down.
    ///
    /// ```
    /// use buttress_core::report::{Metric, MetricKind};
    ///
    /// const DEPTH: Metric = Metric::gauge("shop.queue.depth", "calls", "Calls in the queue");
    /// assert_eq!(DEPTH.kind, MetricKind::Gauge);
    /// ```
    pub const fn gauge(name: &'static str, unit: &'static str, help: &'static str) -> Self {
        Self { kind: MetricKind::Gauge, ..Self::counter(name, unit, help) }
    }

    /// Describes a share between 0 and 1. Its unit is `1`.
    ///
    /// ```
    /// use buttress_core::report::Metric;
    ///
    /// const HITS: Metric = Metric::rate("shop.cache.hit_rate", "Hits among the lookups");
    /// assert_eq!(HITS.unit, "1");
    /// ```
    pub const fn rate(name: &'static str, help: &'static str) -> Self {
        Self { kind: MetricKind::Rate, ..Self::counter(name, "1", help) }
    }

    /// Describes a distribution of single values.
    ///
    /// ```
    /// use buttress_core::report::{Metric, MetricKind};
    ///
    /// const WAIT: Metric = Metric::histogram("shop.queue.wait", "seconds", "Time in the queue");
    /// assert_eq!(WAIT.kind, MetricKind::Histogram);
    /// ```
    pub const fn histogram(name: &'static str, unit: &'static str, help: &'static str) -> Self {
        Self { kind: MetricKind::Histogram, ..Self::counter(name, unit, help) }
    }

    /// Sets the keys of the labels besides `policy`, at most two. Each must have few values,
    /// because each combination is a time series.
    ///
    /// ```
    /// use buttress_core::report::Metric;
    ///
    /// const STATE: Metric =
    ///     Metric::gauge("shop.link.state", "links", "Links in the state").labels(&["state"]);
    /// assert_eq!(STATE.labels, ["state"]);
    /// ```
    ///
    /// # Panics
    /// If there are more than two. In a constant, that is an error of the compiler.
    pub const fn labels(self, labels: &'static [&'static str]) -> Self {
        assert!(labels.len() <= 2, "a metric has at most two labels besides `policy`");
        Self { labels, ..self }
    }
}

/// The value of a metric.
///
/// ```
/// use buttress_core::report::Value;
///
/// let mut failures = Value::Rate { part: 1, whole: 10 };
/// failures.add(Value::Rate { part: 3, whole: 30 });
/// assert_eq!(failures, Value::Rate { part: 4, whole: 40 });
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// The value of a counter.
    Counter(u64),
    /// The value of a gauge.
    Gauge(f64),
    /// The share `part / whole`; unknown if `whole` is 0. Both numbers are added separately, so
    /// that the rate of several policies is that of all their calls.
    Rate {
        /// The calls that are counted, such as failures.
        part: u64,
        /// All calls.
        whole: u64,
    },
}

impl Value {
    /// Adds the value of the same metric of another policy. A value of another kind replaces this
    /// one.
    ///
    /// ```
    /// use buttress_core::report::Value;
    ///
    /// let mut rejected = Value::Counter(2);
    /// rejected.add(Value::Counter(3));
    /// assert_eq!(rejected, Value::Counter(5));
    /// ```
    pub fn add(&mut self, other: Self) {
        match (self, other) {
            (Self::Counter(sum), Self::Counter(n)) => *sum = sum.saturating_add(n),
            (Self::Gauge(sum), Self::Gauge(x)) => *sum += x,
            (Self::Rate { part, whole }, Self::Rate { part: p, whole: w }) => {
                *part = part.saturating_add(p);
                *whole = whole.saturating_add(w);
            }
            (value, other) => *value = other,
        }
    }
}

/// The values of a metric's labels, in the order of [`Metric::labels`]; `""` for those it does not
/// have.
pub type LabelValues = [&'static str; 2];

/// A source of metrics. Implemented by policies and by the counters of layers. Users implement it
/// for their own.
///
/// ```
/// use buttress_core::report::{Metric, Report, Sink};
///
/// struct TokenBucket {
///     rejected: u64,
/// }
///
/// const REJECTED: Metric = Metric::counter("shop.token_bucket.rejected", "calls", "Calls over the rate");
///
/// impl Report for TokenBucket {
///     fn metrics() -> Vec<Metric> {
///         vec![REJECTED]
///     }
///
///     fn name(&self) -> Option<&str> {
///         Some("uploads")
///     }
///
///     fn report(&self, sink: &mut dyn Sink) {
///         sink.counter(&REJECTED, self.rejected);
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` reports no metrics",
    label = "no metrics",
    note = "an exporter takes handles, of a layer `layer.handle()`; around a policy of your own put `Counted::new(..)`"
)]
pub trait Report {
    /// Returns all metrics whose values [`report`](Self::report) may report.
    fn metrics() -> Vec<Metric>
    where
        Self: Sized;

    /// Returns the value of the label `policy`; `None` for no such label.
    fn name(&self) -> Option<&str>;

    /// Reports all values to `sink`.
    fn report(&self, sink: &mut dyn Sink);
}

/// A receiver of the values of a [`Report`].
///
/// ```
/// use buttress_core::{ManualClock, bulkhead::Bulkhead};
/// use buttress_core::report::{LabelValues, Metric, Report, Sink, Value};
///
/// #[derive(Default)]
/// struct Lines(Vec<String>);
///
/// impl Sink for Lines {
///     fn value(&mut self, metric: &Metric, _: LabelValues, value: Value) {
///         self.0.push(format!("{} {value:?}", metric.name));
///     }
/// }
///
/// let mut lines = Lines::default();
/// Bulkhead::<ManualClock>::new(8).report(&mut lines);
/// assert!(lines.0.contains(&"resilience.bulkhead.limit Gauge(8.0)".to_owned()));
/// ```
pub trait Sink {
    /// Receives one value of a metric.
    fn value(&mut self, metric: &Metric, labels: LabelValues, value: Value);
}

impl dyn Sink + '_ {
    /// Receives the value of a counter without labels.
    pub fn counter(&mut self, metric: &Metric, n: u64) {
        self.value(metric, [""; 2], Value::Counter(n));
    }

    /// Receives the value of a gauge without labels.
    pub fn gauge(&mut self, metric: &Metric, x: f64) {
        self.value(metric, [""; 2], Value::Gauge(x));
    }

    /// Receives a share of a metric without labels; unknown if `whole` is 0.
    pub fn rate(&mut self, metric: &Metric, part: u64, whole: u64) {
        self.value(metric, [""; 2], Value::Rate { part, whole });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_one_kind_are_summed_and_of_another_replaced() {
        let sum = |mut value: Value, other| {
            value.add(other);
            value
        };
        assert_eq!(sum(Value::Counter(2), Value::Counter(3)), Value::Counter(5));
        assert_eq!(sum(Value::Counter(u64::MAX), Value::Counter(3)), Value::Counter(u64::MAX));
        assert_eq!(sum(Value::Gauge(2.5), Value::Gauge(3.0)), Value::Gauge(5.5));
        let [small, large] = [(1, 4), (2, 12)].map(|(part, whole)| Value::Rate { part, whole });
        assert_eq!(sum(small, large), Value::Rate { part: 3, whole: 16 });
        assert_eq!(sum(Value::Counter(2), Value::Gauge(3.0)), Value::Gauge(3.0));
    }
}
