//! A small in-memory collector: receives spans over OTLP, keeps the latest traces, and serves them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::routing::get;
use http::StatusCode;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{Span as WireSpan, span::SpanKind, status::StatusCode as Ended};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::problem::{Json, Problem};

/// Maximum number of traces, and of spans per trace. The trace of an order has about 40 spans.
const TRACES: usize = 500;
const SPANS: usize = 500;
/// Maximum size of all kept spans, in bytes. The oldest traces are evicted.
const BYTES: usize = 16 << 20;
/// Maximum size of one export, in bytes. The exporters' batches of 512 spans have about 200 KiB.
const MESSAGE: usize = 1 << 20;
/// Maximum length of a kept text, in bytes, and number of attributes and links of a span. The
/// mesh's own spans have less; longer ones are cut.
const TEXT: usize = 256;
const ATTRIBUTES: usize = 32;
const LINKS: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Traces(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    traces: HashMap<String, Vec<Span>>,
    /// Trace ids, oldest first.
    order: VecDeque<String>,
    /// The size of all spans.
    bytes: usize,
}

#[derive(Clone, Debug, Serialize)]
struct Span {
    id: String,
    parent: Option<String>,
    service: String,
    name: String,
    kind: &'static str,
    start_us: u64,
    duration_us: u64,
    failed: bool,
    attributes: serde_json::Map<String, Value>,
    /// Ids of the traces that it is linked to.
    links: Vec<String>,
}

