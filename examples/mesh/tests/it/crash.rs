use mesh::faults::{Plan, Strike};
use mesh::mesh::Name;
use mesh::payment::proto;
use mesh::payment::proto::payment_service_client::PaymentServiceClient;
use serde_json::json;
use tonic::transport::Endpoint;

use crate::support::{Place, Shop, on_both, tea, until};

on_both!(
    a_crash_of_payment_in_the_middle_of_a_charge_costs_nobody_anything,
    a_saga_goes_on_after_a_crash_of_order,
    a_saga_goes_on_backwards_after_a_crash_of_order,
    a_charge_that_arrives_after_its_refund_does_nothing,
    lost_answers_are_retried_without_a_second_charge,
    every_service_may_crash_and_every_effect_happens_once,
);

fn hang(strike: Strike) -> Plan {
    Plan { hang_rate: 1.0, strike, ..Plan::default() }
}

const CHARGED: &str = "SELECT COUNT(*) FROM charges WHERE state = 'charged'";
const RESERVED: &str = "SELECT COUNT(*) FROM reservations WHERE state = 'reserved'";
const PENDING: &str = "SELECT COUNT(*) FROM orders WHERE state = 'pending'";

async fn a_crash_of_payment_in_the_middle_of_a_charge_costs_nobody_anything(place: Place) {
    let mut shop = Shop::open_at(place, |_| {}).await;
    // The worst moment: the money is taken, and the response is not sent.
    shop.mesh.faults(Name::Payment).set(hang(Strike::After));
    let customer = shop.customer.clone();
    let placing = tokio::spawn(async move { customer.place(&tea()).await });
    shop.until_count(Name::Payment, CHARGED, 1).await;

    shop.mesh.crash(Name::Payment).await;
    let reply = placing.await.unwrap();
    assert_eq!(reply.status, 424, "{reply:?}");
    // While payment is down, the refund is retried and the charge stands.
    assert_eq!(shop.count(Name::Payment, CHARGED).await, 1);

    shop.mesh.faults(Name::Payment).clear();
    shop.mesh.restart(Name::Payment).await.unwrap();
    let books = shop.settled_books().await;
    assert!(books.right, "{books}");
    assert_eq!((books.confirmed, books.cancelled, books.revenue_cents), (0, 1, 0));
    assert_eq!(shop.count(Name::Payment, "SELECT COUNT(*) FROM ledger").await, 2, "one charge and one refund");
    shop.close().await;
}

async fn a_saga_goes_on_after_a_crash_of_order(place: Place) {
    let mut shop = Shop::open_at(place, |_| {}).await;
    // Before the charge and after it: the order service cannot tell which, and both must work.
    for (strike, key) in [(Strike::Before, "k1"), (Strike::After, "k2")] {
        shop.mesh.faults(Name::Payment).set(hang(strike));
        let customer = shop.customer.clone();
        let placing = tokio::spawn(async move { customer.place_with_key(key, &tea()).await });
        shop.until_count(Name::Inventory, RESERVED, 1).await;
        if strike == Strike::After {
            shop.until_count(Name::Payment, CHARGED, 2).await;
        }
        shop.mesh.crash(Name::Order).await;
        let reply = placing.await.unwrap();
        assert!(reply.status.is_server_error(), "{reply:?}");
        assert_eq!(shop.count(Name::Order, PENDING).await, 1);

        shop.mesh.faults(Name::Payment).clear();
        shop.mesh.restart(Name::Order).await.unwrap();
        // The customer got no answer, repeats the request with the same key and gets the outcome.
        let again = shop.customer.place_until_decided(key, &tea()).await;
        assert_eq!(again.status, 201, "{again:?}");
        shop.settled_books().await;
    }
    let books = shop.settled_books().await;
    assert!(books.right, "{books}");
    assert_eq!((books.confirmed, books.cancelled, books.revenue_cents), (2, 0, 3160));
    assert_eq!(shop.count(Name::Payment, "SELECT COUNT(*) FROM ledger").await, 2);
    shop.close().await;
}

