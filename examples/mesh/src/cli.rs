//! The command line. Most flags can also be set by environment variables.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use mesh::bus::Bus;
use mesh::db::{Databases, Files, Server};
use mesh::launch::{Addresses, Name};
use mesh::service::Address;
use mesh::telemetry::{LogFormat, TraceConfig};

use crate::load_args::Load;

/// A small shop of seven services, connected through every layer of Buttress
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Cli {
    /// Log format. Logs go to stderr; RUST_LOG filters them.
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub(crate) log: LogFormat,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs all services on loopback until Ctrl-C.
    Up(Up),
    /// Places orders while faults are injected, then audits the databases.
    Demo(Demo),
    /// Places orders at a fixed rate, independent of the answers, and reports their latencies.
    Load(Load),
    /// Sends a health probe to a service, as a container's health check. The exit code is the
    /// answer.
    Probe {
        /// The address the service listens on. An unspecified address such as 0.0.0.0 is probed on
        /// loopback.
        #[arg(long, env = "MESH_LISTEN")]
        listen: SocketAddr,
        /// Path of the probe; /livez and /startupz also exist.
        #[arg(long, default_value = "/readyz", value_parser = path)]
        path: String,
    },
    /// Audits the databases of a mesh that is not running.
    Audit {
        /// Directory of the SQLite files.
        #[arg(long, env = "MESH_DATA_DIR", default_value = "mesh-data")]
        data_dir: PathBuf,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Runs the gateway as its own process.
    Gateway(ServiceArgs),
    /// Runs the order service as its own process.
    Order(ServiceArgs),
    /// Runs the payment service as its own process.
    Payment(ServiceArgs),
    /// Runs the inventory service as its own process.
    Inventory(ServiceArgs),
    /// Runs the shipping service as its own process.
    Shipping(ServiceArgs),
    /// Runs the notification service as its own process.
    Notification(ServiceArgs),
    /// Runs the legacy monolith as its own process.
    Legacy(ServiceArgs),
}

impl Command {
    /// Whether this process is a service and logs under the service's name.
    pub(crate) fn is_service(&self) -> bool {
        !matches!(self, Self::Up(_) | Self::Demo(_) | Self::Load(_) | Self::Audit { .. } | Self::Probe { .. })
    }
}

#[derive(Args, Debug)]
pub(crate) struct Up {
    /// Directory of the SQLite files. They are kept.
    #[arg(long, env = "MESH_DATA_DIR", default_value = "mesh-data")]
    pub(crate) data_dir: PathBuf,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// The gateway's port; 0 for a free one.
    #[arg(long, default_value_t = 0)]
    pub(crate) port: u16,
    /// Seconds between failing readiness and closing the listener.
    #[arg(long, default_value = "1", value_parser = seconds)]
    pub(crate) drain_delay: Duration,
    #[command(flatten)]
    pub(crate) traces: TraceArgs,
}

#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// Number of orders to place.
    #[arg(long, default_value_t = NonZeroUsize::MIN.saturating_add(499))]
    pub(crate) orders: NonZeroUsize,
    /// Random seed. The same seed gives the same orders, fault decisions and kills.
    #[arg(long, default_value_t = 42)]
    pub(crate) seed: u64,
    /// Orders per second.
    #[arg(long, default_value_t = 20.0, value_parser = rate)]
    pub(crate) rate: f64,
    /// Write the full JSON report to this file.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Keep SQLite's files here instead of in a temporary directory.
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// Run every service as its own process, and kill them one after another with SIGKILL.
    #[arg(long)]
    pub(crate) processes: bool,
    /// Number of kills. Orders are placed until all kills are done.
    #[arg(long, default_value_t = 21, requires = "processes")]
    pub(crate) kills: usize,
}

/// Databases on a server instead of in SQLite files.
#[derive(Args, Debug)]
pub(crate) struct ServerArgs {
    /// URL of a PostgreSQL server, such as postgres://user:password@host:5432. Each service gets
    /// its own database there.
    #[arg(long, env = "MESH_POSTGRES", hide_env_values = true)]
    pub(crate) postgres: Option<String>,
    /// Prefix of the names of those databases.
    #[arg(long, env = "MESH_DATABASE_PREFIX", default_value = "mesh_")]
    pub(crate) database_prefix: String,
}

