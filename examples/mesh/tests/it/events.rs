use mesh::faults::{Plan, Strike};
use mesh::mesh::Name;
use serde_json::json;

use crate::support::{Customer, Place, Shop, on_both, tea, until};

on_both!(
    a_confirmed_order_is_shipped_and_told_of,
    a_cancelled_order_is_told_of_and_not_shipped,
    what_was_missed_is_heard_after_the_restart,
    an_order_that_takes_long_is_accepted_and_ends_later,
);

fn at(shop: &Shop, name: Name) -> Customer {
    Customer::new(shop.mesh.url(name))
}

async fn notified(shop: &Shop, order_id: &str) -> Vec<String> {
    let reply = at(shop, Name::Notification).get(&format!("/v1/notifications?order_id={order_id}")).await;
    assert_eq!(reply.status, 200);
    let kinds = reply.body["notifications"].as_array().unwrap().iter();
    let mut kinds: Vec<_> = kinds.map(|sent| sent["kind"].as_str().unwrap().to_owned()).collect();
    kinds.sort();
    kinds
}

async fn a_confirmed_order_is_shipped_and_told_of(place: Place) {
    let shop = Shop::open_at(place, |_| {}).await;
    let placed = shop.customer.place(&tea()).await;
    assert_eq!(placed.status, 201);
    let id = placed.body["id"].as_str().unwrap();
    let books = shop.settled_books().await;
    assert!(books.right, "{books}");

    let parcel = at(&shop, Name::Shipping).get(&format!("/v1/shipments/{id}")).await;
    assert_eq!((parcel.status.as_u16(), &parcel.body["customer"]), (200, &json!("alice")));
    assert_eq!(notified(&shop, id).await, ["order_confirmed", "payment_completed", "shipment_created"]);
    let expected = [
        ("InventoryReserved", 1),
        ("InventoryShipped", 1),
        ("NotificationSent", 3),
        ("OrderConfirmed", 1),
        ("OrderCreated", 1),
        ("PaymentCompleted", 1),
        ("ShipmentCreated", 1),
    ];
    assert_eq!(books.events, expected.map(|(kind, count)| (kind.to_owned(), count)).into());
    assert_eq!(books.sagas, [("completed".to_owned(), 1)].into());
    shop.close().await;
}

async fn a_cancelled_order_is_told_of_and_not_shipped(place: Place) {
    let shop = Shop::open_at(place, |_| {}).await;
    let broke = json!({ "customer": "pip", "items": [{ "sku": "kettle", "quantity": 1 }] });
    let reply = shop.customer.place(&broke).await;
    assert_eq!(reply.status, 402);
    let id = reply.body["order_id"].as_str().unwrap();
    let books = shop.settled_books().await;
    assert!(books.right, "{books}");
    assert_eq!(notified(&shop, id).await, ["order_cancelled"]);
    assert_eq!(at(&shop, Name::Shipping).get(&format!("/v1/shipments/{id}")).await.status, 404);
    assert_eq!(books.events["InventoryReleased"], 1);
    assert_eq!(books.events["PaymentDeclined"], 1);
    assert_eq!(books.sagas, [("compensated".to_owned(), 1)].into());
    shop.close().await;
}

async fn what_was_missed_is_heard_after_the_restart(place: Place) {
    let mut shop = Shop::open_at(place, |_| {}).await;
    for name in [Name::Shipping, Name::Notification] {
        shop.mesh.crash(name).await;
    }
    for _ in 0..5 {
        assert_eq!(shop.customer.place(&tea()).await.status, 201, "an order does not wait for consumers");
    }
    for name in [Name::Shipping, Name::Notification] {
        shop.mesh.restart(name).await.unwrap();
    }
    let books = shop.settled_books().await;
    assert!(books.right, "{books}");
    assert_eq!(books.events["ShipmentCreated"], 5);
    shop.close().await;
}

async fn an_order_that_takes_long_is_accepted_and_ends_later(place: Place) {
    let shop = Shop::open_at(place, |config| config.patience = std::time::Duration::from_millis(100)).await;
    shop.mesh.faults(Name::Payment).set(Plan { hang_rate: 1.0, strike: Strike::Before, ..Plan::default() });
    let reply = shop.customer.place_with_key("k1", &tea()).await;
    shop.mesh.faults(Name::Payment).clear();
    assert_eq!((reply.status.as_u16(), &reply.body["state"]), (202, &json!("pending")), "{reply:?}");
    assert!(reply.headers.contains_key("retry-after"));
    let location = reply.headers["location"].to_str().unwrap();
    until("the order is confirmed", async || {
        let view = shop.customer.get(location).await;
        assert_eq!(view.status, 200);
        view.body["order"]["state"] == "confirmed"
    })
    .await;
    let again = shop.customer.place_with_key("k1", &tea()).await;
    assert_eq!((again.status.as_u16(), &again.body["id"]), (201, &reply.body["id"]));
    shop.close().await;
}

#[tokio::test]
async fn what_is_asked_of_no_order_is_refused() {
    let shop = Shop::open().await;
    assert_eq!(at(&shop, Name::Notification).get("/v1/notifications").await.status, 400);
    assert_eq!(at(&shop, Name::Shipping).get("/v1/shipments/nothing").await.status, 404);
}
