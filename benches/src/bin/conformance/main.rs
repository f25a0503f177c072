//! Runs the traces of `tests/conformance` against our circuit breaker, our rate limit and their
//! peers, and prints the results.
//!
//! ```text
//! cargo run --release -p buttress-bench --bin conformance          # the tables
//! .. --bin conformance -- --page docs/conformance.md               # also in this page
//! .. --bin conformance -- --json out.json                          # every result with its reason
//! .. --bin conformance -- --rate-limits                            # rate limits only
//! ```
//!
//! Ours runs three times: the core alone on virtual time, and behind the layer, around a plain
//! service and around an HTTP client. Layers, ours and the peers', run on the real clock. All runs
//! are concurrent, so the duration is that of the longest trace.

#[path = "../../../../tests/conformance/future.rs"]
mod future;
#[path = "../../../../tests/conformance/layer.rs"]
mod layer;
#[path = "../../../../tests/conformance/ours.rs"]
mod ours;
#[path = "../../../../tests/conformance/plain.rs"]
mod plain;
#[path = "../../../../tests/conformance/rate_limit.rs"]
mod rate_limit;
#[path = "../../../../tests/conformance/run.rs"]
mod run;
#[path = "../../../../tests/conformance/trace.rs"]
#[allow(dead_code, reason = "each runner uses a part")]
mod trace;

mod breaker;
mod failsafe;
mod rates;
mod recloser;
mod report;
mod schedule;
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
    /// Replace the results in this page.
    #[arg(long, value_name = "FILE", conflicts_with = "filter")]
    page: Option<PathBuf>,
    /// Multiply all times on the real clock by this factor, for a busy machine.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    stretch: u32,
    /// Run the traces of rate limits only.
    #[arg(long, conflicts_with_all = ["filter", "json"])]
    rate_limits: bool,
    /// Run only traces of circuit breakers whose name contains one of these.
    filter: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/conformance");
    if args.filter.is_empty() {
        let text = rates::results(&directory.join("rate_limit"))?;
        print!("{text}");
        if let Some(path) = &args.page {
            report::write_rates(&text, path)?;
        }
    }
    if args.rate_limits {
        return Ok(());
    }
    let mut traces: Vec<_> = Trace::read_all(&directory)?.into_values().collect();
    if !args.filter.is_empty() {
        traces.retain(|trace| args.filter.iter().any(|part| trace.name.contains(part)));
    }
    let results = schedule::all(&traces, &IMPLEMENTATIONS, args.stretch);
    let text = report::results(&traces, &IMPLEMENTATIONS, &results, args.stretch);
    print!("{text}");
    if let Some(path) = args.page {
        report::write_page(&text, &path)?;
    }
    if let Some(path) = args.json {
        report::write_json(&traces, &IMPLEMENTATIONS, &results, &path)?;
    }
    Ok(())
}

const IMPLEMENTATIONS: [Implementation; 7] = [
    Implementation { name: "buttress-core", has: ours::has, virtual_clock: true, make: ours::make },
    Implementation { name: "buttress", has: plain::has, virtual_clock: false, make: plain::make },
    Implementation { name: "buttress-http", has: ours::has, virtual_clock: false, make: layer::make },
    tower_resilience::IMPLEMENTATION,
    recloser::IMPLEMENTATION,
    failsafe::IMPLEMENTATION,
    seatbelt::IMPLEMENTATION,
];
