//! Starts a service: the same code for `mesh up`, where services are threads, and for `mesh
//! payment`, where a service is its own process.

use std::sync::Arc;
use std::time::Duration;

use buttress_durable::EventBus;

use crate::admin::Token;
use crate::bus::{self, Bus};
use crate::db::{Databases, Home};
use crate::service::{Address, Service, StartError};
use crate::stack::{Dependency, GatewayClients, InvalidConfig, OrderClients};
use crate::token::{KeyError, Tokens};
use crate::{gateway, inventory, legacy, notification, order, payment, shipping};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Name {
    Legacy,
    Payment,
    Inventory,
    Shipping,
    Notification,
    Order,
    Gateway,
}

impl Name {
    /// In starting order: each service after the services it calls. Stopped in reverse order.
    pub const ALL: [Self; 7] =
        [Self::Legacy, Self::Payment, Self::Inventory, Self::Shipping, Self::Notification, Self::Order, Self::Gateway];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Payment => "payment",
            Self::Inventory => "inventory",
            Self::Shipping => "shipping",
            Self::Notification => "notification",
            Self::Order => "order",
            Self::Gateway => "gateway",
        }
    }

    /// The port it listens on by default.
    pub fn default_port(self) -> u16 {
        match self {
            Self::Gateway => 8080,
            Self::Order => 8081,
            Self::Payment => 8082,
            Self::Inventory => 8083,
            Self::Shipping => 8084,
            Self::Notification => 8085,
            Self::Legacy => 8086,
        }
    }

    /// The port of its operators by default.
    pub fn default_admin_port(self) -> u16 {
        self.default_port() + 1_000
    }

    /// Whether it has a database. The gateway stores nothing.
    pub fn has_database(self) -> bool {
        self != Self::Gateway
    }

    /// Whether it publishes events.
    pub fn publishes(self) -> bool {
        !matches!(self, Self::Gateway | Self::Legacy)
    }
}

/// How long a service may take to end after its last request: the relay's last publication (at most
/// 5 s), the calls of running sagas and consumers, and the last spans. Callers that stop a service
/// wait this long in addition to drain delay and grace.
pub const WIND_DOWN: Duration = Duration::from_secs(10);

/// The addresses of all services, and of their operators' listeners.
#[derive(Clone, Debug)]
pub struct Addresses {
    services: [Address; 7],
    admin: [Address; 7],
}

impl Addresses {
    pub fn new(services: impl FnMut(Name) -> Address, admin: impl FnMut(Name) -> Address) -> Self {
        Self { services: Name::ALL.map(services), admin: Name::ALL.map(admin) }
    }

    pub fn of(&self, name: Name) -> &Address {
        &self.services[name as usize]
    }

    /// Where the operators of a service are served. Only the gateway calls it.
    pub fn admin(&self, name: Name) -> &Address {
        &self.admin[name as usize]
    }
}

/// The client stacks of all services that call others.
#[derive(Clone, Debug)]
pub struct Clients {
    pub order: OrderClients,
    pub gateway: GatewayClients,
}

impl Clients {
    /// `seed` makes the jitter of backoff pauses repeatable.
    pub fn new(seed: u64) -> Result<Self, InvalidConfig> {
        Ok(Self { order: OrderClients::new(seed)?, gateway: GatewayClients::new(seed)? })
    }

    /// The client stacks of one service.
    pub fn of(&self, name: Name) -> Vec<Dependency> {
        match name {
            Name::Order => self.order.all().map(Clone::clone).into(),
            Name::Gateway => self.gateway.all().map(Clone::clone).into(),
            _ => Vec::new(),
        }
    }
}

/// The databases, the bus and the peers of a service.
#[derive(Clone, Debug)]
pub struct Wiring {
    pub databases: Databases,
    pub bus: Bus,
    pub addresses: Addresses,
    pub clients: Clients,
    /// Presented by the gateway to the other services' admin listeners.
    pub admin_token: Option<Token>,
    /// How long the order service waits for a saga before it answers 202.
    pub patience: Duration,
    /// Maximum number of orders under way: see [`order::UNDER_WAY`].
    pub under_way: u32,
    /// Checks the customers' tokens. Only the gateway needs it.
    pub tokens: Option<Tokens>,
}

/// Runs a service until it is stopped.
pub async fn run(name: Name, service: Service, wiring: Wiring) -> Result<(), StartError> {
    let databases = wiring.databases.clone();
    // The only place that distinguishes the databases.
    let ended = match databases.clone() {
        Databases::Files(home) => start(name, service, wiring, home).await,
        Databases::Server(home) => start(name, service, wiring, home).await,
    };
    ended.map_err(|error| match error {
        StartError::Db(source) => StartError::Open { place: databases.place(name.as_str()), source },
        other => other,
    })
}

