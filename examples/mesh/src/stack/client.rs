//! The stack of one service as called by another.

use std::time::Duration;

use axum::body::Body;
use buttress::InvalidConfig;
use buttress::metrics::Exporter;
use buttress::outcome::Outcome;
use buttress_http::ending::{HttpClient, ResponseHead};
use buttress_http::prelude::*;
use buttress_http::tonic::StatusLayer;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use tonic::transport::Endpoint;
use tower::ServiceBuilder;
use tower::util::{BoxCloneSyncService, Either};

use super::{ORDER_VIEWS, READS};
use crate::lanes::LanesLayer;
use crate::network::Dialer;
use crate::problem::FAILED_DEPENDENCY;
use crate::service::Address;
use crate::telemetry::{AttemptLayer, CallLayer, Changes};

/// A complete gRPC client stack. Boxed, which costs one allocation per call, so that services need
/// not name all its layers. Generated clients accept the unboxed stack as well.
pub type GrpcChannel = BoxCloneSyncService<Request<tonic::body::Body>, Response<tonic::body::Body>, tonic::Status>;

/// A complete HTTP client stack.
pub type HttpChannel = BoxCloneSyncService<Request<Full<Bytes>>, Response<Body>, HttpError>;

/// The error of an HTTP stack: a rejection by a layer, or the transport's error.
pub type HttpError = buttress::Error;

/// The configuration of one client stack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
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

/// Calls to payment and inventory, which take a few milliseconds each.
pub(super) const PARTICIPANT: Limits = Limits {
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
pub(super) const ORDER: Limits = Limits {
    attempt: Duration::from_millis(8500),
    total: Duration::from_secs(9),
    in_flight: 64,
    queue: 64,
    ..PARTICIPANT
};

/// Calls of the gateway to inventory, for two lanes: the catalogue and the order views.
pub(super) const INVENTORY: Limits = Limits { reads: (READS + ORDER_VIEWS, READS), ..PARTICIPANT };

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
    pub(super) fn new(name: &'static str, limits: Limits, seed: u64) -> Result<Self, InvalidConfig> {
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
                // Writes the priority of the call that is being served, for the called service.
                // Outside all that may reject by it.
                .layer(ContextLayer::new().grpc_client())
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
                .layer(ContextLayer::new().http_client())
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

#[cfg(test)]
mod tests;
