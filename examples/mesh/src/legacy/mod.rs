//! The old shop: a small monolith that nobody dares to touch. Customers and reviews still live here.
//!
//! It knows nothing of the mesh around it, publishes nothing, and is called by nobody but the gateway, which takes one path
//! after the other away from it: see [`crate::gateway`]'s strangler table.

mod api;
mod store;

use std::sync::Arc;

pub use store::{Customer, Review, Store};

use crate::db::{self, Home};
use crate::service::{Service, StartError};
use crate::stack;

/// Opens the database and serves until told to stop.
pub async fn run<H: Home>(service: Service, home: H) -> Result<(), StartError> {
    let store = Arc::new(Store::open(&home).await?);
    // Stops when this function ends, however it ends.
    let _check = db::check(&service.health, store.db());
    let app = stack::rest_server(api::routes(store.clone()), service.admin_routes(), &service);
    service.serve(app).await?;
    store.db().pool().close().await;
    Ok(())
}
