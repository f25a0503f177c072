//! The command line of the example mesh: see README.md.

mod cli;
#[cfg(test)]
mod deploy_tests;
mod load_args;
mod ops_args;
mod soak_args;

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use mesh::admin::Admin;
use mesh::clock::now_ms;
use mesh::db::Databases;
use mesh::demo::books::{self, Acknowledged, Verdict};
use mesh::demo::{self, processes};
use mesh::edge::Limits;
use mesh::faults::{self, Faults};
use mesh::input::Customer;
use mesh::launch::{self, Clients, Name, Wiring};
use mesh::load;
use mesh::mesh::{Config, Mesh, PATIENCE};
use mesh::network::Door;
use mesh::service::Service;
use mesh::soak;
use mesh::stack::{Admission, Health};
use mesh::telemetry::{self, Collector, LogConfig, Telemetry};
use mesh::token::Tokens;
use tokio_util::sync::CancellationToken;

use cli::{Audit, Cli, Command, Demo, NOT_SETTLED, ServiceArgs, Up};
use load_args::Load;
use soak_args::Soak;

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { log, command } = Cli::parse();
    // The output of demo and load is a table, so their logs are off by default. Services log.
    let quiet = matches!(
        command,
        Command::Demo(_)
            | Command::Load(_)
            | Command::Ops(_)
            | Command::Soak(_)
            | Command::Probe { .. }
            | Command::Token { .. }
    ) && std::env::var_os("RUST_LOG").is_none();
    // `up` shares its terminal with seven services, so only trouble is shown there by default.
    let logs = (!quiet).then_some(LogConfig { format: log, quiet: matches!(command, Command::Up(_)) });
    if !command.is_service() {
        telemetry::install_logs(logs);
    }
    let result = match command {
        Command::Up(args) => up(args, logs).await,
        Command::Demo(args) => demo(args).await,
        Command::Load(args) => load(args).await,
        Command::Soak(args) => soak(args).await,
        Command::Audit(args) => audit(args).await,
        Command::Probe { listen, path } => Ok(probe(listen, &path).await),
        Command::Token { customer, data_dir } => token(&customer, &data_dir),
        Command::Ops(args) => args.run().await,
        Command::Gateway(args) => service(Name::Gateway, args, logs).await,
        Command::Order(args) => service(Name::Order, args, logs).await,
        Command::Payment(args) => service(Name::Payment, args, logs).await,
        Command::Inventory(args) => service(Name::Inventory, args, logs).await,
        Command::Shipping(args) => service(Name::Shipping, args, logs).await,
        Command::Notification(args) => service(Name::Notification, args, logs).await,
        Command::Legacy(args) => service(Name::Legacy, args, logs).await,
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mesh: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, each once: many an error repeats its cause in its own text.
fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            let colon = if text.is_empty() { "" } else { ": " };
            text = format!("{text}{colon}{cause}");
        }
    }
    text
}

/// Runs all services in this process.
async fn up(args: Up, logs: Option<LogConfig>) -> anyhow::Result<ExitCode> {
    let Up { stores, port, admin_port, drain_delay, customers, traces } = args;
    let (databases, bus) = (stores.databases()?, stores.bus()?);
    let tokens = Tokens::from_env_or_dir(&stores.data_dir)?;
    let trust_callers = traces.trust_traceparent;
    let telemetry = telemetry::Config { logs, traces: traces.config(None), trust_callers };
    let admin_port = admin_port.unwrap_or_else(default_admin_port);
    let orders_per_second = customers.orders_per_second_per_customer;
    let config = Config {
        databases,
        bus,
        port,
        admin_port,
        drain_delay,
        orders_per_second,
        telemetry,
        tokens,
        ..Config::new("")
    };
    let mut signals = Signals::new();
    let mesh = Mesh::start(config).await?;
    welcome(&mesh);
    println!("{:<13} mesh token alice --data-dir {}", "token", stores.data_dir.display());
    let died = tokio::select! {
        () = signals.next() => None,
        ended = mesh.any_ended() => Some(ended),
    };
    eprintln!("stopping; press again to stop at once");
    tokio::select! {
        _ = mesh.stop() => {}
        () = signals.next() => return Ok(ExitCode::FAILURE),
    }
    match died {
        None => Ok(ExitCode::SUCCESS),
        Some((name, how)) => Err(how).with_context(|| format!("{} ended by itself", name.as_str())),
    }
}

/// The port where `mesh ops` looks by default, unless another program has it.
fn default_admin_port() -> u16 {
    let port = Name::Gateway.default_admin_port();
    if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() { port } else { 0 }
}

