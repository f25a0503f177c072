//! The payment service: gRPC, its own database, no client of its own.
//!
//! It shows how to be a *participant* that others can retry, time out and give up on without anybody being charged
//! twice: see `store.rs`.

mod api;
mod domain;
mod store;

use std::path::Path;

use axum::Router;

pub use api::proto;
pub use domain::{Charge, ChargeOutcome, Payment};
pub use store::Store;

use crate::db;
use crate::service::{Service, StartError};
use crate::stack;

/// Opens the database and serves until told to stop.
pub async fn run(service: Service, data_dir: &Path) -> Result<(), StartError> {
    let store = Store::open(&data_dir.join("payment.db")).await?;
    // Stops when this function ends, however it ends.
    let _check = db::check(&service.health, store.db().clone());
    let app = stack::grpc_server(routes(store.clone()), &service);
    service.serve(app).await?;
    store.close().await;
    Ok(())
}

/// The service without the layers around it.
pub fn routes(store: Store) -> Router {
    tonic::service::Routes::new(proto::payment_service_server::PaymentServiceServer::new(api::Api::new(store)))
        .prepare()
        .into_axum_router()
}
