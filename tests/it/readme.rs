//! Checks that the README's samples compile: they are in this file, line for line.

use axum::{Router, routing::post};
use std::{fs, path::Path};
use tonic::transport::Endpoint;
use tonic_health::pb::health_client::HealthClient as PaymentsClient;

#[rustfmt::skip]
#[tokio::test]
async fn the_client_of_the_readme_compiles() {
    let channel = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
use buttress_http::{prelude::*, tonic::StatusLayer};
use std::time::Duration;
use tower::ServiceBuilder;

let budget = RetryBudget::new();                                               // one for each destination, shared by all that call it
let payments = PaymentsClient::new(
    ServiceBuilder::new()
        .layer(StatusLayer)                                                    // errors as the right gRPC status
        .layer(TimeoutLayer::total(Duration::from_secs(2)).grpc_client())      // the call, all attempts and pauses included
        .layer(RetryLayer::new(3).budget(budget).grpc_client())                // what the server did not process; add `.idempotent(..)` for more
        .layer(CircuitBreakerLayer::new("payments").grpc_client())             // sees grpc-status in headers and in trailers
        .layer(BulkheadLayer::new(10).queue(20, Duration::from_millis(50)).grpc_client())
        .layer(TimeoutLayer::attempt(Duration::from_millis(500)).grpc_client())
        .service(channel),
);
    let call = async { { payments }.check(tonic_health::pb::HealthCheckRequest::default()).await };
    drop(call);
}

#[rustfmt::skip]
#[test]
fn the_server_of_the_readme_compiles() {
    use buttress_http::prelude::*;
    use std::time::Duration;
    use tower::ServiceBuilder;
    async fn create_order() {}
let health = Health::new(); // `health.started()` makes it ready
let app = Router::new().route("/orders", post(create_order)).layer(
    ServiceBuilder::new()
        .layer(HealthLayer::new(health).http())
        .layer(TimeoutLayer::total(Duration::from_secs(5)).http())
        .layer(BulkheadLayer::new(64).http()),
);
    let _: Router = app;
}

#[test]
fn the_samples_of_the_readme_are_the_ones_above() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let samples: Vec<_> = readme.split("```rust\n").skip(1).map(|rest| rest.split_once("```").unwrap().0).collect();
    assert_eq!(samples.len(), 2, "a sample came or went: compile it here");
    for sample in samples {
        assert!(include_str!("readme.rs").contains(sample), "not compiled here:\n{sample}");
    }
}

/// Checks that every link in our pages has a target file, and a heading in it if the link names
/// one.
#[test]
fn links_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut pages = vec![];
    for directory in [".", "docs", "tests/conformance", "examples/mesh", "examples/mesh/docs", "fuzz"] {
        let Ok(files) = fs::read_dir(root.join(directory)) else { continue };
        pages.extend(files.map(|file| file.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "md")));
    }
    let (mut links, mut broken) = (0, vec![]);
    for page in &pages {
        let text = fs::read_to_string(page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next()) {
            if link.starts_with("http") || link.is_empty() {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let file = if file.is_empty() { page.clone() } else { page.with_file_name(file) };
            links += 1;
            let leads = file.exists()
                && (heading.is_empty()
                    || fs::read_to_string(&file).unwrap().lines().any(|line| anchor(line) == heading));
            if !leads {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(links > 30, "only {links} links were found in {} pages", pages.len());
}

/// The anchor that GitHub generates for a heading.
fn anchor(line: &str) -> String {
    let heading = line.trim_start_matches('#').trim().to_lowercase();
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}
