//! The saga, with the other services' stores behind their real APIs. There is no bus, so that no
//! event repairs what the saga itself has to do.

use std::sync::Arc;

use axum::Router;
use buttress_durable::saga::{Coordinator, SagaView, Starter, Status};
use buttress_durable::{ManualClock, Outbox, Timestamp, args};
use buttress_http::prelude::*;
use buttress_http::tonic::StatusLayer;
use sqlx::Sqlite;
use tower::ServiceBuilder;
use tower::util::BoxCloneSyncService;

use super::*;
use crate::db::Files;
use crate::order::{Order, State};
use crate::stack::GrpcChannel;
use crate::telemetry::AttemptLayer;
use crate::{inventory, payment};

struct Services {
    orders: store::Store<Sqlite>,
    payment: Arc<payment::Store<Sqlite>>,
    inventory: Arc<inventory::Store<Sqlite>>,
    coordinator: Coordinator<Sqlite>,
    starter: Starter<Sqlite, Data>,
    hand: ManualClock,
    /// The circuit of the client of inventory.
    circuit: CircuitBreaker,
    _dir: tempfile::TempDir,
}

/// The parts of a client stack that reject and count attempts. `called` sees every request.
fn channel(routes: Router, circuit: &CircuitBreaker, called: impl Fn() + Clone + Send + Sync + 'static) -> GrpcChannel {
    let service = ServiceBuilder::new()
        .map_response(|response: http::Response<_>| response.map(tonic::body::Body::new))
        .layer(StatusLayer)
        .layer(CircuitBreakerLayer::from(circuit.clone()).grpc_client())
        .layer(AttemptLayer { caller: "a test", peer: "a test" })
        .map_request(move |request: http::Request<_>| {
            called();
            request.map(axum::body::Body::new)
        })
        .service(routes);
    BoxCloneSyncService::new(service)
}

fn circuit(name: &'static str) -> CircuitBreaker {
    CircuitBreaker::builder(name).build().unwrap()
}

impl Services {
    async fn open() -> Self {
        Self::open_where(|_| ()).await
    }

    /// `charged` is called with the circuit to inventory when payment is called.
    async fn open_where(charged: impl Fn(&CircuitBreaker) + Clone + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = Files(dir.path().to_owned());
        let orders = store::Store::open(&home).await.unwrap();
        let payment = Arc::new(payment::Store::open(&home).await.unwrap());
        let inventory = Arc::new(inventory::Store::open(&home).await.unwrap());
        let (circuit, to_payment) = (circuit("inventory"), circuit("payment"));
        let cut = circuit.clone();
        let to_payment = channel(payment::routes(payment.clone()), &to_payment, move || charged(&cut));
        let to_inventory = channel(inventory::routes(inventory.clone()), &circuit, || ());
        let (to_inventory, to_payment) = (Inventory::new(to_inventory), Payment::new(to_payment));
        let hand = ManualClock::new(Timestamp::from_millis(1_700_000_000_000));
        let db = orders.db().clone().with_clock(hand.clock());
        let mut builder = Coordinator::builder(db.clone(), Outbox::new(db));
        let starter = builder.register(definition(&to_inventory, &to_payment).unwrap()).unwrap();
        Self { orders, payment, inventory, coordinator: builder.build(), starter, hand, circuit, _dir: dir }
    }

    async fn order(&self, customer: &str, lines: &[(&str, i64)], prices: &[i64]) -> Status {
        self.place(customer, lines, prices).await;
        self.coordinator.run_due().await.unwrap();
        self.saga().await.status
    }

