//! A reqwest client with two timeouts, retry and a circuit breaker, against a failing server.
//! Requests and responses keep reqwest's types.
//!
//! `cargo run -p reqwest-client` starts that server on a free port, calls it, prints the results,
//! and exits.

use std::sync::{Arc, atomic::AtomicU32, atomic::Ordering::Relaxed};
use std::{future::pending, time::Duration};

use anyhow::{anyhow, ensure};
use axum::{Router, http, http::StatusCode, routing::post, routing::put};
use buttress::{Backoff, CircuitBreaker, CircuitBreakerLayer, Error, RetryBudget, RetryLayer, TimeoutLayer};
use buttress_http::{prelude::*, reqwest::ReqwestService};
use tokio::net::TcpListener;
use tower::{ServiceBuilder, ServiceExt};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let hits = Arc::new(AtomicU32::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let server = server(hits.clone());
    tokio::spawn(async move { axum::serve(listener, server).await });

    // A client that neither retries requests nor follows redirects: the stack does and counts both.
    let client = ReqwestService::build(
        reqwest::Client::builder()
            .no_proxy() // the server is on this machine
            .connect_timeout(Duration::from_millis(100)), // a connect error was never sent, so it is retried
    )?;
    let reqwest = client.get_ref().clone();
    let breaker = CircuitBreaker::new("server");
    let retry = RetryLayer::new(3)
        .budget(RetryBudget::new()) // limits retries to a small share of all calls
        .backoff(Backoff::full_jitter(Duration::from_millis(10), Duration::from_millis(100)));
    let stack = ServiceBuilder::new()
        // Accepts and returns reqwest's types. Without these two lines the stack uses the types of
        // `http`.
        .map_response(|response: http::Response<_>| reqwest::Response::from(response.map(reqwest::Body::wrap)))
        .map_request(|request| http::Request::try_from(request).expect("the URLs here are URIs"))
        .layer(TimeoutLayer::total(Duration::from_secs(2)).http_client())
        .layer(retry.http_client())
        // Inside retry: every attempt is a sample, and an open circuit ends the retrying.
        .layer(CircuitBreakerLayer::from(breaker.clone()).http_client())
        .layer(TimeoutLayer::attempt(Duration::from_millis(200)).http_client())
        .service(client);

    // Two attempts fail and one hangs. The retries hide that from the caller: PUT is idempotent.
    let request = reqwest.put(format!("{url}/flaky")).bearer_auth("secret").body("a transfer").build()?;
    let answer = stack.clone().oneshot(request).await?.error_for_status()?;
    let (status, text) = (answer.status(), answer.text().await?);
    println!("PUT /flaky: {status}, {text:?}, after {} attempts", hits.swap(0, Relaxed));
    ensure!(text == "got a transfer");

    // A POST that got a response may have had an effect, so it is not retried.
    let answer = stack.clone().oneshot(reqwest.post(format!("{url}/down")).build()?).await?;
    println!("POST /down: {} after {} attempt", answer.status(), hits.load(Relaxed));
    ensure!(hits.swap(0, Relaxed) == 1);

    // The server is down: once the circuit is open, no more calls reach it.
    let mut refused = 0;
    for _ in 0..10 {
        match stack.clone().oneshot(reqwest.put(format!("{url}/down")).build()?).await {
            Ok(answer) => ensure!(answer.status() == StatusCode::INTERNAL_SERVER_ERROR),
            Err(Error::Rejected(rejection)) => {
                refused += 1;
                println!("PUT /down: {rejection}");
            }
            // The error is reqwest's; `downcast` finds it.
            Err(Error::Inner(error)) => return Err(anyhow::Error::from_boxed(error)),
            Err(error) => return Err(anyhow!(error)),
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
    let flaky = async move |body: String| match hits.fetch_add(1, Relaxed) {
        0 => (StatusCode::SERVICE_UNAVAILABLE, "not now".into()),
        1 => pending().await,
        _ => (StatusCode::OK, format!("got {body}")),
    };
    let down = async move || (down.fetch_add(1, Relaxed), StatusCode::INTERNAL_SERVER_ERROR).1;
    Router::new().route("/flaky", put(flaky)).route("/down", post(down.clone()).put(down))
}