async fn start<H: Home>(name: Name, service: Service, wiring: Wiring, home: H) -> Result<(), StartError> {
    let Wiring { bus, addresses, clients, admin_token, patience, under_way, tokens, .. } = wiring;
    // Until the service ends.
    let mut _retention = None;
    let mut open_bus = async |home: &H| -> Result<Arc<dyn EventBus>, StartError> {
        let (bus, retention) = bus::open(&bus, home).await?;
        _retention = retention;
        Ok(bus)
    };
    match name {
        Name::Legacy => legacy::run(service, home).await,
        Name::Payment => payment::run(service, home.clone(), open_bus(&home).await?).await,
        Name::Inventory => inventory::run(service, home.clone(), open_bus(&home).await?).await,
        Name::Shipping => shipping::run(service, home.clone(), open_bus(&home).await?).await,
        Name::Notification => notification::run(service, home.clone(), open_bus(&home).await?).await,
        Name::Order => {
            let (payment, inventory) = (addresses.of(Name::Payment).clone(), addresses.of(Name::Inventory).clone());
            let config = order::Config { payment, inventory, clients: clients.order, patience, under_way };
            order::run(service, home.clone(), open_bus(&home).await?, config).await
        }
        Name::Gateway => {
            let tokens = tokens.ok_or(KeyError::Missing)?;
            let config = gateway::Config { addresses, clients: clients.gateway, tokens, admin_token };
            gateway::run(service, config).await
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_service_has_a_name_a_port_and_an_address_of_its_own() {
        let names: BTreeSet<_> = Name::ALL.map(Name::as_str).into();
        let ports: BTreeSet<_> = Name::ALL.map(Name::default_port).into();
        assert_eq!((names.len(), ports.len()), (7, 7));
        let admin_ports: BTreeSet<_> = Name::ALL.map(Name::default_admin_port).into();
        assert_eq!((admin_ports.len(), admin_ports.is_disjoint(&ports)), (7, true));
        let at = |port: u16| move |name: Name| format!("{}:{port}", name.as_str()).parse().unwrap();
        let addresses = Addresses::new(at(1), at(2));
        for name in Name::ALL {
            assert_eq!(addresses.of(name).to_string(), format!("{}:1", name.as_str()));
            assert_eq!(addresses.admin(name).to_string(), format!("{}:2", name.as_str()));
        }
    }

    #[test]
    fn a_service_has_the_clients_of_the_services_that_it_calls() {
        let clients = Clients::new(1).unwrap();
        for name in Name::ALL {
            let called: Vec<_> = clients.of(name).iter().map(Dependency::name).collect();
            let expected: &[&str] = match name {
                Name::Order => &["order -> payment", "order -> inventory"],
                Name::Gateway => &[
                    "gateway -> order",
                    "gateway -> payment",
                    "gateway -> inventory",
                    "gateway -> shipping",
                    "gateway -> legacy",
                ],
                _ => &[],
            };
            assert_eq!(called, expected, "{name:?}");
        }
        let Clients { order, gateway } = &clients;
        let fields = [&order.payment, &order.inventory].map(Dependency::name);
        assert_eq!(fields, ["order -> payment", "order -> inventory"]);
        let fields = [&gateway.order, &gateway.payment, &gateway.inventory, &gateway.shipping, &gateway.legacy];
        let peers = ["order", "payment", "inventory", "shipping", "legacy"].map(|peer| format!("gateway -> {peer}"));
        assert_eq!(fields.map(Dependency::name), peers.each_ref().map(String::as_str));
    }

    #[test]
    fn the_gateway_stores_nothing_and_the_monolith_publishes_nothing() {
        let with = |has: fn(Name) -> bool| Name::ALL.into_iter().filter(|name| !has(*name)).collect::<Vec<_>>();
        assert_eq!(with(Name::has_database), [Name::Gateway]);
        assert_eq!(with(Name::publishes), [Name::Legacy, Name::Gateway]);
    }

    #[test]
    fn a_service_starts_after_those_that_it_calls() {
        let clients = Clients::new(1).unwrap();
        for (place, name) in Name::ALL.into_iter().enumerate() {
            for dependency in clients.of(name) {
                let peer = dependency.name().rsplit(' ').next().unwrap();
                assert!(Name::ALL[..place].iter().any(|earlier| earlier.as_str() == peer), "{}", dependency.name());
            }
        }
    }
}
