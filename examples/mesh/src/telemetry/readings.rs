//! Gauges that are read from databases and brokers, off the scrape path, and the workers' health.
//!
//! A scrape must answer within its timeout even when a database does not, and ten scrapers must not
//! cost ten times the queries. So one task per service reads all gauges every few seconds, and a
//! scrape shows the last values. `reading_age_seconds` shows how old they are.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use buttress::policy::{Clock, TokioClock};
use buttress_durable::WorkerHealth;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::clock::now_ms;

/// One value of a gauge.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    name: &'static str,
    labels: Vec<(&'static str, String)>,
    value: f64,
}

impl Reading {
    pub fn new(name: &'static str, value: f64) -> Self {
        Self { name, labels: Vec::new(), value }
    }

    /// Adds a label. Its values must be bounded by the code, not by data.
    #[must_use]
    pub fn with(mut self, label: &'static str, value: impl Into<String>) -> Self {
        self.labels.push((label, value.into()));
        self
    }
}

pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;
type Read = Arc<dyn Fn() -> BoxFuture<'static, Result<Vec<Reading>, Failure>> + Send + Sync>;

/// How often the gauges are read. Often enough for a page that people watch.
pub(super) const EVERY: Duration = Duration::from_secs(1);
/// A slower read counts as failed: the next ones must not pile up behind it.
const PATIENCE: Duration = Duration::from_secs(5);
/// A service whose worker has not succeeded, or whose gauges could not be read, for this time is
/// degraded. Longer than the failover of a database or a broker.
pub(super) const DEGRADED: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Readings {
    /// By group. A restarted service replaces the groups of its previous run.
    groups: Mutex<BTreeMap<&'static str, Group>>,
    workers: Mutex<BTreeMap<&'static str, Worker>>,
}

struct Group {
    read: Read,
    since: Instant,
    last: Option<Instant>,
    readings: Vec<Reading>,
}

struct Worker {
    health: WorkerHealth,
    /// Counts as the first success.
    since_ms: i64,
}

impl Readings {
    pub(super) fn add<F, Fut>(&self, group: &'static str, read: F)
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<Reading>, Failure>> + Send + 'static,
    {
        let read: Read = Arc::new(move || Box::pin(read()));
        let group_ = Group { read, since: TokioClock.now(), last: None, readings: Vec::new() };
        lock(&self.groups).insert(group, group_);
    }

    pub(super) fn worker(&self, name: &'static str, health: WorkerHealth) {
        lock(&self.workers).insert(name, Worker { health, since_ms: now_ms() });
    }

    /// Reads all gauges once. A group that cannot be read keeps its values, and ages.
    pub(super) async fn refresh(&self) {
        let groups: Vec<_> = lock(&self.groups).iter().map(|(name, group)| (*name, group.read.clone())).collect();
        for (name, read) in groups {
            let result = timeout(PATIENCE, read()).await;
            let mut groups = lock(&self.groups);
            let Some(group) = groups.get_mut(name) else { continue };
            match result {
                Ok(Ok(readings)) => (group.readings, group.last) = (readings, Some(TokioClock.now())),
                Ok(Err(error)) => {
                    tracing::debug!(name, error = &*error as &dyn std::error::Error, "cannot read gauges")
                }
                Err(_) => tracing::debug!(name, "reading gauges takes too long"),
            }
        }
    }

    /// The last values, with those about the workers and about the readings themselves.
    pub(super) fn current(&self) -> Vec<Reading> {
        let mut readings = Vec::new();
        for (name, group) in &*lock(&self.groups) {
            readings.extend(group.readings.iter().cloned());
            readings.push(Reading::new("reading.age", group.age().as_secs_f64()).with("gauges", *name));
        }
        for (name, worker) in &*lock(&self.workers) {
            readings.push(Reading::new("worker.success.age", worker.age().as_secs_f64()).with("worker", *name));
            let failures = worker.health.status().failures;
            readings.push(Reading::new("worker.failures", failures as f64).with("worker", *name));
        }
        readings.push(Reading::new("service.degraded", f64::from(u8::from(!self.degraded().is_empty()))));
        readings
    }

    /// The last values of the gauges, for people.
    pub(super) fn shown(&self) -> impl Iterator<Item = Reading> {
        let groups = lock(&self.groups);
        let readings: Vec<_> = groups.values().flat_map(|group| group.readings.iter().cloned()).collect();
        readings.into_iter()
    }

    /// Why the service is degraded. Empty if it is not.
    pub(super) fn degraded(&self) -> Vec<String> {
        let groups = lock(&self.groups);
        let stale = groups.iter().filter(|(_, group)| group.age() > DEGRADED);
        let mut reasons: Vec<_> = stale
            .map(|(name, group)| format!("gauges of the {name}: not read for {} s", group.age().as_secs()))
            .collect();
        for (name, worker) in lock(&self.workers).iter().filter(|(_, worker)| worker.age() > DEGRADED) {
            let error = worker.health.status().error.map(|error| format!(": {error}")).unwrap_or_default();
            reasons.push(format!("{name}: no success for {} s{error}", worker.age().as_secs()));
        }
        reasons
    }

    /// The workers as JSON.
    pub(super) fn workers(&self) -> Value {
        let show = |(name, worker): (&&'static str, &Worker)| {
            let status = worker.health.status();
            let age = worker.age().as_secs_f64();
            json!({ "name": name, "success_age_s": age, "failures": status.failures, "error": status.error })
        };
        lock(&self.workers).iter().map(show).collect()
    }

    /// Forgets everything that a service registered, because it ends.
    pub(super) fn clear(&self) {
        lock(&self.groups).clear();
        lock(&self.workers).clear();
    }
}

impl Reading {
    pub(super) fn publish(&self) {
        let labels: Vec<_> =
            self.labels.iter().map(|(label, value)| metrics::Label::new(*label, value.clone())).collect();
        metrics::gauge!(self.name, labels).set(self.value);
    }

