//! The payment service: gRPC, its own database, no clients.
//!
//! It shows a saga *participant* that callers can retry, time out and abandon without a double
//! charge: see `store.rs`.

mod api;
mod domain;
mod store;

use std::sync::Arc;

use axum::Router;
use buttress_durable::{Database, EventBus};

pub use api::proto;
pub use domain::{Charge, ChargeOutcome, Payment};
pub use store::Store;

use crate::db::{self, Home};
use crate::service::{Service, StartError};
use crate::stack;

/// Opens the database and serves until the service is stopped.
pub async fn run<H: Home>(mut service: Service, home: H, bus: Arc<dyn EventBus>) -> Result<(), StartError> {
    let store = Arc::new(Store::open(&home).await?);
    // Check and relay stop when this function returns, with or without an error.
    let _check = db::check(&service.health, store.db());
    let _retention = db::retain(store.db(), "payment")?;
    let relay = store.outbox().relay(bus);
    service.watch_outbox(store.outbox(), &relay);
    let app = stack::grpc_server(routes(store.clone()), &service);
    service.serve(app).await?;
    // Publishes the last events. The rest stays in the outbox and is published after the next
    // start.
    relay.shutdown().await;
    store.db().pool().close().await;
    Ok(())
}

/// The service without layers.
pub fn routes<D: Database>(store: Arc<Store<D>>) -> Router {
    tonic::service::Routes::new(proto::payment_service_server::PaymentServiceServer::new(api::Api::new(store)))
        .prepare()
        .into_axum_router()
}
