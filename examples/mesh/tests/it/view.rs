use mesh::mesh::Name;
use serde_json::json;

use crate::support::{Shop, tea};

#[tokio::test]
async fn an_order_is_seen_from_all_sides() {
    let shop = Shop::open().await;
    let placed = shop.customer.place(&tea()).await;
    let location = placed.headers["location"].to_str().unwrap();
    shop.settled_books().await;
    let view = shop.customer.get(location).await;
    assert_eq!(view.status, 200);
    assert_eq!(view.body["order"]["state"], "confirmed");
    assert_eq!(view.body["payment"], json!({ "state": "charged", "amount_cents": 1580, "customer": "alice" }));
    assert_eq!(view.body["inventory"], json!({ "state": "sold" }));
    assert_eq!(view.body["shipping"]["customer"], "alice");
    assert_eq!(view.body["missing"], json!([]));
}

#[tokio::test]
async fn what_is_down_is_named_and_the_rest_is_answered() {
    let mut shop = Shop::open().await;
    let placed = shop.customer.place(&tea()).await;
    let location = placed.headers["location"].to_str().unwrap();
    shop.settled_books().await;

    shop.mesh.crash(Name::Payment).await;
    let view = shop.customer.get(location).await;
    assert_eq!((view.status.as_u16(), &view.body["missing"]), (200, &json!(["payment"])));
    assert_eq!(view.body["order"]["state"], "confirmed");

    shop.mesh.crash(Name::Order).await;
    let view = shop.customer.get(location).await;
    assert_eq!((view.status.as_u16(), &view.body["missing"]), (200, &json!(["order", "payment"])));
    assert_eq!(view.body["inventory"]["state"], "sold");

    shop.mesh.crash(Name::Inventory).await;
    let view = shop.customer.get(location).await;
    assert_eq!((view.status.as_u16(), &view.body["missing"]), (200, &json!(["order", "payment", "inventory"])));
    assert_eq!(view.body["shipping"]["customer"], "alice");

    shop.mesh.crash(Name::Shipping).await;
    let view = shop.customer.get(location).await;
    assert_eq!(view.status, 503);
    assert!(view.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn the_catalogue_comes_from_inventory() {
    let shop = Shop::open().await;
    let reply = shop.customer.get("/v1/products").await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.body["products"].as_array().unwrap().len(), 5);
}

#[tokio::test]
async fn an_order_is_shown_to_its_customer_and_to_no_other() {
    let mut shop = Shop::open().await;
    let placed = shop.customer.place(&tea()).await;
    let location = placed.headers["location"].to_str().unwrap().to_owned();
    shop.settled_books().await;
    assert_eq!(shop.customer.get_as("alice", &location).await.status, 200);
    let reply = shop.customer.get_as("bob", &location).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.body["type"]),
        (404, &json!("https://buttress.example/problems/unknown-order"))
    );
    // Also while the order service, which knows the customer best, is down.
    shop.mesh.crash(Name::Order).await;
    assert_eq!(shop.customer.get_as("bob", &location).await.status, 404);
    assert_eq!(shop.customer.get_as("alice", &location).await.status, 200);
}

#[tokio::test]
async fn a_service_that_stalls_does_not_hold_up_the_other_parts() {
    let shop = Shop::open().await;
    let placed = shop.customer.place(&tea()).await;
    let location = placed.headers["location"].to_str().unwrap();
    shop.settled_books().await;
    shop.mesh.faults(Name::Shipping).set(mesh::faults::Plan { hang_rate: 1.0, ..Default::default() });
    let view = shop.customer.get(location).await;
    assert_eq!((view.status.as_u16(), &view.body["missing"]), (200, &json!(["shipping"])));
    shop.mesh.faults(Name::Shipping).clear();
}
