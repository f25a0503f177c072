//! Every stack of layers in the mesh, in one place.
//!
//! Read a stack from the top: a request passes the layers in the order in which they are written, its answer passes them
//! the other way. Why this order and no other:
//!
//! ```text
//! client, outside in                           server, outside in
//!   total timeout    bounds retries and pauses   health     answers probes even when all below is full
//!   retry            each attempt is a sample    timeout    no caller waits that long; frees the place of
//!   circuit breaker    of the breaker, and                    a reader that has stopped
//!   bulkhead           holds no place while      bulkhead   refuses now what would be answered too late
//!   attempt timeout    it pauses                 faults     the demo's troublemaker, where the faults of
//!                                                           the handler would be
//! ```
//!
//! The state (circuits, places, budgets, counters) is in handles, made once and kept by whoever starts the mesh. So it
//! can be watched from there, it outlives a restart of the service, and axum may build as many copies of a stack as it
//! likes.

use std::error::Error as StdError;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
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
use buttress::metrics::Exporter;
use buttress::outcome::Outcome;
use buttress_http::ending::{HttpClient, ResponseHead};
pub use buttress_http::prelude::Health;
use buttress_http::prelude::*;
use buttress_http::tonic::StatusLayer;

use crate::network::Dialer;
use crate::problem::FAILED_DEPENDENCY;
use crate::service::{Address, Service};
use crate::telemetry::{AttemptLayer, CallLayer, Changes, observe};
use crate::{faults, problem};

/// A whole client stack for gRPC. Boxed, which costs an allocation for each call, so that the services that hold one
/// need not name all its layers; generated clients take the unboxed stack just as well.
pub type GrpcChannel = BoxCloneSyncService<Request<tonic::body::Body>, Response<tonic::body::Body>, tonic::Status>;

/// A whole client stack for HTTP.
pub type HttpChannel = BoxCloneSyncService<Request<Full<Bytes>>, Response<Body>, HttpError>;

/// What goes wrong in one: a rejection by one of the layers, or the transport's error.
pub type HttpError = buttress::Error;

/// The numbers of one client stack.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// How long one attempt may take: well above the slowest answer of a healthy service, and short enough that
    /// several fit into the total.
    attempt: Duration,
    /// How long the caller waits at all, attempts and pauses together.
    total: Duration,
    /// Attempts, the first included. More than three help nobody: they come when the other side is at its worst.
    attempts: u32,
    /// Calls in flight. By Little's law rate times latency, with room for a burst. When more are in flight the other
    /// side has become slow, and more of them would not make it faster.
    in_flight: usize,
    /// Calls that may wait for a place: enough for a burst, too few for a backlog.
    queue: usize,
    /// How long one may wait for a place. Longer than a healthy call takes, much shorter than the caller's patience.
    max_wait: Duration,
    /// How long a circuit stays open, at first and after many relapses. The defaults, 5 and 30
    /// seconds, are for production; the demo has half a minute for everything.
    open_time: (Duration, Duration),
}

/// Calls of payment and inventory: a few milliseconds of SQLite each.
const PARTICIPANT: Limits = Limits {
    attempt: Duration::from_millis(400),
    total: Duration::from_secs(2),
    attempts: 3,
    in_flight: 6,
    queue: 4,
    max_wait: Duration::from_millis(50),
    open_time: (Duration::from_millis(400), Duration::from_secs(1)),
};

/// Calls of the order service, which asks for prices (two seconds at most) and then waits for the saga (five).
const ORDER: Limits = Limits {
    attempt: Duration::from_millis(8500),
    total: Duration::from_secs(9),
    in_flight: 64,
    queue: 64,
    ..PARTICIPANT
};

/// One service as another one calls it: the handles of a client stack.
#[derive(Clone, Debug)]
pub struct Dependency {
    name: &'static str,
    /// The service that is called.
    peer: &'static str,
    limits: Limits,
    breaker: CircuitBreaker,
    bulkhead: Bulkhead,
    retry: RetryLayer,
    budget: RetryBudget,
    changes: Changes,
    /// Instead of TCP: for simulations.
    dialer: Option<Dialer>,
}

/// What a client stack has done so far.
#[derive(Clone, Copy, Debug)]
pub struct Stats {
    /// Attempts after the first.
    pub retries: u64,
    /// Calls for which the bulkhead had no place.
    pub rejected: u64,
}

