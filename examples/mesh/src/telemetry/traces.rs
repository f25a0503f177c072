//! Spans and logs: one subscriber for both, and the export of spans.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use buttress::InvalidConfig;
use clap::ValueEnum;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use tracing::{Dispatch, Metadata};
use tracing_subscriber::filter::{EnvFilter, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry, fmt};

/// Format of the logs on stderr.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Export and sampling of spans.
#[derive(Clone, Debug)]
pub struct TraceConfig {
    /// OTLP endpoints over gRPC, as `http://host:port`. Each gets all spans.
    pub endpoints: Vec<String>,
    /// Share of new traces that are sampled, 0 to 1. A trace that began elsewhere keeps its
    /// sampling decision.
    pub sample: f64,
}

/// Target of the mesh's spans. Nothing else is exported, in particular not the exporter's own
/// spans.
pub(super) const TARGET: &str = "mesh::trace";

/// Exports the spans of a service.
#[derive(Debug)]
pub(super) struct Spans(Arc<SdkTracerProvider>);

impl Spans {
    pub(super) fn new(service: &'static str, config: &TraceConfig) -> Result<Self, InvalidConfig> {
        if !(0.0..=1.0).contains(&config.sample) {
            return Err(InvalidConfig::new("sample", "must lie between 0 and 1"));
        }
        let resource = Resource::builder().with_service_name(service).build();
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample)));
        let mut provider = SdkTracerProvider::builder().with_resource(resource).with_sampler(sampler);
        for endpoint in &config.endpoints {
            let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
            let exporter = exporter.map_err(|_| InvalidConfig::new("otlp", "must be the URL of a collector"))?;
            // A short delay, so that the dashboard shows traces within a second.
            let batches = BatchConfigBuilder::default().with_scheduled_delay(Duration::from_millis(500)).build();
            provider =
                provider.with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build());
        }
        Ok(Self(Arc::new(provider.build())))
    }

    pub(super) async fn flush(&self) {
        let provider = self.0.clone();
        // `force_flush` blocks until the exporter, which runs on this runtime, is done.
        let _ = tokio::task::spawn_blocking(move || provider.force_flush()).await;
    }
}

/// Builds a subscriber that writes logs to stderr, filtered by `RUST_LOG`, and exports the mesh's
/// spans.
pub(super) fn dispatch(logs: Option<LogFormat>, spans: Option<&Spans>) -> Dispatch {
    let logs = logs.map(|format| {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
        let layer: Box<dyn Layer<Registry> + Send + Sync> = match format {
            LogFormat::Text => Box::new(layer.with_filter(filter)),
            LogFormat::Json => Box::new(layer.json().with_filter(filter)),
        };
        layer
    });
    let traced = |metadata: &Metadata<'_>| metadata.is_span() && metadata.target() == TARGET;
    let spans = spans.map(|spans| {
        let layer = tracing_opentelemetry::layer().with_tracer(spans.0.tracer("mesh"));
        layer.with_location(false).with_threads(false).with_target(false).with_filter(filter_fn(traced))
    });
    match (logs, spans) {
        (None, None) => Dispatch::none(),
        (logs, spans) => Dispatch::new(tracing_subscriber::registry().with(logs).with(spans).with(LevelFilter::TRACE)),
    }
}
