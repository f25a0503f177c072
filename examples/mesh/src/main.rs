//! The command line of the example mesh: see README.md.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use mesh::bus::Bus;
use mesh::db::{Databases, Files};
use mesh::demo::books::Told;
use mesh::demo::{self, books};
use mesh::mesh::{Config, Mesh, Name};
use tracing_subscriber::EnvFilter;

/// A small shop of four services, wired through every layer of Buttress.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// How to write logs (to stderr; RUST_LOG says which).
    #[arg(long, global = true, value_enum, default_value = "text")]
    log: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs all services on loopback until Ctrl-C.
    Up {
        /// Where the databases live; kept.
        #[arg(long, default_value = "mesh-data")]
        data_dir: PathBuf,
        /// The gateway's port; 0 for a free one.
        #[arg(long, default_value_t = 0)]
        port: u16,
        /// Seconds between "not ready" and closing the door.
        #[arg(long, default_value_t = 1.0, value_parser = seconds)]
        drain_delay: f64,
    },
    /// Places orders while faults come and go, and checks the books.
    Demo {
        /// How many orders to place.
        #[arg(long, default_value_t = 500)]
        orders: usize,
        /// The same seed gives the same orders and coin tosses.
        #[arg(long, default_value_t = 42)]
        seed: u64,
        /// Orders per second.
        #[arg(long, default_value_t = 20.0, value_parser = rate)]
        rate: f64,
        /// Write the whole report here.
        #[arg(long)]
        json: Option<PathBuf>,
        /// Keep the databases here instead of in a temporary directory.
        #[arg(long)]
        data_dir: Option<PathBuf>,
    },
    /// Checks the books of a mesh that is not running.
    Audit {
        /// Where the databases live.
        #[arg(long, default_value = "mesh-data")]
        data_dir: PathBuf,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { log, command } = Cli::parse();
    init_tracing(log, &command);
    let result = match command {
        Command::Up { data_dir, port, drain_delay } => up(data_dir, port, Duration::from_secs_f64(drain_delay)).await,
        Command::Demo { orders, seed, rate, json, data_dir } => {
            let progress = std::io::stderr().is_terminal();
            demo(demo::Options { orders, seed, rate, data_dir, databases: None, bus: Bus::Log, progress }, json).await
        }
        Command::Audit { data_dir } => audit(data_dir).await,
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mesh: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn up(data_dir: PathBuf, port: u16, drain_delay: Duration) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(&data_dir).with_context(|| format!("cannot make {}", data_dir.display()))?;
    let mesh = Mesh::start(Config { port, drain_delay, admin: true, ..Config::new(data_dir) }).await?;
    for name in Name::ALL.into_iter().rev() {
        println!("{:<10} {}", name.as_str(), mesh.url(name));
    }
    let died = tokio::select! {
        () = asked_to_stop() => None,
        ended = mesh.any_ended() => Some(ended),
    };
    eprintln!("stopping; again to stop at once");
    tokio::select! {
        _ = mesh.stop() => {}
        () = asked_to_stop() => return Ok(ExitCode::FAILURE),
    }
    match died {
        None => Ok(ExitCode::SUCCESS),
        Some((name, how)) => anyhow::bail!("{} ended by itself: {how:?}", name.as_str()),
    }
}

async fn demo(options: demo::Options, json: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    // Before the work, so that a typo in a path does not cost a minute.
    let file =
        json.map(|path| std::fs::File::create(&path).with_context(|| format!("cannot write {}", path.display())));
    let file = file.transpose()?;
    let report = tokio::select! {
        report = demo::run(options) => report?,
        () = asked_to_stop() => anyhow::bail!("interrupted"),
    };
    print!("{report}");
    if let Some(file) = file {
        serde_json::to_writer_pretty(file, &report).context("cannot write the report")?;
    }
    Ok(if report.books.right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn audit(data_dir: PathBuf) -> anyhow::Result<ExitCode> {
    let books = books::audit(&Databases::Files(Files(data_dir.clone())), &Told::default())
        .await
        .with_context(|| format!("no books in {}", data_dir.display()))?;
    print!("{books}");
    Ok(if books.right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Ctrl-C, or what an orchestrator sends.
async fn asked_to_stop() {
    #[cfg(unix)]
    if let Ok(mut term) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return,
            _ = term.recv() => return,
        }
    }
    // Without signals there is nobody to ask us.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn init_tracing(format: LogFormat, command: &Command) {
    // The demo's output is its table; everything else is a service that should say what it does.
    let default = if matches!(command, Command::Demo { .. }) { "off" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let logs = logs.with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("between 0 and 3600 seconds".to_owned()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.1..=10_000.0).contains(&rate) => Ok(rate),
        _ => Err("between 0.1 and 10000 orders per second".to_owned()),
    }
}
