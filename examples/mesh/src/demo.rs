//! `mesh demo`: places orders while faults are injected, then audits the databases.
//!
//! `scenario` holds the faults and their times, `crate::customers` places the orders, [`report`]
//! has the customers' view, and [`books`] audits the databases.

pub mod books;
mod checks;
mod facts;
mod kafka;
pub mod processes;
pub mod report;
mod scenario;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use crate::bus::Bus;
use crate::clock::now;
use crate::customers::MANY;
use crate::db::{Databases, Files};
use crate::mesh::{Config, Mesh};
use report::Report;

pub(crate) use kafka::{Brokers, Mock};

/// How long compensations and events may take after the last fault.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct Options {
    /// Number of orders, spread evenly over the phases.
    pub orders: usize,
    /// Random seed. The same seed gives the same orders and the same fault decisions.
    pub seed: u64,
    /// Orders per second.
    pub rate: f64,
    /// Directory of the SQLite files. By default a temporary directory, removed at the end.
    pub data_dir: Option<PathBuf>,
    /// A database server instead of files.
    pub databases: Option<Databases>,
    /// Kafka brokers instead of the embedded log; `mock` for a mock cluster in this process.
    pub kafka: Option<String>,
    /// Draw a progress bar.
    pub progress: bool,
}

/// Runs the whole demo: start, trouble, settling, clean stop, audit.
pub async fn run(options: Options) -> anyhow::Result<Report> {
    let home = Home::new(options.data_dir.clone(), options.databases.clone())?;
    let started = now();
    let databases = home.databases.clone();
    let brokers = Brokers::new(options.kafka.clone())?;
    let bus = Bus::new(brokers.address().map(str::to_owned))?;
    let config = Config { databases, bus: bus.clone(), orders_per_second: MANY, seed: options.seed, ..Config::new("") };
    let mut mesh = Mesh::start(config).await?;
    let bar = progress_bar(options.progress, options.orders)?;
    let run = scenario::run(&mut mesh, &options, &bar).await?;

    bar.set_message("settling: compensating open orders");
    let settling = now();
    // A timeout is not an error here: the audit lists what is unfinished.
    books::settled(&home.databases, SETTLE_TIMEOUT).await.context("cannot read the books")?;
    let settled_ms = report::millis(settling.elapsed());
    bar.set_message("stopping");
    let exits = mesh.stop().await;
    bar.finish_and_clear();

    let books = books::audit(&home.databases, &bus, &run.acknowledged).await?;
    Ok(Report::new(&options, run, exits, settled_ms, started.elapsed(), books))
}

/// The databases, and the temporary directory they may be in.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) databases: Databases,
    /// Directory for files such as logs, even if the databases are on a server.
    pub(crate) dir: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl Home {
    pub(crate) fn new(data_dir: Option<PathBuf>, server: Option<Databases>) -> anyhow::Result<Self> {
        let temporary = tempfile::tempdir().context("cannot create a temporary directory")?;
        let dir = data_dir.unwrap_or_else(|| temporary.path().to_owned());
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let databases = server.unwrap_or_else(|| Databases::Files(Files(dir.clone())));
        Ok(Self { databases, dir, _temporary: Some(temporary) })
    }

    /// Databases and a directory that exist already.
    pub(crate) fn at(databases: Databases, dir: PathBuf) -> Self {
        Self { databases, dir, _temporary: None }
    }
}

fn progress_bar(draw: bool, orders: usize) -> anyhow::Result<ProgressBar> {
    if !draw {
        return Ok(ProgressBar::hidden());
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} orders  {elapsed}  {msg}")?;
    Ok(ProgressBar::new(orders as u64).with_style(style))
}
