//! The current state of a service as JSON: `GET /admin/state`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use buttress::CircuitBreaker;
use buttress::health::Probe;
use buttress::policy::{Clock, TokioClock};
use serde_json::{Value, json};

use super::Telemetry;
use crate::clock::now_ms;
use crate::faults::Faults;
use crate::problem::Json;
use crate::stack::{Admission, CustomerRate, Dependency, Health};

#[derive(Clone, Debug)]
struct Shown {
    telemetry: Telemetry,
    health: Health,
    admission: Admission,
    faults: Faults,
}

pub(super) fn routes(telemetry: Telemetry, health: &Health, admission: &Admission, faults: &Faults) -> Router {
    let shown = Shown { telemetry, health: health.clone(), admission: admission.clone(), faults: faults.clone() };
    Router::new().route("/admin/state", get(show)).with_state(shown)
}

async fn show(State(shown): State<Shown>) -> Json<Value> {
    let Shown { telemetry, health, admission, faults } = shown;
    let readings = &telemetry.0.readings;
    let gauges: BTreeMap<_, _> = readings.shown().map(|reading| (reading.key(), reading.value())).collect();
    let degraded = readings.degraded();
    let dependencies: Vec<_> = telemetry.0.dependencies.iter().map(Dependency::describe).collect();
    Json(json!({
        "service": telemetry.name(),
        "ready": health.status(Probe::Readiness).is_serving(),
        "draining": health.is_draining(),
        // Not a reason to be unready: a replica whose bus is down still answers requests, and
        // restarting or avoiding it would not help.
        "degraded": degraded,
        "workers": readings.workers(),
        "recent": telemetry.meter().recent(TokioClock.now()),
        "lanes": admission.describe_lanes(),
        "load_shed": admission.describe_shed(),
        "rates": admission.rates().map(CustomerRate::describe).collect::<Vec<_>>(),
        "dependencies": dependencies,
        "gauges": gauges,
        "faults": cfg!(feature = "faults").then(|| faults.plan()),
    }))
}

/// The last state changes of a circuit.
#[derive(Clone, Debug, Default)]
pub struct Changes(Arc<Mutex<VecDeque<Value>>>);

/// Maximum number of changes that are kept.
const CHANGES: usize = 20;

impl Changes {
    /// Records the state changes of a circuit from now on.
    pub fn of(breaker: &CircuitBreaker) -> Self {
        let changes = Self::default();
        let kept = changes.clone();
        breaker.on_transition(move |change| {
            let (from, to) = (change.from.as_str(), change.to.as_str());
            let mut kept = kept.lock();
            kept.truncate(CHANGES - 1);
            kept.push_front(json!({ "at_ms": now_ms(), "from": from, "to": to, "cause": change.cause.to_string() }));
        });
        changes
    }

    /// The changes, latest first.
    pub fn recent(&self) -> Vec<Value> {
        self.lock().iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Value>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_changes_of_a_circuit_are_kept_latest_first() {
        let breaker = CircuitBreaker::builder("test").build().unwrap();
        let changes = Changes::of(&breaker);
        assert!(changes.recent().is_empty());
        breaker.force_open();
        breaker.reset();
        let way =
            |change: &Value| (change["from"].as_str().unwrap().to_owned(), change["to"].as_str().unwrap().to_owned());
        let ways: Vec<_> = changes.recent().iter().map(way).collect();
        let pair = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        assert_eq!(ways, [pair("forced-open", "closed"), pair("closed", "forced-open")]);
        assert!(changes.recent()[0]["cause"].as_str().is_some_and(|cause| !cause.is_empty()));
        for _ in 0..CHANGES {
            breaker.force_open();
            breaker.reset();
        }
        assert_eq!(changes.recent().len(), CHANGES);
        assert_eq!(way(&changes.recent()[0]), pair("forced-open", "closed"));
    }
}