async fn a_saga_goes_on_backwards_after_a_crash_of_order(place: Place) {
    let mut shop = Shop::open_at(place, |_| {}).await;
    shop.mesh.faults(Name::Payment).set(hang(Strike::Before));
    let customer = shop.customer.clone();
    let broke = json!({ "customer": "pip", "items": [{ "sku": "kettle", "quantity": 1 }] });
    let order = broke.clone();
    let placing = tokio::spawn(async move { customer.place_with_key("k1", &order).await });
    shop.until_count(Name::Inventory, RESERVED, 1).await;
    // The stock is reserved and cannot be released from now on. Then the payment is declined.
    shop.mesh.faults(Name::Inventory).set(hang(Strike::Before));
    shop.mesh.faults(Name::Payment).clear();
    let reply = placing.await.unwrap();
    assert_eq!(reply.status, 402, "decided, though not yet undone: {reply:?}");

    shop.mesh.crash(Name::Order).await;
    assert_eq!(shop.count(Name::Order, PENDING).await, 1);
    assert_eq!(shop.count(Name::Inventory, RESERVED).await, 1);
    shop.mesh.faults(Name::Inventory).clear();
    shop.mesh.restart(Name::Order).await.unwrap();
    let books = shop.settled_books().await;
    assert!(books.right, "{books}");
    assert_eq!((books.confirmed, books.cancelled, books.revenue_cents), (0, 1, 0));
    let again = shop.customer.place_with_key("k1", &broke).await;
    assert_eq!((again.status, again.body), (reply.status, reply.body));
    shop.close().await;
}

async fn a_charge_that_arrives_after_its_refund_does_nothing(place: Place) {
    let shop = Shop::open_at(place, |_| {}).await;
    let channel = Endpoint::from_shared(shop.mesh.url(Name::Payment)).unwrap().connect_lazy();
    let mut payment = PaymentServiceClient::new(channel);
    let (key, order_id) = ("o1:charge".to_owned(), "o1".to_owned());

    let refund = proto::RefundRequest { key: key.clone(), order_id: order_id.clone() };
    assert_eq!(payment.refund(refund).await.unwrap().into_inner().amount_cents, 0);
    let late = proto::ChargeRequest { key, order_id, customer: "alice".to_owned(), amount_cents: 500 };
    let answer = payment.charge(late).await.unwrap().into_inner();
    assert_eq!(answer.outcome(), proto::ChargeOutcome::Revoked);
    assert_eq!(shop.count(Name::Payment, "SELECT COUNT(*) FROM ledger").await, 0);
    let untouched = "SELECT COUNT(*) FROM accounts WHERE balance_cents = opening_cents";
    assert_eq!(shop.count(Name::Payment, untouched).await, 5);
    shop.close().await;
}

async fn lost_answers_are_retried_without_a_second_charge(place: Place) {
    let shop = Shop::open_at(place, |_| {}).await;
    // Half of the responses are lost after the money was taken.
    shop.mesh.faults(Name::Payment).set(Plan { error_rate: 0.5, strike: Strike::After, ..Plan::default() });
    for _ in 0..20 {
        shop.customer.place(&tea()).await;
    }
    shop.mesh.faults(Name::Payment).clear();
    let books = shop.settled_books().await;
    assert!(books.right, "{books}");
    assert_eq!(books.confirmed + books.cancelled, 20);
    shop.close().await;
}

async fn every_service_may_crash_and_every_effect_happens_once(place: Place) {
    let mut shop = Shop::open_at(place, |_| {}).await;
    let mut placing = Vec::new();
    for name in Name::ALL {
        for number in 0..3 {
            let (customer, key) = (shop.customer.clone(), format!("{name:?}-{number}"));
            placing.push(tokio::spawn(async move { customer.place_until_decided(&key, &tea()).await }));
        }
        // Crashes the services at arbitrary points of their work.
        shop.mesh.crash(name).await;
        shop.mesh.restart(name).await.unwrap();
    }
    for placed in placing {
        let reply = placed.await.unwrap();
        assert!([201, 424].contains(&reply.status.as_u16()), "{reply:?}");
    }
    let books = shop.settled_books().await;
    assert!(books.right, "{books}");
    assert_eq!(books.confirmed + books.cancelled, 21);
    until("an order succeeds", async || shop.customer.place(&tea()).await.status == 201).await;
    shop.close().await;
}
