//! Every stack of layers in the mesh.
//!
//! Read a stack from the top: a request passes the layers in the order in which they are written,
//! its response in reverse. The reasons for the order:
//!
//! ```text
//! client, outside in                           server, outside in
//!   total timeout    bounds retries and pauses   health     answers probes even when the rest is full
//!   retry            each attempt is a sample    timeout    longer than callers wait; frees the place
//!   circuit breaker    of the breaker, and                    of a client that stopped reading
//!   bulkhead           holds no place during     bulkhead   rejects now what would be answered too late
//!   attempt timeout    the pauses                faults     injected as if they were faults of the
//!                                                           handler
//! ```
//!
//! A server reads a request's body outside timeout and bulkhead: a slow upload holds no place (see
//! [`crate::edge`]). Bulkheads come in pairs, on both sides, one for reads and one for the rest
//! ([`crate::lanes`]): orders that wait for a slow payment leave places for the catalogue. Routes of
//! the gateway wait for different services, and each [`Lane`] of them has a bulkhead of its own: a
//! service that hangs fills the lanes of its callers and no others.
//!
//! The state (circuits, places, budgets, counters) is in handles, created once by the starter of
//! the mesh. So it can be observed there, it survives a restart of the service, and axum may build
//! any number of copies of a stack.

use std::error::Error as StdError;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::MethodRouter;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use tonic::transport::Endpoint;
use tower::ServiceBuilder;
use tower::util::{BoxCloneSyncService, Either};

pub use buttress::InvalidConfig;
use buttress::bulkhead::QueuedLayer;
use buttress::metrics::Exporter;
use buttress::outcome::Outcome;
use buttress_http::ending::{HttpClient, ResponseHead};
pub use buttress_http::prelude::Health;
use buttress_http::prelude::*;
use buttress_http::tonic::StatusLayer;

use crate::admin::Token;
use crate::edge::upload;
use crate::lanes::LanesLayer;
use crate::launch::Name;
use crate::network::Dialer;
use crate::problem::FAILED_DEPENDENCY;
use crate::service::{Address, Service};
use crate::telemetry::{AttemptLayer, CallLayer, Changes, observe};
use crate::{faults, problem};

/// A complete gRPC client stack. Boxed, which costs one allocation per call, so that services need
/// not name all its layers. Generated clients accept the unboxed stack as well.
pub type GrpcChannel = BoxCloneSyncService<Request<tonic::body::Body>, Response<tonic::body::Body>, tonic::Status>;

/// A complete HTTP client stack.
pub type HttpChannel = BoxCloneSyncService<Request<Full<Bytes>>, Response<Body>, HttpError>;

/// The error of an HTTP stack: a rejection by a layer, or the transport's error.
pub type HttpError = buttress::Error;

/// The configuration of one client stack.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Timeout of one attempt: well above the slowest response of a healthy service, and short
    /// enough that several attempts fit into the total.
    attempt: Duration,
    /// Timeout of the whole call, including retries and pauses.
    total: Duration,
    /// Maximum number of attempts, including the first. More than three rarely help, and they add
    /// load when the backend is at its worst.
    attempts: u32,
    /// Maximum number of calls in flight: by Little's law rate times latency, with room for a
    /// burst. If more are in flight, the backend has become slow, and more calls would not make it
    /// faster.
    in_flight: usize,
    /// Maximum number of calls waiting for a place: enough for a burst, too few for a backlog.
    queue: usize,
    /// How long a call may wait for a place. Longer than a healthy call takes, much shorter than
    /// the caller's timeout.
    max_wait: Duration,
    /// Maximum number of reads in flight, and of reads that wait for a place. As many as the
    /// caller's own server admits, so that a burst is queued or refused there, where a refusal is
    /// cheap, and not here, after half of the work.
    reads: (usize, usize),
    /// How long a circuit stays open, at first and after many failed probes. The defaults of 5 s
    /// and 30 s are for production; the whole demo takes half a minute.
    open_time: (Duration, Duration),
}

