//! Simulates services that call each other: how many calls a failing backend gets for one of a
//! user, and whether the services recover from an overload that is over.
//!
//! ```text
//! cargo xtask tiers                  # the tables
//! cargo xtask tiers --docs docs      # and writes them and the charts into the page
//! ```
//!
//! Every tier is a server stack around a handler, which calls the next tier through a client stack.
//! The layers are the ones that users get; time is tokio's, paused, so that it passes only when no
//! task can run.

mod amplification;
mod backend;
mod chart;
mod load;
mod metastability;
mod ours;
mod page;
mod service;
mod tower;
mod tower_resilience;

use std::path::PathBuf;

use clap::Parser;

#[derive(Debug, Parser)]
#[command(about = "Services that call each other, simulated: retries over tiers, and recovery from overload")]
struct Args {
    /// Write the tables into tiers.md in this folder, and the charts beside it.
    #[arg(long, value_name = "FOLDER")]
    docs: Option<PathBuf>,
    /// Seed of the arrivals and the failures.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> anyhow::Result<()> {
    let Args { docs, seed } = Args::parse();
    let amplification = amplification::all(&amplification::ARMS, &amplification::FULL, seed);
    let metastability = metastability::all(&metastability::ARMS, &metastability::FULL, seed);
    let tables = [amplification::table(&amplification), metastability::table(&metastability)];
    tables.iter().for_each(|table| println!("{table}"));
    if let Some(folder) = docs {
        page::write(&folder.join("tiers.md"), &tables)?;
        amplification::draw(&amplification, &folder.join("tiers-amplification.svg"))?;
        metastability::draw(&metastability, &folder.join("tiers-metastability.svg"))?;
    }
    Ok(())
}
