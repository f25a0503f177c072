//! `mesh demo`: places orders while things go wrong, and then checks the books.
//!
//! `scenario` says what goes wrong when, `crate::customers` is the customers, [`report`] what was seen, [`books`] what is true.

pub mod books;
mod checks;
mod facts;
pub mod processes;
pub mod report;
mod scenario;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use crate::bus::Bus;
use crate::clock::now;
use crate::db::{Databases, Files};
use crate::mesh::{Config, Mesh};
use report::Report;

/// How long the last cancelled orders may take to be undone once all faults are over.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct Options {
    /// How many orders to place, spread evenly over the phases.
    pub orders: usize,
    /// The same seed gives the same orders and the same coin tosses.
    pub seed: u64,
    /// Orders per second.
    pub rate: f64,
    /// Where to leave SQLite's files; a temporary directory by default, gone at the end.
    pub data_dir: Option<PathBuf>,
    /// A database server instead of the files.
    pub databases: Option<Databases>,
    /// What carries the events.
    pub bus: Bus,
    /// Draw a progress bar.
    pub progress: bool,
}

/// Runs the whole demo: start, trouble, settling, clean stop, audit.
pub async fn run(options: Options) -> anyhow::Result<Report> {
    let home = Home::new(options.data_dir.clone(), options.databases.clone())?;
    let started = now();
    let databases = home.databases.clone();
    let config = Config { databases, bus: options.bus.clone(), seed: options.seed, ..Config::new("") };
    let mut mesh = Mesh::start(config).await?;
    let bar = progress_bar(options.progress, options.orders)?;
    let run = scenario::run(&mut mesh, &options, &bar).await?;

    bar.set_message("settling: undoing what is left");
    let settling = now();
    // A timeout is no error of the demo: the audit will say what is unfinished.
    books::settled(&home.databases, SETTLE_TIMEOUT).await.context("cannot read the books")?;
    let settled_ms = report::millis(settling.elapsed());
    bar.set_message("stopping");
    let exits = mesh.stop().await;
    bar.finish_and_clear();

    let books = books::audit(&home.databases, &run.told).await.context("cannot read the books")?;
    Ok(Report::new(&options, run, exits, settled_ms, started.elapsed(), books))
}

/// The databases, and the temporary directory that goes with them.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) databases: Databases,
    /// For files, even if the databases are elsewhere.
    pub(crate) dir: PathBuf,
    _temporary: tempfile::TempDir,
}

impl Home {
    pub(crate) fn new(data_dir: Option<PathBuf>, server: Option<Databases>) -> anyhow::Result<Self> {
        let temporary = tempfile::tempdir().context("cannot make a temporary directory")?;
        let dir = data_dir.unwrap_or_else(|| temporary.path().to_owned());
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let databases = server.unwrap_or_else(|| Databases::Files(Files(dir.clone())));
        Ok(Self { databases, dir, _temporary: temporary })
    }
}

fn progress_bar(draw: bool, orders: usize) -> anyhow::Result<ProgressBar> {
    if !draw {
        return Ok(ProgressBar::hidden());
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} orders  {elapsed}  {msg}")?;
    Ok(ProgressBar::new(orders as u64).with_style(style))
}