/// Number of reads that a service answers at the same time. By Little's law, 10 reads of 1 ms are
/// 10,000 a second; and on a machine that serves only 60 a second, an attempt with 10 in flight
/// still takes less than half of its timeout. With 32 it took longer, and the circuit opened.
const READS: usize = 10;
/// Number of reads that wait for one of these places, and how long at most. A read takes a few
/// milliseconds, so even the last in the queue is answered in a fraction of a second. Without the
/// queue, a crowd would be refused and come back at once: refusals would take the time of answers.
const READS_QUEUED: usize = 1024;
const READS_WAIT: Duration = Duration::from_millis(500);
/// Number of order views that the gateway answers at the same time. A view takes 5 ms if its four
/// services are healthy, which makes 1,200 a second, and at most 2.5 s if one of them stalls.
const ORDER_VIEWS: usize = 6;

/// Calls to payment and inventory, which take a few milliseconds each.
const PARTICIPANT: Limits = Limits {
    attempt: Duration::from_millis(400),
    total: Duration::from_secs(2),
    attempts: 3,
    in_flight: 6,
    queue: 4,
    max_wait: Duration::from_millis(50),
    reads: (READS, READS),
    open_time: (Duration::from_millis(400), Duration::from_secs(1)),
};

/// Calls to the order service, which fetches prices (at most 2 s) and then waits for the saga (at
/// most 5 s).
const ORDER: Limits = Limits {
    attempt: Duration::from_millis(8500),
    total: Duration::from_secs(9),
    in_flight: 64,
    queue: 64,
    ..PARTICIPANT
};

/// Calls of the gateway to inventory, for two lanes: the catalogue and the order views.
const INVENTORY: Limits = Limits { reads: (READS + ORDER_VIEWS, READS), ..PARTICIPANT };

/// The handles of one client stack: one service as called by another.
#[derive(Clone, Debug)]
pub struct Dependency {
    name: &'static str,
    /// The called service.
    peer: &'static str,
    limits: Limits,
    breaker: CircuitBreaker,
    bulkhead: Bulkhead,
    reads: Bulkhead,
    retry: RetryLayer,
    budget: RetryBudget,
    changes: Changes,
    /// Replaces TCP in simulations.
    dialer: Option<Dialer>,
}

/// Counters of a client stack.
#[derive(Clone, Copy, Debug)]
pub struct Stats {
    /// Attempts after the first.
    pub retries: u64,
    /// Calls rejected by the bulkheads.
    pub rejected: u64,
}

impl Dependency {
    fn new(name: &'static str, limits: Limits, seed: u64) -> Result<Self, InvalidConfig> {
        let open_time = limits.open_time.0..=limits.open_time.1;
        let breaker = CircuitBreaker::builder(name).open_time(open_time).seed(seed).build()?;
        // Limits retries to 20 % of the calls plus 3 per second. Otherwise a backend that is down
        // would get three times its load. One budget per destination, shared by all callers of this
        // handle.
        let budget = RetryBudget::builder().name(name).percent(20.0).min_per_second(3.0).burst(20).build()?;
        let retry = RetryLayer::new(limits.attempts)
            .named(name)
            .budget(budget.clone())
            .seed(seed)
            .backoff(Backoff::full_jitter(Duration::from_millis(20), Duration::from_millis(200)));
        let peer = name.rsplit(' ').next().unwrap_or(name);
        let (bulkhead, changes) = (Bulkhead::named(name, limits.in_flight), Changes::of(&breaker));
        let reads = Bulkhead::named(format!("{name}, reads"), limits.reads.0);
        Ok(Self { name, peer, limits, breaker, bulkhead, reads, retry, budget, changes, dialer: None })
    }

    /// Connects over a simulated network.
    #[must_use]
    pub fn with_dialer(mut self, dialer: &Dialer) -> Self {
        self.dialer = Some(dialer.clone());
        self
    }

