//! Forwards the order service's sagas, so that the page uses one origin.

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use serde_json::Value;
use uuid::Uuid;

use crate::gateway::rest::Rest;
use crate::order::unknown_order;
use crate::problem::{Json, Problem};

pub(super) fn routes(orders: Rest) -> Router {
    let list = async |State(orders): State<Rest>| -> Result<Json<Value>, Problem> {
        Ok(Json(orders.get("/admin/sagas?newest=true&limit=50").await?.unwrap_or(Value::Null)))
    };
    Router::new().route("/admin/sagas", get(list)).route("/admin/sagas/{id}", get(show)).with_state(orders)
}

async fn show(State(orders): State<Rest>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    // The id becomes part of a path on another service, so only a parsed UUID is used.
    let uuid = Uuid::parse_str(&id).map_err(|_| unknown_order(&id))?;
    orders.get(&format!("/admin/sagas/{uuid}")).await?.map(Json).ok_or_else(|| unknown_order(&id))
}
