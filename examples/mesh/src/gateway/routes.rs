//! The gateway's routes: one table that generates the router *and* the OpenAPI document, so the two
//! cannot differ.

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::routing::{MethodRouter, get, post};
use buttress::policy::{Criticality, Priority};
use http::Method;

use super::api::{self, Upstreams};
use super::strangler;
use crate::service::Service;
use crate::stack::{Lane, Rate, in_lane, of_customers};
use crate::token::Tokens;

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
    /// Which of the customer's rates a request counts for. `None` if the caller need not be a
    /// customer; otherwise a token is required.
    pub rate: Option<Rate>,
    /// Whether the list has pages: parameters `limit` and `after`.
    pub paged: bool,
    /// Statuses, their meaning, and the schemas of their bodies.
    pub answers: &'static [(u16, &'static str, &'static str)],
    /// Whose places its requests take: what a route waits for must not hold up the others.
    pub lane: Lane,
    /// How important its requests are, to the gateway and to the services behind it.
    pub priority: Criticality,
    handler: fn() -> MethodRouter<Upstreams>,
}

/// Schema of every problem+json body.
pub(super) const PROBLEM: &str = "Problem";

/// Meaning of 429.
const TOO_MANY: &str = "The customer is over its rate: wait as long as Retry-After says";

pub const ENDPOINTS: &[Endpoint] = &[
    Endpoint {
        method: "get",
        path: "/v1/products",
        operation: "listProducts",
        summary: "The catalogue",
        body: None,
        rate: None,
        paged: true,
        answers: &[
            (200, "A page of products", "Products"),
            (400, "Not a page", PROBLEM),
            (503, "Inventory is unavailable", PROBLEM),
        ],
        lane: Lane::Catalogue,
        priority: Criticality::Sheddable,
        handler: || get(api::products),
    },
    Endpoint {
        method: "post",
        path: "/v1/orders",
        operation: "placeOrder",
        summary: "Places an order. Safe to repeat with the same Idempotency-Key",
        body: Some("OrderDraft"),
        rate: Some(Rate::Orders),
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
            (429, TOO_MANY, PROBLEM),
            (503, "Unavailable, or too many orders are under way: nothing is stored, as far as known", PROBLEM),
            (504, "A service did not answer in time: repeat the request with the same key", PROBLEM),
        ],
        lane: Lane::Rest,
        priority: Criticality::CriticalPlus,
        handler: || post(api::place),
    },
    Endpoint {
        method: "get",
        path: "/v1/orders/{id}",
        operation: "showOrder",
        summary: "One order, with the parts of all services. Services that did not answer are listed in missing",
        body: None,
        rate: Some(Rate::Requests),
        paged: false,
        answers: &[
            (200, "The known parts", "OrderView"),
            (401, "No valid token", PROBLEM),
            (404, "The customer has no such order", PROBLEM),
            (429, TOO_MANY, PROBLEM),
            (503, "No service had an answer", PROBLEM),
        ],
        lane: Lane::OrderViews,
        priority: Criticality::Critical,
        handler: || get(api::show),
    },
    Endpoint {
        method: "get",
        path: "/shop/products",
        operation: "oldCatalogue",
        summary: "The old shop's catalogue, served by inventory",
        body: None,
        rate: None,
        paged: false,
        answers: &[(200, "All products in the old format", "OldCatalogue"), (503, "Unavailable", PROBLEM)],
        lane: Lane::Catalogue,
        priority: Criticality::Sheddable,
        handler: || get(strangler::route),
    },
    Endpoint {
        method: "get",
        path: "/shop/customers/{id}",
        operation: "oldCustomer",
        summary: "A customer of the old shop",
        body: None,
        rate: Some(Rate::Requests),
        paged: false,
        answers: &[
            (200, "The customer", "OldCustomer"),
            (401, "No valid token", PROBLEM),
            (404, "Not the caller", PROBLEM),
            (429, TOO_MANY, PROBLEM),
            (503, "Unavailable", PROBLEM),
        ],
        lane: Lane::OldShop,
        priority: Criticality::SheddablePlus,
        handler: || get(strangler::own_page),
    },
    Endpoint {
        method: "get",
        path: "/shop/reviews/{sku}",
        operation: "oldReviews",
        summary: "The old shop's reviews of a product",
        body: None,
        rate: None,
        paged: true,
        answers: &[
            (200, "A page of reviews", "OldReviews"),
            (400, "Not a page", PROBLEM),
            (503, "Unavailable", PROBLEM),
        ],
        lane: Lane::OldShop,
        priority: Criticality::Sheddable,
        handler: || get(strangler::route),
    },
    Endpoint {
        method: "post",
        path: "/shop/reviews/{sku}",
        operation: "addOldReview",
        summary: "Reviews a product in the old shop",
        body: Some("OldReview"),
        rate: Some(Rate::Requests),
        paged: false,
        answers: &[
            (201, "Added", "OldReviewId"),
            (401, "No valid token", PROBLEM),
            (403, "The token belongs to another customer", PROBLEM),
            (422, "Not a review", PROBLEM),
            (429, TOO_MANY, PROBLEM),
            (503, "Unavailable", PROBLEM),
        ],
        lane: Lane::OldShop,
        priority: Criticality::SheddablePlus,
        handler: || post(strangler::add_review),
    },
    Endpoint {
        method: "get",
        path: "/openapi.json",
        operation: "openapi",
        summary: "This document",
        body: None,
        rate: None,
        paged: false,
        answers: &[(200, "An OpenAPI 3.1 document", "Document")],
        lane: Lane::Document,
        priority: Criticality::Sheddable,
        handler: || get(api::document),
    },
];

pub(super) fn router(upstreams: Upstreams, tokens: &Tokens, service: &Service) -> Router {
    // Two methods of one path are two rows: axum merges them.
    let add = |router: Router<Upstreams>, endpoint: &Endpoint| {
        let route = in_lane((endpoint.handler)(), endpoint.lane, service);
        let route = match endpoint.rate {
            Some(rate) => of_customers(route, rate, tokens, service),
            None => route,
        };
        router.route(endpoint.path, route)
    };
    ENDPOINTS.iter().fold(Router::new(), add).with_state(upstreams)
}

/// The priority of a request, by its route: a shop takes orders before it shows what it has. A
/// request without a route is as unimportant as any.
pub(super) fn priority(request: &Request) -> Priority {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let method = if request.method() == Method::HEAD { "get" } else { request.method().as_str() };
    let is_called = |endpoint: &&Endpoint| Some(endpoint.path) == path && endpoint.method.eq_ignore_ascii_case(method);
    ENDPOINTS.iter().find(is_called).map_or(Criticality::Sheddable, |endpoint| endpoint.priority).into()
}
