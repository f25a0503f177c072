use mesh::faults::{Plan, Strike};
use mesh::mesh::Name;
use mesh::payment::proto;
use mesh::payment::proto::payment_service_client::PaymentServiceClient;
use tonic::transport::Endpoint;

use crate::support::{Shop, tea};

/// The nastiest moment: the money is taken, and the answer never leaves.
fn answers_are_lost() -> Plan {
    Plan { hang_rate: 1.0, strike: Strike::After, ..Plan::default() }
}

const CHARGED: &str = "SELECT COUNT(*) FROM charges WHERE state = 'charged'";

#[tokio::test]
async fn a_crash_of_payment_in_the_middle_of_a_charge_costs_nobody_anything() {
    let mut shop = Shop::open().await;
    shop.mesh.faults(Name::Payment).set(answers_are_lost());
    let customer = shop.customer.clone();
    let placing = tokio::spawn(async move { customer.place(&tea()).await });
    shop.until_count(Name::Payment, CHARGED, 1).await;

    shop.mesh.crash(Name::Payment).await;
    let reply = placing.await.unwrap();
    assert!([503, 504].contains(&reply.status.as_u16()), "{reply:?}");
    // Nobody can be paid back while payment is down, and nobody gives up.
    assert_eq!(shop.count(Name::Payment, CHARGED).await, 1);

    shop.mesh.faults(Name::Payment).clear();
    shop.mesh.restart(Name::Payment).await.unwrap();
    let books = shop.settled_books().await;
    assert!(books.right, "{books}");
    assert_eq!((books.confirmed, books.cancelled, books.revenue_cents), (0, 1, 0));
    assert_eq!(shop.count(Name::Payment, "SELECT COUNT(*) FROM ledger").await, 2, "one charge and one refund");
}

#[tokio::test]
async fn an_order_service_that_crashes_undoes_its_unfinished_orders_when_it_is_back() {
    let mut shop = Shop::open().await;
    shop.mesh.faults(Name::Payment).set(answers_are_lost());
    let customer = shop.customer.clone();
    let placing = tokio::spawn(async move { customer.place_with_key("k1", &tea()).await });
    shop.until_count(Name::Payment, CHARGED, 1).await;

    shop.mesh.crash(Name::Order).await;
    let reply = placing.await.unwrap();
    assert!(reply.status.is_server_error(), "{reply:?}");
    assert_eq!(shop.count(Name::Order, "SELECT COUNT(*) FROM orders WHERE state = 'reserved'").await, 1);

    shop.mesh.faults(Name::Payment).clear();
    shop.mesh.restart(Name::Order).await.unwrap();
    let books = shop.settled_books().await;
    assert!(books.right, "{books}");
    assert_eq!((books.confirmed, books.cancelled, books.revenue_cents), (0, 1, 0));
    // The customer, who never got an answer, asks again and learns the truth.
    let again = shop.customer.place_with_key("k1", &tea()).await;
    assert_eq!(again.body["failure"], "interrupted");
}

#[tokio::test]
async fn a_charge_that_arrives_after_its_refund_does_nothing() {
    let shop = Shop::open().await;
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
}

#[tokio::test]
async fn lost_answers_are_retried_without_a_second_charge() {
    let shop = Shop::open().await;
    // Half of the answers are lost after the money was taken.
    shop.mesh.faults(Name::Payment).set(Plan { error_rate: 0.5, strike: Strike::After, ..Plan::default() });
    for _ in 0..20 {
        shop.customer.place(&tea()).await;
    }
    shop.mesh.faults(Name::Payment).clear();
    let books = shop.settled_books().await;
    assert!(books.right, "{books}");
    assert_eq!(books.confirmed + books.cancelled, 20);
}
