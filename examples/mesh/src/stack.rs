//! Every stack of layers in the mesh, in one place.
//!
//! Read a stack from the top: a request passes the layers in the order they are written, its answer passes them the
//! other way. Why this order and no other:
//!
//! ```text
//! client                                   server
//!   total timeout     bounds the retries     health      answers probes even when everything below is full
//!   retry             each attempt is one    bulkhead    refuses early what would be answered too late
//!   circuit breaker     sample of the        timeout     nobody waits that long anyway
//!   bulkhead            breaker, and holds   faults      the demo's troublemaker, where the handler's faults would be
//!   attempt timeout     no place in a pause
//! ```
//!
//! All state (circuits, places, budgets, counters) is in handles, made once and kept by whoever starts the mesh. So it
//! outlives a restart of the service behind it, a test can look at it, and axum may build as many copies of a stack as
//! it likes.

use std::error::Error as StdError;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use bytes::Bytes;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::util::BoxCloneSyncService;
use tower::{ServiceBuilder, ServiceExt};

pub use buttress::{Health, InvalidConfig};
use buttress::{Backoff, Bulkhead, BulkheadLayer, CircuitBreaker, CircuitBreakerLayer, Failure, FailureKind, HealthLayer, Outcome, Reason, RetryBudget, RetryLayer, TimeoutLayer, observe};

use crate::service::{Service, url};
use crate::{faults, problem};

pub type GrpcChannel = BoxCloneSyncService<http::Request<tonic::body::Body>, http::Response<tonic::body::Body>, tonic::Status>;
pub type HttpError = buttress::Error;
pub type HttpChannel = BoxCloneSyncService<http::Request<Full<Bytes>>, http::Response<Body>, HttpError>;

#[derive(Clone, Copy, Debug)]
struct Probes;
impl<B> buttress::health::Answer<http::Request<B>, axum::response::Response> for Probes {
    fn answer(&self, request: &http::Request<B>, health: &Health) -> Option<axum::response::Response> {
        use buttress::health::Probe;
        let probe = match request.uri().path() { "/livez" => Probe::Liveness, "/readyz" => Probe::Readiness, "/startupz" => Probe::Startup, _ => return None };
        let ok = health.status(probe).is_serving();
        Some(axum::response::IntoResponse::into_response(if ok { http::StatusCode::OK } else { http::StatusCode::SERVICE_UNAVAILABLE }))
    }
}

