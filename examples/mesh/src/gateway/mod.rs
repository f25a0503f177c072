//! The gateway: the only service that customers see. REST in, REST and gRPC out, no database.
//!
//! It passes orders on, it answers questions that no single service can (`view` asks four of them at once and answers with
//! what it gets), and it stands in front of the old shop while that is taken apart ([`strangler`]).

mod admin;
mod api;
mod dashboard;
pub mod openapi;
mod rest;
pub mod routes;
pub mod strangler;
mod view;

use tokio_util::task::AbortOnDropHandle;

use crate::inventory::proto::inventory_service_client::InventoryServiceClient;
use crate::launch::{Addresses, Name};
use crate::payment::proto::payment_service_client::PaymentServiceClient;
use crate::service::{Service, StartError};
use crate::stack::{self, GatewayClients};
use dashboard::Feed;
use rest::Rest;

/// What the gateway needs to know of the others.
#[derive(Clone, Debug)]
pub struct Config {
    pub addresses: Addresses,
    /// Handles of the client stacks: made outside, so that breakers and counters can be watched from there.
    pub clients: GatewayClients,
}

/// Serves until told to stop.
pub async fn run(service: Service, config: Config) -> Result<(), StartError> {
    let Config { addresses, clients } = config;
    let upstreams = api::Upstreams {
        orders: Rest::new("order", clients.order.http(), addresses.of(Name::Order)),
        payment: PaymentServiceClient::new(clients.payment.grpc(addresses.of(Name::Payment))?),
        inventory: InventoryServiceClient::new(clients.inventory.grpc(addresses.of(Name::Inventory))?),
        shipping: Rest::new("shipping", clients.shipping.http(), addresses.of(Name::Shipping)),
        legacy: Rest::new("legacy", clients.legacy.http(), addresses.of(Name::Legacy)),
    };
    let mut admin = service.telemetry.routes(&service);
    // Stops when this function ends, however it ends.
    let mut _feed = None;
    if service.admin {
        let feed = Feed::new(&addresses);
        admin =
            admin.merge(admin::routes(service.faults.clone(), &addresses)).merge(dashboard::routes(&feed, &addresses));
        _feed = Some(AbortOnDropHandle::new(tokio::spawn(feed.run())));
    }
    let app = stack::rest_server(routes::router(upstreams), admin, &service);
    service.serve(app).await
}
