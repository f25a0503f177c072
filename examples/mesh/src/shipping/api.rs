//! The REST API of the shipping service: `GET /v1/shipments/{order_id}`.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use buttress_durable::Database;
use http::StatusCode;
use serde_json::{Value, json};

use super::store::{Shipment, Store};
use crate::input::OrderId;
use crate::problem::{Json, Problem};

pub(super) fn routes<D: Database>(store: Arc<Store<D>>) -> Router {
    Router::new().route("/v1/shipments/{order_id}", get(show::<D>)).with_state(store)
}

async fn show<D: Database>(
    State(store): State<Arc<Store<D>>>,
    Path(order_id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let unknown = || Problem::from_status(StatusCode::NOT_FOUND, "nothing has been shipped for this order");
    let order_id: OrderId = order_id.parse().map_err(|_| unknown())?;
    let shipment = store.shipment(order_id.as_str()).await.map_err(|error| Problem::failed("shipping", &error))?;
    let Shipment { id, order_id, customer, created_ms } = shipment.ok_or_else(unknown)?;
    Ok(Json(json!({ "id": id, "order_id": order_id, "customer": customer, "created_ms": created_ms })))
}
