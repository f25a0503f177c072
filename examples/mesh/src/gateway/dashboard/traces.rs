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

#[derive(Debug, Default)]
pub(super) struct Traces(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    traces: HashMap<String, Vec<Span>>,
    /// Trace ids, oldest first.
    order: VecDeque<String>,
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
}

pub(super) fn routes(traces: Arc<Traces>) -> Router {
    let collector = Routes::new(TraceServiceServer::from_arc(traces.clone())).into_axum_router();
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
            if self.order.len() > TRACES
                && let Some(oldest) = self.order.pop_front()
            {
                self.traces.remove(&oldest);
            }
        }
        let spans = self.traces.entry(trace).or_default();
        if spans.len() < SPANS {
            spans.push(span);
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
        let attributes =
            span.attributes.into_iter().filter_map(|KeyValue { key, value, .. }| Some((key, json(value?)?)));
        Self {
            id: hex(&span.span_id),
            parent: (!span.parent_span_id.is_empty()).then(|| hex(&span.parent_span_id)),
            service: service.to_owned(),
            name: span.name,
            kind,
            start_us: span.start_time_unix_nano / 1_000,
            duration_us: span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano) / 1_000,
            failed,
            attributes: attributes.collect(),
        }
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
        any_value::Value::StringValue(text) => Some(text.into()),
        any_value::Value::BoolValue(value) => Some(value.into()),
        any_value::Value::IntValue(value) => Some(value.into()),
        any_value::Value::DoubleValue(value) => Some(value.into()),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
