//! The order service: REST, its own database, clients of payment and inventory, and the owner of the saga.
//!
//! Three services cannot share one transaction. So an order is a saga (`saga.rs`): what it has done is written down around
//! every step, and what does not get through is undone, across crashes. What happens *after* an order has ended is nobody's
//! call: inventory, shipping and notification hear of it.

mod admin;
mod api;
mod clients;
mod domain;
mod place;
mod saga;
mod store;

use std::sync::Arc;
use std::time::Duration;

use buttress_durable::{Coordinator, Database, EventBus};

pub use api::{IDEMPOTENCY_KEY, unknown_order};
pub use domain::{Failure, NewOrder, Order, State};
pub use store::Store;

use crate::bus;
use crate::db::{self, Home};
use crate::service::{Address, Service, StartError};
use crate::stack::{self, OrderClients};
use crate::telemetry::Telemetry;

/// What the order service needs to know of the others.
#[derive(Clone, Debug)]
pub struct Config {
    pub payment: Address,
    pub inventory: Address,
    /// Handles of the client stacks: made outside, so that breakers and counters can be watched from there.
    pub clients: OrderClients,
    /// How long a customer waits for the end of an order before being told to come back. Less than the gateway waits.
    pub patience: Duration,
}

/// How long a coordinator that has crashed keeps its sagas from the next one. Short, because customers wait for them; a
/// coordinator that was only slow finds out at its next write.
const LEASE: Duration = Duration::from_secs(3);

/// Sagas at work at the same time, hardly more than the client stacks have places. The rest wait in the database, where
/// waiting costs nothing: after a restart there may be many.
const CONCURRENCY: usize = 16;

/// Opens the database, goes on with the sagas that an earlier life has left, and serves until told to stop.
pub async fn run<H: Home>(service: Service, home: H, bus: Arc<dyn EventBus>, config: Config) -> Result<(), StartError> {
    let store = Arc::new(Store::open(&home).await?);
    let inventory = clients::Inventory::new(config.clients.inventory.grpc(&config.inventory)?);
    let payment = clients::Payment::new(config.clients.payment.grpc(&config.payment)?);
    let outbox = bus::outbox(store.db());
    let mut builder = Coordinator::builder(store.db().clone(), outbox.clone()).lease(LEASE).concurrency(CONCURRENCY);
    // An order that was started by an older version is finished by that version: register both until the last one has ended.
    let starter = builder.register(saga::definition(&inventory, &payment)?)?;
    let coordinator = builder.build();

    // All three stop when this function ends, however it ends.
    let _check = db::check(&service.health, store.db());
    let relay = outbox.relay(bus);
    let running = coordinator.run();
    bus::watch(&service.telemetry, &outbox);
    watch(&service.telemetry, &coordinator);
    let patience = config.patience;
    let desk = Arc::new(place::Desk { store: store.clone(), inventory, starter, coordinator, patience });
    let admin = service.admin_routes();
    let admin = if service.admin { admin.merge(admin::routes(desk.clone())) } else { admin };
    let app = stack::rest_server(api::routes(desk), admin, &service);
    service.serve(app).await?;

    // The calls at hand are finished and written down; the rest of each saga waits for the next start.
    running.shutdown().await;
    relay.shutdown().await;
    store.db().pool().close().await;
    Ok(())
}

/// Shows how many sagas are on their way, and how many wait for somebody. The last number wakes people up at night.
fn watch<D: Database>(telemetry: &Telemetry, coordinator: &Coordinator<D>) {
    let coordinator = coordinator.clone();
    telemetry.gauges(["saga.running", "saga.compensating", "saga.stuck"], move || {
        let admin = coordinator.admin();
        async move {
            let counts = admin.counts().await.ok()?;
            Some([counts.running, counts.compensating, counts.stuck])
        }
    });
}
