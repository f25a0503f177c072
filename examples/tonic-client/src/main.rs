//! A tonic channel with timeouts, retry, a circuit breaker and a bulkhead, against a failing
//! server.
//!
//! `cargo run -p tonic-client` starts that server on a free port, calls it, prints the results, and
//! exits.

use std::sync::{Arc, atomic::AtomicU32, atomic::Ordering::Relaxed};
use std::time::Duration;

use anyhow::ensure;
use buttress::{BulkheadLayer, CircuitBreaker, CircuitBreakerLayer, RetryBudget, RetryLayer, TimeoutLayer};
use buttress_http::{prelude::*, tonic::StatusLayer};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, codegen::http::request::Parts, transport::Channel, transport::Server};
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};
use tower::ServiceBuilder;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let attempts = Arc::new(AtomicU32::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let server = Server::builder().add_service(HealthServer::new(Flaky(attempts.clone())));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    let breaker = CircuitBreaker::new("health");
    let retry = RetryLayer::new(3).budget(RetryBudget::new()); // limits retries to a small share of all calls
    let stack = ServiceBuilder::new()
        .layer(StatusLayer) // outermost: converts rejections to a Status with the right code
        .layer(TimeoutLayer::total(Duration::from_secs(2)).grpc_client())
        .layer(retry.grpc_client().idempotent(checks))
        .layer(CircuitBreakerLayer::from(breaker.clone()).grpc_client())
        .layer(BulkheadLayer::new(10).queue(20, Duration::from_millis(50)).grpc_client())
        .layer(TimeoutLayer::attempt(Duration::from_millis(500)).grpc_client())
        .service(Channel::from_shared(url)?.connect_lazy());
    let mut client = HealthClient::new(stack);
    let request = |service: &str| HealthCheckRequest { service: service.into() };

    // The first two attempts are answered UNAVAILABLE; the caller gets the third answer.
    let answer = client.check(request("flaky")).await?.into_inner();
    println!("flaky: {:?} after {} attempts", answer.status(), attempts.swap(0, Relaxed));

    // The server stays down: once the circuit is open, no more calls reach it.
    let mut refused = 0;
    for _ in 0..10 {
        let Err(status) = client.check(request("down")).await else { anyhow::bail!("it is down") };
        ensure!(status.code() == Code::Unavailable, "{status}");
        refused += u32::from(status.message().contains("circuit"));
    }
    let reached = attempts.load(Relaxed);
    println!("10 calls to a server that is down: {reached} attempts, {refused} refused, circuit {}", breaker.state());
    ensure!(reached <= 8 && refused >= 5, "the circuit did not open in time");
    Ok(())
}

/// Declares which calls are idempotent, which gRPC does not tell. Other calls are not retried once
/// the server may have acted on them.
fn checks(request: &Parts) -> bool {
    request.uri.path() == "/grpc.health.v1.Health/Check"
}

/// Answers UNAVAILABLE twice and then OK; for the service "down", always UNAVAILABLE.
struct Flaky(Arc<AtomicU32>);

#[tonic::async_trait]
impl Health for Flaky {
    type WatchStream = tokio_stream::Pending<Result<HealthCheckResponse, Status>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if self.0.fetch_add(1, Relaxed) < 2 || request.get_ref().service == "down" {
            return Err(Status::unavailable("not now"));
        }
        Ok(Response::new(HealthCheckResponse { status: 1 }))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("only check"))
    }
}
