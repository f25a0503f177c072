//! The strangler fig: the old shop's URLs, and who answers them by now.
//!
//! Customers keep their bookmarks. A path moves out of the monolith by a change of one line below, and back by the same line
//! if it was too early. When the last line has changed, the monolith can go.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{OriginalUri, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, Method, StatusCode};
use serde_json::json;

use super::api::{self, Upstreams};
use crate::problem::{Json, Problem};

/// Who answers a path of the old shop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Owner {
    /// Still the monolith.
    Monolith,
    /// The inventory service, in the words of the old catalogue.
    Inventory,
}

/// The first prefix that fits decides.
pub const ROUTES: &[(&str, Owner)] = &[
    ("/shop/products", Owner::Inventory), // moved out: prices and stock have one owner now
    ("/shop/reviews", Owner::Monolith),
    ("/shop/customers", Owner::Monolith),
];

/// Who owns a path. A prefix ends where a segment of the path does.
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

/// The catalogue as the old shop wrote it: prices as text, other names. New words do not leak into old contracts.
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
