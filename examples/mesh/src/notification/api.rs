//! The REST API of the notification service: `GET /v1/notifications?order_id=`.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::routing::get;
use buttress_durable::Database;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::store::{Notification, Store};
use crate::input::OrderId;
use crate::problem::{Json, Problem};

pub(super) fn routes<D: Database>(store: Arc<Store<D>>) -> Router {
    Router::new().route("/v1/notifications", get(list::<D>)).with_state(store)
}

#[derive(Debug, Deserialize)]
struct Of {
    order_id: String,
}

async fn list<D: Database>(
    State(store): State<Arc<Store<D>>>,
    of: Result<Query<Of>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(Of { order_id }) =
        of.map_err(|_| Problem::from_status(StatusCode::BAD_REQUEST, "the query parameter order_id is required"))?;
    let order_id: OrderId = order_id.parse().map_err(|rule| {
        Problem::from_status(StatusCode::BAD_REQUEST, format!("the query parameter order_id {rule}"))
    })?;
    let sent = store.of_order(order_id.as_str()).await.map_err(|error| Problem::failed("notification", &error))?;
    let sent: Vec<_> = sent
        .into_iter()
        .map(|Notification { kind, text, sent_ms }| json!({ "kind": kind, "text": text, "sent_ms": sent_ms }))
        .collect();
    Ok(Json(json!({ "order_id": order_id, "notifications": sent })))
}
