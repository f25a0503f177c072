//! Where the services are.

use clap::Args;
use mesh::launch::{Addresses, Name};
use mesh::service::Address;

/// Addresses of the services and of their operators' listeners, as host:port.
#[derive(Args, Debug)]
pub(crate) struct Peers {
    #[arg(long, env = "MESH_GATEWAY", default_value = "127.0.0.1:8080")]
    gateway: Address,
    #[arg(long, env = "MESH_ORDER", default_value = "127.0.0.1:8081")]
    order: Address,
    #[arg(long, env = "MESH_PAYMENT", default_value = "127.0.0.1:8082")]
    payment: Address,
    #[arg(long, env = "MESH_INVENTORY", default_value = "127.0.0.1:8083")]
    inventory: Address,
    #[arg(long, env = "MESH_SHIPPING", default_value = "127.0.0.1:8084")]
    shipping: Address,
    #[arg(long, env = "MESH_NOTIFICATION", default_value = "127.0.0.1:8085")]
    notification: Address,
    #[arg(long, env = "MESH_LEGACY", default_value = "127.0.0.1:8086")]
    legacy: Address,
    // Where their operators are served. The gateway's dashboard asks all of them, and receives the
    // spans of all of them.
    #[arg(long, env = "MESH_GATEWAY_ADMIN", default_value = "127.0.0.1:9080")]
    gateway_admin: Address,
    #[arg(long, env = "MESH_ORDER_ADMIN", default_value = "127.0.0.1:9081")]
    order_admin: Address,
    #[arg(long, env = "MESH_PAYMENT_ADMIN", default_value = "127.0.0.1:9082")]
    payment_admin: Address,
    #[arg(long, env = "MESH_INVENTORY_ADMIN", default_value = "127.0.0.1:9083")]
    inventory_admin: Address,
    #[arg(long, env = "MESH_SHIPPING_ADMIN", default_value = "127.0.0.1:9084")]
    shipping_admin: Address,
    #[arg(long, env = "MESH_NOTIFICATION_ADMIN", default_value = "127.0.0.1:9085")]
    notification_admin: Address,
    #[arg(long, env = "MESH_LEGACY_ADMIN", default_value = "127.0.0.1:9086")]
    legacy_admin: Address,
}

impl Peers {
    pub(crate) fn addresses(&self) -> Addresses {
        let pair = |name: Name| match name {
            Name::Gateway => (&self.gateway, &self.gateway_admin),
            Name::Order => (&self.order, &self.order_admin),
            Name::Payment => (&self.payment, &self.payment_admin),
            Name::Inventory => (&self.inventory, &self.inventory_admin),
            Name::Shipping => (&self.shipping, &self.shipping_admin),
            Name::Notification => (&self.notification, &self.notification_admin),
            Name::Legacy => (&self.legacy, &self.legacy_admin),
        };
        Addresses::new(|name| pair(name).0.clone(), |name| pair(name).1.clone())
    }
}
