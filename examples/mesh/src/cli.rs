//! The command line. Most flags can also be set by environment variables.

mod operators;
mod peers;
mod stores;
mod values;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use mesh::input::Customer;
use mesh::stack::ORDERS_PER_SECOND;
use mesh::telemetry::LogFormat;

use crate::load_args::Load;
use crate::ops_args::Ops;
use crate::soak_args::Soak;
use operators::AdminArgs;
use peers::Peers;
use values::{path, seconds};

pub(crate) use operators::{TokenArgs, TraceArgs};
pub(crate) use stores::{BusArgs, ServerArgs, StoreArgs};
pub(crate) use values::rate;

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
    /// Runs every service as its own process under a flow of orders, causes one trouble after
    /// another, and audits the databases.
    Soak(Soak),
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
    /// Prints a customer's token, which the gateway of `mesh up` in the same directory accepts for
    /// 12 hours: curl -H "authorization: Bearer $(mesh token alice)". The key is read from
    /// MESH_TOKEN_KEY, or from the file that MESH_TOKEN_KEY_FILE names, or from token.key in the
    /// directory, which is created if it does not exist.
    Token {
        /// The customer.
        customer: Customer,
        /// Directory of the key, if the environment has none.
        #[arg(long, env = "MESH_DATA_DIR", default_value = "mesh-data")]
        data_dir: PathBuf,
    },
    /// Audits the databases of a mesh, and its dead letters on Kafka with --kafka. Exits with 0 if
    /// the books are right, 1 if they are wrong, and 3 if work is in progress that may be the
    /// reason.
    Audit(Audit),
    /// Shows what waits for an operator, and decides about it. Talks to the gateway's admin
    /// listener.
    Ops(Ops),
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
        !matches!(
            self,
            Self::Up(_)
                | Self::Demo(_)
                | Self::Load(_)
                | Self::Audit(_)
                | Self::Soak(_)
                | Self::Probe { .. }
                | Self::Ops(_)
                | Self::Token { .. }
        )
    }
}

#[derive(Args, Debug)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) stores: StoreArgs,
    /// The gateway's port; 0 for a free one.
    #[arg(long, default_value_t = 0)]
    pub(crate) port: u16,
    /// The port of the dashboard and of `mesh ops`. Default: 9080 if it is free, otherwise another
    /// one.
    #[arg(long)]
    pub(crate) admin_port: Option<u16>,
    /// Seconds between failing readiness and closing the listener.
    #[arg(long, default_value = "1", value_parser = seconds)]
    pub(crate) drain_delay: Duration,
    #[command(flatten)]
    pub(crate) customers: CustomerArgs,
    #[command(flatten)]
    pub(crate) traces: TraceArgs,
}

/// What the gateway grants a customer.
#[derive(Args, Debug)]
pub(crate) struct CustomerArgs {
    /// Orders per second that the gateway takes of one customer, of which those of two seconds may
    /// come at once. Of other requests it takes five times as many. Each replica counts for itself.
    #[arg(
        long,
        env = "MESH_ORDERS_PER_SECOND_PER_CUSTOMER",
        default_value_t = ORDERS_PER_SECOND,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub(crate) orders_per_second_per_customer: u32,
}

#[derive(Args, Debug)]
pub(crate) struct Audit {
    #[command(flatten)]
    pub(crate) stores: StoreArgs,
}

/// Exit code of an audit that found work in progress. 2 is that of a wrong command line.
pub(crate) const NOT_SETTLED: u8 = 3;

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

#[derive(Args, Debug)]
pub(crate) struct ServiceArgs {
    /// Address to listen on. Default: loopback, on the service's own port (gateway 8080, order
    /// 8081, payment 8082, inventory 8083, shipping 8084, notification 8085, legacy 8086).
    #[arg(long, env = "MESH_LISTEN")]
    pub(crate) listen: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) peers: Peers,
    #[command(flatten)]
    pub(crate) stores: StoreArgs,
    /// Seconds between failing readiness and closing the listener.
    #[arg(long, env = "MESH_DRAIN_DELAY", default_value = "1", value_parser = seconds)]
    pub(crate) drain_delay: Duration,
    /// Seconds that requests in flight may take after the listener is closed.
    #[arg(long, env = "MESH_GRACE", default_value = "10", value_parser = seconds)]
    pub(crate) grace: Duration,
    /// File with the key of the customers' tokens, at least 32 bytes. The gateway needs it, or the
    /// key itself in MESH_TOKEN_KEY.
    #[arg(long, env = "MESH_TOKEN_KEY_FILE")]
    pub(crate) token_key_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) customers: CustomerArgs,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
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

#[cfg(test)]
mod tests;
