//! All services on this machine: started in order, supervised, crashed and restarted, and stopped
//! without failing requests.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use crate::admin::{Admin, AdminDoor, AdminDoorError};
use crate::bus::Bus;
use crate::db::{Databases, Files, InUse, InUseError};
use crate::edge::Limits;
use crate::faults::Faults;
pub use crate::launch::Name;
use crate::launch::{Addresses, Clients, Wiring, run};
use crate::network::Door;
use crate::probe;
pub use crate::process::Exit;
use crate::process::Process;
use crate::service::{Address, Service};
use crate::stack::{Admission, Dependency, GatewayClients, Health, InvalidConfig, ORDERS_PER_SECOND, OrderClients};
use crate::telemetry::{self, Collector, Telemetry};
use crate::token::Tokens;

/// A service that is not ready after this time is treated as failed: opening a small database takes
/// milliseconds.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the order service waits for a saga before it answers 202. Added to the time for the
/// prices, it must be less than the gateway's timeout.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How to run the mesh.
#[derive(Clone, Debug)]
pub struct Config {
    /// The databases.
    pub databases: Databases,
    /// The event bus.
    pub bus: Bus,
    /// The gateway's port; 0 for a free one. The other services always use free ports.
    pub port: u16,
    /// Time between failing readiness and closing the listeners: long enough for a load balancer to
    /// react.
    pub drain_delay: Duration,
    /// How long requests in flight may take after the listener is closed.
    pub grace: Duration,
    /// Deadlines and limits of the connections of every service.
    pub limits: Limits,
    /// The port of the gateway's operators, with the dashboard; 0 for a free one. The other
    /// services always use free ports.
    pub admin_port: u16,
    /// How long the order service waits for a saga before it answers 202.
    pub patience: Duration,
    /// Maximum number of orders under way. Default: [`UNDER_WAY`](crate::order::UNDER_WAY).
    pub under_way: u32,
    /// Orders per second of each customer; of other requests, five times as many. Default:
    /// [`ORDERS_PER_SECOND`].
    pub orders_per_second: u32,
    /// Issues and checks the customers' tokens. Default: with a key that only this process has.
    pub tokens: Tokens,
    /// Logs and traces. Default: none.
    pub telemetry: telemetry::Config,
    /// Random seed for fault decisions and jitter.
    pub seed: u64,
}

impl Config {
    /// SQLite files in a directory, which must exist, and the embedded event log.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            databases: Databases::Files(Files(data_dir.into())),
            bus: Bus::Log,
            port: 0,
            drain_delay: Duration::from_millis(500),
            grace: Duration::from_secs(10),
            limits: Limits::default(),
            admin_port: 0,
            patience: PATIENCE,
            under_way: crate::order::UNDER_WAY,
            orders_per_second: ORDERS_PER_SECOND,
            tokens: Tokens::ephemeral(),
            telemetry: telemetry::Config::default(),
            seed: 1,
        }
    }
}

/// The parts of a service that survive a crash of its process, and its handles.
#[derive(Debug)]
struct Slot {
    name: Name,
    /// Stays the same over restarts, like a name in service discovery.
    addr: SocketAddr,
    /// Where its operators are served. Stays the same as well.
    admin: SocketAddr,
    faults: Faults,
    admission: Admission,
    telemetry: Telemetry,
    /// New after every start.
    health: Health,
    process: Option<Process>,
}

/// A running mesh. Dropping it kills every service.
#[derive(Debug)]
pub struct Mesh {
    config: Config,
    clients: Clients,
    /// Indexed by `Name`.
    slots: [Slot; 7],
    /// Keeps other processes out of a directory of files. Dropped last.
    _in_use: Option<InUse>,
}

