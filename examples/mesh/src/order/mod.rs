//! The order service: REST, its own database, clients of payment and inventory.
//!
//! An order reserves stock, charges the customer, confirms the sale. Three services cannot share one transaction, so the
//! order's row is written around every step (`steps.rs`), and whatever did not get through is undone by a worker that
//! does not give up (`undo.rs`). For now that is a plain sequence in this process; a durable saga can take its place
//! without the other services noticing, because all that they promise is "idempotent by key".

mod api;
mod clients;
mod domain;
mod steps;
mod store;
mod undo;

use std::path::Path;
use std::time::Duration;

use tokio_util::task::{AbortOnDropHandle, TaskTracker};

pub use api::{IDEMPOTENCY_KEY, unknown_order};
pub use domain::{Failure, NewOrder, Order, State};
pub use store::Store;

use crate::db;
use crate::service::{Service, StartError};
use crate::stack::{self, OrderClients};
use steps::Steps;
use undo::Undo;

/// What the order service needs to know of the others.
#[derive(Clone, Debug)]
pub struct Config {
    pub payment: std::net::SocketAddr,
    pub inventory: std::net::SocketAddr,
    /// Handles of the client stacks: made outside, so that breakers and counters can be watched from there.
    pub clients: OrderClients,
    /// An order that has not moved for so long has lost its task and is undone. Longer than all steps may take together.
    pub orphan_after: Duration,
}

/// Opens the database, undoes what an earlier life has left, and serves until told to stop.
pub async fn run(service: Service, data_dir: &Path, config: Config) -> Result<(), StartError> {
    let store = Store::open(&data_dir.join("order.db")).await?;
    let interrupted = store.interrupt_older_than(Duration::ZERO).await?;
    if interrupted > 0 {
        tracing::warn!(orders = interrupted, "found unfinished orders, undoing them");
    }
    // Stops when this function ends, however it ends.
    let _check = db::check(&service.health, store.db().clone());
    let inventory = clients::Inventory::new(config.clients.inventory.grpc(config.inventory)?);
    let payment = clients::Payment::new(config.clients.payment.grpc(config.payment)?);
    let undo = Undo::new(store.clone(), payment.clone(), inventory.clone(), config.orphan_after);
    // Owned here: dropping the handle, however this function ends, ends the worker. Its work is on disk.
    let worker = AbortOnDropHandle::new(tokio::spawn(undo.clone().run()));
    // Orders under way outlive the connection that asked for them, so they have an owner of their own.
    let tasks = TaskTracker::new();
    let grace = service.grace;

    let steps = Steps { store: store.clone(), payment, inventory, undo, tasks: tasks.clone() };
    let app = stack::rest_server(api::routes(steps), &service);
    service.serve(app).await?;

    tasks.close();
    if tokio::time::timeout(grace, tasks.wait()).await.is_err() {
        tracing::warn!("orders still under way, the next start will undo them");
    }
    drop(worker);
    store.close().await;
    Ok(())
}
