//! What an operator reads in the logs of a running mesh.

use mesh::token::{KEY_IN_DIR, Tokens};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::{Customer, Running, tea, until};

/// Runs `mesh up` until `look` is done. Passes the shop's URL and the process.
async fn up(look: impl AsyncFnOnce(&Customer, &Running)) {
    let dir = tempfile::tempdir().unwrap();
    let mut running = Running::start(&dir, &["up", "--admin-port", "0", "--drain-delay", "0"]);
    let mut lines = BufReader::new(running.child.stdout.take().unwrap()).lines();
    let first = lines.next_line().await.unwrap().expect("a line with the shop's address");
    let url = first.split_whitespace().nth(1).unwrap().trim_end_matches("/v1/products").to_owned();
    let tokens = Tokens::from_file(&dir.path().join(KEY_IN_DIR)).unwrap();
    look(&Customer::new(url).with_tokens(&tokens), &running).await;
}

fn text<'a>(line: &'a Value, field: &str) -> &'a str {
    line[field].as_str().unwrap_or_default()
}

#[tokio::test]
async fn every_line_about_a_request_has_its_trace_and_its_order() {
    up(async |customer, running| {
        let placed = customer.place(&tea()).await;
        assert_eq!(placed.status, 201, "{placed:?}");
        let order = placed.body["id"].as_str().unwrap();
        customer.get(&format!("/v1/orders/{order}")).await;
        let access = |line: &Value| line["message"] == "request";
        let of = |service: &str, route: &str| {
            let lines = running.lines();
            lines.into_iter().find(|line| access(line) && line["service"] == service && line["route"] == route)
        };
        until("all services have logged", async || {
            of("gateway", "/v1/orders").is_some() && of("shipping", "/v1/shipments/{order_id}").is_some()
        })
        .await;
        let entry = of("gateway", "/v1/orders").unwrap();
        assert_eq!(
            (&entry["method"], &entry["status"], &entry["caller"]),
            (&json!("POST"), &json!(201), &json!("outside"))
        );
        assert!(entry["ms"].as_f64().is_some_and(|ms| ms > 0.0) && text(&entry, "trace_id").len() == 32, "{entry}");

        // The same trace in the services behind it, which know who called and for which order.
        let trace = text(&entry, "trace_id");
        let lines = running.lines();
        for (service, caller) in [("order", "gateway"), ("payment", "order"), ("inventory", "order")] {
            let found =
                lines.iter().filter(|line| access(line) && line["service"] == service && line["trace_id"] == trace);
            let callers: Vec<_> = found.map(|line| &line["caller"]).collect();
            assert!(!callers.is_empty() && callers.iter().all(|found| **found == caller), "{service}: {callers:?}");
        }
        let charge = lines.iter().find(|line| line["message"] == "charge").unwrap();
        assert_eq!((&charge["order"], &charge["trace_id"]), (&json!(order), &json!(trace)));
        let shown = of("shipping", "/v1/shipments/{order_id}").unwrap();
        assert_eq!(shown["order"], order, "read from the path");
    })
    .await;
}

#[tokio::test]
async fn what_needs_no_operator_is_not_an_error_and_probes_are_not_logged() {
    up(async |customer, running| {
        // Pip has too little money, and the lamp is out of stock.
        for (customer_, sku) in [("pip", "kettle"), ("alice", "lamp")] {
            let order = json!({ "customer": customer_, "items": [{ "sku": sku, "quantity": 1 }] });
            let reply = customer.place(&order).await;
            assert!(reply.status.is_client_error(), "{reply:?}");
        }
        customer.get("/livez").await;
        customer.get("/v1/orders/nothing").await;
        until("the requests are logged", async || {
            running.lines().iter().filter(|line| line["message"] == "request" && line["service"] == "gateway").count()
                >= 3
        })
        .await;
        let lines = running.lines();
        let errors: Vec<_> = lines.iter().filter(|line| line["level"] == "ERROR").collect();
        assert!(errors.is_empty(), "{errors:#?}");
        assert!(lines.iter().all(|line| line["route"] != "/livez" && line["route"] != "/readyz"));
    })
    .await;
}
