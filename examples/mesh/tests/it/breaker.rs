use buttress::circuit_breaker::State;
use mesh::faults::Plan;
use mesh::mesh::Name;

use crate::support::{Shop, tea, until};

#[tokio::test]
async fn the_breaker_opens_answers_at_once_and_closes_again() {
    let shop = Shop::open().await;
    let breaker = shop.mesh.order_clients().payment.breaker().clone();
    assert_eq!(breaker.state(), State::Closed);

    shop.mesh.faults(Name::Payment).set(Plan { error_rate: 1.0, ..Plan::default() });
    until("the breaker opens", async || {
        shop.customer.place(&tea()).await;
        breaker.state() == State::Open
    })
    .await;
    // The order is cancelled because of an open circuit, which the answer names. Nothing is
    // charged.
    breaker.force_open();
    let reply = shop.customer.place(&tea()).await;
    assert_eq!((reply.status.as_u16(), &reply.body["dependency"]), (424, &"payment".into()));
    assert!(!reply.headers.contains_key("retry-after"), "final: {reply:?}");
    assert_eq!(
        shop.mesh.gateway_clients().order.breaker().state(),
        State::Closed,
        "payment's failures do not count against order"
    );

    shop.mesh.faults(Name::Payment).clear();
    breaker.open_for(std::time::Duration::from_millis(1));
    until("the breaker closes", async || {
        shop.customer.place(&tea()).await;
        breaker.state() == State::Closed
    })
    .await;
    assert_eq!(shop.customer.place(&tea()).await.status, 201);
    let books = shop.settled_books().await;
    assert!(books.right, "{books}");
}
