use http::{Request, header};
use http_body_util::Full;
use mesh::faults::Plan;
use mesh::mesh::Name;
use serde_json::json;

use crate::support::{Customer, Reply, Shop, tea, until};

async fn change(customer: &Customer, service: &str, plan: serde_json::Value) -> Reply {
    let request = Request::put(format!("/admin/services/{service}/faults"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::from(plan.to_string()))
        .unwrap();
    customer.send(request).await
}

#[tokio::test]
async fn faults_are_switched_over_http_while_the_mesh_runs() {
    let shop = Shop::open().await;
    let operator = shop.operator(Name::Gateway);
    assert_eq!(change(&operator, "payment", json!({ "error_rate": 1 })).await.status, 200);
    assert_eq!(operator.get("/admin/services/payment/faults").await.body["error_rate"], 1.0);
    assert_eq!(shop.customer.place(&tea()).await.status, 424);
    assert_eq!(change(&operator, "payment", json!({})).await.status, 200);
    assert_eq!(shop.mesh.faults(Name::Payment).plan(), Plan::default());

    assert_eq!(change(&operator, "payment", json!({ "error_rate": 2 })).await.status, 422);
    assert_eq!(change(&operator, "payment", json!({ "eror_rate": 1 })).await.status, 422);
    assert_eq!(change(&operator, "warehouse", json!({})).await.status, 404);
}

#[tokio::test]
async fn a_consumer_that_hangs_shows_its_lag_until_the_fault_ends() {
    let shop = Shop::open().await;
    let operator = shop.operator(Name::Gateway);
    assert_eq!(change(&operator, "shipping", json!({ "hang_rate": 1 })).await.status, 200);
    assert_eq!(shop.customer.place(&tea()).await.status, 201);
    let lag = async || {
        let gauges = operator.get("/admin/services/shipping/state").await.body["gauges"].clone();
        gauges["bus.lag shipping OrderConfirmed"].as_f64().unwrap_or(-1.0)
    };
    until("the lag shows", async || lag().await == 1.0).await;
    assert_eq!(change(&operator, "shipping", json!({})).await.status, 200);
    until("the lag is gone", async || lag().await == 0.0).await;
    let books = shop.settled_books().await;
    assert!(books.right, "{books}");
}

#[tokio::test]
async fn answers_that_break_off_cost_nobody_anything() {
    let shop = Shop::open().await;
    shop.mesh.faults(Name::Payment).set(Plan { reset_rate: 0.5, ..Plan::default() });
    for _ in 0..10 {
        let reply = shop.customer.place(&tea()).await;
        assert!([201, 424].contains(&reply.status.as_u16()), "{reply:?}");
    }
    shop.mesh.faults(Name::Payment).clear();
    shop.mesh.order_clients().payment.breaker().reset();
    let books = shop.settled_books().await;
    assert!(books.right, "{books}");
}
