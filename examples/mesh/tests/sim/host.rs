//! The services on simulated hosts, with the same code and the same stacks.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use buttress_durable::bus::{BusError, DeadLettered, Handler, Lag, Subscribe, Subscription};
use buttress_durable::{Clock, DomainEvent, EventBus, LogBus};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::uri::Authority;
use mesh::admin::Admin;
use mesh::db::{EVENTS, Home};
use mesh::faults::Faults;
use mesh::launch::Name;
use mesh::network::{Accept, Dial, Dialer, Door, Stream};
use mesh::service::{Address, Service, StartError};
use mesh::stack::{Admission, GatewayClients, Health, ORDERS_PER_SECOND, OrderClients};
use mesh::telemetry::Telemetry;
use mesh::{inventory, notification, order, payment, shipping};
use sqlx::Sqlite;
use tokio_util::sync::CancellationToken;
use turmoil::net::{TcpListener, TcpStream};

use crate::disk::{Disk, Silent};

/// The state shared by all hosts.
#[derive(Clone, Debug)]
pub(crate) struct Town {
    pub(crate) dir: PathBuf,
    pub(crate) clock: Clock,
    pub(crate) seed: u64,
    /// Databases that do not answer.
    pub(crate) silent: Silent,
    pub(crate) clients: OrderClients,
    /// The customers use only its client of the order service; there is no simulated gateway.
    pub(crate) gateway: GatewayClients,
}

/// The simulated services. The gateway and the old shop own no part of an order.
pub(crate) const HOSTS: [Name; 5] = [Name::Payment, Name::Inventory, Name::Shipping, Name::Notification, Name::Order];

impl Town {
    pub(crate) fn new(dir: PathBuf, clock: Clock, seed: u64) -> Self {
        let dialer = Dialer::new(Phone);
        let OrderClients { payment, inventory } = OrderClients::new(seed).unwrap();
        let clients = OrderClients { payment: payment.with_dialer(&dialer), inventory: inventory.with_dialer(&dialer) };
        let gateway = GatewayClients::new(seed).unwrap();
        let gateway = GatewayClients { order: gateway.order.clone().with_dialer(&dialer), ..gateway };
        Self { dir, clock, seed, silent: Silent::default(), clients, gateway }
    }

    /// Runs a host from a start to the next crash.
    pub(crate) async fn live(self, name: Name) -> turmoil::Result {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, name.default_port())).await?;
        let seed = self.seed.wrapping_add(name as u64);
        let disk = Disk::new(self.dir.clone(), self.clock.clone(), self.silent.clone(), seed);
        tokio::spawn(disk.clone().keep_time());
        // A task of the host's runtime. When the host crashes, the runtime drops all its tasks.
        tokio::spawn(self.run(name, listener, disk)).await??;
        Ok(())
    }

    async fn run(self, name: Name, listener: TcpListener, disk: Disk) -> Result<(), StartError> {
        let admission = Admission::new(name, ORDERS_PER_SECOND)?;
        let service = Service {
            name: name.as_str(),
            door: Door::Simulated(Box::new(Port(listener))),
            limits: Default::default(),
            health: Health::new(),
            faults: Faults::new(self.seed),
            telemetry: Telemetry::new(name.as_str(), &admission, Vec::new(), &Default::default())?,
            admission,
            admin: Admin::default(),
            stop: CancellationToken::new(),
            grace: Duration::ZERO,
        };
        let log = disk.open(EVENTS).await?;
        let log = || LogBus::new(log.clone()).with_lease(LEASE).with_poll(POLL);
        let bus: Arc<dyn EventBus> = Arc::new(Broker { publishing: log(), listening: log() });
        match name {
            Name::Payment => payment::run(service, disk, bus).await,
            Name::Inventory => inventory::run(service, disk, bus).await,
            Name::Shipping => shipping::run(service, disk, bus).await,
            Name::Notification => notification::run(service, disk, bus).await,
            _ => {
                let config = order::Config {
                    payment: address(Name::Payment),
                    inventory: address(Name::Inventory),
                    clients: self.clients,
                    patience: mesh::mesh::PATIENCE,
                    under_way: order::UNDER_WAY,
                };
                order::run(service, disk, bus, config).await
            }
        }
    }
}

/// Every poll of the log costs real time, so polls are rare.
const POLL: Duration = Duration::from_secs(2);
const LEASE: Duration = Duration::from_secs(6);

/// The embedded log, with two handles, so that a service's publications do not wake its own
/// consumers. A real broker would not wake them either.
#[derive(Debug)]
struct Broker {
    publishing: LogBus<Sqlite>,
    listening: LogBus<Sqlite>,
}

impl EventBus for Broker {
    fn publish_each<'a>(&'a self, events: &'a [DomainEvent]) -> BoxFuture<'a, Vec<Result<(), BusError>>> {
        self.publishing.publish_each(events)
    }

    fn subscribe(
        &self,
        subscribe: Subscribe,
        handler: Arc<dyn Handler>,
    ) -> BoxFuture<'_, Result<Subscription, BusError>> {
        self.listening.subscribe(subscribe, handler)
    }

    fn dead_letters<'a>(
        &'a self,
        group: &'a str,
        topic: &'a str,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<DeadLettered>, BusError>> {
        self.listening.dead_letters(group, topic, limit)
    }

    fn redrive<'a>(
        &'a self,
        group: &'a str,
        topic: &'a str,
        partition: i64,
        offset: i64,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        self.publishing.redrive(group, topic, partition, offset)
    }

    fn discard<'a>(
        &'a self,
        group: &'a str,
        topic: &'a str,
        partition: i64,
        offset: i64,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        self.listening.discard(group, topic, partition, offset)
    }

    fn lag<'a>(&'a self, group: &'a str) -> BoxFuture<'a, Result<Vec<Lag>, BusError>> {
        self.listening.lag(group)
    }
}

/// Hosts are named like their services.
pub(crate) fn address(name: Name) -> Address {
    format!("{}:{}", name.as_str(), name.default_port()).parse().unwrap()
}

#[derive(Debug)]
struct Phone;

impl Dial for Phone {
    fn dial(&self, to: Authority) -> BoxFuture<'static, io::Result<Stream>> {
        async move {
            let stream = TcpStream::connect((to.host(), to.port_u16().unwrap_or(80))).await?;
            Ok(Stream::new(stream))
        }
        .boxed()
    }
}

struct Port(TcpListener);

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Port").finish_non_exhaustive()
    }
}

impl Accept for Port {
    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap_or_else(|_| (Ipv4Addr::UNSPECIFIED, 0).into())
    }

    fn connection(&mut self) -> BoxFuture<'_, (Stream, SocketAddr)> {
        async move {
            loop {
                if let Ok((stream, from)) = self.0.accept().await {
                    return (Stream::new(stream), from);
                }
            }
        }
        .boxed()
    }
}
