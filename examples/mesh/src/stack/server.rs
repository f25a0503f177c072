//! The stacks of servers, and the places of their lanes.

use std::time::Duration;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::MethodRouter;
use buttress::bulkhead::QueuedLayer;
use buttress_http::prelude::*;
use tower::ServiceBuilder;

use super::{CustomerRate, InvalidConfig, ORDER_VIEWS, READS, Rate};
use crate::edge::upload;
use crate::gateway::authenticate;
use crate::lanes::LanesLayer;
use crate::launch::Name;
use crate::service::Service;
use crate::telemetry::observe;
use crate::token::Tokens;
use crate::{faults, problem};

/// Number of reads that wait for one of these places, and how long at most. A read takes a few
/// milliseconds, so even the last in the queue is answered in a fraction of a second. Without the
/// queue, a crowd would be refused and come back at once: refusals would take the time of answers.
const READS_QUEUED: usize = 1024;
const READS_WAIT: Duration = Duration::from_millis(500);
/// Requests that share a bulkhead, because they wait for the same. Of the gateway's routes, those
/// that call the same services are one lane.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lane {
    /// Requests that belong to no other lane: on the gateway new orders, in the other services all
    /// requests that change something.
    Rest,
    /// Reads of a service, which wait for its database only.
    Reads,
    /// The catalogue, old and new, which waits for inventory.
    Catalogue,
    /// Order views, which wait for four services, and as long as the slowest of them.
    OrderViews,
    /// The pages of the old shop, which wait for the monolith.
    OldShop,
    /// The gateway's OpenAPI document, which waits for no service.
    Document,
}

/// The configuration and handles of one server stack.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Limits the requests in progress of [`Lane::Rest`]. Excess requests are rejected at once,
    /// while the caller still has time to react.
    pub bulkhead: Bulkhead,
    /// Limit the requests in progress of the other lanes. Excess requests wait in a queue.
    lanes: Vec<(Lane, Bulkhead)>,
    /// The rates of each customer. Only the gateway knows who they are.
    rates: Vec<(Rate, CustomerRate)>,
    /// Longer than any caller's timeout, so that it only ends requests whose caller is gone.
    pub timeout: Duration,
}

impl Admission {
    /// The places of a service, in its metrics under the service's name and the lane's.
    /// `orders_per_second` is the rate of each customer, of the gateway's only.
    ///
    /// # Errors
    /// If a layer is configured wrongly.
    pub fn new(name: Name, orders_per_second: u32) -> Result<Self, InvalidConfig> {
        let lanes: &[_] = match name {
            Name::Gateway => &[
                (Lane::Catalogue, "catalogue", READS),
                (Lane::OrderViews, "order views", ORDER_VIEWS),
                (Lane::OldShop, "old shop", READS),
                (Lane::Document, "document", READS),
            ],
            _ => &[(Lane::Reads, "reads", READS)],
        };
        let rates = match name {
            Name::Gateway => {
                let [orders, requests] = CustomerRate::all(orders_per_second)?;
                vec![(Rate::Orders, orders), (Rate::Requests, requests)]
            }
            _ => Vec::new(),
        };
        let name = name.as_str();
        let named = |&(lane, of, limit): &(_, &str, _)| (lane, Bulkhead::named(format!("{name}, {of}"), limit));
        let (bulkhead, lanes) = (Bulkhead::named(name, 64), lanes.iter().map(named).collect());
        Ok(Self { bulkhead, lanes, rates, timeout: Duration::from_secs(10) })
    }

    /// The bulkhead of a lane. A lane that the service does not have belongs to [`Lane::Rest`].
    pub fn lane(&self, lane: Lane) -> &Bulkhead {
        self.lanes.iter().find(|(of, _)| *of == lane).map_or(&self.bulkhead, |(_, bulkhead)| bulkhead)
    }

    /// The bulkheads of all lanes.
    pub fn bulkheads(&self) -> impl Iterator<Item = &Bulkhead> {
        std::iter::once(&self.bulkhead).chain(self.lanes.iter().map(|(_, bulkhead)| bulkhead))
    }

