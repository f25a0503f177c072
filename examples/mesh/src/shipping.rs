//! The shipping service: consumes orders and payments, and serves the shipment of an order. No
//! service calls it to ship.

mod api;
mod consumer;
mod store;

use std::sync::Arc;

use buttress_durable::EventBus;

pub use store::{Half, Shipment, Store};

use crate::db::{self, Home};
use crate::service::{Service, StartError};
use crate::{bus, stack};

/// Opens the database, subscribes, and serves until the service is stopped.
pub async fn run<H: Home>(mut service: Service, home: H, bus: Arc<dyn EventBus>) -> Result<(), StartError> {
    let store = Arc::new(Store::open(&home).await?);
    // Check, relay and subscription stop when this function returns, with or without an error.
    let _check = db::check(&service.health, store.db());
    let _retention = db::retain(store.db(), "shipping")?;
    let relay = store.outbox().relay(bus.clone());
    service.watch_outbox(store.outbox(), &relay);
    let orders = bus::subscribe(&bus, service.name, &service.faults, store.db(), store.clone()).await?;
    service.watch_consumer(&bus, &orders);
    let app = stack::rest_server(api::routes(store.clone()), &service);
    service.serve(app).await?;
    orders.shutdown().await;
    relay.shutdown().await;
    store.db().pool().close().await;
    Ok(())
}
