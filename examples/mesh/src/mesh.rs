//! All services on this machine: started in order, watched, crashed and restarted, and stopped so that nobody notices.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use crate::faults::Faults;
pub use crate::process::Exit;
use crate::process::Process;
use crate::service::{Service, url};
use crate::stack::{Admission, Dependency, GatewayClients, Health, InvalidConfig, OrderClients};
use crate::{gateway, inventory, order, payment, probe};

/// A service that is not ready by then never will be: opening a small database takes milliseconds.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How to run the mesh.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the databases live. Must exist.
    pub data_dir: PathBuf,
    /// The gateway's port; 0 for a free one. The others always take free ones.
    pub port: u16,
    /// Between "not ready" and closing the door: long enough for a load balancer to notice.
    pub drain_delay: Duration,
    /// How long requests in flight may take after the door is closed.
    pub grace: Duration,
    /// Offer fault switches under /admin on the gateway.
    pub admin: bool,
    /// For every coin toss and every jitter.
    pub seed: u64,
}

impl Config {
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            port: 0,
            drain_delay: Duration::from_millis(500),
            grace: Duration::from_secs(10),
            admin: false,
            seed: 1,
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Name {
    Payment,
    Inventory,
    Order,
    Gateway,
}

impl Name {
    /// In the order to start them: nobody is started before those it calls. Stopped the other way round.
    pub const ALL: [Self; 4] = [Self::Payment, Self::Inventory, Self::Order, Self::Gateway];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Payment => "payment",
            Self::Inventory => "inventory",
            Self::Order => "order",
            Self::Gateway => "gateway",
        }
    }
}

/// What stays of a service when its process dies, and what the outside may look at.
#[derive(Debug)]
struct Slot {
    name: Name,
    /// Stays the same over restarts, as a name in a discovery service would.
    addr: SocketAddr,
    faults: Faults,
    admission: Admission,
    /// New with every start.
    health: Health,
    process: Option<Process>,
}

/// A running mesh. Dropping it kills every service.
#[derive(Debug)]
pub struct Mesh {
    config: Config,
    order_clients: OrderClients,
    gateway_clients: GatewayClients,
    /// Indexed by `Name`.
    slots: [Slot; 4],
}

#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    #[error("cannot start")]
    Io(#[from] io::Error),
    #[error("a layer is configured wrongly")]
    Layer(#[from] InvalidConfig),
    #[error("{service} ended too early: {how:?}")]
    Ended { service: &'static str, how: Exit },
    #[error("{service} was not ready in time")]
    NotReady { service: &'static str },
}

impl Mesh {
    /// Binds all ports, starts all services and waits until each is ready.
    pub async fn start(config: Config) -> Result<Self, MeshError> {
        // All listeners before the first service: then every address is known, and no request finds a closed port.
        let mut listeners = Vec::new();
        let mut slots = Vec::new();
        for name in Name::ALL {
            let port = if name == Name::Gateway { config.port } else { 0 };
            let listener = TcpListener::bind((IpAddr::V4(Ipv4Addr::LOCALHOST), port))?;
            slots.push(Slot {
                name,
                addr: listener.local_addr()?,
                faults: Faults::new(config.seed.wrapping_add(name as u64)),
                admission: Admission::new(name.as_str()),
                health: Health::new(),
                process: None,
            });
            listeners.push(listener);
        }
        let slots = slots.try_into().map_err(|_| io::Error::other("four services"))?;
        let (order_clients, gateway_clients) = (OrderClients::new(config.seed)?, GatewayClients::new(config.seed)?);
        let mut mesh = Self { config, order_clients, gateway_clients, slots };
        for (name, listener) in Name::ALL.into_iter().zip(listeners) {
            mesh.spawn(name, listener)?;
            mesh.until_ready(name).await?;
        }
        Ok(mesh)
    }

    pub fn addr(&self, name: Name) -> SocketAddr {
        self.slot(name).addr
    }

    pub fn url(&self, name: Name) -> String {
        url(self.addr(name))
    }

    /// The switch for a service's faults.
    pub fn faults(&self, name: Name) -> &Faults {
        &self.slot(name).faults
    }

    /// How much a service takes on, and how much it has taken on.
    pub fn admission(&self, name: Name) -> &Admission {
        &self.slot(name).admission
    }

    pub fn health(&self, name: Name) -> &Health {
        &self.slot(name).health
    }

    /// The handles of the order service's client stacks.
    pub fn order_clients(&self) -> &OrderClients {
        &self.order_clients
    }

    /// The handles of the gateway's client stacks.
    pub fn gateway_clients(&self) -> &GatewayClients {
        &self.gateway_clients
    }

    /// Every client stack in the mesh.
    pub fn dependencies(&self) -> [&Dependency; 5] {
        let (order, gateway) = (&self.order_clients, &self.gateway_clients);
        [&order.payment, &order.inventory, &gateway.order, &gateway.payment, &gateway.inventory]
    }

    /// Kills a service in the middle of whatever it is doing.
    pub async fn crash(&mut self, name: Name) {
        if let Some(process) = self.slots[name as usize].process.take() {
            process.crash().await;
            tracing::warn!(service = name.as_str(), "crashed");
        }
    }

    /// Starts a service again, at its old address.
    pub async fn restart(&mut self, name: Name) -> Result<(), MeshError> {
        self.crash(name).await;
        let listener = TcpListener::bind(self.slot(name).addr)?;
        self.slots[name as usize].health = Health::new();
        self.spawn(name, listener)?;
        self.until_ready(name).await
    }

    /// Stops everything so that nobody notices: readiness goes off first, then the doors close from the outside in, and
    /// each service finishes what it has taken on before those that it needs are stopped.
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

    /// Ends when any service ends by itself, which none should.
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

    fn spawn(&mut self, name: Name, listener: TcpListener) -> Result<(), MeshError> {
        let slot = self.slot(name);
        let (health, admission, faults) = (slot.health.clone(), slot.admission.clone(), slot.faults.clone());
        let (grace, data_dir) = (self.config.grace, self.config.data_dir.clone());
        let order = order::Config {
            payment: self.addr(Name::Payment),
            inventory: self.addr(Name::Inventory),
            clients: self.order_clients.clone(),
            orphan_after: Duration::from_secs(30),
        };
        let gateway = gateway::Config {
            order: self.addr(Name::Order),
            payment: self.addr(Name::Payment),
            inventory: self.addr(Name::Inventory),
            clients: self.gateway_clients.clone(),
            fault_switches: if self.config.admin {
                [Name::Payment, Name::Inventory].map(|name| (name.as_str(), self.faults(name).clone())).into()
            } else {
                Vec::new()
            },
        };
        let process = Process::spawn(name.as_str(), move |stop| async move {
            let service = Service { name: name.as_str(), listener, health, admission, faults, stop, grace };
            match name {
                Name::Payment => payment::run(service, &data_dir).await,
                Name::Inventory => inventory::run(service, &data_dir).await,
                Name::Order => order::run(service, &data_dir, order).await,
                Name::Gateway => gateway::run(service, gateway).await,
            }
        })?;
        self.slots[name as usize].process = Some(process);
        Ok(())
    }

    async fn until_ready(&self, name: Name) -> Result<(), MeshError> {
        let slot = self.slot(name);
        let Some(process) = &slot.process else { return Ok(()) };
        tokio::select! {
            () = probe::ready(slot.addr) => Ok(()),
            how = process.ended() => Err(MeshError::Ended { service: name.as_str(), how }),
            () = tokio::time::sleep(START_TIMEOUT) => Err(MeshError::NotReady { service: name.as_str() }),
        }
    }
}
