//! The REST face of the mesh.
//!
//! | | |
//! |---|---|
//! | `GET /v1/products` | the catalogue, from inventory |
//! | `POST /v1/orders` | passed on to order |
//! | `GET /v1/orders/{id}` | order, payment and inventory together: see [`super::view`] |

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::HeaderMap;
use serde_json::{Value, json};
use uuid::Uuid;

use super::order_client::Orders;
use super::view;
use crate::inventory::proto::ListProductsRequest;
use crate::inventory::proto::inventory_service_client::InventoryServiceClient;
use crate::order::unknown_order;
use crate::payment::proto::payment_service_client::PaymentServiceClient;
use crate::problem::{Json, Problem};
use crate::stack::GrpcChannel;
use crate::upstream::Upstream;

/// The services behind the gateway, each through a stack of its own.
#[derive(Clone, Debug)]
pub(super) struct Upstreams {
    pub(super) orders: Orders,
    pub(super) payment: PaymentServiceClient<GrpcChannel>,
    pub(super) inventory: InventoryServiceClient<GrpcChannel>,
}

pub(super) fn routes(upstreams: Upstreams) -> Router {
    Router::new()
        .route("/v1/products", get(products))
        .route("/v1/orders", post(place))
        .route("/v1/orders/{id}", get(show))
        .with_state(upstreams)
}

async fn products(State(upstreams): State<Upstreams>) -> Result<Json<Value>, Problem> {
    let mut inventory = upstreams.inventory;
    let answer = inventory.list_products(ListProductsRequest::default()).await;
    let products = answer.map_err(|status| Upstream::from_status("inventory", &status))?.into_inner().products;
    let products: Vec<_> = products
        .into_iter()
        .map(|p| json!({ "sku": p.sku, "name": p.name, "price_cents": p.price_cents, "on_hand": p.on_hand }))
        .collect();
    Ok(Json(json!({ "products": products })))
}

async fn place(
    State(upstreams): State<Upstreams>,
    headers: HeaderMap,
    // Whole, and no longer than the limit: half an order must not reach anybody.
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    Ok(upstreams.orders.place(&headers, body?).await?)
}

async fn show(State(upstreams): State<Upstreams>, Path(id): Path<String>) -> Result<Response, Problem> {
    // Ids go into the paths of other services: nothing but an id may.
    let id = Uuid::parse_str(&id).map_err(|_| unknown_order(&id))?;
    Ok(view::order(upstreams, &id.to_string()).await?.into_response())
}