    /// Builds a gRPC client stack.
    pub fn grpc(&self, addr: &Address) -> Result<GrpcChannel, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(addr.url())?
            // Detects a peer that disappeared without closing the connection.
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(2))
            // Without it, pings are sent only while a call waits, and calls time out after less
            // than half a second.
            .keep_alive_while_idle(true);
        let channel = match &self.dialer {
            None => endpoint.connect_lazy(),
            Some(dialer) => endpoint.connect_with_connector_lazy(dialer.clone()),
        };
        let Self { limits, breaker, bulkhead, reads, retry, .. } = self.clone();
        Ok(BoxCloneSyncService::new(
            ServiceBuilder::new()
                .map_response(|response: Response<_>| response.map(tonic::body::Body::new))
                .layer(CallLayer { name: self.name, breaker: self.breaker.clone() })
                // Converts rejections of the layers below to UNAVAILABLE, RESOURCE_EXHAUSTED or
                // DEADLINE_EXCEEDED.
                .layer(StatusLayer)
                .layer(TimeoutLayer::total(limits.total).grpc_client())
                // All calls of payment and inventory are idempotent by key.
                .layer(retry.grpc_client().idempotent(|_| true))
                .layer(CircuitBreakerLayer::from(breaker).grpc_client())
                .layer(LanesLayer {
                    reads: BulkheadLayer::from(reads).queue(limits.reads.1, limits.max_wait).grpc_client(),
                    writes: BulkheadLayer::from(bulkhead).queue(limits.queue, limits.max_wait).grpc_client(),
                })
                .layer(TimeoutLayer::attempt(limits.attempt).grpc_client())
                .layer(self.attempts())
                .service(channel),
        ))
    }

    /// Builds an HTTP client stack. Retries requests with an idempotent method or an
    /// `Idempotency-Key`.
    pub fn http(&self) -> HttpChannel {
        let client: Either<Client<_, Body>, Client<_, Body>> = match &self.dialer {
            None => Either::Left(Client::builder(TokioExecutor::new()).build_http()),
            Some(dialer) => Either::Right(Client::builder(TokioExecutor::new()).build(dialer.clone())),
        };
        let Self { limits, breaker, bulkhead, reads, retry, .. } = self.clone();
        BoxCloneSyncService::new(
            ServiceBuilder::new()
                .map_response(|response: Response<_>| response.map(Body::new))
                .layer(CallLayer { name: self.name, breaker: self.breaker.clone() })
                .layer(TimeoutLayer::total(limits.total).http_client())
                .layer(retry.end(HttpClient::new().classify(blame)).map_request_body(Body::new))
                .layer(CircuitBreakerLayer::from(breaker).end(HttpClient::new().classify(blame)))
                .layer(LanesLayer {
                    reads: BulkheadLayer::from(reads).queue(limits.reads.1, limits.max_wait).http_client(),
                    writes: BulkheadLayer::from(bulkhead).queue(limits.queue, limits.max_wait).http_client(),
                })
                .layer(TimeoutLayer::attempt(limits.attempt).http_client())
                .layer(self.attempts())
                .service(client),
        )
    }

    fn attempts(&self) -> AttemptLayer {
        AttemptLayer { caller: self.name.split(' ').next().unwrap_or(self.name), peer: self.peer }
    }

    /// Caller and callee, as `order -> payment`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn breaker(&self) -> &CircuitBreaker {
        &self.breaker
    }

    /// Registers the stack's metrics.
    pub fn export(&self, exporter: &Exporter) {
        exporter.add(&self.breaker);
        exporter.circuit_breaker_calls(&self.breaker);
        exporter.add(&self.bulkhead);
        exporter.add(&self.reads);
        exporter.add(&self.retry.stats());
        exporter.add(&self.budget);
    }

    /// The state of the stack as JSON, for the dashboard.
    pub fn describe(&self) -> serde_json::Value {
        let circuit = self.breaker.snapshot();
        let retry = self.retry.stats();
        json!({
            "name": self.name,
            "circuit": {
                "state": circuit.state.as_str(),
                "calls": circuit.counts.total(),
                "failures": circuit.counts.failures(),
                "in_a_row": circuit.consecutive_failures,
                "rejected": circuit.rejected,
                "changes": self.changes.recent(),
            },
            "bulkhead": {
                "in_flight": self.bulkhead.in_flight(),
                "waiting": self.bulkhead.waiting(),
                "limit": self.bulkhead.limit(),
                "rejected": self.bulkhead.rejected(),
            },
            "reads": {
                "in_flight": self.reads.in_flight(),
                "waiting": self.reads.waiting(),
                "limit": self.reads.limit(),
                "rejected": self.reads.rejected(),
            },
            "retry": {
                "retries": retry.retries(),
                "out_of_budget": retry.out_of_budget(),
                "balance": self.budget.balance(),
            },
        })
    }

    pub fn stats(&self) -> Stats {
        Stats { retries: self.retry.stats().retries(), rejected: self.bulkhead.rejected() + self.reads.rejected() }
    }
}

