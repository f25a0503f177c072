//! Cost per call of Buttress's layers and of their peers, measured in one run.
//!
//! For every subject: nanoseconds per call over a service that is always ready, the part that the
//! layer added, heap allocations per call, and the throughput of two threads sharing one instance
//! relative to one thread ("x2": 2.0 is perfect scaling; below 1.0 the second thread reduces
//! throughput).
//!
//! ```text
//! cargo xtask bench                    # the table
//! cargo xtask bench --json out.json    # and rows {"subject","kind","ns","added_ns","allocs","x2"}, {"subject","kind","bytes"}
//! ```

mod calls;
mod floors;
mod http;
mod measure;
mod memory;
mod ours;
mod report;
mod seatbelt;
mod subject;
mod tower;
mod tower_resilience;

use std::path::PathBuf;

use clap::Parser;

use crate::measure::Plan;
use crate::subject::{Subject, within_runtime};

#[global_allocator]
static ALLOCATOR: alloc_tracker::Allocator<std::alloc::System> = alloc_tracker::Allocator::system();

#[derive(Debug, Parser)]
#[command(about = "Cost per call of our layers and their peers")]
struct Args {
    /// Write the rows to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rough numbers in a few seconds.
    #[arg(long)]
    quick: bool,
    /// Run only subjects whose name contains one of these, and their baselines.
    filter: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if cfg!(debug_assertions) {
        eprintln!("warning: a debug build; run with --release for numbers that mean something");
    }
    let mut subjects = within_runtime(subjects);
    if !args.filter.is_empty() {
        let chosen = |subject: &Subject| args.filter.iter().any(|part| subject.name.contains(part));
        let baselines: Vec<_> = subjects.iter().filter(|s| chosen(s)).map(|s| s.baseline).collect();
        subjects.retain(|subject| chosen(subject) || baselines.contains(&subject.name));
    }
    let plan = if args.quick { Plan::quick() } else { Plan::full() };
    // Memory first, because the measurements below allocate and free.
    let mut memory = memory::rows();
    memory.retain(|row| args.filter.is_empty() || args.filter.iter().any(|part| row.subject.contains(part)));
    let measured = within_runtime(|| plan.run(&subjects));
    let rows = report::rows(&subjects, &measured);
    print!("{}{}", report::table(&rows), report::memory_table(&memory));
    if let Some(warning) = report::disturbed(&rows) {
        eprintln!("\n{warning}");
    }
    if let Some(path) = args.json {
        report::write_json(&rows, &memory, &path)?;
    }
    Ok(())
}

fn subjects() -> Vec<Subject> {
    [
        ours::subjects(),
        http::subjects(),
        tower::subjects(),
        tower_resilience::subjects(),
        seatbelt::subjects(),
        calls::subjects(),
        floors::subjects(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Workers check their results, so this test shows that each subject is on the path that its
    /// name says.
    #[test]
    fn every_subject_does_what_its_name_says() {
        within_runtime(|| {
            for subject in subjects() {
                subject.worker()(3);
            }
        });
    }
}