/// Prints where everything is.
fn welcome(mesh: &Mesh) {
    let (shop, admin) = (mesh.url(Name::Gateway), mesh.admin_url(Name::Gateway));
    println!("shop       {shop}/v1/products");
    println!("dashboard  {admin}/dashboard");
    println!("metrics    {admin}/metrics, and on the admin listener of each service:");
    println!();
    println!("  {:<13} {:<24} admin", "service", "address");
    for name in Name::ALL.into_iter().rev() {
        println!("  {:<13} {:<24} {}", name.as_str(), mesh.url(name), mesh.admin_url(name));
    }
    println!();
    let default = format!("http://127.0.0.1:{}", Name::Gateway.default_admin_port());
    let url = if admin == default { String::new() } else { format!(" --url {admin}") };
    println!("What waits for an operator: mesh ops{url}. Logs: RUST_LOG=info. Stop: Ctrl-C.");
}

/// Runs one service in this process, with the same code and layers as `mesh up`.
async fn service(name: Name, args: ServiceArgs, logs: Option<LogConfig>) -> anyhow::Result<ExitCode> {
    if args.with_parent {
        end_with_standard_input();
    }
    let addr = args.listen.unwrap_or_else(|| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), name.default_port()));
    let listener = TcpListener::bind(addr).with_context(|| format!("listen: cannot listen on {addr}"))?;
    let (door, admin_token) = (args.admin.door(name)?, args.admin.token.token()?);
    let wiring = Wiring {
        addresses: args.peers.addresses(),
        bus: args.stores.bus()?,
        clients: Clients::new(args.seed)?,
        admin_token: admin_token.clone(),
        patience: PATIENCE,
        under_way: mesh::order::UNDER_WAY,
        tokens: match &args.token_key_file {
            _ if name != Name::Gateway => None,
            Some(path) => Some(Tokens::from_file(path)?),
            None => Some(Tokens::from_env()?),
        },
        // A service without a database must not create a data directory: its root may be read-only.
        databases: if name.has_database() { args.stores.databases()? } else { args.stores.files() },
    };
    // Services that run alone share a directory, but not with a whole mesh.
    let _in_use = match &wiring.databases {
        Databases::Files(files) if name.has_database() => Some(files.for_a_service()?),
        _ => None,
    };
    let (health, stop, admission) =
        (Health::new(), CancellationToken::new(), Admission::new(name, args.customers.orders_per_second_per_customer)?);
    let page = Collector { url: wiring.addresses.admin(Name::Gateway).url(), token: admin_token };
    let trust_callers = args.traces.trust_traceparent;
    let seen = telemetry::Config { logs, traces: args.traces.config(Some(page)), trust_callers };
    let telemetry = Telemetry::new(name.as_str(), &admission, wiring.clients.of(name), &seen)?;
    telemetry.install();
    let serving = launch::run(
        name,
        Service {
            name: name.as_str(),
            door: Door::Tcp(listener),
            limits: Limits::default(),
            health: health.clone(),
            admission,
            telemetry: telemetry.clone(),
            faults: Faults::new(args.seed.wrapping_add(name as u64)),
            admin: Admin::new(door),
            stop: stop.clone(),
            grace: args.grace,
        },
        wiring,
    );
    let mut signals = Signals::new();
    let stopping = async {
        signals.next().await;
        // Readiness fails first, and the listener stays open until load balancers have removed the
        // service.
        health.drain();
        tracing::info!(delay = ?args.drain_delay, "no longer ready");
        tokio::select! {
            () = tokio::time::sleep(args.drain_delay) => stop.cancel(),
            () = signals.next() => return,
        }
        signals.next().await;
    };
    let ended = tokio::select! {
        served = serving => served.map(|()| ExitCode::SUCCESS).with_context(|| format!("the {} service", name.as_str())),
        () = stopping => {
            tracing::warn!(
                service = name.as_str(),
                "asked twice to stop, exiting at once; what is under way is finished after the next start"
            );
            return Ok(ExitCode::FAILURE);
        }
    };
    if ended.is_ok() {
        tracing::info!(service = name.as_str(), "stopped");
    }
    telemetry.flush().await;
    ended
}

async fn demo(args: Demo) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        faults::ENABLED,
        "demo: this program was built without fault injection; build it with the feature `faults`"
    );
    let file = create("json", args.json.as_deref())?;
    let Demo { seed, rate, kills, .. } = args;
    let orders = args.orders.get();
    let progress = std::io::stderr().is_terminal();
    let databases = args.server.server()?;
    if args.processes {
        let (postgres, prefix) = (args.server.postgres.clone(), args.server.database_prefix.clone());
        let kafka = args.bus.kafka.clone();
        let data_dir = args.data_dir;
        let options =
            processes::Options { orders, seed, rate, kills, data_dir, databases, postgres, prefix, kafka, progress };
        return finish(interruptible(processes::run(options)).await?, file, |report| report.books.right);
    }
    let options =
        demo::Options { orders, seed, rate, databases, data_dir: args.data_dir, kafka: args.bus.kafka, progress };
    finish(interruptible(demo::run(options)).await?, file, |report| report.books.right)
}

