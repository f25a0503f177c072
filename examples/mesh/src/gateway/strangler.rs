//! The strangler fig: which service answers each URL of the old shop.
//!
//! Customers keep their bookmarks. A path moves out of the monolith by a change of one line below,
//! and back by reverting that line. When no path is left, the monolith can be removed.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{OriginalUri, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, Method, StatusCode};
use serde_json::json;

use super::api::{self, Upstreams};
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

/// Answers a request for the old shop.
pub(super) async fn route(
    State(upstreams): State<Upstreams>,
    method: Method,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    match owner(uri.path()) {
        Some(Owner::Monolith) => {
            let path = uri.path_and_query().map_or(uri.path(), |path| path.as_str());
            Ok(upstreams.legacy.forward(method, path, &headers, body?).await?)
        }
        Some(Owner::Inventory) => catalogue(upstreams).await,
        None => Err(Problem::from_status(StatusCode::NOT_FOUND, "the old shop has no such page")),
    }
}

/// The catalogue in the old format: other field names, and prices as text. New names must not
/// appear in the old contract.
async fn catalogue(upstreams: Upstreams) -> Result<Response, Problem> {
    let products = api::catalogue(upstreams).await?;
    let items: Vec<_> = products
        .into_iter()
        .map(|product| {
            let price = format!("{}.{:02}", product.price_cents / 100, product.price_cents % 100);
            json!({ "code": product.sku, "title": product.name, "price": price, "available": product.on_hand > 0 })
        })
        .collect();
    Ok(Json(json!({ "items": items })).into_response())
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
