//! Runs the traces of `tests/conformance` against our circuit breaker and its peers, and prints the
//! results.
//!
//! ```text
//! cargo run --release -p buttress-bench --bin conformance                    # the table
//! cargo run --release -p buttress-bench --bin conformance -- --json out.json # and every result with its reason
//! ```
//!
//! Ours runs twice: behind the layer and an HTTP client, as users have it, and the core alone on
//! virtual time. Layers, ours and the peers', run on the real clock. All runs are concurrent, so
//! the duration is that of the longest trace.

#[path = "../../../../tests/conformance/trace.rs"]
#[allow(dead_code, reason = "the other runner uses the rest")]
mod trace;

mod breaker;
mod failsafe;
mod future;
mod layer;
mod ours;
mod recloser;
mod report;
mod run;
mod seatbelt;
mod tower_resilience;

use std::path::{Path, PathBuf};

use clap::Parser;

use crate::breaker::Implementation;
use crate::trace::Trace;

#[derive(Debug, Parser)]
#[command(about = "What circuit breakers do: the traces of tests/conformance, run against ours and its peers")]
struct Args {
    /// Write every result to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Multiply all times on the real clock by this factor, for a busy machine.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    stretch: u32,
    /// Run only traces whose name contains one of these.
    filter: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/conformance");
    let mut traces: Vec<_> = Trace::read_all(&directory)?.into_values().collect();
    if !args.filter.is_empty() {
        traces.retain(|trace| args.filter.iter().any(|part| trace.name.contains(part)));
    }
    let results = run::all(&traces, &IMPLEMENTATIONS, args.stretch);
    print!("{}", report::table(&traces, &IMPLEMENTATIONS, &results));
    if let Some(path) = args.json {
        report::write_json(&traces, &IMPLEMENTATIONS, &results, &path)?;
    }
    Ok(())
}

const IMPLEMENTATIONS: [Implementation; 6] = [
    ours::IMPLEMENTATION,
    layer::IMPLEMENTATION,
    tower_resilience::IMPLEMENTATION,
    recloser::IMPLEMENTATION,
    failsafe::IMPLEMENTATION,
    seatbelt::IMPLEMENTATION,
];
