//! The stacks of servers.

use axum::Router;
use axum::extract::Request;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::MethodRouter;
use buttress::policy::Priority;
use buttress_http::prelude::*;
use tower::ServiceBuilder;

use super::admission::{Lane, Rate};
use crate::edge::upload;
use crate::gateway::authenticate;
use crate::lanes::LanesLayer;
use crate::service::Service;
use crate::telemetry::observe;
use crate::token::Tokens;
use crate::{faults, problem};

/// Maximum size of a request body, in bytes. The largest order is smaller, also over gRPC; a larger
/// body must not be buffered.
const MAX_BODY: usize = 16 * 1024;

/// Builds the stack of a REST service behind the gateway.
pub fn rest_server(routes: Router, service: &Service) -> Router {
    let Service { health, admission, faults, telemetry, .. } = service;
    let lanes =
        LanesLayer { reads: admission.bulkhead(Lane::Reads).http(), writes: admission.bulkhead(Lane::Rest).http() };
    let inside = ServiceBuilder::new().layer(lanes).layer(from_fn_with_state(faults.clone(), faults::inject));
    let stack = ServiceBuilder::new()
        .layer(HealthLayer::new(health.clone()).http())
        // Only services of the mesh reach this one, and the gateway drops what strangers claim.
        .layer(ContextLayer::new().trust_priority().http())
        .layer(from_fn_with_state(telemetry.clone(), observe))
        // Outside the rejecting layers, so that their 503 and 504 become problems too.
        .layer(from_fn(problem::render))
        .layer(from_fn_with_state(MAX_BODY, upload::read))
        .layer(TimeoutLayer::total(admission.timeout).http());
    // A path without a route is answered outside the lanes and takes no place.
    routes.layer(inside).fallback(problem::not_found).layer(stack)
}

/// Builds the stack of a gRPC service: payment and inventory.
pub fn grpc_server(routes: Router, service: &Service) -> Router {
    let Service { health, admission, faults, telemetry, .. } = service;
    let stack = ServiceBuilder::new()
        .layer(HealthLayer::new(health.clone()).http())
        .layer(ContextLayer::new().trust_priority().grpc())
        .layer(from_fn_with_state(telemetry.clone(), observe))
        .layer(from_fn_with_state(MAX_BODY, upload::read))
        .layer(TimeoutLayer::total(admission.timeout).grpc())
        .layer(LanesLayer {
            reads: admission.adaptive(Lane::Reads).grpc(),
            writes: admission.adaptive(Lane::Rest).grpc(),
        })
        .layer(from_fn_with_state(faults.clone(), faults::inject));
    routes.layer(stack)
}

/// Builds the stack of the gateway, each of whose routes is [in a lane](in_lane), and some of which
/// are [for customers](of_customers). `priority` is that of a request's route.
pub fn gateway_server(routes: Router, priority: fn(&Request) -> Priority, service: &Service) -> Router {
    let Service { health, admission, telemetry, .. } = service;
    admission.watch_scheduler();
    let stack = ServiceBuilder::new()
        .layer(HealthLayer::new(health.clone()).http())
        // The route decides, and not a header: anyone can send one. Without `trust_priority` the
        // header is removed as well.
        .layer(ContextLayer::new().priority_by(move |request: &Request| Some(priority(request))).http())
        .layer(from_fn_with_state(telemetry.clone(), observe))
        .layer(from_fn(problem::render))
        // Before the body is read: what is shed costs next to nothing.
        .layer(admission.load_shed().http())
        .layer(from_fn_with_state(MAX_BODY, upload::read))
        .layer(TimeoutLayer::total(admission.timeout).http());
    routes.fallback(problem::not_found).layer(stack)
}

/// Lets only customers use a route, each at most as often as a rate says. Outside the lane: a
/// request that is not authenticated, or over the rate, takes no place and is not forwarded.
/// Authentication is outermost, because the rate is that of the customer, and a stranger must not
/// use it up.
pub fn of_customers<S>(route: MethodRouter<S>, rate: Rate, tokens: &Tokens, service: &Service) -> MethodRouter<S>
where
    S: Clone + Send + Sync + 'static,
{
    let authenticate = from_fn_with_state(tokens.clone(), authenticate);
    match service.admission.rate(rate) {
        Some(limit) => route.route_layer(ServiceBuilder::new().layer(authenticate).layer(limit.layer().http())),
        None => route.route_layer(authenticate),
    }
}

/// Lets the requests of a route take places of a lane.
pub fn in_lane<S>(route: MethodRouter<S>, lane: Lane, service: &Service) -> MethodRouter<S>
where
    S: Clone + Send + Sync + 'static,
{
    let Service { admission, faults, .. } = service;
    let stack = ServiceBuilder::new()
        .layer(admission.bulkhead(lane).http())
        .layer(from_fn_with_state(faults.clone(), faults::inject));
    route.route_layer(stack)
}
