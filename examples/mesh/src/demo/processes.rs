//! `mesh demo --processes`: every service runs as its own process, and they are killed one after
//! another.
//!
//! `children` starts and kills them, `chaos` chooses which and when, and the customers repeat an
//! order with the same key until it is decided. [`report`] has the customers' view, and
//! [`super::books`] audits the databases.

mod chaos;
mod children;
pub mod report;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use indicatif::ProgressBar;
use tokio::task::JoinSet;

use super::books::{self, Acknowledged};
use super::report::millis;
use super::{Brokers, Home, SETTLE_TIMEOUT, progress_bar};
use crate::bus::Bus;
use crate::clock::now;
use crate::customers::{Customers, Repeat, Seen};
use crate::db::Databases;
use crate::launch::Name;
pub(crate) use children::{Children, Signal};
use report::{Kill, Report};

#[derive(Clone, Debug)]
pub struct Options {
    /// Minimum number of orders to place.
    pub orders: usize,
    /// Random seed. The same seed gives the same orders and the same kills.
    pub seed: u64,
    /// Orders per second.
    pub rate: f64,
    /// Number of processes to kill.
    pub kills: usize,
    /// Directory of the SQLite files and the logs. By default a temporary directory, removed at the
    /// end.
    pub data_dir: Option<PathBuf>,
    /// A database server instead of files: `databases` for the audit, `postgres` and `prefix` as
    /// arguments of the children.
    pub databases: Option<Databases>,
    pub postgres: Option<String>,
    pub prefix: String,
    /// Kafka brokers instead of the embedded log; `mock` for a mock cluster in this process.
    pub kafka: Option<String>,
    /// Draw a progress bar.
    pub progress: bool,
}

impl Options {
    fn server(&self) -> Option<(&str, &str)> {
        self.postgres.as_deref().map(|url| (url, self.prefix.as_str()))
    }
}

/// Runs the whole demo: start, kills, settling, clean stop, audit.
pub async fn run(options: Options) -> anyhow::Result<Report> {
    let Options { orders, seed, .. } = options;
    let home = Home::new(options.data_dir.clone(), options.databases.clone())?;
    // Created before the children and dropped after them.
    let brokers = Brokers::new(options.kafka.clone())?;
    let started = now();
    let mut children = Children::new(&home, options.server(), brokers.address(), seed)?;
    children.start_all().await?;

    let bar = progress_bar(options.progress, orders)?;
    bar.set_message("killing");
    let customers = Customers::new(&children.url(Name::Gateway), seed, children.tokens().clone());
    let (seen, kills) = trouble(&mut children, customers, &options, &bar).await?;
    let mut acknowledged = Acknowledged::default();
    acknowledged.record(&seen);

    bar.set_message("settling");
    let settling = now();
    // A timeout is not an error here: the audit lists what is unfinished.
    books::settled(&home.databases, SETTLE_TIMEOUT).await.context("cannot read the books")?;
    let settled_ms = millis(settling.elapsed());
    bar.set_message("stopping");
    let clean_stop = children.stop_all().await;
    bar.finish_and_clear();
    let bus = Bus::new(brokers.address().map(str::to_owned))?;
    let books = books::audit(&home.databases, &bus, &acknowledged).await?;
    let stores = if options.postgres.is_some() { "PostgreSQL" } else { "SQLite" };
    let bus = brokers.describe();
    let run = report::Run { seed, stores, bus, kills, settled_ms, clean_stop, took: started.elapsed() };
    Ok(Report::new(&seen, run, books))
}

/// Places orders at a fixed rate, independent of the answers, at least until the last kill.
async fn trouble(
    children: &mut Children,
    mut customers: Customers,
    options: &Options,
    bar: &ProgressBar,
) -> anyhow::Result<(Vec<Seen>, Vec<Kill>)> {
    let mut placing = JoinSet::new();
    let mut killing = std::pin::pin!(chaos::run(children, options.kills, options.seed));
    let (mut placed, mut kills) = (0, None);
    let (interval, start) = (Duration::from_secs_f64(1.0 / options.rate), now());
    while placed < options.orders || kills.is_none() {
        tokio::select! {
            deaths = &mut killing, if kills.is_none() => kills = Some(deaths?),
            () = tokio::time::sleep_until(start + interval.mul_f64(placed as f64)) => {
                let (order, bar) = (customers.order(), bar.clone());
                placing.spawn(async move {
                    let seen = order.place(Repeat::UntilDecided).await;
                    bar.inc(1);
                    seen
                });
                placed += 1;
            }
        }
    }
    Ok((placing.join_all().await, kills.unwrap_or_default()))
}
