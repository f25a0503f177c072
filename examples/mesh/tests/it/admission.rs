//! Which requests the gateway admits, over real sockets against a whole mesh.

use http::Request;
use http_body_util::Full;
use mesh::mesh::Name;
use mesh::stack::Lane;
use serde_json::{Value, json};

use crate::dashboard::observed;
use crate::support::{Reply, Shop, post, tea, until};

/// Places orders of alice until she is over her rate.
async fn over_the_rate(shop: &Shop) -> Reply {
    for _ in 0..200 {
        let reply = shop.customer.place(&tea()).await;
        if reply.status == 429 {
            return reply;
        }
        assert_eq!(reply.status, 201, "{reply:?}");
    }
    panic!("200 orders, and none over the rate");
}

#[tokio::test]
async fn a_customer_over_the_rate_gets_429_and_another_one_is_served() {
    let shop = Shop::open_with(|config| config.orders_per_second = 1).await;
    let first = shop.customer.place(&tea()).await;
    assert_eq!(
        (first.status.as_u16(), &first.headers["ratelimit-policy"]),
        (201, &"\"orders\";q=1;w=1".parse().unwrap())
    );
    assert!(first.headers["ratelimit"].to_str().unwrap().starts_with("\"orders\";r=1"), "{:?}", first.headers);

    let refused = over_the_rate(&shop).await;
    assert_eq!(refused.headers["content-type"], "application/problem+json");
    assert_eq!(refused.body["status"], 429);
    // The pause is spread, so that those who were refused together do not come back together.
    let pause: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=3).contains(&pause), "{pause}");
    assert!(refused.headers["ratelimit"].to_str().unwrap().starts_with("\"orders\";r=0;t="), "{refused:?}");
    let bobs = json!({ "customer": "bob", "items": [{ "sku": "tea", "quantity": 1 }] });
    assert_eq!(shop.customer.place(&bobs).await.status, 201, "has a bucket of his own");
    // Orders and other requests have a rate each.
    assert_eq!(shop.customer.get(first.headers["location"].to_str().unwrap()).await.status, 200);

    let operator = shop.operator(Name::Gateway);
    let state = operator.get("/admin/state").await.body;
    let orders = &state["rates"][0];
    assert_eq!((&orders["name"], &orders["per_second"], &orders["burst"]), (&json!("orders"), &json!(1.0), &json!(2)));
    assert_eq!((&orders["customers"], &orders["untracked"]), (&json!(2), &json!(0)));
    assert!(orders["rejected"].as_u64() >= Some(1), "{orders}");
    let metrics = operator.text("/metrics").await;
    let line = format!(
        r#"resilience_rate_limit_rejected_total{{service="gateway",policy="orders per customer"}} {}"#,
        orders["rejected"]
    );
    assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
}

#[tokio::test]
async fn a_request_without_a_token_or_over_the_rate_takes_no_place_and_nothing_of_the_rate() {
    let shop = Shop::open_with(|config| config.orders_per_second = 1).await;
    let stranger = async || {
        let request = Request::post("/v1/orders").header("authorization", "Bearer alice");
        shop.customer.send(request.body(Full::default()).unwrap()).await
    };
    for _ in 0..20 {
        assert_eq!(stranger().await.status, 401);
    }
    let rejected = || shop.mesh.admission(Name::Gateway).rates().map(|rate| rate.rejected()).sum::<u64>();
    assert_eq!(rejected(), 0, "strangers have no rate");
    assert_eq!(shop.customer.place(&tea()).await.status, 201, "nor do they use up alice's");
    over_the_rate(&shop).await;
    let places = shop.mesh.admission(Name::Gateway).lane(Lane::Rest).unwrap();
    places.set_limit(0);
    let (mut over_rate, mut no_place) = (0, 0);
    for _ in 0..20 {
        match shop.customer.place(&tea()).await.status.as_u16() {
            429 => over_rate += 1,
            503 => no_place += 1,
            other => panic!("{other}"),
        }
    }
    assert!(over_rate > 0);
    assert_eq!(places.rejected(), no_place, "only what kept to the rate asked for a place");
    assert_eq!(stranger().await.status, 401);
    let problem: Value = shop.customer.get_as("alice", "/v1/orders/unknown").await.body;
    assert_eq!(problem["status"], 404);
}

/// The priorities with which the requests of a trace arrived at a service, once there are some.
async fn priorities(shop: &Shop, which: &str, service: &str) -> Vec<Value> {
    let operator = shop.operator(Name::Gateway);
    let mut found = Vec::new();
    until("the service's spans are there", async || {
        let traces = operator.get(&format!("/admin/traces{which}")).await.body["traces"].clone();
        found.clear();
        for trace in traces.as_array().unwrap() {
            let trace = operator.get(&format!("/admin/traces/{}", trace["id"].as_str().unwrap())).await.body;
            let spans = trace["spans"].as_array().unwrap();
            let arrived = spans.iter().filter(|span| span["service"] == service && span["kind"] == "server");
            found.extend(arrived.map(|span| span["attributes"]["priority"].clone()));
        }
        !found.is_empty()
    })
    .await;
    found
}

#[tokio::test]
async fn an_order_arrives_at_payment_and_inventory_with_its_priority_whatever_its_header_says() {
    let shop = Shop::open_with(observed).await;
    let mut order = post(tea().to_string());
    order.headers_mut().insert("x-priority", "3".parse().unwrap());
    let placed = shop.customer.send(order).await;
    assert_eq!(placed.status, 201);
    let order = format!("?order={}", placed.body["id"].as_str().unwrap());
    for service in ["gateway", "order", "payment", "inventory"] {
        let arrived = priorities(&shop, &order, service).await;
        assert!(arrived.iter().all(|priority| priority == "critical_plus"), "{service}: {arrived:?}");
    }
}

#[tokio::test]
async fn a_read_of_a_stranger_stays_sheddable_whatever_its_header_says() {
    let shop = Shop::open_with(observed).await;
    let read = Request::get("/v1/products").header("x-priority", "0").body(Full::default()).unwrap();
    assert_eq!(shop.customer.send(read).await.status, 200);
    for service in ["gateway", "inventory"] {
        let arrived = priorities(&shop, "", service).await;
        assert!(arrived.iter().all(|priority| priority == "sheddable"), "{service}: {arrived:?}");
    }
}

#[tokio::test]
async fn the_gateway_sheds_nothing_of_a_crowd_that_fits_into_its_queue() {
    let shop = Shop::open().await;
    let crowd = (0..64).map(|_| shop.customer.get("/v1/products"));
    for reply in futures_util::future::join_all(crowd).await {
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    let state = shop.operator(Name::Gateway).get("/admin/state").await.body;
    assert_eq!(state["load_shed"]["shed"]["critical_plus"], 0);
    let metrics = shop.operator(Name::Gateway).text("/metrics").await;
    for metric in ["resilience_load_shed_share{", "resilience_load_shed_shed_total{"] {
        assert!(metrics.contains(metric), "{metric}\n{metrics}");
    }
    let inventory = shop.operator(Name::Inventory).text("/metrics").await;
    let line = r#"resilience_concurrency_rejected_total{service="inventory",policy="inventory, reads"} 0"#;
    assert!(inventory.lines().any(|found| found == line), "{line}\n{inventory}");
}