    /// The name with the values of its labels, as a key of a JSON object.
    pub(super) fn key(&self) -> String {
        let labels: Vec<_> = self.labels.iter().map(|(_, value)| value.as_str()).collect();
        if labels.is_empty() { self.name.to_owned() } else { format!("{} {}", self.name, labels.join(" ")) }
    }

    pub(super) fn value(&self) -> f64 {
        self.value
    }
}

impl Group {
    fn age(&self) -> Duration {
        TokioClock.now().saturating_duration_since(self.last.unwrap_or(self.since))
    }
}

impl Worker {
    fn age(&self) -> Duration {
        let last = self.health.status().last_success.map_or(self.since_ms, |at| at.as_millis().max(self.since_ms));
        Duration::from_millis(u64::try_from(now_ms().saturating_sub(last)).unwrap_or(0))
    }
}

impl fmt::Debug for Readings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readings").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_gauge_that_cannot_be_read_keeps_its_value_and_grows_old() {
        let (readings, works) = (Readings::default(), Arc::new(AtomicBool::new(true)));
        let working = works.clone();
        readings.add("outbox", move || {
            let works = working.load(Ordering::SeqCst);
            async move {
                if works { Ok(vec![Reading::new("outbox.waiting", 7.0)]) } else { std::future::pending().await }
            }
        });
        let value = |name: &str| {
            let found = readings.current().into_iter().find(|reading| reading.name == name);
            found.map(|reading| reading.value)
        };
        assert_eq!(value("outbox.waiting"), None, "not read yet");
        readings.refresh().await;
        assert_eq!((value("outbox.waiting"), value("reading.age")), (Some(7.0), Some(0.0)));
        works.store(false, Ordering::SeqCst);
        tokio::time::advance(DEGRADED).await;
        readings.refresh().await;
        let age = (DEGRADED + PATIENCE).as_secs_f64();
        assert_eq!((value("outbox.waiting"), value("reading.age")), (Some(7.0), Some(age)));
        assert_eq!(value("service.degraded"), Some(1.0));
        assert_eq!(readings.degraded(), ["gauges of the outbox: not read for 65 s"]);
        works.store(true, Ordering::SeqCst);
        readings.refresh().await;
        assert_eq!((value("service.degraded"), readings.degraded().len()), (Some(0.0), 0));
        readings.clear();
        assert_eq!(value("outbox.waiting"), None);
    }

    #[test]
    fn a_reading_is_told_apart_by_its_labels() {
        let reading = Reading::new("bus.lag", 3.0).with("group", "shipping").with("topic", "OrderConfirmed");
        assert_eq!((reading.key().as_str(), reading.value()), ("bus.lag shipping OrderConfirmed", 3.0));
    }
}
