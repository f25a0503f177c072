use std::path::Path;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use mesh::mesh::{Config, Name};
use mesh::telemetry::TraceConfig;
use serde_json::{Value, json};

use crate::browser::visit;
use crate::support::{Shop, tea, until};

/// Enables the admin endpoints, and samples every span.
pub(crate) fn observed(config: &mut Config) {
    config.admin = true;
    config.telemetry.traces = Some(TraceConfig { endpoints: vec![], sample: 1.0 });
}

#[tokio::test(flavor = "multi_thread")]
async fn in_chromium_an_operator_sees_a_circuit_open_and_close_and_follows_an_order() {
    let shop = Shop::open_with(observed).await;
    visit(&shop.mesh.url(Name::Gateway), async |page| {
        page.sees("#live[data-live=yes]").await;
        page.sees("[data-service=legacy] .pill.good").await;
        assert_eq!(page.count("[data-service] .pill.good").await, 7, "seven services are ready");
        page.sees("[data-circuit='order -> payment'][data-state=closed]").await;

        page.click("#stream").await;
        page.click("[data-fault=payment-errors]").await;
        page.sees("[data-fault=payment-errors][aria-pressed=true]").await;
        page.sees("[data-circuit='order -> payment'][data-state=open]").await;
        assert!(page.text("[data-circuit='order -> payment'] .why").await.contains("→"), "and says why");
        page.screenshot(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("dashboard.png")).await;

        page.click("[data-fault=payment-off]").await;
        page.sees("[data-fault=payment-errors][aria-pressed=false]").await;
        page.sees("[data-circuit='order -> payment'][data-state=closed]").await;
        page.click("#stream").await;

        // On a busy machine a service may be late for an order, which is refused and placed again.
        until("an order is confirmed", async || {
            page.script("document.querySelector('#placed').textContent = ''", json!([])).await;
            page.click("#place").await;
            page.sees("#placed:not(:empty)").await;
            page.text("#placed").await == "201 confirmed"
        })
        .await;
        page.sees("#followed:not([hidden])").await;
        page.sees("[data-step=confirm_order][data-state=done]").await;
        for service in ["gateway", "order", "payment", "inventory", "shipping", "notification"] {
            page.sees(&format!("[data-span][data-service={service}]")).await;
        }
        page.script("document.querySelector('#followed').scrollIntoView()", json!([])).await;
        page.screenshot(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("dashboard-order.png")).await;
    })
    .await;
}

/// Reads the next state from the stream.
async fn next(stream: &mut axum::body::Body) -> Value {
    let mut text = String::new();
    while !text.contains("\n\n") {
        let frame = stream.frame().await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
    let data = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap_or_else(|| panic!("{text}"));
    serde_json::from_str(data).unwrap()
}

#[tokio::test]
async fn the_page_is_fed_with_the_state_of_all_services_and_the_latest_sagas() {
    let mut shop = Shop::open_with(observed).await;
    let placed = shop.customer.place(&tea()).await;
    shop.settled_books().await;
    shop.mesh.crash(Name::Legacy).await;
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let url = format!("{}/dashboard/events", shop.mesh.url(Name::Gateway));
    let response = client.get(url.parse().unwrap()).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let state = tokio::time::timeout(
        std::time::Duration::from_secs(60),
        next(&mut axum::body::Body::new(response.into_body())),
    )
    .await
    .unwrap();
    let services = state["services"].as_array().unwrap();
    let expected = Name::ALL.into_iter().rev().map(|name| json!(name.as_str()));
    assert!(services.iter().map(|service| service["name"].clone()).eq(expected), "{services:?}");
    for service in services {
        match service["name"].as_str().unwrap() {
            "legacy" => assert_eq!(service["state"], Value::Null, "it does not answer"),
            name => {
                assert_eq!((&service["state"]["service"], &service["state"]["ready"]), (&json!(name), &json!(true)))
            }
        }
    }
    let saga = &state["sagas"]["sagas"][0];
    assert_eq!((&saga["id"], &saga["status"]), (&placed.body["id"], &json!("completed")));
    assert!(state["at_ms"].as_i64().unwrap() >= saga["updated_ms"].as_i64().unwrap());
}

#[tokio::test]
async fn the_page_and_its_files_are_served_with_their_types() {
    let shop = Shop::open_with(observed).await;
    let files = [
        ("/dashboard", "text/html; charset=utf-8"),
        ("/dashboard/page.css", "text/css; charset=utf-8"),
        ("/dashboard/page.js", "text/javascript; charset=utf-8"),
    ];
    for (path, kind) in files {
        let reply = shop.customer.get(path).await;
        assert_eq!((reply.status.as_u16(), &reply.headers["content-type"]), (200, &kind.parse().unwrap()), "{path}");
        assert_eq!(reply.headers.contains_key("content-security-policy"), path == "/dashboard");
    }
    let home = shop.customer.get("/").await;
    assert_eq!((home.status.as_u16(), &home.headers["location"]), (307, &"/dashboard".parse().unwrap()));
}
