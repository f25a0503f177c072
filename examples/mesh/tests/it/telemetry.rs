use std::collections::BTreeSet;

use http::Request;
use http_body_util::Full;
use mesh::mesh::Name;
use mesh::stack::Lane;
use serde_json::{Value, json};

use crate::dashboard::observed;
use crate::support::{Customer, Reply, Shop, tea, until};

/// What an adaptive limit has learned, which is exported from the first window on.
const LEARNED: [&str; 2] = ["resilience_concurrency_baseline_seconds{", "resilience_concurrency_rtt_seconds{"];

/// The names of the metric series: each line without its value.
async fn series(service: &Customer) -> BTreeSet<String> {
    let text = service.text("/metrics").await;
    let is_learned = |line: &&str| LEARNED.iter().any(|name| line.starts_with(name));
    let lines = text.lines().filter(|line| !line.starts_with('#') && !is_learned(line));
    lines.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
}

#[tokio::test]
async fn every_layer_is_counted() {
    let shop = Shop::open_with(observed).await;
    assert_eq!(shop.customer.place(&tea()).await.status, 201);
    let operator = shop.operator(Name::Order);
    until("the gauges are read", async || operator.text("/metrics").await.contains("saga_stuck{")).await;
    let order = operator.text("/metrics").await;
    for line in [
        r#"http_server_request_duration_seconds_count{service="order",method="POST",route="/v1/orders",status="201"} 1"#,
        r#"resilience_breaker_state{service="order",policy="order -> payment",state="closed"} 1"#,
        r#"resilience_breaker_calls_seconds_count{service="order",policy="order -> payment",outcome="success"} 1"#,
        r#"resilience_breaker_rejected_total{service="order",policy="order -> payment"} 0"#,
        r#"resilience_bulkhead_in_flight{service="order",policy="order"} 0"#,
        r#"resilience_bulkhead_in_flight{service="order",policy="order, reads"} 0"#,
        r#"resilience_bulkhead_rejected_total{service="order",policy="order -> payment"} 0"#,
        r#"resilience_retry_retries_total{service="order",policy="order -> payment"} 0"#,
        r#"saga_stuck{service="order"} 0"#,
        r#"outbox_parked{service="order"} 0"#,
    ] {
        assert!(order.lines().any(|found| found == line), "{line}\n{order}");
    }
}

#[tokio::test]
async fn what_strangers_make_up_is_no_label() {
    let shop = Shop::open_with(observed).await;
    let payment = Customer::new(shop.mesh.url(Name::Payment));
    let strange = async |n: u32| {
        shop.customer.get(&format!("/nowhere/{n}")).await;
        shop.customer.get(&format!("/v1/orders/{n}")).await;
        let method = format!("M{n}");
        let request = Request::builder().method(method.as_str()).uri("/v1/orders").body(Full::default()).unwrap();
        shop.customer.send(request).await;
        let call = Request::post(format!("/payment.v1.PaymentService/M{n}"));
        payment.send(call.header("content-type", "application/grpc").body(Full::default()).unwrap()).await;
    };
    strange(0).await;
    let operators = [shop.operator(Name::Gateway), shop.operator(Name::Payment)];
    let all = async || [series(&operators[0]).await, series(&operators[1]).await];
    // The gauges appear once they were read.
    until("the gauges are read", async || all().await[1].iter().any(|line| line.starts_with("outbox_waiting"))).await;
    let before = all().await;
    for n in 1..20 {
        strange(n).await;
    }
    assert_eq!(all().await, before);
}

