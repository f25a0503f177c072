//! The handlers of the gateway's [`routes`](super::routes).

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, Method};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::auth::Caller;
use super::rest::{Rest, with_key};
use super::{openapi, view};
use crate::input::Sku;
use crate::inventory::proto::inventory_service_client::InventoryServiceClient;
use crate::inventory::proto::{ListProductsRequest, Product};
use crate::order::{self, Draft, DraftLine, NewOrder, unknown_order};
use crate::page::{Page, PageQuery};
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

pub(super) async fn products(
    State(upstreams): State<Upstreams>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Value>, Problem> {
    let page = page.parse(|after| after.parse::<Sku>().map(drop))?;
    let (products, next) = catalogue(&upstreams, &page).await?;
    let products: Vec<_> = products
        .into_iter()
        .map(|p| json!({ "sku": p.sku, "name": p.name, "price_cents": p.price_cents, "on_hand": p.on_hand }))
        .collect();
    Ok(Json(json!({ "products": products, "next": next })))
}

/// One page of the catalogue, and the cursor of the next one.
pub(super) async fn catalogue(upstreams: &Upstreams, page: &Page) -> Result<(Vec<Product>, Option<String>), Upstream> {
    let after = page.after().unwrap_or_default().to_owned();
    let request = ListProductsRequest { skus: Vec::new(), limit: page.limit(), after };
    let answer = upstreams.inventory.clone().list_products(request).await;
    let answer = answer.map_err(|status| Upstream::from_status("inventory", &status))?.into_inner();
    Ok((answer.products, Some(answer.next).filter(|next| !next.is_empty())))
}

/// An order as customers send it. Who they are is in their token; a body that names another
/// customer is refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OrderRequest {
    customer: Option<String>,
    items: Vec<DraftLine>,
}

pub(super) async fn place(
    State(upstreams): State<Upstreams>,
    caller: Caller,
    headers: HeaderMap,
    // Parsed here, so that no request that the order service would refuse takes one of its places.
    Json(OrderRequest { customer, items }): Json<OrderRequest>,
) -> Result<Response, Problem> {
    if let Some(named) = customer {
        caller.must_be(&named)?;
    }
    order::idempotency_key(&headers)?;
    let draft = Draft { customer: caller.0.into(), items };
    NewOrder::parse(draft.clone()).map_err(|errors| order::invalid_order(&errors))?;
    // A draft is made of texts and numbers, which serialise.
    let body = Bytes::from(serde_json::to_vec(&draft).unwrap_or_default());
    Ok(upstreams.orders.forward(Method::POST, "/v1/orders", &with_key(&headers), body).await?)
}

pub(super) async fn show(
    State(upstreams): State<Upstreams>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    // The id becomes part of a path on another service. Parsing it prevents other paths from being
    // requested.
    let id = Uuid::parse_str(&id).map_err(|_| unknown_order(&id))?;
    Ok(view::order(upstreams, &caller, &id.to_string()).await?.into_response())
}

pub(super) async fn document() -> Json<Value> {
    Json(openapi::document())
}