impl Dependency {
    fn new(name: &'static str, limits: Limits, seed: u64) -> Result<Self, InvalidConfig> {
        let open_time = limits.open_time.0..=limits.open_time.1;
        let breaker = CircuitBreaker::builder(name).open_time(open_time).seed(seed).build()?;
        // Retries stay below a fifth of the calls (and three a second): a backend that is down must not get three times
        // its load. One budget for each destination, shared by all that call it through this handle.
        let budget = RetryBudget::builder().name(name).percent(20.0).min_per_second(3.0).burst(20).build()?;
        let retry = RetryLayer::new(limits.attempts)
            .named(name)
            .budget(budget.clone())
            .seed(seed)
            .backoff(Backoff::full_jitter(Duration::from_millis(20), Duration::from_millis(200)));
        let peer = name.rsplit(' ').next().unwrap_or(name);
        let (bulkhead, changes) = (Bulkhead::named(name, limits.in_flight), Changes::of(&breaker));
        Ok(Self { name, peer, limits, breaker, bulkhead, retry, budget, changes, dialer: None })
    }

    /// Connects over a network that is simulated.
    #[must_use]
    pub fn with_dialer(mut self, dialer: &Dialer) -> Self {
        self.dialer = Some(dialer.clone());
        self
    }

    /// A gRPC client stack.
    pub fn grpc(&self, addr: &Address) -> Result<GrpcChannel, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(addr.url())?
            // A peer that is gone without a word is noticed, even while nobody waits for it.
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(2))
            // Without it nobody looks unless a call happens to wait then, and ours wait for less than half a second.
            .keep_alive_while_idle(true);
        let channel = match &self.dialer {
            None => endpoint.connect_lazy(),
            Some(dialer) => endpoint.connect_with_connector_lazy(dialer.clone()),
        };
        let Self { limits, breaker, bulkhead, retry, .. } = self.clone();
        Ok(BoxCloneSyncService::new(
            ServiceBuilder::new()
                .map_response(|response: Response<_>| response.map(tonic::body::Body::new))
                .layer(CallLayer { name: self.name, breaker: self.breaker.clone() })
                // UNAVAILABLE, RESOURCE_EXHAUSTED or DEADLINE_EXCEEDED for what the layers below reject.
                .layer(StatusLayer)
                .layer(TimeoutLayer::total(limits.total).grpc_client())
                // Everything that payment and inventory do is safe to repeat: they are idempotent by key.
                .layer(retry.grpc_client().idempotent(|_| true))
                .layer(CircuitBreakerLayer::from(breaker).grpc_client())
                .layer(BulkheadLayer::from(bulkhead).queue(limits.queue, limits.max_wait).grpc_client())
                .layer(TimeoutLayer::attempt(limits.attempt).grpc_client())
                .layer(AttemptLayer { peer: self.peer })
                .service(channel),
        ))
    }

    /// An HTTP client stack. Repeats what its method or an `Idempotency-Key` makes safe to repeat.
    pub fn http(&self) -> HttpChannel {
        let client: Either<Client<_, Body>, Client<_, Body>> = match &self.dialer {
            None => Either::Left(Client::builder(TokioExecutor::new()).build_http()),
            Some(dialer) => Either::Right(Client::builder(TokioExecutor::new()).build(dialer.clone())),
        };
        let Self { limits, breaker, bulkhead, retry, .. } = self.clone();
        BoxCloneSyncService::new(
            ServiceBuilder::new()
                .map_response(|response: Response<_>| response.map(Body::new))
                .layer(CallLayer { name: self.name, breaker: self.breaker.clone() })
                .layer(TimeoutLayer::total(limits.total).http_client())
                .layer(retry.end(HttpClient::new().classify(blame)).map_request_body(Body::new))
                .layer(CircuitBreakerLayer::from(breaker).end(HttpClient::new().classify(blame)))
                .layer(BulkheadLayer::from(bulkhead).queue(limits.queue, limits.max_wait).http_client())
                .layer(TimeoutLayer::attempt(limits.attempt).http_client())
                .layer(AttemptLayer { peer: self.peer })
                .service(client),
        )
    }

    /// Who calls whom.
    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn breaker(&self) -> &CircuitBreaker {
        &self.breaker
    }

    /// Publishes what the stack counts.
    pub fn export(&self, exporter: &Exporter) {
        exporter.add(&self.breaker);
        exporter.circuit_breaker_calls(&self.breaker);
        exporter.add(&self.bulkhead);
        exporter.add(&self.retry.stats());
        exporter.add(&self.budget);
    }

    /// How it is doing, for people to look at.
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
            "retry": {
                "retries": retry.retries(),
                "out_of_budget": retry.out_of_budget(),
                "balance": self.budget.balance(),
            },
        })
    }

    pub fn stats(&self) -> Stats {
        Stats { retries: self.retry.stats().retries(), rejected: self.bulkhead.rejected() }
    }
}

