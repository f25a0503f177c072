//! The command line. Most flags can also be set by environment variables.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use mesh::admin::{AdminDoor, Token};
use mesh::bus::Bus;
use mesh::db::{Databases, Files, Server};
use mesh::input::Customer;
use mesh::launch::{Addresses, Name};
use mesh::service::Address;
use mesh::telemetry::{Collector, LogFormat, TraceConfig};

use crate::load_args::Load;
use crate::ops_args::Ops;
use crate::soak_args::Soak;

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
    /// The port of the dashboard and of `mesh ops`. Default: 9080 if it is free, otherwise another
    /// one.
    #[arg(long)]
    pub(crate) admin_port: Option<u16>,
    /// Seconds between failing readiness and closing the listener.
    #[arg(long, default_value = "1", value_parser = seconds)]
    pub(crate) drain_delay: Duration,
    #[command(flatten)]
    pub(crate) traces: TraceArgs,
}

#[derive(Args, Debug)]
pub(crate) struct Audit {
    /// Directory of the SQLite files.
    #[arg(long, env = "MESH_DATA_DIR", default_value = "mesh-data")]
    pub(crate) data_dir: PathBuf,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(flatten)]
    pub(crate) bus: BusArgs,
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
    /// File with the key of the customers' tokens, at least 32 bytes. The gateway needs it, or the
    /// key itself in MESH_TOKEN_KEY.
    #[arg(long, env = "MESH_TOKEN_KEY_FILE")]
    pub(crate) token_key_file: Option<PathBuf>,
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

/// The operators' listener of a service: metrics, state, sagas, dead letters and parked events; on
/// the gateway also the dashboard.
#[derive(Args, Debug)]
pub(crate) struct AdminArgs {
    /// Address for operators. Any address but loopback needs a token. Default: loopback, on the
    /// service's own port plus 1000.
    #[arg(long, env = "MESH_ADMIN_LISTEN")]
    pub(crate) admin_listen: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) token: TokenArgs,
}

/// The operators' token, from `MESH_ADMIN_TOKEN` or a file. It is not an argument, because other
/// users of a machine can read the arguments of a process.
#[derive(Args, Debug)]
pub(crate) struct TokenArgs {
    /// File with the operators' token, at least 16 characters. The token can also be in the
    /// variable MESH_ADMIN_TOKEN.
    #[arg(long, env = "MESH_ADMIN_TOKEN_FILE")]
    pub(crate) admin_token_file: Option<PathBuf>,
}

impl AdminArgs {
    /// Listens for operators.
    pub(crate) fn door(&self, name: Name) -> anyhow::Result<AdminDoor> {
        let default = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), name.default_admin_port());
        Ok(AdminDoor::bind(self.admin_listen.unwrap_or(default), self.token.token()?)?)
    }
}

impl TokenArgs {
    /// Returns the token of the file or of the environment.
    pub(crate) fn token(&self) -> anyhow::Result<Option<Token>> {
        let variable = std::env::var("MESH_ADMIN_TOKEN").ok().filter(|token| !token.is_empty());
        self.token_or(variable)
    }

    fn token_or(&self, variable: Option<String>) -> anyhow::Result<Option<Token>> {
        match (&self.admin_token_file, variable) {
            (Some(_), Some(_)) => bail!("admin-token-file: MESH_ADMIN_TOKEN is set as well; set only one of them"),
            (Some(path), None) => Ok(Some(Token::read(path)?)),
            (None, Some(token)) => Ok(Some(Token::new(&token)?)),
            (None, None) => Ok(None),
        }
    }
}

/// Where spans are exported to.
#[derive(Args, Debug)]
pub(crate) struct TraceArgs {
    /// OTLP collector over gRPC, such as http://host:4317. Spans also go to the gateway's
    /// dashboard.
    #[arg(long, env = "MESH_OTLP")]
    otlp: Option<String>,
    /// Continue the traces of the gateway's callers. Only behind a proxy that sets traceparent
    /// itself; otherwise their traces are linked.
    #[arg(long, env = "MESH_TRUST_TRACEPARENT")]
    pub(crate) trust_traceparent: bool,
    /// Share of traces that are sampled, 0 to 1.
    #[arg(long, env = "MESH_TRACE_SAMPLE", default_value = "1", value_parser = share)]
    trace_sample: f64,
}

impl TraceArgs {
    /// Exports to the collector of `--otlp`, and to `page`.
    pub(crate) fn config(&self, page: Option<Collector>) -> Option<TraceConfig> {
        let collectors = self.otlp.iter().map(Collector::new).chain(page).collect();
        Some(TraceConfig { collectors, sample: self.trace_sample })
    }
}

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

impl ServerArgs {
    /// Returns the server if `--postgres` is set.
    pub(crate) fn server(&self) -> anyhow::Result<Option<Databases>> {
        let server = self.postgres.as_deref().map(|url| Server::new(url, &self.database_prefix)).transpose()?;
        Ok(server.map(Databases::Server))
    }

