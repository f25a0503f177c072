//! The order service: REST, its own database, clients of payment and inventory, and the saga.
//!
//! Three services cannot share one transaction, so an order is a saga (`saga.rs`). Its progress is
//! recorded around every step, and a failed order is compensated, also across crashes. What happens
//! *after* an order has ended needs no call: inventory, shipping and notification consume its
//! events.

mod admin;
mod api;
mod clients;
mod domain;
mod place;
mod saga;
mod store;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use buttress_durable::saga::{Filter, Status};
use buttress_durable::{Coordinator, Database, EventBus};
use tokio_util::task::AbortOnDropHandle;

pub use api::{IDEMPOTENCY_KEY, idempotency_key, invalid_order, unknown_order};
pub use domain::{Draft, DraftLine, Failure, NewOrder, Order, State};
pub use store::Store;

use crate::bus;
use crate::db::{self, Home};
use crate::service::{Address, Service, StartError};
use crate::stack::{self, OrderClients};
use crate::telemetry::{Reading, Telemetry};

/// The order service's peers and client stacks.
#[derive(Clone, Debug)]
pub struct Config {
    pub payment: Address,
    pub inventory: Address,
    /// Handles of the client stacks. They are created outside, so that tests and metrics can
    /// observe breakers and counters.
    pub clients: OrderClients,
    /// How long a request waits for its saga before it is answered 202. Less than the gateway's
    /// timeout.
    pub patience: Duration,
    /// Maximum number of orders that are stored and neither confirmed nor cancelled. See
    /// [`UNDER_WAY`].
    pub under_way: u32,
}

/// Default of [`Config::under_way`]: what the sagas finish in a few seconds. An order beyond it is
/// answered 503 before anything is stored. Without this bound, customers who post and hang up would
/// fill the database with orders faster than sagas end. It is counted in the database, so it holds
/// for all instances together and across restarts, and sagas that are stuck count as well.
pub const UNDER_WAY: u32 = 256;

/// Lease of a coordinator on its sagas. After a crash, another coordinator takes over after this
/// time. Short, because customers wait; a coordinator that was only slow finds out at its next
/// write.
const LEASE: Duration = Duration::from_secs(3);

/// Maximum number of running sagas, slightly more than the client stacks have places. The others
/// wait in the database, which costs nothing; after a restart there may be many.
const CONCURRENCY: usize = 16;

/// Stuck sagas that are counted at most by definition.
const COUNTED: u32 = 1_000;

/// Opens the database, resumes unfinished sagas, and serves until the service is stopped.
pub async fn run<H: Home>(
    mut service: Service,
    home: H,
    bus: Arc<dyn EventBus>,
    config: Config,
) -> Result<(), StartError> {
    let store = Arc::new(Store::open(&home).await?);
    let inventory = clients::Inventory::new(config.clients.inventory.grpc(&config.inventory)?);
    let payment = clients::Payment::new(config.clients.payment.grpc(&config.payment)?);
    let outbox = bus::outbox(store.db());
    let mut builder = Coordinator::builder(store.db().clone(), outbox.clone()).lease(LEASE).concurrency(CONCURRENCY);
    // An order is finished by the version of the definition that started it. Register both versions
    // until the last order of the old one has ended.
    let starter = builder.register(saga::definition(&inventory, &payment)?)?;
    let coordinator = builder.build();

    // Check, relay and coordinator stop when this function returns, with or without an error.
    let _check = db::check(&service.health, store.db());
    let _retention = db::retain(store.db(), "order")?;
    let relay = outbox.relay(bus);
    let running = coordinator.run();
    service.watch_outbox(&outbox, &relay);
    service.telemetry.worker("coordinator", running.health());
    watch(&service.telemetry, &coordinator);
    let _purge = AbortOnDropHandle::new(tokio::spawn(store::purge_keys(store.clone())));
    let (patience, under_way) = (config.patience, config.under_way);
    let desk = Arc::new(place::Desk { store: store.clone(), inventory, starter, coordinator, patience, under_way });
    service.admin.add(admin::routes(desk.clone()));
    service.admin.queue(admin::StuckSagas(desk.clone()));
    let app = stack::rest_server(api::routes(desk), &service);
    service.serve(app).await?;

    // Running calls are finished and recorded; the rest of each saga continues after the next
    // start.
    running.shutdown().await;
    relay.shutdown().await;
    store.db().pool().close().await;
    Ok(())
}

/// Registers gauges for running, compensating and stuck sagas. `saga.stuck` should page an
/// operator.
fn watch<D: Database>(telemetry: &Telemetry, coordinator: &Coordinator<D>) {
    let coordinator = coordinator.clone();
    telemetry.gauges("sagas", move || {
        let admin = coordinator.admin();
        async move {
            let counts = admin.counts().await?;
            let mut readings = vec![
                Reading::new("saga.running", counts.running as f64),
                Reading::new("saga.compensating", counts.compensating as f64),
                Reading::new("saga.stuck", counts.stuck as f64),
                Reading::new("saga.unregistered", counts.unregistered as f64),
            ];
            let mut definitions = BTreeMap::from([(saga::NAME.to_owned(), 0_u32)]);
            if counts.stuck > 0 {
                let stuck = Filter { status: Some(Status::Stuck), limit: COUNTED, ..Filter::default() };
                for saga in admin.list(&stuck).await? {
                    *definitions.entry(saga.definition).or_default() += 1;
                }
            }
            readings.extend(definitions.into_iter().map(|(definition, stuck)| {
                Reading::new("saga.stuck.by.definition", f64::from(stuck)).with("definition", definition)
            }));
            Ok(readings)
        }
    });
}
