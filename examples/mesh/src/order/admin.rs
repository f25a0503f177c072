//! The sagas for operators: all of them to look at, and the stuck ones to decide about.
//!
//! | | |
//! |---|---|
//! | `GET /admin/sagas?status=stuck&after=ID&limit=100` | a page of sagas, each with its steps; with `newest=true` the newest first |
//! | `GET /admin/sagas/{id}` | one saga |
//! | `POST /admin/attention/sagas/{retry,skip,resolve}` | decides about stuck sagas: [`crate::admin::attention`] |

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::routing::get;
use buttress_durable::Database;
use buttress_durable::saga::{AdminError, Filter, SagaView, Status, StepView};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::place::Desk;
use crate::admin::attention::{Action, Item, Kind, Queue, QueueError};
use crate::problem::{Json, Problem};

type Shared<D> = State<Arc<Desk<D>>>;

pub(super) fn routes<D: Database>(desk: Arc<Desk<D>>) -> Router {
    Router::new().route("/admin/sagas", get(list::<D>)).route("/admin/sagas/{id}", get(show::<D>)).with_state(desk)
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

/// The stuck sagas, for an operator to decide about.
#[derive(Debug)]
pub(super) struct StuckSagas<D: Database>(pub(super) Arc<Desk<D>>);

impl<D: Database> Queue for StuckSagas<D> {
    fn kind(&self) -> Kind {
        Kind::Sagas
    }

    fn list(&self, limit: u32) -> BoxFuture<'_, Result<Vec<Item>, QueueError>> {
        async move {
            let stuck = Filter { status: Some(Status::Stuck), limit, ..Filter::default() };
            Ok(self.0.coordinator.admin().list(&stuck).await?.into_iter().map(item).collect())
        }
        .boxed()
    }

    fn act<'a>(&'a self, id: &'a str, action: Action, note: &'a str) -> BoxFuture<'a, Result<(), QueueError>> {
        async move {
            let (admin, id) = (self.0.coordinator.admin(), self.0.starter.id(id));
            match action {
                Action::Skip => admin.skip(&id).await?,
                Action::Resolve => admin.resolve(&id, note).await?,
                _ => admin.retry(&id).await?,
            }
            Ok(())
        }
        .boxed()
    }
}

fn item(saga: SagaView) -> Item {
    let SagaView { id, definition, stuck, updated_at, .. } = saga;
    let (at, error) = stuck.map(|stuck| (stuck.step, stuck.message)).unwrap_or_default();
    Item { order: id.clone(), id, name: definition, at, error, since_ms: updated_at.as_millis() }
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
    Problem::failed("order", &error)
}