    /// Returns the server, or a directory of files, which must exist.
    pub(crate) fn existing(&self, data_dir: PathBuf) -> anyhow::Result<Databases> {
        if let Some(server) = self.server()? {
            return Ok(server);
        }
        anyhow::ensure!(data_dir.is_dir(), "data-dir: there is no directory {}", data_dir.display());
        Ok(Databases::Files(Files(data_dir)))
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

pub(crate) fn rate(text: &str) -> Result<f64, String> {
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
            let admin = addresses.admin(name).to_string();
            assert_eq!(admin, format!("127.0.0.1:{}", name.default_admin_port()), "{name:?}");
        }
    }

    fn service(args: &[&str]) -> ServiceArgs {
        match Cli::parse_from(["mesh", "order"].iter().chain(args)).command {
            Command::Order(args) => args,
            other => panic!("{other:?}"),
        }
    }

    /// Deployments set these variables.
    #[test]
    fn every_variable_belongs_to_the_flag_of_its_name() {
        let command = Cli::command();
        let variables = |name: &str| -> Vec<String> {
            let arguments = command.find_subcommand(name).unwrap().get_arguments();
            let pairs = arguments.filter_map(|arg| {
                let (flag, variable) = (arg.get_long()?, arg.get_env()?.to_str()?);
                Some(format!("{flag} {variable}"))
            });
            pairs.collect()
        };
        let pair = |name: &str| format!("{name} MESH_{}", name.to_uppercase().replace('-', "_"));
        let peers = Name::ALL.iter().flat_map(|name| [pair(name.as_str()), pair(&format!("{}-admin", name.as_str()))]);
        let others = [
            "listen MESH_LISTEN",
            "data-dir MESH_DATA_DIR",
            "postgres MESH_POSTGRES",
            "database-prefix MESH_DATABASE_PREFIX",
            "kafka MESH_KAFKA",
            "drain-delay MESH_DRAIN_DELAY",
            "grace MESH_GRACE",
            "admin-listen MESH_ADMIN_LISTEN",
            "admin-token-file MESH_ADMIN_TOKEN_FILE",
            "trust-traceparent MESH_TRUST_TRACEPARENT",
            "otlp MESH_OTLP",
            "trace-sample MESH_TRACE_SAMPLE",
            "seed MESH_SEED",
            "token-key-file MESH_TOKEN_KEY_FILE",
        ];
        let sorted = |mut pairs: Vec<String>| {
            pairs.sort();
            pairs
        };
        let expected = sorted(peers.chain(others.map(str::to_owned)).collect());
        for name in Name::ALL {
            assert_eq!(sorted(variables(name.as_str())), expected, "{name:?}");
        }
        assert_eq!(variables("probe"), ["listen MESH_LISTEN"]);
    }

    #[test]
    fn every_flag_of_a_service_is_its_own() {
        let defaults = service(&[]);
        let second = Duration::from_secs(1);
        assert_eq!((defaults.drain_delay, defaults.grace, defaults.seed), (second, 10 * second, 1));
        assert!(defaults.admin.admin_listen.is_none() && !defaults.traces.trust_traceparent && !defaults.with_parent);
        assert!(defaults.listen.is_none() && defaults.bus.kafka.is_none());
        assert_eq!(defaults.data_dir, PathBuf::from("mesh-data"));
        assert_eq!(defaults.server.database_prefix, "mesh_");
        let set = service(&[
            "--drain-delay",
            "2.5",
            "--grace",
            "7",
            "--seed",
            "9",
            "--admin-listen",
            "127.0.0.1:2",
            "--admin-token-file",
            "t",
            "--trust-traceparent",
            "--listen",
            "0.0.0.0:1",
            "--data-dir",
            "d",
            "--kafka",
            "k:1",
            "--postgres",
            "postgres://p",
            "--database-prefix",
            "x_",
            "--with-parent",
        ]);
        assert_eq!((set.drain_delay, set.grace, set.seed), (Duration::from_millis(2_500), 7 * second, 9));
        assert!(set.traces.trust_traceparent && set.with_parent);
        assert_eq!(set.admin.admin_listen, "127.0.0.1:2".parse().ok());
        assert_eq!(set.admin.token.admin_token_file, Some(PathBuf::from("t")));
        assert_eq!((set.listen, set.data_dir), ("0.0.0.0:1".parse().ok(), PathBuf::from("d")));
        assert_eq!((set.bus.kafka.as_deref(), set.server.postgres.as_deref()), (Some("k:1"), Some("postgres://p")));
        assert_eq!(set.server.database_prefix, "x_");
    }

    #[test]
    fn every_peer_is_reached_at_its_own_address() {
        let flags: Vec<_> = Name::ALL
            .iter()
            .flat_map(|name| {
                let name = name.as_str();
                let (service, admin) = (format!("{name}.test:1"), format!("{name}.test:2"));
                [format!("--{name}"), service, format!("--{name}-admin"), admin]
            })
            .collect();
        let args = service(&flags.iter().map(String::as_str).collect::<Vec<_>>());
        let addresses = args.peers.addresses();
        for name in Name::ALL {
            assert_eq!(addresses.of(name).to_string(), format!("{}.test:1", name.as_str()));
            assert_eq!(addresses.admin(name).to_string(), format!("{}.test:2", name.as_str()));
        }
    }