/// Classifies an error response. A service that names another one in its response works itself: a
/// retry does not help, because it has already retried, and opening the breaker would turn one
/// failing service into two.
fn blame(head: &ResponseHead<'_>) -> Option<Outcome> {
    head.headers.contains_key(FAILED_DEPENDENCY).then_some(Outcome::Success)
}

/// The client stacks of the order service.
#[derive(Clone, Debug)]
pub struct OrderClients {
    pub payment: Dependency,
    pub inventory: Dependency,
}

impl OrderClients {
    /// `seed` makes the jitter of backoff pauses repeatable.
    pub fn new(seed: u64) -> Result<Self, InvalidConfig> {
        Ok(Self {
            payment: Dependency::new("order -> payment", PARTICIPANT, seed)?,
            inventory: Dependency::new("order -> inventory", PARTICIPANT, seed)?,
        })
    }

    pub fn all(&self) -> [&Dependency; 2] {
        [&self.payment, &self.inventory]
    }
}

/// The client stacks of the gateway. Payment and inventory have stacks separate from the order
/// service's, so that reads do not take places from orders.
#[derive(Clone, Debug)]
pub struct GatewayClients {
    pub order: Dependency,
    pub payment: Dependency,
    pub inventory: Dependency,
    pub shipping: Dependency,
    pub legacy: Dependency,
}

impl GatewayClients {
    /// `seed` makes the jitter of backoff pauses repeatable.
    pub fn new(seed: u64) -> Result<Self, InvalidConfig> {
        Ok(Self {
            order: Dependency::new("gateway -> order", ORDER, seed)?,
            payment: Dependency::new("gateway -> payment", PARTICIPANT, seed)?,
            inventory: Dependency::new("gateway -> inventory", INVENTORY, seed)?,
            shipping: Dependency::new("gateway -> shipping", PARTICIPANT, seed)?,
            legacy: Dependency::new("gateway -> legacy", PARTICIPANT, seed)?,
        })
    }

    pub fn all(&self) -> [&Dependency; 5] {
        [&self.order, &self.payment, &self.inventory, &self.shipping, &self.legacy]
    }
}

/// A client for operators' calls. Without a breaker, because they must reach failing services.
pub fn admin_client(token: Option<Token>) -> HttpChannel {
    let client: Client<_, Body> = Client::builder(TokioExecutor::new()).build_http();
    let header = token.map(|token| token.header());
    BoxCloneSyncService::new(
        ServiceBuilder::new()
            .map_response(|response: Response<_>| response.map(Body::new))
            .map_request(move |request: Request<Full<Bytes>>| {
                let mut request = request.map(Body::new);
                if let Some(header) = &header {
                    request.headers_mut().insert(http::header::AUTHORIZATION, header.clone());
                }
                request
            })
            .layer(TimeoutLayer::total(Duration::from_secs(2)).http_client())
            .service(client),
    )
}

/// Whether a call ended with a timeout.
pub fn timed_out(error: &HttpError) -> bool {
    error.rejection().is_some_and(|rejection| rejection.reason().timeout_kind().is_some())
}

/// Returns the `Retry-After` of the layer that rejected a call. Searches the source chain,
/// including tonic's errors.
pub fn retry_after(error: &(dyn StdError + 'static)) -> Option<Duration> {
    buttress::error::find_rejection(error)?.retry_after()
}

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
    /// Longer than any caller's timeout, so that it only ends requests whose caller is gone.
    pub timeout: Duration,
}

