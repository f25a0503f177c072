//! A hyper-util client with two timeouts, retry and a circuit breaker, against a failing server.
//!
//! `cargo run -p hyper-client` starts that server on a free port, calls it, prints the results, and
//! exits.

use std::sync::{Arc, atomic::AtomicU32, atomic::Ordering::Relaxed};
use std::{future::pending, time::Duration};

use anyhow::ensure;
use axum::{Router, http::Request, http::StatusCode, routing::get};
use buttress::{Backoff, CircuitBreaker, CircuitBreakerLayer, RetryBudget, RetryLayer, TimeoutLayer};
use buttress_http::prelude::*;
use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::net::TcpListener;
use tower::{ServiceBuilder, ServiceExt};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let hits = Arc::new(AtomicU32::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let server = server(hits.clone());
    tokio::spawn(async move { axum::serve(listener, server).await });

    let breaker = CircuitBreaker::new("server");
    let retry = RetryLayer::new(3)
        .budget(RetryBudget::new()) // limits retries to a small share of all calls
        .backoff(Backoff::full_jitter(Duration::from_millis(10), Duration::from_millis(100)));
    let client = ServiceBuilder::new()
        .layer(TimeoutLayer::total(Duration::from_secs(2)).http_client())
        .layer(retry.http_client())
        // Inside retry: every attempt is a sample, and an open circuit ends the retrying.
        .layer(CircuitBreakerLayer::from(breaker.clone()).http_client())
        .layer(TimeoutLayer::attempt(Duration::from_millis(200)).http_client())
        .service(Client::builder(TokioExecutor::new()).build_http());
    let request = |path: &str| Request::get(format!("{url}{path}")).body(Empty::<Bytes>::new());

    // Two attempts fail and one hangs. The retries hide that from the caller.
    let answer = client.clone().oneshot(request("/flaky")?).await?;
    println!("/flaky: {} after {} attempts", answer.status(), hits.swap(0, Relaxed));
    ensure!(answer.status() == StatusCode::OK);

    // The server is down: once the circuit is open, no more calls reach it.
    let mut refused = 0;
    for _ in 0..10 {
        match client.clone().oneshot(request("/down")?).await {
            Ok(answer) => ensure!(answer.status() == StatusCode::INTERNAL_SERVER_ERROR),
            Err(buttress::Error::Rejected(rejection)) => {
                refused += 1;
                println!("/down: {rejection}");
            }
            Err(error) => return Err(error.into()),
        }
    }
    let reached = hits.load(Relaxed);
    println!(
        "10 calls to /down: {reached} attempts reached the server, {refused} calls were refused, circuit {}",
        breaker.state()
    );
    ensure!(reached <= 5 && refused >= 5, "the circuit did not open in time");
    Ok(())
}

fn server(hits: Arc<AtomicU32>) -> Router {
    let down = hits.clone();
    let flaky = async move || match hits.fetch_add(1, Relaxed) {
        0 => StatusCode::SERVICE_UNAVAILABLE,
        1 => pending().await,
        _ => StatusCode::OK,
    };
    let down = async move || (down.fetch_add(1, Relaxed), StatusCode::INTERNAL_SERVER_ERROR).1;
    Router::new().route("/flaky", get(flaky)).route("/down", get(down))
}
