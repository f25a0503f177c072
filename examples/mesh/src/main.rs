//! The command line of the example mesh: see README.md.

mod cli;
#[cfg(test)]
mod deploy_tests;
mod load_args;

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use mesh::clock::now_ms;
use mesh::db::{Databases, Files};
use mesh::demo::books::{self, Acknowledged, Verdict};
use mesh::demo::{self, processes};
use mesh::edge::Limits;
use mesh::faults::Faults;
use mesh::input::Customer;
use mesh::launch::{self, Clients, Name, Wiring};
use mesh::load;
use mesh::mesh::{Config, Mesh, PATIENCE};
use mesh::network::Door;
use mesh::service::Service;
use mesh::stack::{Admission, Health};
use mesh::telemetry::{self, LogFormat, Telemetry};
use mesh::token::Tokens;
use tokio_util::sync::CancellationToken;

use cli::{Audit, Cli, Command, Demo, NOT_SETTLED, ServiceArgs, Up};
use load_args::Load;

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { log, command } = Cli::parse();
    // The output of demo and load is a table, so their logs are off by default. Services log.
    let quiet = matches!(command, Command::Demo(_) | Command::Load(_) | Command::Probe { .. } | Command::Token { .. })
        && std::env::var_os("RUST_LOG").is_none();
    let logs = (!quiet).then_some(log);
    if !command.is_service() {
        telemetry::install_logs(logs);
    }
    let result = match command {
        Command::Up(args) => up(args, logs).await,
        Command::Demo(args) => demo(args).await,
        Command::Load(args) => load(args).await,
        Command::Audit(args) => audit(args).await,
        Command::Probe { listen, path } => Ok(probe(listen, &path).await),
        Command::Token { customer, data_dir } => token(&customer, &data_dir),
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
            eprintln!("mesh: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all services in this process.
async fn up(args: Up, logs: Option<LogFormat>) -> anyhow::Result<ExitCode> {
    let Up { data_dir, server, bus, port, drain_delay, traces } = args;
    let (databases, bus) = (server.databases(data_dir.clone())?, bus.bus()?);
    let telemetry = telemetry::Config { logs, traces: traces.config(None) };
    let tokens = Tokens::from_env_or_dir(&data_dir)?;
    let config = Config { databases, bus, port, drain_delay, telemetry, tokens, admin: true, ..Config::new("") };
    let mesh = Mesh::start(config).await?;
    for name in Name::ALL.into_iter().rev() {
        println!("{:<13} {}", name.as_str(), mesh.url(name));
    }
    println!("{:<13} {}/dashboard", "dashboard", mesh.url(Name::Gateway));
    println!("{:<13} mesh token alice --data-dir {}", "token", data_dir.display());
    let died = tokio::select! {
        () = asked_to_stop() => None,
        ended = mesh.any_ended() => Some(ended),
    };
    eprintln!("stopping; press again to stop at once");
    tokio::select! {
        _ = mesh.stop() => {}
        () = asked_to_stop() => return Ok(ExitCode::FAILURE),
    }
    match died {
        None => Ok(ExitCode::SUCCESS),
        Some((name, how)) => Err(how).with_context(|| format!("{} ended by itself", name.as_str())),
    }
}

/// Runs one service in this process, with the same code and layers as `mesh up`.
async fn service(name: Name, args: ServiceArgs, logs: Option<LogFormat>) -> anyhow::Result<ExitCode> {
    if args.with_parent {
        end_with_standard_input();
    }
    let addr = args.listen.unwrap_or_else(|| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), name.default_port()));
    let listener = TcpListener::bind(addr).with_context(|| format!("listen: cannot listen on {addr}"))?;
    let wiring = Wiring {
        addresses: args.peers.addresses(),
        bus: args.bus.bus()?,
        clients: Clients::new(args.seed)?,
        patience: PATIENCE,
        under_way: mesh::order::UNDER_WAY,
        tokens: match &args.token_key_file {
            _ if name != Name::Gateway => None,
            Some(path) => Some(Tokens::from_file(path)?),
            None => Some(Tokens::from_env()?),
        },
        // A service without a database must not create a data directory: its root may be read-only.
        databases: if name.has_database() {
            args.server.databases(args.data_dir)?
        } else {
            Databases::Files(Files(args.data_dir))
        },
    };
    let (health, stop, admission) = (Health::new(), CancellationToken::new(), Admission::new(name.as_str()));
    let page = args.admin.then(|| wiring.addresses.of(Name::Gateway).url());
    let seen = telemetry::Config { logs, traces: args.traces.config(page) };
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
            admin: args.admin,
            stop: stop.clone(),
            grace: args.grace,
        },
        wiring,
    );
    let stopping = async {
        asked_to_stop().await;
        // Readiness fails first, and the listener stays open until load balancers have removed the
        // service.
        health.drain();
        tracing::info!(service = name.as_str(), delay = ?args.drain_delay, "no longer ready");
        tokio::time::sleep(args.drain_delay).await;
        stop.cancel();
        asked_to_stop().await;
    };
    let ended = tokio::select! {
        served = serving => served.map(|()| ExitCode::SUCCESS).with_context(|| format!("the {} service", name.as_str())),
        () = stopping => Ok(ExitCode::FAILURE),
    };
    telemetry.flush().await;
    ended
}

async fn demo(args: Demo) -> anyhow::Result<ExitCode> {
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
        demo::Options { orders, seed, rate, databases, bus: args.bus.bus()?, data_dir: args.data_dir, progress };
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

/// Creates the output file before the work, so that a mistyped path fails at once.
fn create(flag: &str, path: Option<&Path>) -> anyhow::Result<Option<File>> {
    let create = |path: &Path| File::create(path).with_context(|| format!("{flag}: cannot write {}", path.display()));
    path.map(create).transpose()
}

async fn interruptible<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::select! {
        done = work => done,
        () = asked_to_stop() => anyhow::bail!("interrupted"),
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
    let (databases, bus) = (args.server.existing(args.data_dir)?, args.bus.bus()?);
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

/// Waits for SIGINT or SIGTERM.
async fn asked_to_stop() {
    #[cfg(unix)]
    if let Ok(mut term) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return,
            _ = term.recv() => return,
        }
    }
    // Signals are not available: wait forever.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
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
