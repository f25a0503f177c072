//! Counters and histograms in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use buttress::InvalidConfig;
use buttress::metrics::Exporter;
use futures_util::future::BoxFuture;
use http::header;
use metrics::{Unit, describe_histogram, with_local_recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};

use super::Telemetry;
use super::server::REQUESTS;
use crate::stack::{Admission, Dependency};

type Values = Vec<(&'static str, f64)>;
type Read = Arc<dyn Fn() -> BoxFuture<'static, Values> + Send + Sync>;

pub(super) struct Metrics {
    service: &'static str,
    recorder: Arc<PrometheusRecorder>,
    exporter: Exporter,
    /// Gauges that are read on demand. A restarted service replaces the gauges of the previous run.
    gauges: Mutex<BTreeMap<Vec<&'static str>, Read>>,
}

/// Histogram bounds in seconds: from 0.5 ms to the longest timeout in the mesh.
const SECONDS: [f64; 13] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

impl Metrics {
    pub(super) fn new(
        service: &'static str,
        admission: &Admission,
        dependencies: &[Dependency],
    ) -> Result<Self, InvalidConfig> {
        // Counters end in `_total`, and names contain the unit.
        let builder = PrometheusBuilder::new().with_recommended_naming(true).set_buckets(&SECONDS);
        let builder = builder.map_err(|_| InvalidConfig::new("buckets", "must not be empty"))?;
        let recorder = builder.add_global_label("service", service).build_recorder();
        let exporter = with_local_recorder(&recorder, || {
            describe_histogram!(REQUESTS, Unit::Seconds, "Time from a request to the head of its response");
            let exporter = Exporter::new();
            exporter.add(&admission.bulkhead);
            exporter.add(&admission.reads);
            dependencies.iter().for_each(|dependency| dependency.export(&exporter));
            exporter
        });
        Ok(Self { service, recorder: Arc::new(recorder), exporter, gauges: Mutex::default() })
    }

    pub(super) fn recorder(&self) -> &PrometheusRecorder {
        &self.recorder
    }

    pub(super) fn install(&self) {
        let _ = metrics::set_global_recorder(self.recorder.clone());
    }

    pub(super) fn gauges<const N: usize, F, Fut>(&self, names: [&'static str; N], read: F)
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Option<[u64; N]>> + Send + 'static,
    {
        let read: Read = Arc::new(move || {
            let reading = read();
            Box::pin(async move {
                let values = reading.await.map(|values| values.map(|value| value as f64));
                values.into_iter().flat_map(|values| names.into_iter().zip(values)).collect()
            })
        });
        self.gauges.lock().unwrap_or_else(PoisonError::into_inner).insert(names.to_vec(), read);
    }

    /// Reads all gauges. Those that cannot be read are left out.
    pub(super) async fn read(&self) -> BTreeMap<&'static str, f64> {
        let gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut values = BTreeMap::new();
        for read in gauges.values() {
            values.extend(read().await);
        }
        values
    }

    async fn text(&self) -> String {
        let values = self.read().await;
        with_local_recorder(&*self.recorder, || {
            self.exporter.publish();
            for (name, value) in values {
                metrics::gauge!(name).set(value);
            }
        });
        let handle = self.recorder.handle();
        handle.run_upkeep();
        handle.render()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("service", &self.service).finish_non_exhaustive()
    }
}

pub(super) fn routes(telemetry: Telemetry) -> Router {
    let show = async |State(telemetry): State<Telemetry>| {
        let text = telemetry.0.metrics.text().await;
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
    };
    Router::new().route("/metrics", get(show)).with_state(telemetry)
}
