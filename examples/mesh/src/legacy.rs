//! The old shop: a small monolith that is not changed any more. It still owns customers and
//! reviews.
//!
//! It is not aware of the mesh, publishes no events, and is called by the gateway only, which moves
//! its paths elsewhere one by one: see [`crate::gateway`]'s strangler table.

mod api;
mod store;

use std::sync::Arc;

pub use store::{Customer, Review, Store};

use crate::db::{self, Home};
use crate::service::{Service, StartError};
use crate::stack;

/// Opens the database and serves until the service is stopped.
pub async fn run<H: Home>(service: Service, home: H) -> Result<(), StartError> {
    let store = Arc::new(Store::open(&home).await?);
    // Stops when this function returns, with or without an error.
    let _check = db::check(&service.health, store.db());
    let app = stack::rest_server(api::routes(store.clone()), &service);
    service.serve(app).await?;
    store.db().pool().close().await;
    Ok(())
}
