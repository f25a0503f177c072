//! Spans and logs: one subscriber for both, and where the spans go.

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

/// How logs are written, to stderr.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Where spans go, and which.
#[derive(Clone, Debug)]
pub struct TraceConfig {
    /// OTLP over gRPC, as `http://host:port`. Each gets them all.
    pub endpoints: Vec<String>,
    /// The share of traces that begin here and are kept, 0 to 1. Those that began elsewhere are kept if they were kept there.
    pub sample: f64,
}

/// What every span of ours has as its target. Nothing else is traced, least of all what sends the spans.
pub(super) const TARGET: &str = "mesh::trace";

/// Sends a service's spans.
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
            // Soon enough for somebody who is watching.
            let batches = BatchConfigBuilder::default().with_scheduled_delay(Duration::from_millis(500)).build();
            provider =
                provider.with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build());
        }
        Ok(Self(Arc::new(provider.build())))
    }

    pub(super) async fn flush(&self) {
        let provider = self.0.clone();
        // It waits on this thread's runtime, and must not hold it up.
        let _ = tokio::task::spawn_blocking(move || provider.force_flush()).await;
    }
}

/// Everything that is said goes to stderr, where `RUST_LOG` says so; every span of ours goes out.
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
