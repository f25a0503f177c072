//! The REST API of the shipping service: `GET /v1/shipments/{order_id}`.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use buttress_durable::Database;
use http::StatusCode;
use serde_json::{Value, json};

use super::store::{Shipment, Store};
use crate::problem::{Json, Problem};

pub(super) fn routes<D: Database>(store: Arc<Store<D>>) -> Router {
    Router::new().route("/v1/shipments/{order_id}", get(show::<D>)).with_state(store)
}

async fn show<D: Database>(
    State(store): State<Arc<Store<D>>>,
    Path(order_id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let shipment = store.shipment(&order_id).await.map_err(|error| Problem::failed("shipping", &error))?;
    let Shipment { id, order_id, customer, created_ms } = shipment.ok_or_else(|| {
        Problem::from_status(StatusCode::NOT_FOUND, format!("nothing has been shipped for order {order_id}"))
    })?;
    Ok(Json(json!({ "id": id, "order_id": order_id, "customer": customer, "created_ms": created_ms })))
}
