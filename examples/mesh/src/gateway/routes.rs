//! The gateway's routes: one table, from which the router *and* the OpenAPI document are made. So neither can have what the
//! other has not.

use axum::Router;
use axum::routing::{MethodRouter, get, post};

use super::api::{self, Upstreams};
use super::strangler;

/// One operation of the gateway's contract.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Endpoint {
    /// `get` or `post`: as OpenAPI writes it.
    pub method: &'static str,
    /// With its parameters in braces, as both axum and OpenAPI write it.
    pub path: &'static str,
    /// A name for generated clients. Never changes once published.
    pub operation: &'static str,
    pub summary: &'static str,
    /// The schema of the request's body, if it has one.
    pub body: Option<&'static str>,
    /// Statuses, what they mean, and the schemas of their bodies.
    pub answers: &'static [(u16, &'static str, &'static str)],
    handler: fn() -> MethodRouter<Upstreams>,
}

/// Every problem+json has this schema.
pub(super) const PROBLEM: &str = "Problem";

pub const ENDPOINTS: &[Endpoint] = &[
    Endpoint {
        method: "get",
        path: "/v1/products",
        operation: "listProducts",
        summary: "The catalogue",
        body: None,
        answers: &[(200, "All products", "Products"), (503, "Inventory is unavailable", PROBLEM)],
        handler: || get(api::products),
    },
    Endpoint {
        method: "post",
        path: "/v1/orders",
        operation: "placeOrder",
        summary: "Places an order. Safe to repeat with the same Idempotency-Key",
        body: Some("OrderDraft"),
        answers: &[
            (201, "Confirmed", "Order"),
            (202, "Stored, and not decided yet: ask at Location", "Order"),
            (400, "The request cannot be read", PROBLEM),
            (402, "The payment was declined", PROBLEM),
            (409, "Not enough in stock", PROBLEM),
            (422, "The order is not valid, or the key belongs to another one", PROBLEM),
            (503, "A service behind is unavailable. With order_id: the order is cancelled", PROBLEM),
            (504, "A service behind did not answer. With order_id: the order is cancelled", PROBLEM),
        ],
        handler: || post(api::place),
    },
    Endpoint {
        method: "get",
        path: "/v1/orders/{id}",
        operation: "showOrder",
        summary: "One order, seen from all services. What could not be asked is named under missing",
        body: None,
        answers: &[
            (200, "What is known", "OrderView"),
            (404, "There is no such order", PROBLEM),
            (503, "Nobody who knows could be asked", PROBLEM),
        ],
        handler: || get(api::show),
    },
    Endpoint {
        method: "get",
        path: "/shop/products",
        operation: "oldCatalogue",
        summary: "The old shop's catalogue, by now answered from inventory",
        body: None,
        answers: &[(200, "All products in the old words", "OldCatalogue"), (503, "Unavailable", PROBLEM)],
        handler: || get(strangler::route),
    },
    Endpoint {
        method: "get",
        path: "/shop/customers/{id}",
        operation: "oldCustomer",
        summary: "A customer of the old shop",
        body: None,
        answers: &[
            (200, "The customer", "OldCustomer"),
            (404, "There is none", PROBLEM),
            (503, "Unavailable", PROBLEM),
        ],
        handler: || get(strangler::route),
    },
    Endpoint {
        method: "get",
        path: "/shop/reviews/{sku}",
        operation: "oldReviews",
        summary: "The old shop's reviews of a product",
        body: None,
        answers: &[(200, "The reviews", "OldReviews"), (503, "Unavailable", PROBLEM)],
        handler: || get(strangler::route),
    },
    Endpoint {
        method: "post",
        path: "/shop/reviews/{sku}",
        operation: "addOldReview",
        summary: "Reviews a product in the old shop",
        body: Some("OldReview"),
        answers: &[(201, "Added", "OldReviewId"), (422, "Not a review", PROBLEM), (503, "Unavailable", PROBLEM)],
        handler: || post(strangler::route),
    },
    Endpoint {
        method: "get",
        path: "/openapi.json",
        operation: "openapi",
        summary: "This document",
        body: None,
        answers: &[(200, "An OpenAPI 3.1 document", "Document")],
        handler: || get(api::document),
    },
];

pub(super) fn router(upstreams: Upstreams) -> Router {
    // Two methods of one path are two rows: axum merges them.
    let add = |router: Router<Upstreams>, endpoint: &Endpoint| router.route(endpoint.path, (endpoint.handler)());
    ENDPOINTS.iter().fold(Router::new(), add).with_state(upstreams)
}