    async fn place(&self, customer: &str, lines: &[(&str, i64)], prices: &[i64]) {
        let lines = lines.iter().map(|&(sku, quantity)| NewLine { sku: sku.parse().unwrap(), quantity }).collect();
        let new = crate::order::NewOrder { customer: customer.parse().unwrap(), lines };
        let total_cents = new.total_cents(prices);
        let mut tx = self.orders.db().begin().await.unwrap();
        assert!(store::insert(&mut tx, "o1", &new, &prices.to_vec(), None, 1).await.unwrap());
        let data = Data { customer: new.customer.into(), total_cents, lines: new.lines };
        self.starter.start(&mut tx, "o1", &data, None).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn saga(&self) -> SagaView {
        self.coordinator.admin().get(&self.starter.id("o1")).await.unwrap().unwrap()
    }

    async fn stored(&self) -> Order {
        self.orders.order("o1").await.unwrap().unwrap()
    }

    /// Runs what is due, once a minute.
    async fn run_for(&self, time: Duration) {
        let minute = Duration::from_secs(60);
        for _ in 0..time.as_secs() / minute.as_secs() {
            self.coordinator.run_due().await.unwrap();
            self.hand.advance(minute);
        }
    }

    /// On hand, reserved, sold.
    async fn shelf(&self, sku: &str) -> (i64, i64, i64) {
        let sql = "SELECT on_hand, reserved, sold FROM products WHERE sku = $1";
        self.inventory.db().row(sql, args![sku]).await.unwrap().unwrap()
    }

    async fn told(&self) -> Vec<(String, serde_json::Value)> {
        let sql = "SELECT payload FROM buttress_outbox ORDER BY seq";
        let rows: Vec<(Vec<u8>,)> = self.orders.db().rows(sql, args![]).await.unwrap();
        let told = |(json,): &(Vec<u8>,)| {
            let event: buttress_durable::DomainEvent = serde_json::from_slice(json).unwrap();
            (event.topic().to_owned(), event.data().clone())
        };
        rows.iter().map(told).collect()
    }
}

#[tokio::test]
async fn a_confirmed_order_is_reserved_and_paid_for() {
    let shop = Services::open().await;
    assert_eq!(shop.order("alice", &[("tea", 2), ("mug", 1)], &[790, 1450]).await, Status::Completed);
    assert_eq!((shop.shelf("tea").await, shop.shelf("mug").await), ((999_998, 2, 0), (999_999, 1, 0)));
    let paid = shop.payment.payment("o1").await.unwrap().unwrap();
    assert_eq!((paid.state.as_str(), paid.amount_cents), ("charged", 3030));
    let lines = serde_json::json!([{ "sku": "tea", "quantity": 2 }, { "sku": "mug", "quantity": 1 }]);
    let created = serde_json::json!(
        { "order_id": "o1", "customer": "alice", "total_cents": 3030, "lines": lines }
    );
    let confirmed = serde_json::json!({ "order_id": "o1", "customer": "alice", "total_cents": 3030 });
    let expected = [("OrderCreated".to_owned(), created), ("OrderConfirmed".to_owned(), confirmed)];
    assert_eq!(shop.told().await, expected);
    let order = shop.stored().await;
    assert_eq!((order.state, order.failure, order.total_cents), (State::Confirmed, None, 3030));
}

#[tokio::test]
async fn a_declined_order_gives_its_pieces_back_by_itself() {
    let shop = Services::open().await;
    assert_eq!(shop.order("pip", &[("tea", 2)], &[790]).await, Status::Compensated);
    assert_eq!(shop.shelf("tea").await, (1_000_000, 0, 0));
    assert_eq!(shop.inventory.reservation("o1").await.unwrap().as_deref(), Some("released"));
    assert_eq!(shop.payment.payment("o1").await.unwrap().unwrap().state, "declined");
    let order = shop.stored().await;
    assert_eq!((order.state, order.failure), (State::Cancelled, Some(Failure::Declined)));
    let cancelled = serde_json::json!({ "order_id": "o1", "customer": "pip", "failure": "declined" });
    assert_eq!(shop.told().await.pop(), Some(("OrderCancelled".to_owned(), cancelled)));
}

#[tokio::test]
async fn what_is_out_of_stock_is_not_charged() {
    let shop = Services::open().await;
    assert_eq!(shop.order("alice", &[("tea", 1), ("lamp", 1)], &[790, 12_500]).await, Status::Compensated);
    assert!(shop.payment.payment("o1").await.unwrap().is_none());
    assert_eq!(shop.shelf("tea").await, (1_000_000, 0, 0));
    let order = shop.stored().await;
    assert_eq!((order.state, order.failure), (State::Cancelled, Some(Failure::OutOfStock)));
}

#[tokio::test]
async fn an_order_is_cancelled_by_itself_when_inventory_is_back_after_minutes_or_hours() {
    for outage in [Duration::from_secs(12 * 60), Duration::from_secs(3 * 3_600)] {
        // Inventory fails after it has reserved, and the payment is declined.
        let shop = Services::open_where(CircuitBreaker::force_open).await;
        assert_eq!(shop.order("pip", &[("tea", 2)], &[790]).await, Status::Compensating);
        shop.run_for(outage).await;
        let saga = shop.saga().await;
        assert_eq!((saga.status, saga.steps[1].attempts), (Status::Compensating, 0), "{saga:?}");
        assert!(saga.steps[1].error.as_ref().unwrap().starts_with("inventory unavailable"), "{saga:?}");
        assert_eq!(shop.shelf("tea").await, (999_998, 2, 0));
        shop.circuit.reset();
        shop.run_for(Duration::from_secs(60)).await;
        assert_eq!((shop.saga().await.status, shop.stored().await.state), (Status::Compensated, State::Cancelled));
        assert_eq!(shop.shelf("tea").await, (1_000_000, 0, 0));
    }
}

#[tokio::test]
async fn an_order_that_no_call_was_sent_for_is_cancelled_at_once() {
    let shop = Services::open().await;
    shop.circuit.force_open();
    shop.place("alice", &[("tea", 2)], &[790]).await;
    for _ in 0..=ATTEMPTS.get() {
        shop.coordinator.run_due().await.unwrap();
        shop.hand.advance(Duration::from_secs(1));
    }
    let order = shop.stored().await;
    // Nothing may have happened at inventory, so that the order need not wait for it.
    assert_eq!((order.state, order.failure), (State::Cancelled, Some(Failure::InventoryUnavailable)));
    assert_eq!(shop.saga().await.status, Status::Compensated);
}

#[tokio::test]
async fn an_order_that_nothing_ran_for_is_cancelled_after_its_deadline() {
    let shop = Services::open().await;
    shop.place("alice", &[("tea", 2)], &[790]).await;
    shop.hand.advance(DEADLINE);
    shop.coordinator.run_due().await.unwrap();
    let order = shop.stored().await;
    assert_eq!((shop.saga().await.status, order.state), (Status::Compensated, State::Cancelled));
    assert_eq!(order.failure, Some(Failure::Interrupted));
}

#[tokio::test]
async fn an_order_follows_what_an_operator_decides() {
    let cases = [
        ("reserve_inventory", 1, State::Cancelled, "OrderCancelled"),
        ("confirm_order", 3, State::Confirmed, "OrderConfirmed"),
    ];
    for (step, index, state, event) in cases {
        let shop = Services::open().await;
        shop.place("alice", &[("tea", 2)], &[790]).await;
        let stuck = serde_json::json!({ "step": step, "message": "m", "compensating": false, "note": null });
        let mut tx = shop.orders.db().begin().await.unwrap();
        let sql = "UPDATE buttress_saga SET status = 'stuck', step = $1, stuck = $2";
        tx.execute(sql, args![index, &stuck.to_string()]).await.unwrap();
        tx.commit().await.unwrap();
        shop.coordinator.admin().resolve(&shop.starter.id("o1"), "by hand").await.unwrap();
        assert_eq!((shop.saga().await.status, shop.stored().await.state), (Status::Resolved, state), "{step}");
        assert_eq!(shop.told().await[0].0, event);
    }
}
