//! Counters and histograms in Prometheus' text format.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use buttress::InvalidConfig;
use buttress::metrics::Exporter;
use http::header;
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, with_local_recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};

use super::lost::Lost;
use super::readings::Reading;
use super::server::REQUESTS;
use super::{Inner, Telemetry};
use crate::stack::{Admission, Dependency};

pub(super) struct Metrics {
    service: &'static str,
    recorder: Arc<PrometheusRecorder>,
    exporter: Exporter,
}

/// Describes the metrics of the mesh itself. The layers describe theirs.
fn describe() {
    use Unit::{Count, Seconds};
    describe_histogram!(REQUESTS, Seconds, "Time from a request to the head of its response");
    describe_counter!("spans.lost", Count, "Spans that reached no collector, by reason");
    for (name, unit, help) in [
        ("outbox.waiting", Count, "Events that are not published yet"),
        ("outbox.parked", Count, "Events that the bus rejects; they wait for an operator"),
        ("outbox.oldest.age", Seconds, "Age of the oldest event that is not published yet; 0 if there is none"),
        ("bus.lag", Count, "Events of a topic that a consumer group has not handled yet"),
        (
            "bus.waiting.age",
            Seconds,
            "Time for which the next event has waited for something that is away; 0 if it does not",
        ),
        (
            "bus.dead.letters",
            Count,
            "Events that a consumer group could not handle, at most 1000; they wait for an operator",
        ),
        ("saga.running", Count, "Sagas that go forward"),
        ("saga.compensating", Count, "Sagas that are being undone"),
        ("saga.stuck", Count, "Sagas that wait for an operator"),
        ("saga.unregistered", Count, "Sagas whose definition and version no process has registered"),
        ("saga.stuck.by.definition", Count, "Sagas that wait for an operator, by definition"),
        ("worker.success.age", Seconds, "Time since the last success of a background worker"),
        ("worker.failures", Count, "Failures of a background worker since its last success"),
        ("reading.age", Seconds, "Age of a group of gauges that are read in the background"),
        ("service.degraded", Count, "1 if a worker has not succeeded for a minute, or gauges cannot be read"),
    ] {
        describe_gauge!(name, unit, help);
    }
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
            describe();
            let exporter = Exporter::new();
            admission.export(&exporter);
            dependencies.iter().for_each(|dependency| dependency.export(&exporter));
            exporter
        });
        Ok(Self { service, recorder: Arc::new(recorder), exporter })
    }

    pub(super) fn recorder(&self) -> &PrometheusRecorder {
        &self.recorder
    }

    pub(super) fn install(&self) {
        let _ = metrics::set_global_recorder(self.recorder.clone());
    }

    /// Moves the samples of histograms to their buckets. Without it they would be kept one by one
    /// until a scrape, which may never come.
    pub(super) fn upkeep(&self) {
        self.recorder.handle().run_upkeep();
    }

    /// Renders what was counted, and the gauges' last values. Reads no database.
    fn text(&self, readings: &[Reading], lost: Option<&Lost>) -> String {
        with_local_recorder(&*self.recorder, || {
            self.exporter.publish();
            readings.iter().for_each(Reading::publish);
            if let Some(lost) = lost {
                for (reason, count) in [("queue", &lost.queue), ("export", &lost.export)] {
                    metrics::counter!("spans.lost", "reason" => reason).absolute(count.load(Relaxed));
                }
            }
        });
        self.upkeep();
        self.recorder.handle().render()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("service", &self.service).finish_non_exhaustive()
    }
}

pub(super) fn routes(telemetry: Telemetry) -> Router {
    let show = async |State(telemetry): State<Telemetry>| {
        let Inner { metrics, readings, spans, .. } = &*telemetry.0;
        let text = metrics.text(&readings.current(), spans.as_ref().map(|spans| &*spans.lost));
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
    };
    Router::new().route("/metrics", get(show)).with_state(telemetry)
}