impl Admission {
    /// The places of a service, in its metrics under the service's name and the lane's.
    pub fn new(name: Name) -> Self {
        let lanes: &[_] = match name {
            Name::Gateway => &[
                (Lane::Catalogue, "catalogue", READS),
                (Lane::OrderViews, "order views", ORDER_VIEWS),
                (Lane::OldShop, "old shop", READS),
                (Lane::Document, "document", READS),
            ],
            _ => &[(Lane::Reads, "reads", READS)],
        };
        let name = name.as_str();
        let named = |&(lane, of, limit): &(_, &str, _)| (lane, Bulkhead::named(format!("{name}, {of}"), limit));
        let (bulkhead, lanes) = (Bulkhead::named(name, 64), lanes.iter().map(named).collect());
        Self { bulkhead, lanes, timeout: Duration::from_secs(10) }
    }

    /// The bulkhead of a lane. A lane that the service does not have belongs to [`Lane::Rest`].
    pub fn lane(&self, lane: Lane) -> &Bulkhead {
        self.lanes.iter().find(|(of, _)| *of == lane).map_or(&self.bulkhead, |(_, bulkhead)| bulkhead)
    }

    /// The bulkheads of all lanes.
    pub fn bulkheads(&self) -> impl Iterator<Item = &Bulkhead> {
        std::iter::once(&self.bulkhead).chain(self.lanes.iter().map(|(_, bulkhead)| bulkhead))
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

/// Builds the stack of the gateway, each of whose routes is [in a lane](in_lane).
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

#[cfg(test)]
mod tests {
    use buttress::policy::Policy;
    use tower::ServiceExt;

    use super::*;
    use crate::mesh::PATIENCE;

    #[test]
    fn every_timeout_leaves_time_for_those_inside_it() {
        for limits in [PARTICIPANT, ORDER] {
            assert!(limits.attempt < limits.total && limits.max_wait < limits.attempt, "{limits:?}");
        }
        // Three attempts with their pauses.
        assert!(PARTICIPANT.attempt * PARTICIPANT.attempts < PARTICIPANT.total);
        // The order service fetches prices and waits for the saga.
        assert!(PARTICIPANT.total + PATIENCE < ORDER.attempt);
        assert!(ORDER.total < Admission::new(Name::Order).timeout, "the caller gives up first");
    }

    /// A call to a port on which no socket listens.
    async fn refused(dependency: &Dependency) -> HttpError {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::from(listener.local_addr().unwrap());
        drop(listener);
        let request = Request::get(address.url()).body(Full::default()).unwrap();
        dependency.http().oneshot(request).await.unwrap_err()
    }

    #[tokio::test]
    async fn the_numbers_of_a_client_stack_are_told_apart() {
        let dependency = Dependency::new("order -> payment", PARTICIPANT, 1).unwrap();
        assert_eq!((dependency.name(), dependency.peer), ("order -> payment", "payment"));
        assert!(!timed_out(&refused(&dependency).await));
        // An attempt and two retries, none of them rejected.
        let held = dependency.bulkhead.admit("a call").unwrap();
        let Stats { retries, rejected } = dependency.stats();
        assert_eq!((retries, rejected), (2, 0));
        let shown = dependency.describe();
        assert_eq!(shown["name"], "order -> payment");
        assert_eq!(shown["circuit"]["state"], "closed");
        assert_eq!((&shown["circuit"]["calls"], &shown["circuit"]["failures"]), (&json!(3), &json!(3)));
        assert_eq!((&shown["circuit"]["in_a_row"], &shown["circuit"]["rejected"]), (&json!(3), &json!(0)));
        let bulkhead = json!({ "in_flight": 1, "waiting": 0, "limit": 6, "rejected": 0 });
        assert_eq!(shown["bulkhead"], bulkhead);
        assert_eq!((&shown["retry"]["retries"], &shown["retry"]["out_of_budget"]), (&json!(2), &json!(0)));
        assert!(shown["retry"]["balance"].as_f64().unwrap() > 0.0);
        drop(held);

        dependency.breaker.open_for(Duration::from_secs(5));
        let error = refused(&dependency).await;
        assert!(retry_after(&error).is_some() && !timed_out(&error));
        let shown = dependency.describe();
        assert_eq!((&shown["circuit"]["state"], &shown["circuit"]["rejected"]), (&json!("open"), &json!(1)));
        assert_eq!(shown["circuit"]["changes"][0]["to"], "open");
    }
}
