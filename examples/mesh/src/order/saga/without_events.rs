//! The saga, with the other services' stores behind their real APIs. There is no bus, so that no
//! event repairs what the saga itself has to do.

use std::sync::Arc;

use axum::Router;
use buttress_durable::saga::{Coordinator, Starter, Status};
use buttress_durable::{Outbox, args};
use sqlx::Sqlite;
use tower::ServiceBuilder;
use tower::util::BoxCloneSyncService;

use super::*;
use crate::db::Files;
use crate::stack::GrpcChannel;
use crate::{inventory, payment};

struct Services {
    orders: store::Store<Sqlite>,
    payment: Arc<payment::Store<Sqlite>>,
    inventory: Arc<inventory::Store<Sqlite>>,
    coordinator: Coordinator<Sqlite>,
    starter: Starter<Sqlite, Data>,
    _dir: tempfile::TempDir,
}

fn channel(routes: Router) -> GrpcChannel {
    let service = ServiceBuilder::new()
        .map_request(|request: http::Request<tonic::body::Body>| request.map(axum::body::Body::new))
        .map_response(|response: http::Response<axum::body::Body>| response.map(tonic::body::Body::new))
        .map_err(|never: std::convert::Infallible| match never {})
        .service(routes);
    BoxCloneSyncService::new(service)
}

impl Services {
    async fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = Files(dir.path().to_owned());
        let orders = store::Store::open(&home).await.unwrap();
        let payment = Arc::new(payment::Store::open(&home).await.unwrap());
        let inventory = Arc::new(inventory::Store::open(&home).await.unwrap());
        let (to_inventory, to_payment) = (
            Inventory::new(channel(inventory::routes(inventory.clone()))),
            Payment::new(channel(payment::routes(payment.clone()))),
        );
        let outbox = Outbox::new(orders.db().clone());
        let mut builder = Coordinator::builder(orders.db().clone(), outbox);
        let starter = builder.register(definition(&to_inventory, &to_payment).unwrap()).unwrap();
        Self { orders, payment, inventory, coordinator: builder.build(), starter, _dir: dir }
    }

    async fn order(&self, customer: &str, lines: &[(&str, i64)], prices: &[i64]) -> Status {
        let lines = lines.iter().map(|&(sku, quantity)| NewLine { sku: sku.into(), quantity }).collect();
        let new = crate::order::NewOrder { customer: customer.into(), lines };
        let total_cents = new.total_cents(prices);
        let mut tx = self.orders.db().begin().await.unwrap();
        assert!(store::insert(&mut tx, "o1", &new, &prices.to_vec(), None).await.unwrap());
        let data = Data { customer: new.customer, total_cents, lines: new.lines };
        self.starter.start(&mut tx, "o1", &data, None).await.unwrap();
        tx.commit().await.unwrap();
        self.coordinator.run_due().await.unwrap();
        self.coordinator.admin().get(&self.starter.id("o1")).await.unwrap().unwrap().status
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
    let order = shop.orders.order("o1").await.unwrap().unwrap();
    assert_eq!((order.state, order.failure, order.total_cents), (crate::order::State::Confirmed, None, 3030));
}

#[tokio::test]
async fn a_declined_order_gives_its_pieces_back_by_itself() {
    let shop = Services::open().await;
    assert_eq!(shop.order("pip", &[("tea", 2)], &[790]).await, Status::Compensated);
    assert_eq!(shop.shelf("tea").await, (1_000_000, 0, 0));
    assert_eq!(shop.inventory.reservation("o1").await.unwrap().as_deref(), Some("released"));
    assert_eq!(shop.payment.payment("o1").await.unwrap().unwrap().state, "declined");
    let order = shop.orders.order("o1").await.unwrap().unwrap();
    assert_eq!((order.state, order.failure), (crate::order::State::Cancelled, Some(Failure::Declined)));
    let cancelled = serde_json::json!({ "order_id": "o1", "customer": "pip", "failure": "declined" });
    assert_eq!(shop.told().await.pop(), Some(("OrderCancelled".to_owned(), cancelled)));
}

#[tokio::test]
async fn what_is_out_of_stock_is_not_charged() {
    let shop = Services::open().await;
    assert_eq!(shop.order("alice", &[("tea", 1), ("lamp", 1)], &[790, 12_500]).await, Status::Compensated);
    assert!(shop.payment.payment("o1").await.unwrap().is_none());
    assert_eq!(shop.shelf("tea").await, (1_000_000, 0, 0));
    let order = shop.orders.order("o1").await.unwrap().unwrap();
    assert_eq!((order.state, order.failure), (crate::order::State::Cancelled, Some(Failure::OutOfStock)));
}
