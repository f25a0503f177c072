use mesh::mesh::Name;
use serde_json::json;

use crate::support::{Shop, tea};

#[tokio::test]
async fn a_repeated_request_gets_the_same_answer_and_no_second_order() {
    let shop = Shop::open().await;
    let first = shop.customer.place_with_key("k1", &tea()).await;
    assert_eq!(first.status, 201);
    assert_eq!(first.body["state"], "confirmed");
    // Also while inventory is down, which a new order would need.
    let mut shop = shop;
    shop.mesh.crash(Name::Inventory).await;
    let again = shop.customer.place_with_key("k1", &tea()).await;
    assert_eq!((again.status, again.body), (first.status, first.body));
    assert_eq!(again.headers.get("location"), first.headers.get("location"));
    assert_eq!(shop.count(Name::Order, "SELECT COUNT(*) FROM orders").await, 1);
}

#[tokio::test]
async fn a_repeated_failure_is_the_same_failure() {
    let shop = Shop::open().await;
    let broke = json!({ "customer": "pip", "items": [{ "sku": "kettle", "quantity": 1 }] });
    let first = shop.customer.place_with_key("k1", &broke).await;
    assert_eq!(first.status, 402);
    let again = shop.customer.place_with_key("k1", &broke).await;
    assert_eq!((again.status, again.body), (first.status, first.body));
    assert_eq!(shop.count(Name::Order, "SELECT COUNT(*) FROM orders").await, 1);
}

#[tokio::test]
async fn the_same_key_with_another_order_is_refused() {
    let shop = Shop::open().await;
    shop.customer.place_with_key("k1", &tea()).await;
    let other = json!({ "customer": "alice", "items": [{ "sku": "tea", "quantity": 3 }] });
    let reply = shop.customer.place_with_key("k1", &other).await;
    assert_eq!(reply.status, 422);
    assert_eq!(reply.body["type"], "https://buttress.example/problems/idempotency-key-reused");
}

#[tokio::test]
async fn requests_that_race_with_one_key_make_one_order() {
    let shop = Shop::open().await;
    let order = tea();
    // On a busy machine a service may be late for one of them, which is then repeated.
    let replies = futures_util::future::join_all((0..8).map(|_| shop.customer.place_until_decided("k1", &order))).await;
    for reply in &replies {
        assert_eq!((reply.status.as_u16(), &reply.body["id"]), (201, &replies[0].body["id"]), "{reply:?}");
    }
    let books = shop.settled_books().await;
    assert!(books.right, "{books}");
    assert_eq!(books.confirmed, 1);
}
