//! Checks that the samples on our pages compile: they are in this file, line for line, unless a
//! page is included in a doctest.

use axum::{Router, routing::post};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};
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

#[rustfmt::skip]
#[tokio::test]
async fn the_call_that_names_its_request_compiles() {
    use http::Request;
    use http_body_util::Full;
    use hyper::body::Bytes;
    use tower::ServiceExt;
    let service = tower::service_fn(async |request: Request<Full<Bytes>>| Ok::<_, std::convert::Infallible>(request));
    let request = Request::new(Full::default());
    let call =
ServiceExt::<Request<Full<Bytes>>>::oneshot(service, request)
    ;
    call.await.unwrap();
}

#[rustfmt::skip]
#[test]
fn the_check_of_traffic_compiles() {
    use buttress_http::prelude::*;
    use buttress_test::traffic::Traffic;
    let _check = || {
Traffic::through("payments client", || CircuitBreakerLayer::new("payments").http_client())
    .opens()        // what it promises
    .check();       // every row that applies
    };
}

/// The folders with pages, apart from those of the crates.
const FOLDERS: [&str; 6] = [".", "docs", "tests/conformance", "examples/mesh", "examples/mesh/docs", "fuzz"];

/// The pages in a folder.
fn pages(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).into_iter().flatten().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

/// The pages that a library includes in its documentation, whose samples are doctests.
fn included(library: &Path) -> Vec<PathBuf> {
    let source = fs::read_to_string(library.join("src/lib.rs")).unwrap();
    let names = source.split("doc = include_str!(\"").skip(1).map(|rest| rest.split('"').next().unwrap());
    names.map(|name| library.join("src").join(name).canonicalize().unwrap()).collect()
}

#[test]
fn every_sample_on_our_pages_is_compiled() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().canonicalize().unwrap();
    let crates: Vec<_> = fs::read_dir(root.join("crates")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let folders = FOLDERS.map(|folder| root.join(folder));
    let pages = folders.iter().chain(&crates).flat_map(|folder| pages(folder));
    let pages: BTreeSet<_> = pages.map(|page| page.canonicalize().unwrap()).collect();
    let doctests: Vec<_> = crates.iter().chain([&root.join("tests")]).flat_map(|library| included(library)).collect();
    let (mut samples, mut included) = (0, 0);
    for page in pages {
        if doctests.contains(&page) {
            included += 1;
            continue;
        }
        let text = fs::read_to_string(&page).unwrap();
        for sample in text.split("```rust").skip(1) {
            let sample = sample.split_once('\n').unwrap().1.split_once("```").unwrap().0;
            let page = page.display();
            assert!(include_str!("readme.rs").contains(sample), "{page}: not compiled here:\n{sample}");
            samples += 1;
        }
    }
    assert!(samples >= 4 && included >= 6, "only {samples} samples and {included} pages with doctests were found");
}

/// Checks that every link in our pages has a target file, and a heading in it if the link names
/// one.
#[test]
fn links_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let pages: Vec<_> = FOLDERS.iter().flat_map(|folder| pages(&root.join(folder))).collect();
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
