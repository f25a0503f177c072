use std::path::Path;

use mesh::mesh::{Config, Name};
use mesh::telemetry::TraceConfig;
use serde_json::json;

use crate::browser::visit;
use crate::support::Shop;

/// Enables the admin endpoints, and samples every span.
pub(crate) fn observed(config: &mut Config) {
    config.admin = true;
    config.telemetry.traces = Some(TraceConfig { endpoints: vec![], sample: 1.0 });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_a_circuit_open_and_close_and_follows_an_order() {
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

        page.click("#place").await;
        page.sees("#followed:not([hidden])").await;
        page.sees("[data-step=confirm_order][data-state=done]").await;
        assert_eq!(page.text("#placed").await, "201 confirmed");
        for service in ["gateway", "order", "payment", "inventory", "shipping", "notification"] {
            page.sees(&format!("[data-span][data-service={service}]")).await;
        }
        page.script("document.querySelector('#followed').scrollIntoView()", json!([])).await;
        page.screenshot(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("dashboard-order.png")).await;
    })
    .await;
}