#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    #[error("cannot start")]
    Io(#[from] io::Error),
    #[error("cannot listen on {addr}")]
    Listen { addr: SocketAddr, source: io::Error },
    #[error(transparent)]
    Admin(#[from] AdminDoorError),
    #[error(transparent)]
    InUse(#[from] InUseError),
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    #[error("{service} ended too early")]
    Ended { service: &'static str, source: Exit },
    #[error("{service} was not ready in time")]
    NotReady { service: &'static str },
}

impl Mesh {
    /// Binds all ports, starts all services and waits until each is ready.
    pub async fn start(config: Config) -> Result<Self, MeshError> {
        let in_use = match &config.databases {
            Databases::Files(files) => Some(files.for_a_mesh()?),
            Databases::Server(_) => None,
        };
        // All listeners are bound before the first service starts. So all addresses are known, and
        // no request finds a closed port.
        let mut listeners = Vec::new();
        let mut places = Vec::new();
        for name in Name::ALL {
            let gateway = name == Name::Gateway;
            let (port, admin_port) = if gateway { (config.port, config.admin_port) } else { (0, 0) };
            let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let listener = TcpListener::bind(addr).map_err(|source| MeshError::Listen { addr, source })?;
            let door = AdminDoor::bind((Ipv4Addr::LOCALHOST, admin_port).into(), None)?;
            places.push((name, listener.local_addr()?, door.local_addr()?));
            listeners.push((listener, door));
        }
        let clients = Clients::new(config.seed)?;
        let mut seen = config.telemetry.clone();
        if let Some(traces) = &mut seen.traces {
            // The gateway's dashboard receives the spans of all services.
            let gateway = places.iter().filter(|(name, ..)| *name == Name::Gateway);
            traces.collectors.extend(gateway.map(|(.., admin)| Collector::new(Address::from(*admin).url())));
        }
        let slot = |(name, addr, admin): (Name, SocketAddr, SocketAddr)| {
            let admission = Admission::new(name, config.orders_per_second)?;
            let telemetry = Telemetry::new(name.as_str(), &admission, clients.of(name), &seen)?;
            let faults = Faults::new(config.seed.wrapping_add(name as u64));
            Ok(Slot { name, addr, admin, faults, admission, telemetry, health: Health::new(), process: None })
        };
        let slots: Vec<_> = places.into_iter().map(slot).collect::<Result<_, InvalidConfig>>()?;
        let slots = slots.try_into().map_err(|_| io::Error::other("seven services"))?;
        let mut mesh = Self { config, clients, slots, _in_use: in_use };
        for (name, (listener, door)) in Name::ALL.into_iter().zip(listeners) {
            mesh.spawn(name, listener, door)?;
            mesh.until_ready(name).await?;
        }
        Ok(mesh)
    }

    pub fn addr(&self, name: Name) -> SocketAddr {
        self.slot(name).addr
    }

    pub fn url(&self, name: Name) -> String {
        Address::from(self.addr(name)).url()
    }

    /// Issues tokens for customers of this mesh.
    pub fn tokens(&self) -> &Tokens {
        &self.config.tokens
    }

    /// The base URL of a service's operators.
    pub fn admin_url(&self, name: Name) -> String {
        Address::from(self.slot(name).admin).url()
    }

    /// The fault switch of a service.
    pub fn faults(&self, name: Name) -> &Faults {
        &self.slot(name).faults
    }

    /// The server-side bulkhead and timeout of a service.
    pub fn admission(&self, name: Name) -> &Admission {
        &self.slot(name).admission
    }

    pub fn health(&self, name: Name) -> &Health {
        &self.slot(name).health
    }

    /// The handles of the order service's client stacks.
    pub fn order_clients(&self) -> &OrderClients {
        &self.clients.order
    }

    /// The handles of the gateway's client stacks.
    pub fn gateway_clients(&self) -> &GatewayClients {
        &self.clients.gateway
    }

    /// All client stacks in the mesh.
    pub fn dependencies(&self) -> [&Dependency; 7] {
        let Clients { order, gateway } = &self.clients;
        let [payment, inventory] = [&gateway.payment, &gateway.inventory];
        [&order.payment, &order.inventory, &gateway.order, payment, inventory, &gateway.shipping, &gateway.legacy]
    }

    /// Kills a service in the middle of its work.
    pub async fn crash(&mut self, name: Name) {
        if let Some(process) = self.slots[name as usize].process.take() {
            process.crash().await;
            tracing::warn!(service = name.as_str(), "crashed");
        }
    }

    /// Restarts a service at the same address.
    pub async fn restart(&mut self, name: Name) -> Result<(), MeshError> {
        self.crash(name).await;
        let listener = TcpListener::bind(self.slot(name).addr)?;
        let door = AdminDoor::bind(self.slot(name).admin, None)?;
        self.slots[name as usize].health = Health::new();
        self.spawn(name, listener, door)?;
        self.until_ready(name).await
    }

    /// Stops all services without failing requests. Readiness fails first; then the listeners close
    /// from the gateway inwards, and each service finishes its requests before the services it
    /// calls are stopped.
    pub async fn stop(mut self) -> Vec<(Name, Exit)> {
        for slot in &self.slots {
            slot.health.drain();
        }
        tracing::info!(delay = ?self.config.drain_delay, "no longer ready");
        tokio::time::sleep(self.config.drain_delay).await;
        let mut exits = Vec::new();
        for name in Name::ALL.into_iter().rev() {
            if let Some(process) = self.slots[name as usize].process.take() {
                exits.push((name, process.stop().await));
                tracing::info!(service = name.as_str(), "stopped");
            }
        }
        exits
    }

    /// Returns when a service ends without being stopped, which is an error.
    pub async fn any_ended(&self) -> (Name, Exit) {
        let waiting = self.slots.iter().filter_map(|slot| {
            let (name, process) = (slot.name, slot.process.as_ref()?);
            Some(Box::pin(async move { (name, process.ended().await) }))
        });
        futures_util::future::select_all(waiting).await.0
    }

    fn slot(&self, name: Name) -> &Slot {
        &self.slots[name as usize]
    }

    fn spawn(&mut self, name: Name, listener: TcpListener, door: AdminDoor) -> Result<(), MeshError> {
        let slot = self.slot(name);
        let (health, admission, faults) = (slot.health.clone(), slot.admission.clone(), slot.faults.clone());
        let (telemetry, grace, limits) = (slot.telemetry.clone(), self.config.grace, self.config.limits);
        telemetry.forget();
        let wiring = Wiring {
            databases: self.config.databases.clone(),
            bus: self.config.bus.clone(),
            addresses: Addresses::new(|name| self.addr(name).into(), |name| self.slot(name).admin.into()),
            clients: self.clients.clone(),
            admin_token: None,
            patience: self.config.patience,
            under_way: self.config.under_way,
            tokens: Some(self.config.tokens.clone()),
        };
        let process = Process::spawn(name.as_str(), telemetry.clone(), move |stop| async move {
            let name_of = name.as_str();
            let (door, admin) = (Door::Tcp(listener), Admin::new(door));
            let service =
                Service { name: name_of, door, limits, health, admission, faults, telemetry, admin, stop, grace };
            run(name, service, wiring).await
        })?;
        self.slots[name as usize].process = Some(process);
        Ok(())
    }

    async fn until_ready(&self, name: Name) -> Result<(), MeshError> {
        let slot = self.slot(name);
        let Some(process) = &slot.process else { return Ok(()) };
        tokio::select! {
            () = probe::ready(slot.addr) => Ok(()),
            source = process.ended() => Err(MeshError::Ended { service: name.as_str(), source }),
            () = tokio::time::sleep(START_TIMEOUT) => Err(MeshError::NotReady { service: name.as_str() }),
        }
    }
}
