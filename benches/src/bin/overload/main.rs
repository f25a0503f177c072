//! Simulates overload: what is answered in time, and how late, behind our adaptive limits, static
//! limits and the peers'.
//!
//! ```text
//! cargo xtask overload                         # the tables
//! cargo xtask overload --docs docs             # and writes them and the charts into the pages
//! cargo xtask overload --scenario streams      # only the scenarios with this in their name
//! ```
//!
//! Time is virtual and arrivals do not wait for answers. All arms of a scenario and seed see the
//! same distributions, and not the same calls: a limiter decides which calls there are.

mod arm;
mod by_class;
mod chart;
mod ours;
mod priorities;
mod report;
mod scenario;
mod simulation;
mod study;
mod tower;
mod tower_resilience;

use std::path::PathBuf;

use clap::Parser;

use crate::by_class::ByClass;
use crate::scenario::{BY_CLASS, SCENARIOS};
use crate::study::Study;

#[derive(Debug, Parser)]
#[command(about = "Overload, simulated: adaptive and static limits of ours and of the peers")]
struct Args {
    /// Write the tables into overload.md in this folder, and the charts beside it.
    #[arg(long, value_name = "FOLDER")]
    docs: Option<PathBuf>,
    /// Write every result to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Run only the scenarios with this in their name.
    #[arg(long, default_value = "", conflicts_with = "docs")]
    scenario: String,
    /// Number of seeds for each arm.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
}

fn main() -> anyhow::Result<()> {
    let Args { docs, json, scenario, seeds } = Args::parse();
    let chosen: Vec<_> = SCENARIOS.iter().filter(|other| other.name.contains(&scenario)).collect();
    let by_class: Vec<_> = BY_CLASS.iter().filter(|other| other.name.contains(&scenario)).collect();
    anyhow::ensure!(!chosen.is_empty() || !by_class.is_empty(), "no scenario has `{scenario}` in its name");
    let by_class = ByClass::all(&by_class, seeds);
    print!("{}", by_class::tables(&by_class));
    let studies = Study::all(&chosen, seeds);
    print!("{}", report::tables(&studies));
    if let Some(path) = json {
        report::write_json(&studies, &by_class, &path)?;
    }
    if let Some(folder) = docs {
        report::write_page(&studies, &by_class, &folder.join("overload.md"))?;
        chart::write_all(&folder)?;
    }
    Ok(())
}
