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
    assert_eq!(view.body["payment"], json!({ "state": "charged", "amount_cents": 1580 }));
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
