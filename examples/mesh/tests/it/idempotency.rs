use mesh::faults::{Plan, Strike};
use mesh::mesh::Name;
use serde_json::json;

use crate::support::{Place, Shop, on_both, tea, until};

on_both!(a_repeat_of_what_the_version_before_answered_makes_no_second_order);

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

#[tokio::test]
async fn two_customers_may_use_the_same_key() {
    let shop = Shop::open().await;
    let of = |customer| json!({ "customer": customer, "items": [{ "sku": "tea", "quantity": 2 }] });
    let (alice, bob) = (of("alice"), of("bob"));
    let first = shop.customer.place_with_key("k1", &alice).await;
    let second = shop.customer.place_with_key("k1", &bob).await;
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (201, 201));
    assert_ne!(first.body["id"], second.body["id"]);
    assert_eq!(second.body["customer"], "bob");
    assert_eq!(shop.customer.place_with_key("k1", &alice).await.body, first.body);
}

#[tokio::test]
async fn a_cancelled_order_is_a_final_answer_that_no_layer_repeats() {
    let shop = Shop::open().await;
    shop.mesh.faults(Name::Payment).set(Plan { error_rate: 1.0, strike: Strike::Before, ..Plan::default() });
    // The refund of an unknown outcome needs payment; the answer does not wait for it.
    let first = shop.customer.place_with_key("k1", &tea()).await;
    assert_eq!((first.status.as_u16(), &first.body["failure"]), (424, &json!("payment_unavailable")));
    assert!(!first.headers.contains_key("retry-after"), "{first:?}");
    shop.mesh.faults(Name::Payment).clear();
    let again = shop.customer.place_with_key("k1", &tea()).await;
    assert_eq!((again.status, again.body), (first.status, first.body));
    let order = &shop.mesh.gateway_clients().order;
    assert_eq!((order.stats().retries, order.breaker().state()), (0, buttress::circuit_breaker::State::Closed));
    assert_eq!(shop.count(Name::Order, "SELECT COUNT(*) FROM orders").await, 1);
}

#[tokio::test]
async fn customers_who_post_and_hang_up_do_not_pile_up_orders() {
    const PENDING: &str = "SELECT COUNT(*) FROM orders WHERE state = 'pending'";
    let shop = Shop::open_with(|config| config.under_way = 3).await;
    shop.mesh.faults(Name::Payment).set(Plan { hang_rate: 1.0, ..Plan::default() });
    let order = tea();
    for key in ["k1", "k2", "k3"] {
        let placing = shop.customer.place_with_key(key, &order);
        // Hangs up as soon as the order is stored.
        let stored = shop.until_count(Name::Order, PENDING, i64::from(key.as_bytes()[1] - b'0'));
        futures_util::future::select(std::pin::pin!(placing), std::pin::pin!(stored)).await;
    }
    shop.until_count(Name::Order, PENDING, 3).await;
    for _ in 0..5 {
        let reply = shop.customer.place(&tea()).await;
        assert_eq!(reply.status, 503, "{reply:?}");
        assert_eq!(reply.body["type"], "https://buttress.example/problems/too-many-orders");
        assert!(reply.headers.contains_key("retry-after"));
    }
    assert_eq!(shop.count(Name::Order, "SELECT COUNT(*) FROM orders").await, 3, "nothing more is stored");
    let order = shop.mesh.gateway_clients().order.breaker().clone();
    assert_eq!(order.state(), buttress::circuit_breaker::State::Closed, "a refusal is no failure");

    shop.mesh.faults(Name::Payment).clear();
    until("an order is accepted again", async || shop.customer.place(&tea()).await.status == 201).await;
    let books = shop.settled_books().await;
    assert!(books.right, "{books}");
}

async fn a_repeat_of_what_the_version_before_answered_makes_no_second_order(place: Place) {
    let shop = Shop::open_at(place, |_| {}).await;
    let first = shop.customer.place_with_key("k1", &tea()).await;
    assert_eq!(first.status, 201);
    // Until a rolling update is over, the old version stores keys without their customers.
    shop.cook(Name::Order, "UPDATE orders SET idempotency_key = 'k1'").await;
    let again = shop.customer.place_with_key("k1", &tea()).await;
    assert_eq!((again.status, again.body), (first.status, first.body));
    assert_eq!(shop.count(Name::Order, "SELECT COUNT(*) FROM orders").await, 1);
    shop.close().await;
}
