//! The gateway's routes: one table that generates the router *and* the OpenAPI document, so the two
//! cannot differ.

use axum::Router;
use axum::routing::{MethodRouter, get, post};

use super::api::{self, Upstreams};
use super::strangler;
use crate::service::Service;
use crate::stack::{Lane, in_lane};

/// One operation of the gateway's contract.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Endpoint {
    /// `get` or `post`, in OpenAPI's spelling.
    pub method: &'static str,
    /// With parameters in braces, the syntax of both axum and OpenAPI.
    pub path: &'static str,
    /// Operation id for generated clients. Must not change once published.
    pub operation: &'static str,
    pub summary: &'static str,
    /// Schema of the request body, if it has one.
    pub body: Option<&'static str>,
    /// Whether the caller must send a token.
    pub token: bool,
    /// Whether the list has pages: parameters `limit` and `after`.
    pub paged: bool,
    /// Statuses, their meaning, and the schemas of their bodies.
    pub answers: &'static [(u16, &'static str, &'static str)],
    /// Whose places its requests take: what a route waits for must not hold up the others.
    pub lane: Lane,
    handler: fn() -> MethodRouter<Upstreams>,
}

/// Schema of every problem+json body.
pub(super) const PROBLEM: &str = "Problem";

pub const ENDPOINTS: &[Endpoint] = &[
    Endpoint {
        method: "get",
        path: "/v1/products",
        operation: "listProducts",
        summary: "The catalogue",
        body: None,
        token: false,
        paged: true,
        answers: &[
            (200, "A page of products", "Products"),
            (400, "Not a page", PROBLEM),
            (503, "Inventory is unavailable", PROBLEM),
        ],
        lane: Lane::Catalogue,
        handler: || get(api::products),
    },
    Endpoint {
        method: "post",
        path: "/v1/orders",
        operation: "placeOrder",
        summary: "Places an order. Safe to repeat with the same Idempotency-Key",
        body: Some("OrderDraft"),
        token: true,
        paged: false,
        answers: &[
            (201, "Confirmed", "Order"),
            (202, "Stored, not yet decided: poll Location", "Order"),
            (400, "The request cannot be read", PROBLEM),
            (401, "No valid token", PROBLEM),
            (402, "The payment was declined", PROBLEM),
            (403, "The token belongs to another customer", PROBLEM),
            (409, "Not enough in stock", PROBLEM),
            (422, "The order is not valid, or the key was used for another order", PROBLEM),
            (424, "A backend service failed and the order is cancelled. Final: use a new key to try again", PROBLEM),
            (503, "Unavailable, or too many orders are under way: nothing is stored, as far as known", PROBLEM),
            (504, "A service did not answer in time: repeat the request with the same key", PROBLEM),
        ],
        lane: Lane::Rest,
        handler: || post(api::place),
    },
    Endpoint {
        method: "get",
        path: "/v1/orders/{id}",
        operation: "showOrder",
        summary: "One order, with the parts of all services. Services that did not answer are listed in missing",
        body: None,
        token: true,
        paged: false,
        answers: &[
            (200, "The known parts", "OrderView"),
            (401, "No valid token", PROBLEM),
            (404, "The customer has no such order", PROBLEM),
            (503, "No service had an answer", PROBLEM),
        ],
        lane: Lane::OrderViews,
        handler: || get(api::show),
    },
    Endpoint {
        method: "get",
        path: "/shop/products",
        operation: "oldCatalogue",
        summary: "The old shop's catalogue, served by inventory",
        body: None,
        token: false,
        paged: false,
        answers: &[(200, "All products in the old format", "OldCatalogue"), (503, "Unavailable", PROBLEM)],
        lane: Lane::Catalogue,
        handler: || get(strangler::route),
    },
    Endpoint {
        method: "get",
        path: "/shop/customers/{id}",
        operation: "oldCustomer",
        summary: "A customer of the old shop",
        body: None,
        token: true,
        paged: false,
        answers: &[
            (200, "The customer", "OldCustomer"),
            (401, "No valid token", PROBLEM),
            (404, "Not the caller", PROBLEM),
            (503, "Unavailable", PROBLEM),
        ],
        lane: Lane::OldShop,
        handler: || get(strangler::own_page),
    },
    Endpoint {
        method: "get",
        path: "/shop/reviews/{sku}",
        operation: "oldReviews",
        summary: "The old shop's reviews of a product",
        body: None,
        token: false,
        paged: true,
        answers: &[
            (200, "A page of reviews", "OldReviews"),
            (400, "Not a page", PROBLEM),
            (503, "Unavailable", PROBLEM),
        ],
        lane: Lane::OldShop,
        handler: || get(strangler::route),
    },
    Endpoint {
        method: "post",
        path: "/shop/reviews/{sku}",
        operation: "addOldReview",
        summary: "Reviews a product in the old shop",
        body: Some("OldReview"),
        token: true,
        paged: false,
        answers: &[
            (201, "Added", "OldReviewId"),
            (401, "No valid token", PROBLEM),
            (403, "The token belongs to another customer", PROBLEM),
            (422, "Not a review", PROBLEM),
            (503, "Unavailable", PROBLEM),
        ],
        lane: Lane::OldShop,
        handler: || post(strangler::add_review),
    },
    Endpoint {
        method: "get",
        path: "/openapi.json",
        operation: "openapi",
        summary: "This document",
        body: None,
        token: false,
        paged: false,
        answers: &[(200, "An OpenAPI 3.1 document", "Document")],
        lane: Lane::Document,
        handler: || get(api::document),
    },
];

pub(super) fn router(upstreams: Upstreams, service: &Service) -> Router {
    // Two methods of one path are two rows: axum merges them.
    let add = |router: Router<Upstreams>, endpoint: &Endpoint| {
        router.route(endpoint.path, in_lane((endpoint.handler)(), endpoint.lane, service))
    };
    ENDPOINTS.iter().fold(Router::new(), add).with_state(upstreams)
}
