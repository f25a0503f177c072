//! Observability of a service: spans, metrics and current state.
//!
//! | where | what |
//! |---|---|
//! | `GET /metrics` on the admin listener | all metrics, for Prometheus; labels have bounded cardinality |
//! | `GET /admin/state` there | the last ten seconds and the state of every layer, as JSON, for the dashboard |
//! | OTLP over gRPC | spans, to a collector, and to the gateway's dashboard |
//! | stderr | logs, as text or JSON, each line with the trace id and, where it is known, the order id |
//!
//! Levels of the logs: ERROR needs an operator (a stuck saga, a dead letter, a bug), and may page
//! one. WARN is trouble that the mesh handles: a failed attempt, a refused request (once in 10 s),
//! lost spans (once a minute). INFO is what happened: a line per request, a declined card. Probes
//! and scrapes are DEBUG.
//!
//! One [`Telemetry`] per service. Like the handles of its stacks, it is created outside and
//! survives restarts. Services that share a process run on one thread each, so subscriber and
//! recorder are set for the [thread](Telemetry::enter); a service in its own process
//! [installs](Telemetry::install) them globally.

mod client;
mod line;
mod lost;
mod meter;
mod metrics;
mod propagation;
mod readings;
mod server;
mod state;
mod traces;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use buttress::policy::{Clock, TokioClock};
use buttress_durable::WorkerHealth;
use tokio::time::MissedTickBehavior;
use tracing::Dispatch;

pub use client::{Attempt, AttemptLayer, Attempts, Call, CallLayer};
pub use propagation::current_trace;
pub(crate) use propagation::{consumer_span, step_span};
pub use readings::Reading;
pub(crate) use server::observe;
pub use state::Changes;
pub use traces::{Collector, LogConfig, LogFormat, TraceConfig};

use crate::faults::Faults;
use crate::launch::Name;
use crate::seldom::Seldom;
use crate::stack::{Admission, Dependency, Health, InvalidConfig};
use line::ORDER;
use meter::Meter;
use metrics::Metrics;
use propagation::Callers;
use readings::Readings;

/// Observability of one service. Clones share it.
#[derive(Clone)]
pub struct Telemetry(Arc<Inner>);

struct Inner {
    name: &'static str,
    dispatch: Dispatch,
    /// `None` if there is no endpoint for spans.
    spans: Option<traces::Spans>,
    metrics: Metrics,
    readings: Readings,
    meter: Meter,
    dependencies: Vec<Dependency>,
    callers: Callers,
    /// Limits the log lines about refused requests.
    refusals: Seldom,
}

/// Logging and tracing of a process.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub logs: Option<LogConfig>,
    pub traces: Option<TraceConfig>,
    /// Continue the traces of the gateway's callers, instead of starting new ones that are linked
    /// to theirs. Only for a gateway behind a proxy that sets `traceparent` itself. The other
    /// services always continue the traces of their callers.
    pub trust_callers: bool,
}

/// Installs the logs of a command that is not a service.
pub fn install_logs(logs: Option<LogConfig>) {
    let _ = tracing::dispatcher::set_global_default(traces::dispatch(None, logs, None));
}

/// Names the order that the current request is about, in its span and in all its log lines.
pub fn about_order(id: &str) {
    tracing::Span::current().record(ORDER, id);
}

impl Telemetry {
    /// Creates the telemetry of service `name`, which calls `dependencies`. Needs a runtime if
    /// spans are exported.
    pub fn new(
        name: &'static str,
        admission: &Admission,
        dependencies: Vec<Dependency>,
        config: &Config,
    ) -> Result<Self, InvalidConfig> {
        let spans = config.traces.as_ref().map(|traces| traces::Spans::new(name, traces)).transpose()?;
        let at_the_edge = name == Name::Gateway.as_str() && !config.trust_callers;
        Ok(Self(Arc::new(Inner {
            name,
            dispatch: traces::dispatch(Some(name), config.logs, spans.as_ref()),
            spans,
            metrics: Metrics::new(name, admission, &dependencies)?,
            readings: Readings::default(),
            meter: Meter::default(),
            dependencies,
            callers: if at_the_edge { Callers::Strangers } else { Callers::Trusted },
            refusals: Seldom::every(Duration::from_secs(10)),
        })))
    }

    /// Runs `run` with this service's subscriber and recorder on the current thread.
    pub fn enter<T>(&self, run: impl FnOnce() -> T) -> T {
        let _recorder = ::metrics::set_default_local_recorder(self.0.metrics.recorder());
        tracing::dispatcher::with_default(&self.0.dispatch, run)
    }

    /// Installs them for the whole process. Later calls have no effect.
    pub fn install(&self) {
        let _ = tracing::dispatcher::set_global_default(self.0.dispatch.clone());
        self.0.metrics.install();
    }

    /// Registers gauges that are read together in the background, such as the lengths of queues in
    /// a database.
    pub(crate) fn gauges<F, Fut>(&self, group: &'static str, read: F)
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<Reading>, Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    {
        self.0.readings.add(group, read);
    }

    /// Shows the health of a background worker.
    pub(crate) fn worker(&self, name: &'static str, health: WorkerHealth) {
        self.0.readings.worker(name, health);
    }

    /// Reads the gauges, drains the histograms and reports lost spans, until the future is dropped.
    pub(crate) async fn keep_reading(self) {
        let lines = Seldom::every(Duration::from_secs(60));
        let mut told = 0;
        let mut ticks = tokio::time::interval(readings::EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.0.metrics.upkeep();
            self.0.readings.refresh().await;
            let lost = self.0.spans.as_ref().map_or(0, |spans| spans.lost.total());
            if lost > told && lines.passes(TokioClock.now()).is_some() {
                tracing::warn!(spans = lost - told, total = lost, "spans were lost: the collector is slow or away");
                told = lost;
            }
        }
    }

    /// Forgets the gauges and workers of a run that has ended.
    pub(crate) fn forget(&self) {
        self.0.readings.clear();
    }

    /// `/metrics` and `/admin/state`.
    pub(crate) fn routes(&self, health: &Health, admission: &Admission, faults: &Faults) -> Router {
        metrics::routes(self.clone()).merge(state::routes(self.clone(), health, admission, faults))
    }

    /// Exports the spans that are still buffered.
    pub async fn flush(&self) {
        if let Some(spans) = &self.0.spans {
            spans.flush().await;
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.0.name
    }

    fn meter(&self) -> &Meter {
        &self.0.meter
    }

    fn callers(&self) -> Callers {
        self.0.callers
    }

    fn refusals(&self) -> &Seldom {
        &self.0.refusals
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("name", &self.0.name).finish_non_exhaustive()
    }
}
