//! Trace context propagation: W3C `traceparent` over HTTP, gRPC and events.

use buttress_durable::{DomainEvent, TraceContext};
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceContextExt, TraceState};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::traces::TARGET;

/// Values of `traceparent` and `tracestate`.
#[derive(Debug, Default)]
struct Pair(Option<String>, Option<String>);

impl Extractor for Pair {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.0.as_deref(),
            "tracestate" => self.1.as_deref(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

impl Injector for Pair {
    fn set(&mut self, key: &str, value: String) {
        match key {
            "traceparent" => self.0 = Some(value),
            "tracestate" => self.1 = Some(value).filter(|state| !state.is_empty()),
            _ => {}
        }
    }
}

fn of(span: &Span) -> Pair {
    let mut pair = Pair::default();
    TraceContextPropagator::new().inject_context(&span.context(), &mut pair);
    pair
}

/// The current trace context, for events and sagas. `None` if tracing is off.
pub fn current_trace() -> Option<TraceContext> {
    let Pair(parent, state) = of(&Span::current());
    TraceContext::new(&parent?, state.as_deref()).ok()
}

/// Makes `span` a child of a remote span. Must be called before the span is entered.
fn continue_trace(span: &Span, trace: Option<&TraceContext>) {
    if let Some(trace) = trace {
        let pair = Pair(Some(trace.traceparent().to_owned()), trace.tracestate().map(str::to_owned));
        let _ = span.set_parent(TraceContextPropagator::new().extract(&pair));
    }
}

/// A span for the handling of an event, in the trace that published it.
pub(crate) fn consumer_span(event: &DomainEvent) -> Span {
    let span = info_span!(
        target: TARGET,
        "consume",
        otel.name = format_args!("consume {}", event.event_type()),
        otel.kind = "consumer",
        order.id = event.aggregate_id(),
    );
    continue_trace(&span, event.trace());
    span
}

/// A span for a step of a saga, or its compensation.
pub(crate) fn step_span(step: &'static str, order: &str, trace: Option<&TraceContext>) -> Span {
    let span = info_span!(target: TARGET, "step", otel.name = step, otel.kind = "internal", order.id = order);
    continue_trace(&span, trace);
    span
}

/// Whose trace contexts a server continues.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Callers {
    /// Services of the mesh: their traces go on.
    Trusted,
    /// Anyone. A stranger's `traceparent` is linked and not continued: otherwise strangers could
    /// add spans to any trace, join the requests of others into one, and decide what is sampled.
    Strangers,
}

/// Like [`continue_trace`], from the headers of a request.
pub(super) fn continue_from(span: &Span, headers: &HeaderMap, callers: Callers) {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let pair = Pair(text("traceparent"), text("tracestate"));
    if pair.0.is_none() {
        return;
    }
    let context = TraceContextPropagator::new().extract(&pair);
    match callers {
        Callers::Trusted => drop(span.set_parent(context)),
        Callers::Strangers => {
            let theirs = context.span().span_context().clone();
            if theirs.is_valid() {
                // Without their `tracestate`, which would be stored with each of our spans.
                let (trace, parent, flags) = (theirs.trace_id(), theirs.span_id(), theirs.trace_flags());
                span.add_link(SpanContext::new(trace, parent, flags, true, TraceState::default()));
            }
        }
    }
}

/// Sets the trace context of `span` in the headers of a request.
pub(super) fn carry(span: &Span, headers: &mut HeaderMap) {
    let Pair(parent, state) = of(span);
    for (name, value) in [("traceparent", parent), ("tracestate", state)] {
        match value.and_then(|value| HeaderValue::try_from(value).ok()) {
            Some(value) => drop(headers.insert(HeaderName::from_static(name), value)),
            // Removes the context of our own caller, which must not be forwarded.
            None => drop(headers.remove(name)),
        }
    }
}
