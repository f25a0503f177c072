//! The gateway: the only service that customers call. REST in, REST and gRPC out, no database.
//!
//! It forwards orders, aggregates answers that no single service has (`view` queries four services
//! concurrently and returns the parts it gets), and routes the old shop's URLs while the monolith
//! is being replaced ([`strangler`]).

mod admin;
mod api;
mod auth;
mod dashboard;
pub mod openapi;
mod rest;
pub mod routes;
pub mod strangler;
mod view;

use tokio_util::task::AbortOnDropHandle;

use crate::admin::Token;
use crate::inventory::proto::inventory_service_client::InventoryServiceClient;
use crate::launch::{Addresses, Name};
use crate::payment::proto::payment_service_client::PaymentServiceClient;
use crate::service::{Service, StartError};
use crate::stack::{self, GatewayClients};
use crate::token::Tokens;
use admin::Listeners;
pub(crate) use auth::{Caller, authenticate};
use dashboard::Feed;
use rest::Rest;

/// The gateway's addresses and client stacks.
#[derive(Clone, Debug)]
pub struct Config {
    pub addresses: Addresses,
    /// Handles of the client stacks. They are created outside, so that tests and metrics can
    /// observe breakers and counters.
    pub clients: GatewayClients,
    /// Checks the customers' tokens.
    pub tokens: Tokens,
    /// Presented to the admin listeners of the other services. `None` if they are on loopback.
    pub admin_token: Option<Token>,
}

/// Serves until the service is stopped.
pub async fn run(mut service: Service, config: Config) -> Result<(), StartError> {
    let Config { addresses, clients, tokens, admin_token } = config;
    let upstreams = api::Upstreams {
        orders: Rest::new("order", clients.order.http(), addresses.of(Name::Order)),
        payment: PaymentServiceClient::new(clients.payment.grpc(addresses.of(Name::Payment))?),
        inventory: InventoryServiceClient::new(clients.inventory.grpc(addresses.of(Name::Inventory))?),
        shipping: Rest::new("shipping", clients.shipping.http(), addresses.of(Name::Shipping)),
        legacy: Rest::new("legacy", clients.legacy.http(), addresses.of(Name::Legacy)),
    };
    let client = stack::admin_client(admin_token);
    let rest = |name: Name| (name, Rest::new(name.as_str(), client.clone(), addresses.admin(name)));
    let listeners = Listeners::new(rest);
    let feed = Feed::new(listeners.clone(), service.stop.clone());
    service.admin.add(admin::routes(listeners.clone()));
    service.admin.add(dashboard::routes(&feed, listeners, upstreams.orders.clone()));
    // Aborted when this function returns, with or without an error.
    let _feed = AbortOnDropHandle::new(tokio::spawn(feed.run()));
    let app = stack::gateway_server(routes::router(upstreams, &tokens, &service), routes::priority, &service);
    service.serve(app).await
}
