//! The payment service: gRPC, its own database, no client of its own.
//!
//! It shows how to be a *participant* that others can retry, time out and give up on without anybody being charged
//! twice: see `store.rs`.

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
use crate::{bus, stack};

/// Opens the database and serves until told to stop.
pub async fn run<H: Home>(service: Service, home: H, bus: Arc<dyn EventBus>) -> Result<(), StartError> {
    let store = Arc::new(Store::open(&home).await?);
    // Both stop when this function ends, however it ends.
    let _check = db::check(&service.health, store.db());
    let relay = store.outbox().relay(bus);
    bus::watch(&service.telemetry, store.outbox());
    let app = stack::grpc_server(routes(store.clone()), service.admin_routes(), &service);
    service.serve(app).await?;
    // The last events go out with us. What does not make it is in the outbox, and goes out after the next start.
    relay.shutdown().await;
    store.db().pool().close().await;
    Ok(())
}

/// The service without the layers around it.
pub fn routes<D: Database>(store: Arc<Store<D>>) -> Router {
    tonic::service::Routes::new(proto::payment_service_server::PaymentServiceServer::new(api::Api::new(store)))
        .prepare()
        .into_axum_router()
}
