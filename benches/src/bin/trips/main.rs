//! Simulates when circuit breakers trip: how many calls ours and its peers reject while a backend
//! fails at random, and how fast they detect an outage and its end.
//!
//! ```text
//! cargo xtask trips                   # the tables
//! cargo xtask trips --json out.json   # and the result of every run
//! ```
//!
//! Time is virtual; calls are evenly spaced and take no time. Whether the backend would fail a call
//! is drawn from the seed before admission, so that all breakers see the same backend.

mod breaker;
mod ours;
mod report;
mod seatbelt;
mod simulation;
mod subjects;
mod tower_resilience;

use std::path::PathBuf;

use clap::Parser;

use crate::simulation::{Errors, Outage};

#[derive(Debug, Parser)]
#[command(about = "When circuit breakers trip: random errors and outages, simulated for ours and its peers")]
struct Args {
    /// Write the result of every run to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Number of seeds for each setting.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
}

fn main() -> anyhow::Result<()> {
    let Args { json, seeds } = Args::parse();
    let (errors, outages) = (Errors::all(seeds), Outage::all(seeds));
    print!("{}", report::tables(&errors, &outages));
    if let Some(path) = json {
        report::write_json(&errors, &outages, &path)?;
    }
    Ok(())
}
