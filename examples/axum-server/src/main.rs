//! An axum app with health, bulkhead and timeout layers, and their effect on callers.
//!
//! `cargo run -p axum-server` starts the app on a free port, calls it, prints the responses, and
//! exits.

use std::{future::pending, time::Duration};

use anyhow::ensure;
use axum::{Router, body::Body, http::Response, routing::get};
use buttress::{BulkheadLayer, Health, HealthLayer, TimeoutLayer};
use buttress_http::prelude::*;
use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{net::TcpListener, time::sleep};
use tower::ServiceBuilder;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let health = Health::new();
    let app = app(health.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, app).await });

    // An orchestrator sends traffic only once the server has started.
    show(&url, "/readyz", 503).await?;
    health.started();
    show(&url, "/readyz", 200).await?;

    show(&url, "/quick", 200).await?;
    // The response comes within the timeout, whatever the handler does.
    show(&url, "/stuck", 504).await?;

    // Three concurrent requests where the limit is two: the third is rejected at once with
    // `Retry-After`, and the other two are not affected.
    let (a, b, c) = tokio::try_join!(call(&url, "/slow"), call(&url, "/slow"), call(&url, "/slow"))?;
    let refused = [a, b, c].into_iter().filter(|answer| answer.status() == 503).collect::<Vec<_>>();
    ensure!(
        refused.len() == 1 && refused[0].headers().contains_key("retry-after"),
        "one of three is shed: {refused:?}"
    );
    println!("3 x /slow at once: 2 answered, 1 shed with Retry-After: {:?}", refused[0].headers()["retry-after"]);

    // Before it stops, a draining server fails readiness and continues to answer: traffic moves
    // away and no request fails.
    health.drain();
    show(&url, "/readyz", 503).await?;
    show(&url, "/livez", 200).await?;
    show(&url, "/quick", 200).await
}

fn app(health: Health) -> Router {
    let layers = ServiceBuilder::new()
        // Outermost, so that an overloaded server still answers liveness probes. Otherwise it would
        // be restarted under load.
        .layer(HealthLayer::new(health).http())
        // Outside the bulkhead, so that it also ends a response whose reader stops, and frees the
        // place that it holds.
        .layer(TimeoutLayer::total(Duration::from_millis(500)).http())
        // The layer owns the bulkhead's state. axum applies layers again for each connection, and
        // this limit still counts all requests.
        .layer(BulkheadLayer::new(2).http());
    Router::new()
        .route("/quick", get(|| async { "quick" }))
        .route("/slow", get(|| async { sleep(Duration::from_millis(200)).await }))
        .route("/stuck", get(pending::<()>))
        .layer(layers)
}

async fn show(url: &str, path: &str, expected: u16) -> anyhow::Result<()> {
    let answer = call(url, path).await?;
    println!("{path}: {}", answer.status());
    ensure!(answer.status() == expected, "{path} should answer {expected}");
    Ok(())
}

async fn call(url: &str, path: &str) -> anyhow::Result<Response<Body>> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    Ok(client.get(format!("{url}{path}").parse()?).await?.map(Body::new))
}