/// Whose fault is a failure? A service that names another one is itself well: neither does a retry help, since it has
/// retried already, nor may a breaker cut it off and make one sick service two.
fn blame(head: &ResponseHead<'_>) -> Option<Outcome> {
    head.headers.contains_key(FAILED_DEPENDENCY).then_some(Outcome::Success)
}

/// The clients of the order service.
#[derive(Clone, Debug)]
pub struct OrderClients {
    pub payment: Dependency,
    pub inventory: Dependency,
}

impl OrderClients {
    /// `seed` makes the jitter of pauses repeatable.
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

/// The clients of the gateway. It has its own of payment and inventory: what customers look at takes no place away from
/// what they buy.
#[derive(Clone, Debug)]
pub struct GatewayClients {
    pub order: Dependency,
    pub payment: Dependency,
    pub inventory: Dependency,
    pub shipping: Dependency,
    pub legacy: Dependency,
}

impl GatewayClients {
    /// `seed` makes the jitter of pauses repeatable.
    pub fn new(seed: u64) -> Result<Self, InvalidConfig> {
        Ok(Self {
            order: Dependency::new("gateway -> order", ORDER, seed)?,
            payment: Dependency::new("gateway -> payment", PARTICIPANT, seed)?,
            inventory: Dependency::new("gateway -> inventory", PARTICIPANT, seed)?,
            shipping: Dependency::new("gateway -> shipping", PARTICIPANT, seed)?,
            legacy: Dependency::new("gateway -> legacy", PARTICIPANT, seed)?,
        })
    }

    pub fn all(&self) -> [&Dependency; 5] {
        [&self.order, &self.payment, &self.inventory, &self.shipping, &self.legacy]
    }
}

/// For operators' calls, which no breaker may refuse: they are about services that are in trouble.
pub fn admin_client() -> HttpChannel {
    let client: Client<_, Body> = Client::builder(TokioExecutor::new()).build_http();
    BoxCloneSyncService::new(
        ServiceBuilder::new()
            .map_response(|response: Response<_>| response.map(Body::new))
            .map_request(|request: Request<Full<Bytes>>| request.map(Body::new))
            .layer(TimeoutLayer::total(Duration::from_secs(2)).http_client())
            .service(client),
    )
}

/// Whether a call ended because its time was over.
pub fn timed_out(error: &HttpError) -> bool {
    error.rejection().is_some_and(|rejection| rejection.reason().timeout_kind().is_some())
}

/// When the layer that rejected a call wants to be asked again. Looks through tonic's and everybody's errors.
pub fn retry_after(error: &(dyn StdError + 'static)) -> Option<Duration> {
    buttress::error::find_rejection(error)?.retry_after()
}

/// The numbers and handles of one server stack.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Requests in work. What comes on top is refused at once: its sender still has time to do something else.
    pub bulkhead: Bulkhead,
    /// Longer than any caller waits, so that it only catches what nobody waits for any more.
    pub timeout: Duration,
}

impl Admission {
    pub fn new(name: &'static str) -> Self {
        Self { bulkhead: Bulkhead::named(name, 64), timeout: Duration::from_secs(10) }
    }
}

/// No order is longer, and a body that is must not fill our memory before anybody has looked at it.
const MAX_BODY: usize = 16 * 1024;

/// The stack of a REST service. `admin` is outside of it: switches must work when everything below is full or broken.
pub fn rest_server(routes: Router, admin: Router, service: &Service) -> Router {
    let Service { health, admission, faults, telemetry, .. } = service;
    let stack = ServiceBuilder::new()
        .layer(from_fn_with_state(telemetry.clone(), observe))
        // Outside the layers that refuse, so that their 503 and 504 are problems too.
        .layer(from_fn(problem::render))
        .layer(TimeoutLayer::total(admission.timeout).http())
        .layer(BulkheadLayer::from(admission.bulkhead.clone()).http())
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn_with_state(faults.clone(), faults::inject));
    let routes = routes.fallback(problem::not_found).layer(stack);
    routes.merge(admin.layer(from_fn(problem::render))).layer(HealthLayer::new(health.clone()).http())
}

/// The stack of a gRPC service, with the same [`admin`](rest_server) beside it.
pub fn grpc_server(routes: Router, admin: Router, service: &Service) -> Router {
    let Service { health, admission, faults, telemetry, .. } = service;
    let stack = ServiceBuilder::new()
        .layer(from_fn_with_state(telemetry.clone(), observe))
        .layer(TimeoutLayer::total(admission.timeout).grpc())
        .layer(BulkheadLayer::from(admission.bulkhead.clone()).grpc())
        .layer(from_fn_with_state(faults.clone(), faults::inject));
    let routes = routes.layer(stack);
    routes.merge(admin.layer(from_fn(problem::render))).layer(HealthLayer::new(health.clone()).http())
}
