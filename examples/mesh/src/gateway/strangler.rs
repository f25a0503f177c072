//! The strangler fig: which service answers each URL of the old shop.
//!
//! Customers keep their bookmarks. A path moves out of the monolith by a change of one line below,
//! and back by reverting that line. When no path is left, the monolith can be removed.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{OriginalUri, Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, Method, StatusCode, Uri};
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::{self, Upstreams};
use super::auth::Caller;
use crate::inventory::proto::Product;
use crate::order::IDEMPOTENCY_KEY;
use crate::page::Page;
use crate::problem::{Json, Problem};

/// The service that answers a path of the old shop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Owner {
    /// The monolith.
    Monolith,
    /// The inventory service, in the format of the old catalogue.
    Inventory,
}

/// Owner by path prefix. The first matching prefix wins.
pub const ROUTES: &[(&str, Owner)] = &[
    ("/shop/products", Owner::Inventory), // moved out: inventory owns prices and stock
    ("/shop/reviews", Owner::Monolith),
    ("/shop/customers", Owner::Monolith),
];

/// Returns the owner of a path. A prefix matches whole path segments only.
pub fn owner(path: &str) -> Option<Owner> {
    let fits = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    ROUTES.iter().find(|(prefix, _)| fits(prefix)).map(|(_, owner)| *owner)
}

/// Answers a request for a public page of the old shop.
pub(super) async fn route(
    State(upstreams): State<Upstreams>,
    method: Method,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    match owner(uri.path()) {
        Some(Owner::Monolith) => monolith(&upstreams, method, &uri, &headers, body?).await,
        Some(Owner::Inventory) => catalogue(upstreams).await,
        None => Err(Problem::from_status(StatusCode::NOT_FOUND, "the old shop has no such page")),
    }
}

/// Answers a request for the page of a customer: of the caller, and of no other.
pub(super) async fn own_page(
    state: State<Upstreams>,
    Caller(customer): Caller,
    Path(id): Path<String>,
    method: Method,
    uri: OriginalUri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if id != customer.as_str() {
        return Err(Problem::from_status(StatusCode::NOT_FOUND, "there is no such customer"));
    }
    route(state, method, uri, headers, Ok(Bytes::new())).await
}

/// The author of a review, as far as the gateway reads it. The monolith checks the rest.
#[derive(Deserialize)]
struct Authored {
    author: String,
}

/// Adds a review of the caller.
pub(super) async fn add_review(
    state: State<Upstreams>,
    caller: Caller,
    method: Method,
    uri: OriginalUri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let body = body?;
    if let Ok(Authored { author }) = serde_json::from_slice(&body) {
        caller.must_be(&author)?;
    }
    route(state, method, uri, headers, Ok(body)).await
}

async fn monolith(
    upstreams: &Upstreams,
    method: Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    // The monolith ignores idempotency keys. With the header, the client stack would take the
    // request for one that may be repeated.
    let mut headers = headers.clone();
    headers.remove(IDEMPOTENCY_KEY);
    let path = uri.path_and_query().map_or(uri.path(), |path| path.as_str());
    Ok(upstreams.legacy.forward(method, path, &headers, body).await?)
}

/// Maximum number of pages of the new catalogue in the old one, which has no pages.
const PAGES: usize = 10;

/// The catalogue in the old format: other field names, and prices as text. New names must not
/// appear in the old contract.
async fn catalogue(upstreams: Upstreams) -> Result<Response, Problem> {
    let mut items = Vec::new();
    let mut after = None;
    for _ in 0..PAGES {
        let page = Page::largest(after);
        let (products, next) = api::catalogue(&upstreams, &page).await?;
        items.extend(products.into_iter().map(old_format));
        after = next;
        if after.is_none() {
            break;
        }
    }
    Ok(Json(json!({ "items": items })).into_response())
}

fn old_format(product: Product) -> Value {
    let price = format!("{}.{:02}", product.price_cents / 100, product.price_cents % 100);
    json!({ "code": product.sku, "title": product.name, "price": price, "available": product.on_hand > 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_a_segment_ends() {
        assert_eq!(owner("/shop/reviews"), Some(Owner::Monolith));
        assert_eq!(owner("/shop/reviews/tea"), Some(Owner::Monolith));
        assert_eq!(owner("/shop/products"), Some(Owner::Inventory));
        assert_eq!(owner("/shop/reviewsandmore"), None);
        assert_eq!(owner("/admin"), None);
    }
}
