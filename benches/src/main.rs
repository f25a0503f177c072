//! Cost per call of Buttress's layers and of their peers, measured in one run.
//!
//! A row is a layer in a situation: called through one service or through a clone for each call,
//! with an inner service that is pending once, with failing calls, or rejecting. It has the
//! nanoseconds per call, the part that the layer added to a call of the bare service, the heap
//! allocations per call, and the throughput of two cores relative to one (2.0 is perfect scaling;
//! below 1.0 the second core reduces throughput):
//!
//! * "x2": two threads that do nothing but call one instance. They meet at every call, and a thread
//!   that finds a lock taken must wait.
//! * "x2 tasks": 64 tasks on a runtime with two workers. A task that finds a lock taken leaves its
//!   worker to another one.
//!
//! Ours and peers' rows are compared if their layers do the same by the same rule in the same
//! situation. The table begins with the comparisons that we lose.
//!
//! ```text
//! cargo xtask bench                    # the table, in some minutes
//! cargo xtask bench --runs 3           # medians of three measurements
//! cargo xtask bench --json out.json    # and the facts about the machine, and the rows:
//!     # {"subject","kind","group","ns","added_ns","allocs","x2","x2_tasks"},
//!     # {"subject","kind","bytes"}
//! cargo xtask bench --page ARCHITECTURE.md --page docs/cost.md    # and what these pages say
//! ```

mod caller;
mod calls;
mod family;
mod floors;
mod http;
mod inner;
mod machine;
mod measure;
mod memory;
mod ours;
mod page;
mod report;
mod seatbelt;
mod situation;
mod subject;
mod tasks;
mod tower;
mod tower_resilience;

use std::path::PathBuf;

use clap::Parser;

use crate::caller::within_runtime;
use crate::machine::Machine;
use crate::measure::Plan;
use crate::report::Report;
use crate::subject::{Rows, Subject};

#[global_allocator]
static ALLOCATOR: alloc_tracker::Allocator<std::alloc::System> = alloc_tracker::Allocator::system();

#[derive(Debug, Parser)]
#[command(about = "Cost per call of our layers and their peers")]
struct Args {
    /// Write the rows to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the results into this page, between its marks. May be given more than once.
    #[arg(long, value_name = "FILE")]
    page: Vec<PathBuf>,
    /// Rough numbers in a few seconds.
    #[arg(long)]
    quick: bool,
    /// Measure everything this many times and take the medians.
    #[arg(long, default_value_t = 1, value_name = "N")]
    runs: usize,
    /// Run only subjects whose name contains one of these, and their baselines.
    filter: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if cfg!(debug_assertions) {
        eprintln!("warning: a debug build; run with --release for numbers that mean something");
    }
    let chosen = |name: &str| args.filter.is_empty() || args.filter.iter().any(|part| name.contains(part));
    let chosen_subjects = || {
        let mut subjects = subjects();
        let wanted = subjects.iter().filter(|s| chosen(&s.name()));
        let baselines: Vec<_> = wanted.map(|subject| subject.baseline.clone()).collect();
        subjects.retain(|subject| chosen(&subject.name()) || baselines.contains(&subject.name()));
        subjects
    };
    let plan = if args.quick { Plan::quick() } else { Plan::full() };
    let machine = Machine::read(args.runs, plan.batches());
    // Memory first, because the measurements below allocate and free.
    let mut memory = within_runtime(memory::rows);
    memory.retain(|row| chosen(row.subject));
    let (subjects, measured) = within_runtime(|| plan.repeat(args.runs, chosen_subjects));
    let report = Report { machine, rows: report::rows(&subjects, &measured), memory };
    print!("{}\n{}{}", report.machine, report::table(&report.rows), report::memory_table(&report.memory));
    if let Some(warning) = report::disturbed(&report.rows) {
        eprintln!("\n{warning}");
    }
    if let Some(path) = args.json {
        report::write_json(&report, &path)?;
    }
    args.page.iter().try_for_each(|path| page::write(&report, path))
}

fn subjects() -> Vec<Subject> {
    let mut rows = Rows::default();
    ours::add(&mut rows);
    tower::add(&mut rows);
    tower_resilience::add(&mut rows);
    seatbelt::add(&mut rows);
    calls::add(&mut rows);
    http::add(&mut rows);
    floors::add(&mut rows);
    rows.into_inner()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::subject::Kind;

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

    #[test]
    fn every_subject_does_it_in_a_task_too() {
        within_runtime(|| {
            for subject in subjects() {
                let stop = Arc::new(AtomicBool::new(false));
                let mut task = subject.task(Arc::clone(&stop));
                let mut cx = Context::from_waker(Waker::noop());
                assert!(task.as_mut().poll(&mut cx).is_pending(), "{subject:?} yields");
                stop.store(true, Ordering::Relaxed);
                let calls = (0..100).find_map(|_| match task.as_mut().poll(&mut cx) {
                    Poll::Ready(calls) => Some(calls),
                    Poll::Pending => None,
                });
                assert!(calls.is_some_and(|calls| calls > 0), "{subject:?} made {calls:?} calls");
            }
        });
    }

    /// A family with a typing error, or without ours or without a peer, would compare nothing.
    #[test]
    fn every_family_has_ours_and_a_peer() {
        let subjects = within_runtime(subjects);
        let kinds = |family: &str, kind| subjects.iter().any(|s| s.family == family && s.kind == kind);
        for subject in subjects.iter().filter(|subject| !subject.family.is_empty()) {
            assert!(kinds(subject.family, Kind::Ours) && kinds(subject.family, Kind::Peer), "{}", subject.family);
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = within_runtime(subjects).iter().map(Subject::name).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
