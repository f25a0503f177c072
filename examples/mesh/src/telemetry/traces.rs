//! Spans and logs: one subscriber for both, and the export of spans.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use buttress::InvalidConfig;
use clap::ValueEnum;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use tonic::metadata::MetadataMap;
use tracing::{Dispatch, Metadata};
use tracing_subscriber::filter::{EnvFilter, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, fmt};

use super::line::{Line, NoFields, Orders};
use super::lost::{CountedExporter, CountedProcessor, Lost, QUEUE};
use crate::admin::Token;

/// Format of the logs on stderr.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Where spans are exported to, over OTLP.
#[derive(Clone, Debug)]
pub struct Collector {
    /// As `http://host:port`.
    pub url: String,
    /// Sent as a bearer token.
    pub token: Option<Token>,
}

impl Collector {
    /// A collector without authentication.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), token: None }
    }
}

/// Export and sampling of spans.
#[derive(Clone, Debug)]
pub struct TraceConfig {
    /// Each gets all spans.
    pub collectors: Vec<Collector>,
    /// Share of new traces that are sampled, 0 to 1. A trace that began elsewhere keeps its
    /// sampling decision.
    pub sample: f64,
}

/// Target of the mesh's spans. Nothing else is exported, in particular not the exporter's own
/// spans.
pub(super) const TARGET: &str = "mesh::trace";

/// Exports the spans of a service.
#[derive(Debug)]
pub(super) struct Spans {
    provider: Arc<SdkTracerProvider>,
    pub(super) lost: Arc<Lost>,
}

impl Spans {
    pub(super) fn new(service: &'static str, config: &TraceConfig) -> Result<Self, InvalidConfig> {
        if !(0.0..=1.0).contains(&config.sample) {
            return Err(InvalidConfig::new("sample", "must lie between 0 and 1"));
        }
        let resource = Resource::builder().with_service_name(service).build();
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample)));
        let mut provider = SdkTracerProvider::builder().with_resource(resource).with_sampler(sampler);
        let lost = Arc::<Lost>::default();
        for collector in &config.collectors {
            let mut metadata = MetadataMap::new();
            if let Some(token) = &collector.token {
                metadata =
                    MetadataMap::from_headers([(http::header::AUTHORIZATION, token.header())].into_iter().collect());
            }
            let exporter = SpanExporter::builder().with_tonic().with_endpoint(&collector.url).with_metadata(metadata);
            let inner = exporter.build().map_err(|_| InvalidConfig::new("otlp", "must be the URL of a collector"))?;
            // A short delay, so that the dashboard shows traces within a second. The queue is
            // larger than ours, so that it never drops a span by itself.
            let batches = BatchConfigBuilder::default()
                .with_scheduled_delay(Duration::from_millis(500))
                .with_max_queue_size(2 * QUEUE)
                .build();
            let exporter = CountedExporter { inner, lost: lost.clone() };
            let inner = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
            provider = provider.with_span_processor(CountedProcessor { inner, lost: lost.clone() });
        }
        Ok(Self { provider: Arc::new(provider.build()), lost })
    }

    pub(super) async fn flush(&self) {
        let provider = self.provider.clone();
        // `force_flush` blocks until the exporter, which runs on this runtime, is done.
        let _ = tokio::task::spawn_blocking(move || provider.force_flush()).await;
    }
}

/// Logs of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogConfig {
    pub format: LogFormat,
    /// Log warnings and errors only, unless `RUST_LOG` says otherwise.
    pub quiet: bool,
}

/// Builds a subscriber that writes logs to stderr, filtered by `RUST_LOG`, and exports the mesh's
/// spans. `service` is named in each line.
pub(super) fn dispatch(service: Option<&'static str>, logs: Option<LogConfig>, spans: Option<&Spans>) -> Dispatch {
    let logs = logs.map(|LogConfig { format, quiet }| {
        let default = if quiet { "warn" } else { "info" };
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
        // The lines find their order id in the spans, so spans pass whatever the level of the logs.
        let filter = filter.add_directive(format!("{TARGET}=info").parse().expect("a directive"));
        fmt::layer()
            .fmt_fields(NoFields)
            .event_format(Line { format, service })
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr)
            .with_filter(filter)
    });
    let traced = |metadata: &Metadata<'_>| metadata.is_span() && metadata.target() == TARGET;
    let orders = logs.is_some().then(|| Orders.with_filter(filter_fn(traced)));
    let spans = spans.map(|spans| {
        let layer = tracing_opentelemetry::layer().with_tracer(spans.provider.tracer("mesh"));
        layer.with_location(false).with_threads(false).with_target(false).with_filter(filter_fn(traced))
    });
    match (logs, spans) {
        (None, None) => Dispatch::none(),
        (logs, spans) => {
            let registry = tracing_subscriber::registry().with(logs).with(orders).with(spans);
            Dispatch::new(registry.with(LevelFilter::TRACE))
        }
    }
}