#[derive(Args, Debug)]
pub(crate) struct BusArgs {
    /// Kafka brokers, such as host:9092,host:9092, instead of the embedded event log. `demo
    /// --processes` also accepts "mock".
    #[arg(long, env = "MESH_KAFKA")]
    pub(crate) kafka: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct ServiceArgs {
    /// Address to listen on. Default: loopback, on the service's own port (gateway 8080, order
    /// 8081, payment 8082, inventory 8083, shipping 8084, notification 8085, legacy 8086).
    #[arg(long, env = "MESH_LISTEN")]
    pub(crate) listen: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) peers: Peers,
    /// Directory of the SQLite files.
    #[arg(long, env = "MESH_DATA_DIR", default_value = "mesh-data")]
    pub(crate) data_dir: PathBuf,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(flatten)]
    pub(crate) bus: BusArgs,
    /// Seconds between failing readiness and closing the listener.
    #[arg(long, env = "MESH_DRAIN_DELAY", default_value = "1", value_parser = seconds)]
    pub(crate) drain_delay: Duration,
    /// Seconds that requests in flight may take after the listener is closed.
    #[arg(long, env = "MESH_GRACE", default_value = "10", value_parser = seconds)]
    pub(crate) grace: Duration,
    /// Serve the operators' endpoints under /admin; on the gateway also the dashboard.
    #[arg(long, env = "MESH_ADMIN")]
    pub(crate) admin: bool,
    #[command(flatten)]
    pub(crate) traces: TraceArgs,
    /// Random seed for fault decisions and jitter.
    #[arg(long, env = "MESH_SEED", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Exit at once when standard input ends. The demo's children use it, so that they exit even if
    /// the demo is killed.
    #[arg(long, hide = true)]
    pub(crate) with_parent: bool,
}

/// Where spans are exported to.
#[derive(Args, Debug)]
pub(crate) struct TraceArgs {
    /// OTLP collector over gRPC, such as http://host:4317. With --admin, spans also go to the
    /// gateway's dashboard.
    #[arg(long, env = "MESH_OTLP")]
    otlp: Option<String>,
    /// Share of traces that are sampled, 0 to 1.
    #[arg(long, env = "MESH_TRACE_SAMPLE", default_value = "1", value_parser = share)]
    trace_sample: f64,
}

impl TraceArgs {
    /// Exports to the collector of `--otlp`, and to `page`.
    pub(crate) fn config(&self, page: Option<String>) -> Option<TraceConfig> {
        let endpoints: Vec<_> = self.otlp.iter().cloned().chain(page).collect();
        Some(TraceConfig { endpoints, sample: self.trace_sample })
    }
}

/// Addresses of the services, as host:port.
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
}

impl Peers {
    pub(crate) fn addresses(&self) -> Addresses {
        Addresses::new(|name| {
            match name {
                Name::Gateway => &self.gateway,
                Name::Order => &self.order,
                Name::Payment => &self.payment,
                Name::Inventory => &self.inventory,
                Name::Shipping => &self.shipping,
                Name::Notification => &self.notification,
                Name::Legacy => &self.legacy,
            }
            .clone()
        })
    }
}

impl ServerArgs {
    /// Returns the server if `--postgres` is set.
    pub(crate) fn server(&self) -> anyhow::Result<Option<Databases>> {
        let server = self.postgres.as_deref().map(|url| Server::new(url, &self.database_prefix)).transpose()?;
        Ok(server.map(Databases::Server))
    }

    /// Returns the server, or a directory of files, which is created if it does not exist.
    pub(crate) fn databases(&self, data_dir: PathBuf) -> anyhow::Result<Databases> {
        if let Some(server) = self.server()? {
            return Ok(server);
        }
        std::fs::create_dir_all(&data_dir)
            .with_context(|| format!("data-dir: cannot create {}", data_dir.display()))?;
        Ok(Databases::Files(Files(data_dir)))
    }
}

impl BusArgs {
    pub(crate) fn bus(&self) -> anyhow::Result<Bus> {
        Ok(Bus::new(self.kafka.clone())?)
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("between 0 and 3600 seconds".to_owned()),
    }
}

fn path(text: &str) -> Result<String, String> {
    let path: Result<http::uri::PathAndQuery, _> = text.parse();
    if text.starts_with('/') && path.is_ok() {
        Ok(text.to_owned())
    } else {
        Err("must be a path, beginning with /".to_owned())
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("between 0 and 1".to_owned()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.1..=10_000.0).contains(&rate) => Ok(rate),
        _ => Err("between 0.1 and 10000 orders per second".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_defaults_fit_together() {
        let Command::Order(args) = Cli::parse_from(["mesh", "order"]).command else { panic!("not the order service") };
        let addresses = args.peers.addresses();
        for name in Name::ALL {
            assert!(addresses.of(name).to_string().ends_with(&format!(":{}", name.default_port())), "{name:?}");
        }
    }
}