    /// The rates of each customer.
    pub fn rates(&self) -> impl Iterator<Item = &CustomerRate> {
        self.rates.iter().map(|(_, rate)| rate)
    }

    fn layer(&self, lane: Lane) -> QueuedLayer {
        let (queue, max_wait) = if lane == Lane::Rest { (0, Duration::ZERO) } else { (READS_QUEUED, READS_WAIT) };
        BulkheadLayer::from(self.lane(lane).clone()).queue(queue, max_wait)
    }
}

/// Maximum size of a request body, in bytes. The largest order is smaller, also over gRPC; a larger
/// body must not be buffered.
const MAX_BODY: usize = 16 * 1024;

/// Builds the stack of a REST service.
pub fn rest_server(routes: Router, service: &Service) -> Router {
    let Service { admission, faults, .. } = service;
    let lanes = LanesLayer { reads: admission.layer(Lane::Reads).http(), writes: admission.layer(Lane::Rest).http() };
    let stack = ServiceBuilder::new().layer(lanes).layer(from_fn_with_state(faults.clone(), faults::inject));
    rest(routes.layer(stack), service)
}

/// Builds the stack of the gateway, each of whose routes is [in a lane](in_lane), and some of which are [for
/// customers](of_customers).
pub fn gateway_server(routes: Router, service: &Service) -> Router {
    rest(routes, service)
}

/// Lets the requests of a route take places of a lane.
pub fn in_lane<S>(route: MethodRouter<S>, lane: Lane, service: &Service) -> MethodRouter<S>
where
    S: Clone + Send + Sync + 'static,
{
    let Service { admission, faults, .. } = service;
    let stack = ServiceBuilder::new()
        .layer(admission.layer(lane).http())
        .layer(from_fn_with_state(faults.clone(), faults::inject));
    route.route_layer(stack)
}

/// Lets only customers use a route, each at most as often as a rate says. Outside the lane: a request
/// that is not authenticated, or over the rate, takes no place and is not forwarded. Authentication
/// is outermost, because the rate is that of the customer, and a stranger must not use it up.
pub fn of_customers<S>(route: MethodRouter<S>, rate: Rate, tokens: &Tokens, service: &Service) -> MethodRouter<S>
where
    S: Clone + Send + Sync + 'static,
{
    let authenticate = from_fn_with_state(tokens.clone(), authenticate);
    match service.admission.rates.iter().find(|(of, _)| *of == rate) {
        Some((_, limit)) => route.route_layer(ServiceBuilder::new().layer(authenticate).layer(limit.layer().http())),
        None => route.route_layer(authenticate),
    }
}

/// The layers outside the lanes. A path without a route is answered here and takes no place.
fn rest(routes: Router, service: &Service) -> Router {
    let Service { health, admission, telemetry, .. } = service;
    let stack = ServiceBuilder::new()
        .layer(from_fn_with_state(telemetry.clone(), observe))
        // Outside the rejecting layers, so that their 503 and 504 become problems too.
        .layer(from_fn(problem::render))
        .layer(from_fn_with_state(MAX_BODY, upload::read))
        .layer(TimeoutLayer::total(admission.timeout).http());
    routes.fallback(problem::not_found).layer(stack).layer(HealthLayer::new(health.clone()).http())
}

/// Builds the stack of a gRPC service.
pub fn grpc_server(routes: Router, service: &Service) -> Router {
    let Service { health, admission, faults, telemetry, .. } = service;
    let stack = ServiceBuilder::new()
        .layer(from_fn_with_state(telemetry.clone(), observe))
        .layer(from_fn_with_state(MAX_BODY, upload::read))
        .layer(TimeoutLayer::total(admission.timeout).grpc())
        .layer(LanesLayer { reads: admission.layer(Lane::Reads).grpc(), writes: admission.layer(Lane::Rest).grpc() })
        .layer(from_fn_with_state(faults.clone(), faults::inject));
    routes.layer(stack).layer(HealthLayer::new(health.clone()).http())
}
