//! What can be seen of a service: spans, metrics, and how it is doing right now.
//!
//! | where | what |
//! |---|---|
//! | `GET /metrics` | everything that is counted, for Prometheus; labels are bounded |
//! | `GET /admin/state` | the last ten seconds and the state of every layer, as JSON: what the dashboard is made of |
//! | OTLP over gRPC | spans, to any collector, and to the gateway's own page |
//!
//! One [`Telemetry`] for each service. It is made outside of the service and outlives its restarts, like the handles of its
//! stacks. Services that share a process each run on a thread of their own, so the subscriber and the recorder are those of
//! the [thread](Telemetry::enter); a process of its own [installs](Telemetry::install) them.

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

pub use client::{Attempt, AttemptLayer, Call, CallLayer};
pub use propagation::current_trace;
pub(crate) use propagation::{consumer_span, step_span};
pub(crate) use server::observe;
pub use state::Changes;
pub use traces::{LogFormat, TraceConfig};

use crate::service::Service;
use crate::stack::{Admission, Dependency, InvalidConfig};
use meter::Meter;
use metrics::Metrics;

/// What can be seen of one service. Clones share it.
#[derive(Clone)]
pub struct Telemetry(Arc<Inner>);

struct Inner {
    name: &'static str,
    dispatch: Dispatch,
    /// Nothing without somewhere to send spans to.
    spans: Option<traces::Spans>,
    metrics: Metrics,
    meter: Meter,
    dependencies: Vec<Dependency>,
}

/// How a process logs and traces.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub logs: Option<LogFormat>,
    pub traces: Option<TraceConfig>,
}

/// Logs of what is no service.
pub fn install_logs(format: Option<LogFormat>) {
    let _ = tracing::dispatcher::set_global_default(traces::dispatch(format, None));
}

impl Telemetry {
    /// For the service `name`, which calls `dependencies`. Needs a runtime if spans are to be sent.
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

    /// Runs `run` with this service's subscriber and recorder in place, for the thread it is on.
    pub fn enter<T>(&self, run: impl FnOnce() -> T) -> T {
        let _recorder = ::metrics::set_default_local_recorder(self.0.metrics.recorder());
        tracing::dispatcher::with_default(&self.0.dispatch, run)
    }

    /// Puts them in place for the whole process. Once: the first one stays.
    pub fn install(&self) {
        let _ = tracing::dispatcher::set_global_default(self.0.dispatch.clone());
        self.0.metrics.install();
    }

    /// Numbers that are read together when somebody looks, such as the lengths of queues in a database.
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

    /// Sends the spans that have not been sent yet.
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
