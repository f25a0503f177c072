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

/// Samples every span.
pub(crate) fn observed(config: &mut Config) {
    config.telemetry.traces = Some(TraceConfig { collectors: vec![], sample: 1.0 });
}

#[tokio::test(flavor = "multi_thread")]
async fn in_chromium_an_operator_sees_a_circuit_open_and_close_and_follows_an_order() {
    let shop = Shop::open_with(observed).await;
    visit(&format!("{}/dashboard", shop.mesh.admin_url(Name::Gateway)), async |page| {
        page.sees("#live[data-live=yes]").await;
        page.sees("[data-service=legacy] .pill.good").await;
        assert_eq!(page.count("[data-service] .pill.good").await, 7, "seven services are ready");
        page.sees("[data-circuit='order -> payment'][data-state=closed]").await;
        page.sees("[data-limit='inventory, reads'][data-kind=adaptive]").await;
        page.sees("[data-limit='gateway, catalogue'][data-kind=bulkhead]").await;
        page.sees("[data-limit='orders per customer'][data-kind=rate]").await;
        assert!(page.text("[data-limit=gateway][data-kind='load shed']").await.contains("% rejected"));
        assert!(page.text("#shed").await.contains("0 critical plus"));

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

#[tokio::test(flavor = "multi_thread")]
async fn in_chromium_focus_survives_updates_and_every_button_is_named_and_large_enough() {
    let shop = Shop::open_with(observed).await;
    stuck(&shop).await;
    visit(&format!("{}/dashboard", shop.mesh.admin_url(Name::Gateway)), async |page| {
        page.sees("#live[data-live=yes]").await;
        page.sees("[data-waiting=sagas] [data-item] button").await;
        page.script("document.querySelector('[data-fault=shipping-hang]').focus()", json!([])).await;
        page.script("window.before = document.activeElement", json!([])).await;
        // The clock shows that the page was updated several times.
        for _ in 0..3 {
            let shown = page.text("#live").await;
            until("the page is updated", async || page.text("#live").await != shown).await;
        }
        let same = "return document.activeElement === window.before && document.activeElement.dataset.fault === 'shipping-hang'";
        assert_eq!(page.script(same, json!([])).await, true);

        let small = "return [...document.querySelectorAll('button, select, #order input[type=number]')]
            .filter((node) => node.checkVisibility())
            .map((node) => [node, node.getBoundingClientRect()])
            .filter(([node, { width, height }]) => width < 24 || height < 24)
            .map(([node]) => node.outerHTML)";
        assert_eq!(page.script(small, json!([])).await, json!([]));
        let unnamed = "return [...document.querySelectorAll('button')]
            .filter((node) => !(node.getAttribute('aria-label') ?? node.textContent).trim())
            .map((node) => node.outerHTML)";
        assert_eq!(page.script(unnamed, json!([])).await, json!([]));
        assert_eq!(page.count("[aria-label='hang at shipping']").await, 1, "a name says which service");
        page.screenshot(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("attention.png")).await;
    })
    .await;
}

/// A confirmed order whose saga is stuck at its last step.
async fn stuck(shop: &Shop) {
    assert_eq!(shop.customer.place(&tea()).await.status, 201);
    shop.settled_books().await;
    let stuck = r#"UPDATE buttress_saga SET status = 'stuck', step = 3, stuck =
                   '{"step":"confirm_order","message":"trouble","compensating":false,"note":null}'"#;
    shop.cook(Name::Order, stuck).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_chromium_an_operator_resolves_a_stuck_saga_and_confirms_it() {
    let shop = Shop::open_with(observed).await;
    stuck(&shop).await;
    visit(&format!("{}/dashboard", shop.mesh.admin_url(Name::Gateway)), async |page| {
        page.click("[data-waiting=sagas] [data-item] [data-action=resolve]").await;
        page.sees("dialog[open] #note").await;
        assert!(page.text("#question").await.starts_with("resolve sagas of order: "));
        page.script("document.querySelector('#note').value = 'paid in cash'", json!([])).await;
        page.click("#yes").await;
        until("it is done", async || page.text("#decided").await == "resolve: 1 done").await;
        until("nothing waits", async || page.count("[data-waiting]").await == 0).await;
        assert_eq!(page.text("#attention-counts").await, "nothing");
    })
    .await;
    let sagas = shop.operator(Name::Order).get("/admin/sagas?status=resolved").await.body;
    assert_eq!(sagas["sagas"][0]["stuck"]["note"], "paid in cash");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_chromium_a_trace_can_be_read_on_a_telephone() {
    let shop = Shop::open_with(observed).await;
    let placed = shop.customer.place(&tea()).await;
    let id = placed.body["id"].as_str().unwrap();
    visit(&format!("{}/dashboard", shop.mesh.admin_url(Name::Gateway)), async |page| {
        page.resize(375, 800).await;
        page.click(&format!("[data-order='{id}'] button")).await;
        until("the trace is shown", async || {
            page.click(&format!("[data-order='{id}'] button")).await;
            page.count("[data-span][data-service=payment] .lane i").await > 0
        })
        .await;
        let lane = "return document.querySelector('[data-span] .lane').getBoundingClientRect().width";
        assert!(page.script(lane, json!([])).await.as_f64().unwrap() > 250.0, "the lane has most of the width");
        let overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
        assert_eq!(page.script(overflow, json!([])).await, 0, "the page does not scroll sideways");
        page.script("document.querySelector('#followed').scrollIntoView()", json!([])).await;
        page.screenshot(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("trace-375.png")).await;
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
    let url = format!("{}/dashboard/events", shop.mesh.admin_url(Name::Gateway));
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
    let operator = shop.operator(Name::Gateway);
    for (path, kind) in files {
        let reply = operator.get(path).await;
        assert_eq!((reply.status.as_u16(), &reply.headers["content-type"]), (200, &kind.parse().unwrap()), "{path}");
        assert_eq!(reply.headers.contains_key("content-security-policy"), path == "/dashboard");
    }
    let home = operator.get("/").await;
    assert_eq!((home.status.as_u16(), &home.headers["location"]), (307, &"/dashboard".parse().unwrap()));
}
