//! Forwards the order service's sagas, so that the page uses one origin.

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use serde_json::Value;
use uuid::Uuid;

use crate::gateway::admin::Listeners;
use crate::launch::Name;
use crate::order::unknown_order;
use crate::problem::{Json, Problem};

const ORDER: &str = Name::Order.as_str();

pub(super) fn routes(listeners: Listeners) -> Router {
    let list = async |State(listeners): State<Listeners>| -> Result<Json<Value>, Problem> {
        Ok(Json(listeners.of(ORDER)?.get("/admin/sagas?newest=true&limit=50").await?.unwrap_or(Value::Null)))
    };
    Router::new().route("/admin/sagas", get(list)).route("/admin/sagas/{id}", get(show)).with_state(listeners)
}

async fn show(State(listeners): State<Listeners>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    // The id becomes part of a path on another service, so only a parsed UUID is used.
    let uuid = Uuid::parse_str(&id).map_err(|_| unknown_order(&id))?;
    listeners.of(ORDER)?.get(&format!("/admin/sagas/{uuid}")).await?.map(Json).ok_or_else(|| unknown_order(&id))
}