async fn load(args: Load) -> anyhow::Result<ExitCode> {
    let (json, svg) = (create("json", args.json.as_deref())?, create("svg", args.svg.as_deref())?);
    let max_p99 = args.max_p99;
    let options = args.options(std::io::stdout().is_terminal())?;
    let draw = |report: &load::Report| match svg {
        Some(mut file) => file.write_all(load::histogram(report).as_bytes()).context("cannot write the picture"),
        None => Ok(()),
    };
    if let Some(max_p99) = max_p99 {
        let found = interruptible(load::search(options, max_p99)).await?;
        draw(&found.report)?;
        return finish(found, json, |found| found.report.is_right());
    }
    let report = interruptible(load::run(options)).await?;
    draw(&report)?;
    finish(report, json, load::Report::is_right)
}

async fn soak(args: Soak) -> anyhow::Result<ExitCode> {
    let json = create("json", args.json.as_deref())?;
    finish(interruptible(soak::run(args.options()?)).await?, json, soak::report::Report::is_right)
}

/// Creates the output file before the work, so that a mistyped path fails at once.
fn create(flag: &str, path: Option<&Path>) -> anyhow::Result<Option<File>> {
    let create = |path: &Path| File::create(path).with_context(|| format!("{flag}: cannot write {}", path.display()));
    path.map(create).transpose()
}

async fn interruptible<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::select! {
        done = work => done,
        () = async { Signals::new().next().await } => anyhow::bail!("interrupted"),
    }
}

/// Prints the report, writes it as JSON, and returns the exit code.
fn finish<R: std::fmt::Display + serde::Serialize>(
    report: R,
    json: Option<File>,
    right: impl FnOnce(&R) -> bool,
) -> anyhow::Result<ExitCode> {
    print!("{report}");
    if let Some(file) = json {
        serde_json::to_writer_pretty(file, &report).context("cannot write the report")?;
    }
    Ok(if right(&report) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn audit(args: Audit) -> anyhow::Result<ExitCode> {
    let (databases, bus) = (args.stores.existing()?, args.stores.bus()?);
    let books = books::audit(&databases, &bus, &Acknowledged::default()).await?;
    print!("{books}");
    Ok(match books.verdict() {
        Verdict::Right => ExitCode::SUCCESS,
        Verdict::Wrong => ExitCode::FAILURE,
        Verdict::NotSettled => ExitCode::from(NOT_SETTLED),
    })
}

/// Prints a token for a customer of a mesh on this machine.
fn token(customer: &Customer, data_dir: &Path) -> anyhow::Result<ExitCode> {
    println!("{}", Tokens::from_env_or_dir(data_dir)?.issue(customer, now_ms()));
    Ok(ExitCode::SUCCESS)
}

/// Sends a probe and returns success if the answer is a success status.
async fn probe(mut listen: SocketAddr, path: &str) -> ExitCode {
    if listen.ip().is_unspecified() {
        listen.set_ip(match listen {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    let answer = mesh::probe::probe(listen, path).await;
    let said = answer.map_or_else(|| "no answer".to_owned(), |status| status.to_string());
    println!("{listen}{path}: {said}");
    if answer.is_some_and(|status| status.is_success()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// SIGINT and SIGTERM, from its creation on. One listener for all of them: a signal that arrives
/// while nothing waits for it must not be missed.
struct Signals {
    #[cfg(unix)]
    streams: Option<[tokio::signal::unix::Signal; 2]>,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let streams = signal(SignalKind::interrupt()).and_then(|int| Ok([int, signal(SignalKind::terminate())?]));
        Self { streams: streams.ok() }
    }

    #[cfg(not(unix))]
    fn new() -> Self {
        Self {}
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        if let Some([interrupt, terminate]) = &mut self.streams {
            tokio::select! {
                Some(()) = interrupt.recv() => return,
                Some(()) = terminate.recv() => return,
                else => {}
            }
        }
        // Signals are not available: wait forever.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Exits when standard input ends. The parent holds the other end of the pipe, which the operating
/// system closes when the parent dies.
fn end_with_standard_input() {
    std::thread::spawn(|| {
        let mut rest = [0; 64];
        while matches!(std::io::stdin().read(&mut rest), Ok(read) if read > 0) {}
        std::process::exit(1);
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_cause_that_its_error_repeats_is_told_once() {
        let error = anyhow::anyhow!("refused").context("cannot reach the server: refused").context("the order service");
        assert_eq!(super::told(&error), "the order service: cannot reach the server: refused");
        assert_eq!(super::told(&anyhow::anyhow!("alone")), "alone");
    }
}
