//! What a result depends on besides the code: the machine, and how often it was measured.

use std::fmt;
use std::fs;
use std::thread;

use serde::Serialize;

#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
    /// The average number of threads that wanted to run in the last minute, before the run.
    load: String,
    /// Whole measurements, of which the medians are taken.
    runs: usize,
    /// Batches per run, of which the median is taken.
    batches: usize,
}

impl Machine {
    /// Reads the facts from `/proc`, where there is one.
    pub(crate) fn read(runs: usize, batches: usize) -> Self {
        let first = |path: &str, pick: fn(&str) -> Option<&str>| {
            let text = fs::read_to_string(path).unwrap_or_default();
            pick(&text).map_or_else(|| "unknown".to_owned(), |fact| fact.trim().to_owned())
        };
        Self {
            cpu: first("/proc/cpuinfo", |text| text.lines().find(|l| l.starts_with("model name"))?.split(':').nth(1)),
            cores: thread::available_parallelism().map_or(1, usize::from),
            kernel: first("/proc/sys/kernel/osrelease", |text| text.lines().next()),
            load: first("/proc/loadavg", |text| text.split(' ').next()),
            runs,
            batches,
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cores, kernel, load, runs, batches } = self;
        writeln!(f, "{cpu}, {cores} cores, kernel {kernel}, load {load} before the run")?;
        writeln!(f, "medians: of {batches} batches per row, in turns; runs of all rows: {runs}")
    }
}
