//! The inventory service: gRPC and events, its own database, no clients.
//!
//! Built like [`crate::payment`]. Reserving and releasing are calls, because the order waits for
//! the answer. What follows from the end of an order is an event (`consumer.rs`), because no caller
//! waits for it.

mod api;
mod consumer;
mod domain;
mod store;

use std::sync::Arc;

use axum::Router;
use buttress_durable::{Database, EventBus};

pub use api::proto;
pub use domain::{Line, Product, ReserveOutcome, Shipped};
pub use store::Store;

use crate::db::{self, Home};
use crate::service::{Service, StartError};
use crate::{bus, stack};

/// Opens the database and serves until the service is stopped.
pub async fn run<H: Home>(mut service: Service, home: H, bus: Arc<dyn EventBus>) -> Result<(), StartError> {
    let store = Arc::new(Store::open(&home).await?);
    // Check, relay and subscription stop when this function returns, with or without an error.
    let _check = db::check(&service.health, store.db());
    let _retention = db::retain(store.db(), "inventory")?;
    let relay = store.outbox().relay(bus.clone());
    service.watch_outbox(store.outbox(), &relay);
    let orders = bus::subscribe(&bus, service.name, &service.faults, store.db(), store.clone()).await?;
    service.watch_consumer(&bus, &orders);
    let app = stack::grpc_server(routes(store.clone()), &service);
    service.serve(app).await?;
    orders.shutdown().await;
    relay.shutdown().await;
    store.db().pool().close().await;
    Ok(())
}

/// The service without layers.
pub fn routes<D: Database>(store: Arc<Store<D>>) -> Router {
    tonic::service::Routes::new(proto::inventory_service_server::InventoryServiceServer::new(api::Api::new(store)))
        .prepare()
        .into_axum_router()
}