pub(super) fn routes(traces: Arc<Traces>) -> Router {
    let collector = TraceServiceServer::from_arc(traces.clone()).max_decoding_message_size(MESSAGE);
    let collector = Routes::new(collector).into_axum_router();
    Router::new()
        .route("/admin/traces", get(list))
        .route("/admin/traces/{id}", get(show))
        .with_state(traces)
        .merge(collector.reset_fallback())
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Which {
    order: Option<String>,
}

async fn list(
    State(traces): State<Arc<Traces>>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let refused = |rejection: QueryRejection| Problem::from_status(StatusCode::BAD_REQUEST, rejection.body_text());
    let Query(Which { order }) = which.map_err(refused)?;
    let kept = traces.kept();
    let wanted = |spans: &[Span]| order.as_deref().is_none_or(|order| spans.iter().any(|span| span.is_of(order)));
    let found = kept.order.iter().rev().filter_map(|id| Some((id, kept.traces.get(id)?)));
    let found: Vec<_> =
        found.filter(|(_, spans)| wanted(spans)).take(50).map(|(id, spans)| summary(id, spans)).collect();
    Ok(Json(json!({ "traces": found })))
}

async fn show(State(traces): State<Arc<Traces>>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    let spans = traces.kept().traces.get(&id).cloned();
    let unknown = || Problem::from_status(StatusCode::NOT_FOUND, format!("there is no trace {id}, or it was evicted"));
    let mut spans = spans.ok_or_else(unknown)?;
    spans.sort_by_key(|span| span.start_us);
    Ok(Json(json!({ "id": id, "spans": spans })))
}

fn summary(id: &str, spans: &[Span]) -> Value {
    let start = spans.iter().map(|span| span.start_us).min().unwrap_or_default();
    let end = spans.iter().map(|span| span.start_us + span.duration_us).max().unwrap_or_default();
    let root = spans.iter().min_by_key(|span| (span.parent.is_some(), span.start_us));
    let mut services: Vec<_> = spans.iter().map(|span| span.service.as_str()).collect();
    services.sort_unstable();
    services.dedup();
    json!({
        "id": id,
        "name": root.map(|span| &span.name),
        "start_us": start,
        "duration_us": end - start,
        "spans": spans.len(),
        "services": services,
        "failed": spans.iter().any(|span| span.failed),
    })
}

impl Traces {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn add(&mut self, trace: String, span: Span) {
        if !self.traces.contains_key(&trace) {
            self.order.push_back(trace.clone());
        }
        let spans = self.traces.entry(trace).or_default();
        if spans.len() < SPANS {
            self.bytes += span.size();
            spans.push(span);
        }
        while self.order.len() > TRACES || self.bytes > BYTES {
            let Some(oldest) = self.order.pop_front() else { return };
            let evicted = self.traces.remove(&oldest).unwrap_or_default();
            self.bytes -= evicted.iter().map(Span::size).sum::<usize>();
        }
    }
}

#[tonic::async_trait]
impl TraceService for Traces {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.map(|resource| resource.attributes).unwrap_or_default();
            let service = text(&attributes, "service.name").unwrap_or_else(|| "unknown".to_owned());
            let mut kept = self.kept();
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let trace = hex(&span.trace_id);
                kept.add(trace, Span::new(&service, span));
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Span {
    fn new(service: &str, span: WireSpan) -> Self {
        let kind = match span.kind() {
            SpanKind::Server => "server",
            SpanKind::Client => "client",
            SpanKind::Producer => "producer",
            SpanKind::Consumer => "consumer",
            SpanKind::Internal | SpanKind::Unspecified => "internal",
        };
        let failed = span.status.as_ref().is_some_and(|status| status.code() == Ended::Error);
        let attributes = span
            .attributes
            .into_iter()
            .take(ATTRIBUTES)
            .filter_map(|KeyValue { key, value, .. }| Some((cut(key), json(value?)?)));
        let links = span.links.iter().take(LINKS).map(|link| hex(&link.trace_id)).collect();
        Self {
            id: hex(&span.span_id),
            parent: (!span.parent_span_id.is_empty()).then(|| hex(&span.parent_span_id)),
            service: service.to_owned(),
            name: cut(span.name),
            kind,
            start_us: span.start_time_unix_nano / 1_000,
            duration_us: span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano) / 1_000,
            failed,
            attributes: attributes.collect(),
            links,
        }
    }

    /// About the memory that it takes, in bytes.
    fn size(&self) -> usize {
        let attribute = |(key, value): (&String, &Value)| 64 + key.len() + value.as_str().map_or(0, str::len);
        let attributes: usize = self.attributes.iter().map(attribute).sum();
        256 + self.service.len() + self.name.len() + attributes + 64 * self.links.len()
    }

    fn is_of(&self, order: &str) -> bool {
        self.attributes.get("order.id").and_then(Value::as_str) == Some(order)
    }
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let value = attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?;
    Some(json(value)?.as_str()?.to_owned())
}

fn json(value: AnyValue) -> Option<Value> {
    match value.value? {
        any_value::Value::StringValue(text) => Some(cut(text).into()),
        any_value::Value::BoolValue(value) => Some(value.into()),
        any_value::Value::IntValue(value) => Some(value.into()),
        any_value::Value::DoubleValue(value) => Some(value.into()),
        _ => None,
    }
}

/// The beginning of a text, up to a character's end.
fn cut(mut text: String) -> String {
    if text.len() > TEXT {
        text.truncate(text.floor_char_boundary(TEXT));
        text.push('…');
    }
    text
}

/// Ids have at most 16 bytes.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::resource::v1::Resource;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Status as WireStatus};

    use super::*;

    fn attribute(key: &str, value: any_value::Value) -> KeyValue {
        KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
    }

    fn words(text: &str) -> any_value::Value {
        any_value::Value::StringValue(text.to_owned())
    }

    /// A span from `start` for `duration`, in microseconds.
    fn span(trace: u8, id: u8, parent: Option<u8>, (start, duration): (u64, u64)) -> WireSpan {
        WireSpan {
            trace_id: vec![trace; 16],
            span_id: vec![id; 8],
            parent_span_id: parent.map(|parent| vec![parent; 8]).unwrap_or_default(),
            name: format!("span {id}"),
            kind: SpanKind::Client.into(),
            start_time_unix_nano: start * 1_000,
            end_time_unix_nano: (start + duration) * 1_000,
            ..WireSpan::default()
        }
    }

    async fn export(traces: &Traces, service: &str, spans: Vec<WireSpan>) {
        let resource = Resource { attributes: vec![attribute("service.name", words(service))], ..Resource::default() };
        let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
        let resource_spans = vec![ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() }];
        traces.export(Request::new(ExportTraceServiceRequest { resource_spans })).await.unwrap();
    }

    async fn listed(traces: &Arc<Traces>, order: Option<&str>) -> Vec<Value> {
        let which = Which { order: order.map(str::to_owned) };
        let Ok(Json(mut listed)) = list(State(traces.clone()), Ok(Query(which))).await else { panic!("refused") };
        serde_json::from_value(listed["traces"].take()).unwrap()
    }

    async fn shown(traces: &Arc<Traces>, trace: u8) -> Value {
        let Ok(Json(shown)) = show(State(traces.clone()), Path(hex(&[trace; 16]))).await else { panic!("unknown") };
        shown
    }

    #[tokio::test]
    async fn a_span_is_shown_as_it_was_sent() {
        let traces = Arc::<Traces>::default();
        let attributes = vec![
            attribute("order.id", words("o1")),
            attribute("code", any_value::Value::IntValue(7)),
            attribute("yes", any_value::Value::BoolValue(true)),
            attribute("bytes", any_value::Value::BytesValue(vec![1])),
        ];
        let status = Some(WireStatus { code: Ended::Error.into(), ..WireStatus::default() });
        let sent = WireSpan { attributes, status, ..span(0xa1, 2, Some(1), (5, 3)) };
        export(&traces, "order", vec![sent]).await;
        let expected = json!({
            "id": "0202020202020202",
            "parent": "0101010101010101",
            "service": "order",
            "name": "span 2",
            "kind": "client",
            "start_us": 5,
            "duration_us": 3,
            "failed": true,
            "links": [],
            "attributes": { "order.id": "o1", "code": 7, "yes": true },
        });
        assert_eq!(shown(&traces, 0xa1).await, json!({ "id": "a1".repeat(16), "spans": [expected] }));
    }

    #[test]
    fn every_kind_of_span_has_its_word() {
        let kinds = [
            (SpanKind::Server, "server"),
            (SpanKind::Client, "client"),
            (SpanKind::Producer, "producer"),
            (SpanKind::Consumer, "consumer"),
            (SpanKind::Internal, "internal"),
            (SpanKind::Unspecified, "internal"),
        ];
        for (kind, word) in kinds {
            let span = Span::new("order", WireSpan { kind: kind.into(), ..span(1, 1, None, (0, 1)) });
            assert_eq!((span.kind, span.parent, span.failed), (word, None, false));
        }
    }

    #[tokio::test]
    async fn a_trace_is_summed_up_from_the_spans_of_all_services() {
        let traces = Arc::<Traces>::default();
        // The spans of one service arrive before the root does.
        export(&traces, "payment", vec![span(1, 3, Some(2), (150, 400)), span(1, 4, Some(3), (160, 5))]).await;
        export(&traces, "gateway", vec![span(1, 2, Some(1), (110, 300)), span(1, 1, None, (100, 350))]).await;
        let summary = json!({
            "id": "01".repeat(16),
            "name": "span 1",
            "start_us": 100,
            "duration_us": 450,
            "spans": 4,
            "services": ["gateway", "payment"],
            "failed": false,
        });
        assert_eq!(listed(&traces, None).await, [summary]);
        let starts = shown(&traces, 1).await["spans"]
            .as_array()
            .unwrap()
            .iter()
            .map(|span| span["start_us"].clone())
            .collect::<Vec<_>>();
        assert_eq!(starts, [100, 110, 150, 160], "in the order of time");
    }

    #[tokio::test]
    async fn traces_are_listed_latest_first_and_by_order() {
        let traces = Arc::<Traces>::default();
        for trace in 1..=60 {
            let attributes = vec![attribute("order.id", words(&format!("o{trace}")))];
            export(&traces, "order", vec![WireSpan { attributes, ..span(trace, 1, None, (trace.into(), 1)) }]).await;
        }
        let ids = |listed: Vec<Value>| listed.into_iter().map(|trace| trace["id"].clone()).collect::<Vec<_>>();
        let all = ids(listed(&traces, None).await);
        assert_eq!((all.len(), &all[0], &all[49]), (50, &json!(hex(&[60; 16])), &json!(hex(&[11; 16]))));
        assert_eq!(ids(listed(&traces, Some("o3")).await), [json!(hex(&[3; 16]))], "also an old one");
        assert!(listed(&traces, Some("o")).await.is_empty());
    }

    #[test]
    fn a_sender_cannot_fill_the_memory() {
        let mut kept = Kept::default();
        let long = "é".repeat(TEXT);
        let attributes: Vec<_> = (0..100).map(|n| attribute(&format!("{n}{long}"), words(&long))).collect();
        let big = WireSpan { name: long, attributes, ..span(1, 1, None, (0, 1)) };
        let one = Span::new("s", big);
        assert!(one.name.len() <= TEXT + 3 && one.attributes.len() <= ATTRIBUTES, "{} {}", one.name.len(), one.size());
        for n in 0..20_000 {
            kept.add((n % 400).to_string(), one.clone());
            assert!(kept.bytes <= BYTES);
        }
        let counted: usize = kept.traces.values().flatten().map(Span::size).sum();
        assert_eq!(kept.bytes, counted);
        assert_eq!(kept.order.len(), kept.traces.len());
    }

    #[test]
    fn the_oldest_traces_are_forgotten_and_long_ones_are_cut() {
        let mut kept = Kept::default();
        let add = |kept: &mut Kept, trace: usize| kept.add(trace.to_string(), Span::new("s", span(1, 1, None, (0, 1))));
        (0..TRACES).for_each(|trace| add(&mut kept, trace));
        assert_eq!((kept.traces.len(), kept.order.len()), (TRACES, TRACES));
        add(&mut kept, TRACES);
        assert_eq!((kept.traces.len(), kept.order.len()), (TRACES, TRACES), "never more");
        assert!(!kept.traces.contains_key("0") && kept.traces.contains_key("1"));
        (0..2 * SPANS).for_each(|_| add(&mut kept, 1));
        assert_eq!(kept.traces["1"].len(), SPANS);
        assert_eq!(kept.order.len(), TRACES, "a known trace is listed once");
    }
}