    #[test]
    fn spans_go_to_the_collector_and_to_the_page() {
        let config = |args: &[&str], page: Option<&str>| {
            let config = service(args).traces.config(page.map(Collector::new)).unwrap();
            (config.collectors.into_iter().map(|collector| collector.url).collect::<Vec<_>>(), config.sample)
        };
        assert_eq!(config(&[], None), (vec![], 1.0));
        let (both, share) = config(&["--otlp", "http://c:4317", "--trace-sample", "0.25"], Some("http://page"));
        assert_eq!((both, share), (vec!["http://c:4317".to_owned(), "http://page".to_owned()], 0.25));
    }

    #[test]
    fn numbers_have_bounds_that_are_allowed_themselves() {
        assert_eq!((seconds("0"), seconds("3600")), (Ok(Duration::ZERO), Ok(Duration::from_secs(3_600))));
        assert!(seconds("-0.1").is_err() && seconds("3600.1").is_err() && seconds("soon").is_err());
        assert!(seconds("NaN").is_err() && seconds("inf").is_err());
        assert_eq!((share("0"), share("1"), share("0.5")), (Ok(0.0), Ok(1.0), Ok(0.5)));
        assert!(share("-0.1").is_err() && share("1.1").is_err() && share("NaN").is_err());
        assert_eq!((rate("0.1"), rate("10000")), (Ok(0.1), Ok(10_000.0)));
        assert!(rate("0.09").is_err() && rate("10000.1").is_err() && rate("0").is_err() && rate("NaN").is_err());
        assert_eq!(path("/livez?a=b").as_deref(), Ok("/livez?a=b"));
        assert!(path("livez").is_err() && path("/a b").is_err() && path("").is_err());
    }

    #[test]
    fn a_token_comes_from_a_file_or_the_environment_and_not_from_both() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        let set = service(&["--admin-token-file", path.to_str().unwrap()]).admin.token;
        assert!(set.token_or(None).unwrap().is_some());
        let both = set.token_or(Some("fedcba9876543210".to_owned())).unwrap_err().to_string();
        assert!(both.starts_with("admin-token-file: "), "{both}");
        let unset = service(&[]).admin.token;
        assert!(unset.token_or(None).unwrap().is_none());
        assert!(unset.token_or(Some("fedcba9876543210".to_owned())).unwrap().is_some());
        assert!(unset.token_or(Some("short".to_owned())).is_err());
    }

    #[test]
    fn only_services_log_as_services() {
        let of = |args: &[&str]| Cli::parse_from(["mesh"].iter().chain(args)).command.is_service();
        for name in Name::ALL {
            assert!(of(&[name.as_str()]), "{name:?}");
        }
        let probe = ["probe", "--listen", "127.0.0.1:1"];
        for other in [&["up"][..], &["demo"], &["load"], &["audit"], &["token", "alice"], &probe] {
            assert!(!of(other), "{other:?}");
        }
    }

    #[test]
    fn the_demo_and_the_probe_have_defaults() {
        let Command::Demo(demo) = Cli::parse_from(["mesh", "demo"]).command else { panic!("no demo") };
        assert_eq!((demo.orders.get(), demo.seed, demo.rate, demo.kills), (500, 42, 20.0, 21));
        assert!(!demo.processes && demo.json.is_none() && demo.data_dir.is_none());
        let set = ["mesh", "demo", "--orders", "7", "--seed", "8", "--rate", "9", "--processes", "--kills", "10"];
        let Command::Demo(demo) = Cli::parse_from(set).command else { panic!("no demo") };
        assert_eq!((demo.orders.get(), demo.seed, demo.rate, demo.kills, demo.processes), (7, 8, 9.0, 10, true));
        assert!(Cli::try_parse_from(["mesh", "demo", "--orders", "0"]).is_err());
        let Command::Up(up) = Cli::parse_from(["mesh", "up"]).command else { panic!("not up") };
        assert_eq!((up.port, up.drain_delay, up.data_dir), (0, Duration::from_secs(1), PathBuf::from("mesh-data")));
        let probe = Cli::parse_from(["mesh", "probe", "--listen", "127.0.0.1:1"]).command;
        assert!(matches!(probe, Command::Probe { path, .. } if path == "/readyz"));
    }

    #[test]
    fn databases_are_files_unless_a_server_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let new = dir.path().join("new");
        let files = service(&[]).server.databases(new.clone()).unwrap();
        assert!(matches!(files, Databases::Files(Files(path)) if path == new && path.is_dir()));
        let other = dir.path().join("other");
        let server = service(&["--postgres", "postgres://p"]).server.databases(other.clone()).unwrap();
        assert!(matches!(server, Databases::Server(_)) && !other.exists());
        assert!(matches!(service(&[]).bus.bus().unwrap(), Bus::Log));
    }
}
