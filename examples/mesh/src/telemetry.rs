//! Observability of a service: spans, metrics and current state.
//!
//! | where | what |
//! |---|---|
//! | `GET /metrics` | all metrics, for Prometheus; labels have bounded cardinality |
//! | `GET /admin/state` | the last ten seconds and the state of every layer, as JSON, for the dashboard |
//! | OTLP over gRPC | spans, to a collector, and to the gateway's dashboard |
//!
//! One [`Telemetry`] per service. Like the handles of its stacks, it is created outside and
//! survives restarts. Services that share a process run on one thread each, so subscriber and
//! recorder are set for the [thread](Telemetry::enter); a service in its own process
//! [installs](Telemetry::install) them globally.

mod client;
mod meter;
mod metrics;
mod propagation;
mod server;
mod state;
mod traces;

use std::fmt;
use std::sync::Arc;

use axum::Router;
use tracing::Dispatch;

pub use client::{Attempt, AttemptLayer, Attempts, Call, CallLayer};
pub use propagation::current_trace;
pub(crate) use propagation::{consumer_span, step_span};
pub(crate) use server::observe;
pub use state::Changes;
pub use traces::{LogFormat, TraceConfig};

use crate::service::Service;
use crate::stack::{Admission, Dependency, InvalidConfig};
use meter::Meter;
use metrics::Metrics;

/// Observability of one service. Clones share it.
#[derive(Clone)]
pub struct Telemetry(Arc<Inner>);

struct Inner {
    name: &'static str,
    dispatch: Dispatch,
    /// `None` if there is no endpoint for spans.
    spans: Option<traces::Spans>,
    metrics: Metrics,
    meter: Meter,
    dependencies: Vec<Dependency>,
}

/// Logging and tracing of a process.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub logs: Option<LogFormat>,
    pub traces: Option<TraceConfig>,
}

/// Installs the logs of a command that is not a service.
pub fn install_logs(format: Option<LogFormat>) {
    let _ = tracing::dispatcher::set_global_default(traces::dispatch(format, None));
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
        let dispatch = traces::dispatch(config.logs, spans.as_ref());
        let metrics = Metrics::new(name, admission, &dependencies)?;
        let meter = Meter::default();
        Ok(Self(Arc::new(Inner { name, dispatch, spans, metrics, meter, dependencies })))
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

    /// Registers gauges that are read together on demand, such as the lengths of queues in a
    /// database.
    pub fn gauges<const N: usize, F, Fut>(&self, names: [&'static str; N], read: F)
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Option<[u64; N]>> + Send + 'static,
    {
        self.0.metrics.gauges(names, read);
    }

    /// `/metrics`, and with `admin` also `/admin/state`.
    pub fn routes(&self, service: &Service) -> Router {
        let routes = metrics::routes(self.clone());
        if service.admin { routes.merge(state::routes(self.clone(), service)) } else { routes }
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
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("name", &self.0.name).finish_non_exhaustive()
    }
}
