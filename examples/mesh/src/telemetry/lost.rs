//! Counts the spans that do not reach a collector.
//!
//! The SDK drops spans without a count when its queue is full, and logs a failed export only to its
//! own target. An operator who misses spans must see that they were lost, and not conclude that
//! nothing happened. So the queue's limit is enforced here, where it can be counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};

/// Maximum number of spans that wait for the exporter: the SDK's default.
pub(super) const QUEUE: usize = 2048;

/// The spans that were lost since the start.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// The queue was full.
    pub(super) queue: AtomicU64,
    /// The collector did not take them.
    pub(super) export: AtomicU64,
    waiting: AtomicU64,
}

impl Lost {
    pub(super) fn total(&self) -> u64 {
        self.queue.load(Relaxed) + self.export.load(Relaxed)
    }
}

/// An exporter that counts the spans that it could not export.
#[derive(Debug)]
pub(super) struct CountedExporter<E> {
    pub(super) inner: E,
    pub(super) lost: Arc<Lost>,
}

impl<E: SpanExporter> SpanExporter for CountedExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        self.lost.waiting.fetch_sub(spans, Relaxed);
        let result = self.inner.export(batch).await;
        if let Err(error) = &result {
            self.lost.export.fetch_add(spans, Relaxed);
            tracing::debug!(error = error as &dyn std::error::Error, spans, "cannot export spans");
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// A processor that drops and counts the spans for which there is no place in the queue of `inner`,
/// which must have room for more than [`QUEUE`].
#[derive(Debug)]
pub(super) struct CountedProcessor<P> {
    pub(super) inner: P,
    pub(super) lost: Arc<Lost>,
}

impl<P: SpanProcessor> SpanProcessor for CountedProcessor<P> {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        // The SDK ignores spans that are not sampled, so they never reach the exporter.
        if !span.span_context.is_sampled() {
            return;
        }
        if self.lost.waiting.fetch_add(1, Relaxed) >= QUEUE as u64 {
            self.lost.waiting.fetch_sub(1, Relaxed);
            self.lost.queue.fetch_add(1, Relaxed);
        } else {
            self.inner.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Tracer, TracerProvider};
    use opentelemetry_sdk::error::OTelSdkError;
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    /// Keeps what it is given, and never exports it.
    #[derive(Debug)]
    struct Stalled;

    impl SpanProcessor for Stalled {
        fn on_start(&self, _: &mut Span, _: &Context) {}
        fn on_end(&self, _: SpanData) {}
        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }
        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    #[derive(Debug)]
    struct Refusing;

    impl SpanExporter for Refusing {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            Err(OTelSdkError::InternalFailure("no collector".to_owned()))
        }
    }

    #[test]
    fn spans_that_find_the_queue_full_are_counted() {
        let lost = Arc::<Lost>::default();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(CountedProcessor { inner: Stalled, lost: lost.clone() })
            .build();
        let tracer = provider.tracer("test");
        (0..QUEUE + 5).for_each(|_| drop(tracer.start("span")));
        assert_eq!((lost.queue.load(Relaxed), lost.total()), (5, 5));
    }

    #[test]
    fn spans_that_a_collector_does_not_take_are_counted() {
        let lost = Arc::<Lost>::default();
        let exporter = CountedExporter { inner: Refusing, lost: lost.clone() };
        let inner = opentelemetry_sdk::trace::BatchSpanProcessor::builder(exporter).build();
        let provider =
            SdkTracerProvider::builder().with_span_processor(CountedProcessor { inner, lost: lost.clone() }).build();
        let tracer = provider.tracer("test");
        (0..3).for_each(|_| drop(tracer.start("span")));
        let _ = provider.force_flush();
        assert_eq!((lost.export.load(Relaxed), lost.queue.load(Relaxed)), (3, 0));
        assert_eq!(lost.waiting.load(Relaxed), 0);
    }
}
