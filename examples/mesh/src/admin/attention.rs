//! What waits for an operator, and what an operator can do about it.
//!
//! Three kinds of work stop by themselves when repeating it does not help: a saga that is stuck, an
//! event that its consumer could not handle (a dead letter), and an event that the bus rejects (a
//! parked event). They are listed and decided by the same endpoints, dashboard and commands, so
//! each only implements `Queue`.
//!
//! | | |
//! |---|---|
//! | `GET /admin/attention` | the kinds of this service |
//! | `GET /admin/attention/{kind}?name=&at=&error=&older_than_s=&limit=` | the items, oldest first |
//! | `POST /admin/attention/{kind}/{action}` | acts on a [`Decision`] and returns an [`Outcome`] |

mod decision;
mod letters;
mod parked;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use clap::ValueEnum;
use futures_util::future::BoxFuture;
use http::StatusCode;
use serde::{Deserialize, Serialize};

pub use decision::{Decision, Failed, Filter, Outcome, Which};
pub(super) use letters::Letters;
pub(super) use parked::ParkedEvents;

use crate::clock::now_ms;
use crate::problem::{Json, Problem};

/// What can wait for an operator.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Sagas that are stuck at a step.
    Sagas,
    /// Events that a consumer could not handle.
    DeadLetters,
    /// Events that the bus rejects.
    Parked,
}

/// What an operator can do.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Try again, with fresh attempts.
    Retry,
    /// Continue a saga without its step, which was done or undone by hand.
    Skip,
    /// Close a saga, with a note that says why.
    Resolve,
    /// Publish a dead letter to its topic again.
    Redrive,
    /// Drop an event for good.
    Discard,
}

/// Something that waits for an operator.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Item {
    /// Names it in a [`Decision`].
    pub id: String,
    /// The definition of the saga, or the type of the event.
    pub name: String,
    /// The step of the saga, or the consumer group of the dead letter. Empty for a parked event.
    pub at: String,
    /// The order that it is about. Empty if it is not known.
    pub order: String,
    /// Why it stopped.
    pub error: String,
    /// Since when it has not changed, in milliseconds since 1970; for a parked event, when it
    /// occurred.
    pub since_ms: i64,
}

pub(crate) type QueueError = Box<dyn std::error::Error + Send + Sync>;

/// One kind of work that may wait for an operator.
pub(crate) trait Queue: fmt::Debug + Send + Sync + 'static {
    fn kind(&self) -> Kind;

    /// Lists items, oldest first, at most `limit`.
    fn list(&self, limit: u32) -> BoxFuture<'_, Result<Vec<Item>, QueueError>>;

    /// Does one of the kind's [actions](Kind::actions) to an item.
    fn act<'a>(&'a self, id: &'a str, action: Action, note: &'a str) -> BoxFuture<'a, Result<(), QueueError>>;
}

/// The queues of a service.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queues(BTreeMap<Kind, Arc<dyn Queue>>);

impl Kind {
    pub const ALL: [Self; 3] = [Self::Sagas, Self::DeadLetters, Self::Parked];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sagas => "sagas",
            Self::DeadLetters => "dead-letters",
            Self::Parked => "parked",
        }
    }

    /// What can be done to an item of this kind.
    pub fn actions(self) -> &'static [Action] {
        match self {
            Self::Sagas => &[Action::Retry, Action::Skip, Action::Resolve],
            Self::DeadLetters => &[Action::Redrive, Action::Discard],
            Self::Parked => &[Action::Retry, Action::Discard],
        }
    }
}

impl Action {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Skip => "skip",
            Self::Resolve => "resolve",
            Self::Redrive => "redrive",
            Self::Discard => "discard",
        }
    }
}

impl Queues {
    pub(crate) fn add(&mut self, queue: impl Queue) {
        self.0.insert(queue.kind(), Arc::new(queue));
    }

    fn of(&self, kind: &str) -> Result<&dyn Queue, Problem> {
        let queue = self.0.values().find(|queue| queue.kind().as_str() == kind);
        let unknown = || Problem::from_status(StatusCode::NOT_FOUND, format!("this service has no {kind:?}"));
        queue.map(|queue| &**queue).ok_or_else(unknown)
    }
}

/// `service` is only named in logs.
pub(crate) fn routes(service: &'static str, queues: Queues) -> Router {
    let kinds = async |State((_, queues)): State<Shared>| Json(queues.0.keys().copied().collect::<Vec<_>>());
    Router::new()
        .route("/admin/attention", get(kinds))
        .route("/admin/attention/{kind}", get(list))
        .route("/admin/attention/{kind}/{action}", post(decide))
        .with_state((service, queues))
}

type Shared = (&'static str, Queues);

async fn list(
    State((service, queues)): State<Shared>,
    Path(kind): Path<String>,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Json<Vec<Item>>, Problem> {
    let refused = |rejection: QueryRejection| Problem::from_status(StatusCode::BAD_REQUEST, rejection.body_text());
    let Query(filter) = filter.map_err(refused)?;
    filter.check().map_err(|rule| Problem::from_status(StatusCode::BAD_REQUEST, rule))?;
    let found = filter.select(queues.of(&kind)?, now_ms()).await;
    Ok(Json(found.map_err(|error| Problem::failed(service, &*error))?.0))
}

async fn decide(
    State((service, queues)): State<Shared>,
    Path((kind, action)): Path<(String, String)>,
    Json(decision): Json<Decision>,
) -> Result<Json<Outcome>, Problem> {
    let queue = queues.of(&kind)?;
    let actions = queue.kind().actions();
    let known = actions.iter().copied().find(|known| known.as_str() == action);
    let unknown = || {
        let names: Vec<_> = actions.iter().map(|action| action.as_str()).collect();
        Problem::from_status(StatusCode::NOT_FOUND, format!("{kind}: the action must be one of {}", names.join(", ")))
    };
    let action = known.ok_or_else(unknown)?;
    decision.check(action).map_err(|rule| Problem::from_status(StatusCode::UNPROCESSABLE_ENTITY, rule))?;
    let outcome =
        decision.carry_out(queue, action, now_ms()).await.map_err(|error| Problem::failed(service, &*error))?;
    let (done, failed) = (outcome.done, outcome.failed.len());
    tracing::info!(service, kind, action = action.as_str(), done, failed, note = decision.note, "an operator decided");
    Ok(Json(outcome))
}
