//! The sagas for operators: list them, and resolve stuck ones.
//!
//! | | |
//! |---|---|
//! | `GET /admin/sagas?status=stuck&after=ID&limit=100` | a page of sagas, each with its steps; with `newest=true` the newest first |
//! | `GET /admin/sagas/{id}` | one saga |
//! | `POST /admin/sagas/{id}/retry` | retries the step at which a saga is stuck |
//! | `POST /admin/sagas/{id}/skip` | continues after the step, which an operator has done or undone by hand |
//! | `POST /admin/sagas/{id}/resolve` | marks it as resolved, with `{"note": "why"}` |

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use buttress_durable::Database;
use buttress_durable::saga::{Admin, AdminError, Filter, SagaId, SagaView, Status, StepView};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::place::Desk;
use crate::problem::{Json, Problem};

type Shared<D> = State<Arc<Desk<D>>>;

pub(super) fn routes<D: Database>(desk: Arc<Desk<D>>) -> Router {
    Router::new()
        .route("/admin/sagas", get(list::<D>))
        .route("/admin/sagas/{id}", get(show::<D>))
        .route("/admin/sagas/{id}/retry", post(retry::<D>))
        .route("/admin/sagas/{id}/skip", post(skip::<D>))
        .route("/admin/sagas/{id}/resolve", post(resolve::<D>))
        .with_state(desk)
}

const STATUSES: [Status; 6] =
    [Status::Running, Status::Compensating, Status::Completed, Status::Compensated, Status::Stuck, Status::Resolved];

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Page {
    status: Option<String>,
    after: String,
    newest: bool,
    limit: u32,
}

impl Default for Page {
    fn default() -> Self {
        Self { status: None, after: String::new(), newest: false, limit: 100 }
    }
}

async fn list<D: Database>(
    State(desk): Shared<D>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let refused = |detail: String| Problem::from_status(StatusCode::BAD_REQUEST, detail);
    let Query(Page { status, after, newest, limit }) = page.map_err(|error| refused(error.body_text()))?;
    let parse = |name: String| {
        let known = STATUSES.into_iter().find(|status| status.as_str() == name);
        known.ok_or_else(|| refused(format!("status: must be one of {}", STATUSES.map(Status::as_str).join(", "))))
    };
    let status = status.map(parse).transpose()?;
    if !(1..=1000).contains(&limit) {
        return Err(refused("limit: must be between 1 and 1000".to_owned()));
    }
    let after = Some(after).filter(|after| !after.is_empty()).map(|after| desk.starter.id(after));
    let filter = Filter { status, after, descending: newest, limit, ..Filter::default() };
    let admin = desk.coordinator.admin();
    let counts = admin.counts().await.map_err(problem)?;
    let sagas = admin.list(&filter).await.map_err(problem)?;
    Ok(Json(json!({
        "running": counts.running,
        "compensating": counts.compensating,
        "stuck": counts.stuck,
        "sagas": sagas.iter().map(view).collect::<Vec<_>>(),
    })))
}

async fn show<D: Database>(State(desk): Shared<D>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    let saga = desk.coordinator.admin().get(&desk.starter.id(&*id)).await.map_err(problem)?;
    let unknown = || Problem::from_status(StatusCode::NOT_FOUND, format!("there is no saga {id}"));
    Ok(Json(view(&saga.ok_or_else(unknown)?)))
}

async fn retry<D: Database>(State(desk): Shared<D>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    decided(desk, &id, async |admin, saga| admin.retry(saga).await).await
}

async fn skip<D: Database>(State(desk): Shared<D>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    decided(desk, &id, async |admin, saga| admin.skip(saga).await).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    note: String,
}

async fn resolve<D: Database>(
    State(desk): Shared<D>,
    Path(id): Path<String>,
    Json(Note { note }): Json<Note>,
) -> Result<Json<Value>, Problem> {
    decided(desk, &id, async |admin, saga| admin.resolve(saga, &note).await).await
}

async fn decided<D: Database>(
    desk: Arc<Desk<D>>,
    id: &str,
    decide: impl AsyncFnOnce(Admin<D>, &SagaId) -> Result<(), AdminError>,
) -> Result<Json<Value>, Problem> {
    decide(desk.coordinator.admin(), &desk.starter.id(id)).await.map_err(problem)?;
    tracing::warn!(saga = id, "an operator has decided about a saga");
    show(State(desk), Path(id.to_owned())).await
}

fn view(saga: &SagaView) -> Value {
    let step = |step: &StepView| {
        json!({
            "name": step.name,
            "state": step.state.as_str(),
            "failed_attempts": step.attempts,
            "uncertain": step.uncertain,
            "error": step.error,
            "started_ms": step.started_at.as_millis(),
            "ended_ms": step.ended_at.map(|at| at.as_millis()),
        })
    };
    json!({
        "id": saga.id,
        "definition": saga.definition,
        "version": saga.version,
        "status": saga.status.as_str(),
        "failure": saga.failure,
        "stuck": saga.stuck,
        "created_ms": saga.created_at.as_millis(),
        "updated_ms": saga.updated_at.as_millis(),
        "steps": saga.steps.iter().map(step).collect::<Vec<_>>(),
    })
}

fn problem(error: AdminError) -> Problem {
    match error {
        AdminError::NotStuck(_) | AdminError::Refused { .. } => {
            Problem::from_status(StatusCode::CONFLICT, error.to_string())
        }
        error => Problem::failed("order", &error),
    }
}
