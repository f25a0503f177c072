//! Which requests the gateway admits, over real sockets against a whole mesh.

use http::Request;
use http_body_util::Full;
use mesh::mesh::Name;
use serde_json::{Value, json};

use crate::support::{Reply, Shop, tea};

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
    let places = &shop.mesh.admission(Name::Gateway).bulkhead;
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