/// Rows that nothing works on, in different numbers, so that no gauge can be taken for another one.
#[tokio::test]
async fn every_gauge_counts_what_its_name_says() {
    let shop = Shop::open_with(observed).await;
    // Once an event was published, the relay's lease is there, and nothing renews or acquires it
    // any more.
    assert_eq!(shop.customer.place(&tea()).await.status, 201);
    shop.settled_books().await;
    let lease = "CREATE TRIGGER kept BEFORE UPDATE ON buttress_lease BEGIN SELECT RAISE(IGNORE); END";
    shop.cook(Name::Order, lease).await;
    let saga = "INSERT INTO buttress_saga
                    (id, definition, version, status, step, data, wake_at, recoveries, generation, expires_at,
                     created_at, updated_at)
                SELECT COUNT(*), 'nothing runs it', 1,
                    CASE WHEN COUNT(*) < 2 THEN 'running' WHEN COUNT(*) < 4 THEN 'compensating' ELSE 'stuck' END,
                    0, '0', 0, 0, 0, 0, 0, 0 FROM buttress_saga";
    for _ in 0..6 {
        shop.cook(Name::Order, saga).await;
    }
    let event = "INSERT INTO buttress_outbox (event_id, shard, payload, created_at, refused)
                 SELECT COUNT(*), 0, '', 0, CASE WHEN COUNT(*) % 3 = 0 THEN 'too large' END FROM buttress_outbox";
    for _ in 0..6 {
        shop.cook(Name::Order, event).await;
    }
    let order = shop.operator(Name::Order);
    let expected = [
        ("saga.running", 1.0),
        ("saga.compensating", 2.0),
        ("saga.stuck", 3.0),
        ("saga.stuck.by.definition nothing runs it", 3.0),
        ("saga.stuck.by.definition order", 0.0),
        ("outbox.waiting", 4.0),
        ("outbox.parked", 2.0),
    ];
    until("the gauges are read again", async || {
        let gauges = order.get("/admin/state").await.body["gauges"].clone();
        // Written in 1970.
        expected.iter().all(|(name, value)| gauges[name] == *value) && gauges["outbox.oldest.age"].as_f64() > Some(1e9)
    })
    .await;
    let metrics = order.text("/metrics").await;
    for line in [
        r#"saga_running{service="order"} 1"#,
        r#"saga_compensating{service="order"} 2"#,
        r#"saga_stuck{service="order"} 3"#,
        r#"outbox_waiting{service="order"} 4"#,
        r#"outbox_parked{service="order"} 2"#,
        r#"saga_stuck_by_definition{service="order",definition="nothing runs it"} 3"#,
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    let listed = order.get("/admin/sagas").await.body;
    assert_eq!((&listed["running"], &listed["compensating"], &listed["stuck"]), (&json!(1), &json!(2), &json!(3)));
}

#[tokio::test]
async fn the_state_of_a_service_is_its_own() {
    let shop = Shop::open_with(observed).await;
    assert_eq!(shop.customer.place(&tea()).await.status, 201);
    shop.mesh.faults(Name::Shipping).set(mesh::faults::Plan { latency_ms: 7, ..Default::default() });
    shop.mesh.admission(Name::Shipping).lane(Lane::Rest).unwrap().set_limit(63);
    shop.mesh.health(Name::Shipping).drain();
    for name in Name::ALL {
        let state = shop.operator(name).get("/admin/state").await.body;
        let is_shipping = name == Name::Shipping;
        assert_eq!((&state["service"], &state["ready"]), (&json!(name.as_str()), &json!(!is_shipping)));
        assert_eq!(
            (&state["draining"], &state["faults"]["latency_ms"]),
            (&json!(is_shipping), &json!(if is_shipping { 7 } else { 0 }))
        );
        let limit = match name {
            Name::Payment | Name::Inventory => 12,
            _ if is_shipping => 63,
            _ => 64,
        };
        let mut rest = json!({ "name": name.as_str(), "in_flight": 0, "waiting": 0, "limit": limit, "rejected": 0 });
        if limit == 12 {
            rest["bounds"] = json!([12, 200]);
        }
        assert_eq!(state["lanes"][0], rest, "{name:?}");
        let lanes = state["lanes"].as_array().unwrap().iter().map(|lane| lane["name"].as_str().unwrap());
        let lanes: Vec<_> = lanes.skip(1).map(|lane| lane.split_once(", ").unwrap().1).collect();
        let expected: &[&str] = match name {
            Name::Gateway => &["catalogue", "order views", "old shop", "document"],
            _ => &["reads"],
        };
        assert_eq!(lanes, expected, "{name:?}");
        let is_gateway = name == Name::Gateway;
        let rates = state["rates"].as_array().unwrap().len();
        assert_eq!((rates, state["load_shed"].is_object()), (if is_gateway { 2 } else { 0 }, is_gateway), "{name:?}");
        let called: Vec<_> = state["dependencies"].as_array().unwrap().iter().map(|called| &called["name"]).collect();
        let expected: &[&str] = match name {
            Name::Order => &["order -> payment", "order -> inventory"],
            Name::Gateway => &[
                "gateway -> order",
                "gateway -> payment",
                "gateway -> inventory",
                "gateway -> shipping",
                "gateway -> legacy",
            ],
            _ => &[],
        };
        assert_eq!(called, expected, "{name:?}");
        for rate in ["requests_per_second", "failures_per_second", "p50_ms", "p99_ms"] {
            assert!(state["recent"][rate].is_f64(), "{name:?} {rate}: {state}");
        }
    }
}

/// The last span of a successful order in each service. Services export their spans independently.
const LAST: [(&str, &str); 6] = [
    ("gateway", "POST /v1/orders"),
    ("order", "POST /v1/orders"),
    ("payment", "payment.v1.PaymentService/Charge"),
    ("inventory", "consume OrderConfirmed"),
    ("shipping", "consume OrderConfirmed"),
    ("notification", "consume OrderConfirmed"),
];

/// Returns the trace of an order once it is complete.
async fn trace(shop: &Shop, order: &str) -> Vec<Value> {
    let mut spans = vec![];
    let operator = shop.operator(Name::Gateway);
    let path = format!("/admin/traces?order={order}");
    until("the trace is complete", async || {
        let Reply { body, .. } = operator.get(&path).await;
        let traces = body["traces"].as_array().unwrap();
        assert!(traces.len() <= 1, "one order, one trace: {traces:#?}");
        let Some(id) = traces.first().and_then(|trace| trace["id"].as_str()) else { return false };
        spans = operator.get(&format!("/admin/traces/{id}")).await.body["spans"].as_array().unwrap().clone();
        LAST.iter().all(|(service, name)| spans.iter().any(|span| span["service"] == *service && span["name"] == *name))
    })
    .await;
    spans
}

#[tokio::test]
async fn one_trace_leads_through_rest_grpc_the_saga_and_events() {
    let shop = Shop::open_with(observed).await;
    let placed = shop.customer.place(&tea()).await;
    let spans = trace(&shop, placed.body["id"].as_str().unwrap()).await;

    let find = |service: &str, kind: &str, name: &str| {
        let is = |span: &&Value| span["service"] == service && span["kind"] == kind && span["name"] == name;
        spans.iter().find(is).unwrap_or_else(|| panic!("{service} {kind} {name}: {spans:#?}"))
    };
    let parent = |span: &Value| {
        let parent = spans.iter().find(|other| other["id"] == span["parent"]);
        parent.unwrap_or_else(|| panic!("the parent of {span:#?} among {spans:#?}")).clone()
    };
    assert_eq!(find("gateway", "server", "POST /v1/orders")["parent"], Value::Null, "the root span");

    let charge = find("payment", "server", "payment.v1.PaymentService/Charge");
    let attempt = parent(charge);
    assert_eq!((&attempt["service"], &attempt["kind"]), (&json!("order"), &json!("client")), "over gRPC");
    let step = parent(&parent(&attempt));
    assert_eq!((&step["service"], &step["name"]), (&json!("order"), &json!("process_payment")), "a step of the saga");

    assert_eq!(parent(find("shipping", "consumer", "consume OrderConfirmed"))["service"], "order", "over events");
}

const THEIRS: (&str, &str) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");

/// Places an order with a `traceparent`, and returns the gateway's span and its trace.
async fn traced(shop: &Shop) -> (Value, Vec<Value>) {
    let mut request = crate::support::post(tea().to_string());
    request.headers_mut().insert("traceparent", format!("00-{}-{}-01", THEIRS.0, THEIRS.1).parse().unwrap());
    let placed = shop.customer.send(request).await;
    let spans = trace(shop, placed.body["id"].as_str().unwrap()).await;
    let entry = spans.iter().find(|span| span["service"] == "gateway" && span["kind"] == "server").unwrap().clone();
    (entry, spans)
}

#[tokio::test]
async fn a_strangers_trace_is_linked_and_not_continued() {
    let shop = Shop::open_with(observed).await;
    let (entry, spans) = traced(&shop).await;
    assert_eq!((&entry["parent"], &entry["links"]), (&Value::Null, &json!([THEIRS.0])));
    assert!(spans.len() > 10, "the services behind the gateway continue its trace");
    assert_eq!(shop.operator(Name::Gateway).get(&format!("/admin/traces/{}", THEIRS.0)).await.status, 404);
}

#[tokio::test]
async fn a_trusted_callers_trace_goes_on() {
    let shop = Shop::open_with(|config| {
        observed(config);
        config.telemetry.trust_callers = true;
    })
    .await;
    let (entry, _) = traced(&shop).await;
    assert_eq!((&entry["parent"], &entry["links"]), (&json!(THEIRS.1), &json!([])));
    assert_eq!(shop.operator(Name::Gateway).get(&format!("/admin/traces/{}", THEIRS.0)).await.status, 200);
}

#[tokio::test]
async fn what_is_not_a_trace_is_refused() {
    let shop = Shop::open_with(observed).await;
    let operator = shop.operator(Name::Gateway);
    assert_eq!(operator.get("/admin/traces/nothing").await.status, 404);
    assert_eq!(operator.get("/admin/traces?wrong=1").await.status, 400);
    assert_eq!(operator.get("/admin/sagas/nothing").await.status, 404);
    // An invalid `traceparent` starts a new trace.
    let mut request = crate::support::post(tea().to_string());
    request.headers_mut().insert("traceparent", "00-zzz".parse().unwrap());
    assert_eq!(shop.customer.send(request).await.status, 201);
}
