//! The handlers of the gateway's [`routes`](super::routes).

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, Method};
use serde_json::{Value, json};
use uuid::Uuid;

use super::rest::{Rest, with_key};
use super::{openapi, view};
use crate::inventory::proto::inventory_service_client::InventoryServiceClient;
use crate::inventory::proto::{ListProductsRequest, Product};
use crate::order::unknown_order;
use crate::payment::proto::payment_service_client::PaymentServiceClient;
use crate::problem::{Json, Problem};
use crate::stack::GrpcChannel;
use crate::upstream::Upstream;

/// Clients of the services behind the gateway, each with its own stack.
#[derive(Clone, Debug)]
pub(super) struct Upstreams {
    pub(super) orders: Rest,
    pub(super) payment: PaymentServiceClient<GrpcChannel>,
    pub(super) inventory: InventoryServiceClient<GrpcChannel>,
    pub(super) shipping: Rest,
    pub(super) legacy: Rest,
}

pub(super) async fn products(State(upstreams): State<Upstreams>) -> Result<Json<Value>, Problem> {
    let products: Vec<_> = catalogue(upstreams)
        .await?
        .into_iter()
        .map(|p| json!({ "sku": p.sku, "name": p.name, "price_cents": p.price_cents, "on_hand": p.on_hand }))
        .collect();
    Ok(Json(json!({ "products": products })))
}

pub(super) async fn catalogue(upstreams: Upstreams) -> Result<Vec<Product>, Upstream> {
    let mut inventory = upstreams.inventory;
    let answer = inventory.list_products(ListProductsRequest::default()).await;
    Ok(answer.map_err(|status| Upstream::from_status("inventory", &status))?.into_inner().products)
}

pub(super) async fn place(
    State(upstreams): State<Upstreams>,
    headers: HeaderMap,
    // Buffered completely and within the size limit, so that a truncated order is never forwarded.
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    Ok(upstreams.orders.forward(Method::POST, "/v1/orders", &with_key(&headers), body?).await?)
}

pub(super) async fn show(State(upstreams): State<Upstreams>, Path(id): Path<String>) -> Result<Response, Problem> {
    // The id becomes part of a path on another service. Parsing it prevents other paths from being
    // requested.
    let id = Uuid::parse_str(&id).map_err(|_| unknown_order(&id))?;
    Ok(view::order(upstreams, &id.to_string()).await?.into_response())
}

pub(super) async fn document() -> Json<Value> {
    Json(openapi::document())
}
