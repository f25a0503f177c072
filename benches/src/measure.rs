//! The measurement.
//!
//! On a shared machine a disturbance slows down whatever is being measured at that time. So
//! subjects take turns: one short batch each, round after round, and each subject's number is the
//! median over its rounds. A disturbance affects a few batches of all subjects and no median.

#![expect(clippy::disallowed_methods, reason = "measures real time; no layer is involved")]

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::caller::{Worker, within_runtime};
use crate::subject::Subject;
use crate::tasks::Runtimes;
use alloc_tracker::Session;

/// Durations and counts. [`Plan::full`] takes about two minutes for all subjects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Batches per subject.
    samples: usize,
    /// Duration of a batch: long against a clock read, short against a scheduler's time slice.
    batch: Duration,
    /// Rounds with one thread, then two.
    rounds: usize,
    /// Duration of one such measurement.
    window: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// Nanoseconds per call.
    pub(crate) ns: f64,
    /// Heap allocations per call.
    pub(crate) allocs: f64,
    /// Calls per second of two threads sharing the subject, over those of one.
    pub(crate) x2: f64,
    /// Calls per second of 64 tasks on two workers of a runtime, over those on one worker.
    pub(crate) x2_tasks: f64,
}

// === impl Plan ===

impl Plan {
    pub(crate) fn full() -> Self {
        Self { samples: 31, batch: Duration::from_millis(2), rounds: 11, window: Duration::from_millis(12) }
    }

    /// Correct code paths, rough numbers.
    pub(crate) fn quick() -> Self {
        Self { samples: 7, batch: Duration::from_micros(500), rounds: 3, window: Duration::from_millis(3) }
    }

    /// Measures all subjects in turns, `runs` times, and takes the medians of the runs. `make`
    /// makes the subjects anew for each run: where a policy lies in memory decides which cache
    /// lines it shares, and a run keeps that.
    pub(crate) fn repeat(&self, runs: usize, make: impl Fn() -> Vec<Subject>) -> (Vec<Subject>, Vec<Measured>) {
        let mut results: Vec<Vec<Measured>> = Vec::new();
        let mut subjects = make();
        results.push(self.run(&subjects));
        while results.len() < runs {
            subjects = make();
            results.push(self.run(&subjects));
        }
        let measured = (0..subjects.len()).map(|at| Measured::median(results.iter().map(|run| run[at]))).collect();
        (subjects, measured)
    }

    pub(crate) fn batches(&self) -> usize {
        self.samples
    }

    /// One run.
    fn run(&self, subjects: &[Subject]) -> Vec<Measured> {
        let mut runs: Vec<Run> = subjects.iter().map(|s| Run::new(s, self)).collect();
        for _ in 0..self.samples {
            for run in &mut runs {
                let ns = time(&mut run.first, run.calls).as_secs_f64() * 1e9;
                run.ns.push(ns / run.calls as f64);
            }
        }
        for _ in 0..self.rounds {
            for run in &mut runs {
                let alone = rate(&mut run.first, run.chunk, self.window);
                let both = rate_of_two(&mut run.first, &mut run.second, run.chunk, self.window);
                run.x2.push(both / alone);
            }
        }
        let tasks = Runtimes::new();
        for _ in 0..self.rounds {
            for (run, subject) in runs.iter_mut().zip(subjects) {
                run.x2_tasks.push(tasks.speedup(subject, self.window));
            }
        }
        runs.into_iter().map(Run::measured).collect()
    }
}

impl Measured {
    fn median(runs: impl Iterator<Item = Self> + Clone) -> Self {
        let of = |field: fn(Self) -> f64| median(runs.clone().map(field).collect());
        Self { ns: of(|m| m.ns), allocs: of(|m| m.allocs), x2: of(|m| m.x2), x2_tasks: of(|m| m.x2_tasks) }
    }
}

// === one subject while it is measured ===

struct Run {
    first: Worker,
    second: Worker,
    /// Calls per batch.
    calls: u64,
    /// Calls between two clock reads while throughput is measured.
    chunk: u64,
    allocs: f64,
    ns: Vec<f64>,
    x2: Vec<f64>,
    x2_tasks: Vec<f64>,
}

impl Run {
    fn new(subject: &Subject, plan: &Plan) -> Self {
        let mut first = subject.worker();
        // Warm up (lazy thread-locals, branch history), then find how many calls fill a batch.
        first(1_000);
        let mut calls = 1_000;
        let mut took = time(&mut first, calls);
        while took < plan.batch / 4 {
            calls *= 4;
            took = time(&mut first, calls);
        }
        let per_call = took.as_secs_f64() / calls as f64;
        Self {
            calls: (plan.batch.as_secs_f64() / per_call).ceil() as u64,
            chunk: (20e-6 / per_call).ceil() as u64,
            allocs: allocations(&mut first),
            second: subject.worker(),
            first,
            ns: Vec::new(),
            x2: Vec::new(),
            x2_tasks: Vec::new(),
        }
    }

    fn measured(self) -> Measured {
        Measured { ns: median(self.ns), allocs: self.allocs, x2: median(self.x2), x2_tasks: median(self.x2_tasks) }
    }
}

fn time(worker: &mut Worker, calls: u64) -> Duration {
    let start = Instant::now();
    worker(calls);
    start.elapsed()
}

/// Calls per second of one thread.
fn rate(worker: &mut Worker, chunk: u64, window: Duration) -> f64 {
    let start = Instant::now();
    let mut calls = 0;
    while start.elapsed() < window {
        worker(chunk);
        calls += chunk;
    }
    calls as f64 / start.elapsed().as_secs_f64()
}

/// Calls per second of two threads together. Each is counted only while both run.
///
/// Both are new threads, which use different shards, as the workers of a server do that start one
/// after the other. This thread and a new one would use the same shard in one of so many
/// measurements as there are shards.
fn rate_of_two(a: &mut Worker, b: &mut Worker, chunk: u64, window: Duration) -> f64 {
    let start = Barrier::new(2);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let one = scope.spawn(|| {
            within_runtime(|| {
                a(1_000);
                start.wait();
                let rate = rate(a, chunk, window);
                stop.store(true, Ordering::Relaxed);
                rate
            })
        });
        let other = scope.spawn(|| {
            within_runtime(|| {
                b(1_000);
                start.wait();
                let began = Instant::now();
                let mut calls = 0;
                while !stop.load(Ordering::Relaxed) {
                    b(chunk);
                    calls += chunk;
                }
                calls as f64 / began.elapsed().as_secs_f64()
            })
        });
        one.join().expect("the first worker panicked") + other.join().expect("the second worker panicked")
    })
}

fn allocations(worker: &mut Worker) -> f64 {
    const CALLS: u64 = 1_000;
    let session = Session::new().no_stdout().no_file();
    let operation = session.operation("calls");
    {
        let _span = operation.measure_thread().iterations(CALLS);
        worker(CALLS);
    }
    let report = session.to_report();
    let total: u64 = report.operations().map(|(_, o)| o.total_allocations_count()).sum();
    total as f64 / CALLS as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty(), "nothing was measured");
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_and_even_counts() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn boxes_are_counted() {
        let mut worker: Worker = Box::new(|n| {
            for i in 0..n {
                std::hint::black_box(Box::new(i));
                std::hint::black_box(Box::new(i));
            }
        });
        assert_eq!(allocations(&mut worker), 2.0);
    }
}
