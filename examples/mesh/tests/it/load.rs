use std::path::Path;
use std::process::{Command, Output};

use axum::Json;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use mesh::token::{self, Tokens};
use serde_json::{Value, json};

use crate::support::Shop;

/// The key of the meshes that are loaded.
const KEY: &str = "a key for tests, which is not secret";

fn load(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh"));
    command.env(token::KEY, KEY).arg("load").args(args).output().unwrap()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn count(report: &Value, outcome: &str) -> u64 {
    let outcomes = report["outcomes"].as_array().unwrap();
    outcomes.iter().find(|row| row["outcome"] == outcome).unwrap()["latency"]["count"].as_u64().unwrap()
}

/// Runs `mesh load` with these flags; returns the report, the picture and the output.
async fn measured(args: &[&str]) -> (Value, String, Output) {
    let dir = tempfile::tempdir().unwrap();
    let (json, svg) = (dir.path().join("load.json"), dir.path().join("load.svg"));
    let mut args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
    args.extend(["--json".into(), json.display().to_string(), "--svg".into(), svg.display().to_string()]);
    let run = move || load(&args.iter().map(String::as_str).collect::<Vec<_>>());
    // A test's own server needs this thread meanwhile.
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    (json_of(&json), std::fs::read_to_string(&svg).unwrap(), output)
}

#[tokio::test]
async fn a_mesh_of_its_own_is_loaded_and_audited() {
    let (report, svg, output) = measured(&["--rate", "20", "--duration", "2s"]).await;
    let (seen, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{seen}\n{said}");
    assert_eq!(report["sent"].as_u64().unwrap() + report["unsent"].as_u64().unwrap(), 40);
    let ends = ["confirmed", "cancelled", "accepted", "rejected", "failed", "timed_out"];
    assert_eq!(ends.iter().map(|end| count(&report, end)).sum::<u64>(), report["sent"].as_u64().unwrap());
    assert_eq!(report["books"]["right"], true);
    assert_eq!(report["clean_stop"], true);
    assert!(seen.contains("the books are right") && seen.contains("p99.9"), "{seen}");
    let picture = roxmltree::Document::parse(&svg).unwrap();
    assert_eq!(picture.descendants().filter(|node| node.attribute("data-mark").is_some()).count(), 5);
}

#[tokio::test]
async fn a_mesh_that_runs_already_is_loaded_by_its_url_and_places_no_key_twice() {
    let shop = Shop::open_with(|config| config.tokens = Tokens::new(KEY.as_bytes()).unwrap()).await;
    let url = shop.mesh.url(mesh::mesh::Name::Gateway);
    let again = ["--url", &url, "--rate", "20", "--orders", "10", "--keys", "again", "--seed", "7"];
    let (first, ..) = measured(&again).await;
    let (second, ..) = measured(&again).await;
    assert_eq!((first["sent"].as_u64(), first["books"].is_null()), (Some(10), true));
    assert_eq!(count(&first, "confirmed"), count(&second, "confirmed"));
    let books = shop.settled_books().await;
    assert!(books.right, "{books}");
    assert_eq!(books.confirmed + books.cancelled, 10, "the same keys are the same orders");
    shop.close().await;
}

#[tokio::test]
async fn every_kind_of_answer_is_told_apart() {
    let busy =
        || async { (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "type": "about:blank", "dependency": "order" }))) };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(axum::serve(listener, Router::new().route("/v1/orders", post(busy))).into_future());
    let (report, svg, output) = measured(&["--url", &url, "--rate", "50", "--orders", "5"]).await;
    assert!(output.status.success(), "a mesh that was not started here is not audited");
    assert_eq!((count(&report, "rejected"), report["completed"].as_u64()), (5, Some(0)));
    let rejected = report["outcomes"].as_array().unwrap().iter().find(|row| row["outcome"] == "rejected").unwrap();
    assert_eq!(rejected["reasons"], json!({ "503 Service Unavailable: order": 5 }));
    assert!(svg.contains("no order was served"));
    serving.abort();
    // Bound, but not listening: no other program can listen there.
    let deaf = tokio::net::TcpSocket::new_v4().unwrap();
    deaf.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}", deaf.local_addr().unwrap());
    let (report, ..) = measured(&["--url", &url, "--rate", "50", "--orders", "5"]).await;
    assert_eq!(count(&report, "failed"), 5);
}

#[tokio::test]
async fn a_search_finds_that_a_mesh_bears_nothing() {
    let busy = || async { (StatusCode::SERVICE_UNAVAILABLE, Json(json!({}))) };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(axum::serve(listener, Router::new().route("/v1/orders", post(busy))).into_future());
    let search = ["--url", &url, "--rate", "10", "--duration", "300ms", "--max-p99", "1s"];
    let (found, svg, output) = measured(&search).await;
    assert!(String::from_utf8_lossy(&output.stdout).contains("not even the lowest rate holds"));
    assert!(found["rate"].is_null());
    let rates: Vec<_> = found["steps"].as_array().unwrap().iter().map(|step| step["rate"].as_f64().unwrap()).collect();
    assert!(rates.len() > 1 && rates.is_sorted_by(|one, next| one > next), "down and down: {rates:?}");
    assert!(svg.contains("no order was served"));
    serving.abort();
}

#[test]
fn what_makes_no_sense_is_refused_with_the_flag_and_the_rule() {
    let refused = |args: &[&str], flag: &str, rule: &str| {
        let output = load(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(flag) && said.contains(rule), "{args:?}: {said}");
    };
    refused(&["--rate", "0"], "--rate", "between 0.01 and 100000");
    refused(&["--duration", "0s"], "--duration", "between 1ms and 24h");
    refused(&["--duration", "30"], "--duration", "a number with a unit");
    refused(&["--orders", "0"], "--orders", "1..");
    refused(&["--in-flight", "0"], "--in-flight", "between 1 and 10000");
    refused(&["--url", "localhost:8080"], "--url", "http://");
    refused(&["--url", "https://shop"], "--url", "http://");
    refused(&["--url", "http://a:1", "--postgres", "postgres://b"], "--url", "--postgres");
    refused(&["--url", "http://a:1", "--processes"], "--url", "--processes");
    refused(&["--keys", "a b"], "--keys", "printable ASCII");
    refused(&["--max-p99", "250"], "--max-p99", "a number with a unit");
    refused(&["--max-p99", "1s", "--orders", "5"], "--max-p99", "--orders");
    refused(&["--svg", "/nowhere/at/all.svg"], "svg", "cannot write");
    refused(&["--json", "/nowhere/at/all.json"], "json", "cannot write");
}