#[derive(Clone, Debug)]
pub struct Admission { bulkhead: Bulkhead }
impl Admission { pub fn new(name: &'static str) -> Self { Self { bulkhead: Bulkhead::named(name, 64) } } }

/// The numbers of one client stack.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// How long one attempt may take. Well above the slowest answer of a healthy service, and short enough for
    /// several attempts within the total.
    attempt: Duration,
    /// How long the caller waits at all.
    total: Duration,
    /// Attempts, the first included.
    attempts: u32,
    /// Calls in flight. By Little's law rate times latency, with some room: more than that in flight means that the
    /// other side is slow, and then waiting in line does not make it faster.
    in_flight: usize,
    /// Calls that may wait for a place: a burst, not a backlog.
    queue: usize,
    /// How long one may wait for a place.
    max_wait: Duration,
    /// How long an open circuit stays open, at first and at most.
    open_time: (Duration, Duration),
}

#[derive(Clone, Debug)]
pub struct Dependency { pub name: &'static str, limits: Limits, breaker: CircuitBreaker, bulkhead: Bulkhead, budget: RetryBudget, retry: RetryLayer }
#[derive(Clone, Debug, Default)]
pub struct Stats { pub retries: u64, pub rejected: u64 }

impl Dependency {
    fn new(name: &'static str, limits: Limits) -> Result<Self, InvalidConfig> {
        let breaker = CircuitBreaker::builder(name).open_time(limits.open_time.0..=limits.open_time.1).build()?;
        let budget = RetryBudget::new();
        let retry = RetryLayer::new(limits.attempts).budget(budget.clone()).backoff(Backoff::full_jitter(Duration::from_millis(20), Duration::from_millis(200)));
        Ok(Self { name, limits, breaker, bulkhead: Bulkhead::named(name, limits.in_flight), budget, retry })
    }
    pub fn grpc(&self, addr: SocketAddr) -> GrpcChannel {
        let channel = tonic::transport::Endpoint::from_shared(url(addr)).unwrap().connect_lazy();
        let classify = |result: Result<&http::Response<tonic::body::Body>, &buttress::Error>| match result {
            Ok(response) if response.headers().get("grpc-status").is_none_or(|code| code == "0" || code == "5") => Outcome::Success,
            _ => Failure::new(FailureKind::Application).into(),
        };
        BoxCloneSyncService::new(ServiceBuilder::new()
            .map_err(status)
            .layer(TimeoutLayer::total(self.limits.total))
            .layer(CircuitBreakerLayer::from(self.breaker.clone()).observe(observe::classify(classify)))
            .layer(BulkheadLayer::from(self.bulkhead.clone()).queue(self.limits.queue, self.limits.max_wait))
            .layer(TimeoutLayer::attempt(self.limits.attempt))
            .service(channel))
    }
    pub fn http(&self, _addr: SocketAddr) -> HttpChannel {
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        BoxCloneSyncService::new(ServiceBuilder::new()
            .layer(TimeoutLayer::total(self.limits.total))
            .layer(CircuitBreakerLayer::from(self.breaker.clone()))
            .layer(BulkheadLayer::from(self.bulkhead.clone()).queue(self.limits.queue, self.limits.max_wait))
            .layer(TimeoutLayer::attempt(self.limits.attempt))
            .service(client.map_response(|r: http::Response<_>| r.map(Body::new))))
    }
    pub fn stats(&self) -> Stats { Stats { retries: self.retry.stats().retries(), rejected: self.bulkhead.rejected() } }
    pub fn breaker(&self) -> &CircuitBreaker { &self.breaker }
    pub fn budget(&self) -> &RetryBudget { &self.budget }
}

fn status(error: buttress::Error) -> tonic::Status {
    let code = match error.rejection().map(|r| r.reason()) {
        Some(Reason::TimedOut(_)) => tonic::Code::DeadlineExceeded,
        Some(Reason::CircuitOpen | Reason::ProbesExhausted | Reason::ForcedOpen) => tonic::Code::Unavailable,
        Some(_) => tonic::Code::ResourceExhausted,
        None => return tonic::Status::from_error(Box::new(error)),
    };
    let mut status = tonic::Status::new(code, error.to_string());
    status.set_source(std::sync::Arc::new(error));
    status
}

const PARTICIPANT: Limits = Limits {
    attempt: Duration::from_millis(400),
    total: Duration::from_secs(2),
    attempts: 3,
    in_flight: 6,
    queue: 4,
    max_wait: Duration::from_millis(50),
    open_time: (Duration::from_millis(500), Duration::from_secs(2)),
};

/// The clients of the order service.
#[derive(Clone, Debug)]
pub struct OrderClients { pub payment: Dependency, pub inventory: Dependency }
impl OrderClients {
    pub fn new() -> Result<Self, InvalidConfig> {
        Ok(Self { payment: Dependency::new("payment", PARTICIPANT)?, inventory: Dependency::new("inventory", PARTICIPANT)? })
    }
}
/// The clients of the gateway.
#[derive(Clone, Debug)]
pub struct GatewayClients { pub order: Dependency, pub payment: Dependency, pub inventory: Dependency }
impl GatewayClients {
    pub fn new() -> Result<Self, InvalidConfig> {
        let order = Limits { attempt: Duration::from_secs(9), total: Duration::from_secs(10), in_flight: 64, ..PARTICIPANT };
        Ok(Self { order: Dependency::new("order", order)?, payment: Dependency::new("payment", PARTICIPANT)?, inventory: Dependency::new("inventory", PARTICIPANT)? })
    }
}

/// Whether a call ended because its time was over.
pub fn timed_out(error: &HttpError) -> bool {
    error.rejection().is_some_and(|rejection| matches!(rejection.reason(), Reason::TimedOut(_)))
}

/// When a rejecting layer wants to be asked again.
pub fn retry_after(error: &(dyn StdError + 'static)) -> Option<Duration> {
    buttress::error::find_rejection(error)?.retry_after()
}

pub fn rest_server(routes: Router, service: &Service) -> Router {
    routes.fallback(problem::not_found)
        .layer(from_fn_with_state(service.faults.clone(), faults::inject))
        .layer(DefaultBodyLimit::max(16 * 1024))
        .layer(from_fn(problem::render))
        .layer(HealthLayer::new(service.health.clone()).answer(Probes))
}
pub fn grpc_server(routes: Router, service: &Service) -> Router {
    routes
        .layer(from_fn_with_state(service.faults.clone(), faults::inject))
        .layer(HealthLayer::new(service.health.clone()).answer(Probes))
}
