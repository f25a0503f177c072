//! The gateway: the only service that customers see. REST in, REST and gRPC out, no database.
//!
//! It passes orders on, and it answers questions that no single service can: `view` asks three of them at once and
//! answers with what it gets.

mod admin;
mod api;
mod order_client;
mod view;

use std::net::SocketAddr;

use crate::faults::Faults;
use crate::service::{Service, StartError};
use crate::stack::{self, GatewayClients};

use crate::inventory::proto::inventory_service_client::InventoryServiceClient;
use crate::payment::proto::payment_service_client::PaymentServiceClient;

/// What the gateway needs to know of the others.
#[derive(Clone, Debug)]
pub struct Config {
    pub order: SocketAddr,
    pub payment: SocketAddr,
    pub inventory: SocketAddr,
    /// Handles of the client stacks: made outside, so that breakers and counters can be watched from there.
    pub clients: GatewayClients,
    /// The fault switches to offer under /admin, by service. None in production: whoever can reach them can break it.
    pub fault_switches: Vec<(&'static str, Faults)>,
}

/// Serves until told to stop.
pub async fn run(service: Service, config: Config) -> Result<(), StartError> {
    let clients = &config.clients;
    let upstreams = api::Upstreams {
        orders: order_client::Orders::new(clients.order.http(), config.order),
        payment: PaymentServiceClient::new(clients.payment.grpc(config.payment)?),
        inventory: InventoryServiceClient::new(clients.inventory.grpc(config.inventory)?),
    };
    let mut routes = api::routes(upstreams);
    if !config.fault_switches.is_empty() {
        routes = routes.merge(admin::routes(config.fault_switches));
    }
    let app = stack::rest_server(routes, &service);
    service.serve(app).await
}
