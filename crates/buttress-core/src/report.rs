//! What a policy reports about itself, for metrics.

/// A metric: its name, and what it means.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Metric {
    /// Lower case, with dots between its parts.
    pub name: &'static str,
    /// Whether it only grows.
    pub kind: MetricKind,
    /// What is counted or measured, in the plural: `calls`, `retries`, `seconds`.
    pub unit: &'static str,
    /// The keys of its labels besides `policy`.
    pub labels: &'static [&'static str],
    /// One sentence for operators.
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
    /// Single values, as they come.
    Histogram,
}

impl Metric {
    /// A number that only grows.
    pub const fn counter(name: &'static str, unit: &'static str, help: &'static str) -> Self {
        Self { name, kind: MetricKind::Counter, unit, labels: &[], help }
    }

    /// A number that goes up and down.
    pub const fn gauge(name: &'static str, unit: &'static str, help: &'static str) -> Self {
        Self { kind: MetricKind::Gauge, ..Self::counter(name, unit, help) }
    }

    /// A share between 0 and 1.
    pub const fn rate(name: &'static str, help: &'static str) -> Self {
        Self { kind: MetricKind::Rate, ..Self::counter(name, "1", help) }
    }

    /// Single values, as they come.
    pub const fn histogram(name: &'static str, unit: &'static str, help: &'static str) -> Self {
        Self { kind: MetricKind::Histogram, ..Self::counter(name, unit, help) }
    }

    /// With labels besides `policy`. Their values must be few.
    pub const fn labels(self, labels: &'static [&'static str]) -> Self {
        Self { labels, ..self }
    }
}

/// The value of a metric.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// Of a counter.
    Counter(u64),
    /// Of a gauge.
    Gauge(f64),
    /// `part` of `whole`; unknown where `whole` is 0. Added up part by part, so that the rate of
    /// several policies is that of all their calls.
    Rate {
        /// Those that are meant.
        part: u64,
        /// All of them.
        whole: u64,
    },
}

impl Value {
    /// Adds the value of another policy. Values of one metric are of one kind.
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

/// The values of a metric's labels, in the order of [`Metric::labels`].
pub type LabelValues = [&'static str; 2];

/// Describes itself in numbers. Implemented by policies and by the counters of layers, also by
/// those of users.
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
pub trait Report {
    /// All metrics that [`report`](Self::report) has values of.
    fn metrics() -> Vec<Metric>
    where
        Self: Sized;

    /// The name, which becomes the label `policy`; `None` where there is none.
    fn name(&self) -> Option<&str>;

    /// Hands all values to `sink`.
    fn report(&self, sink: &mut dyn Sink);
}

/// Receives the values of a [`Report`].
pub trait Sink {
    /// Takes a value of a metric with these values of its labels.
    fn value(&mut self, metric: &Metric, labels: LabelValues, value: Value);
}

impl dyn Sink + '_ {
    /// Takes a number that only grows.
    pub fn counter(&mut self, metric: &Metric, n: u64) {
        self.value(metric, [""; 2], Value::Counter(n));
    }

    /// Takes a number that goes up and down.
    pub fn gauge(&mut self, metric: &Metric, x: f64) {
        self.value(metric, [""; 2], Value::Gauge(x));
    }

    /// Takes a share; unknown where `whole` is 0.
    pub fn rate(&mut self, metric: &Metric, part: u64, whole: u64) {
        self.value(metric, [""; 2], Value::Rate { part, whole });
    }
}
