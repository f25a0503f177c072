//! The report of `mesh demo --processes`: JSON for programs, a table for people.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

pub use super::chaos::Kill;
use crate::customers::Seen;
use crate::demo::books::Books;
use crate::demo::report::{PhaseReport, millis};
use crate::launch::Name;

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub seed: u64,
    /// Which database, and which bus.
    pub stores: &'static str,
    pub bus: &'static str,
    /// From the first service's start to the last one's end.
    pub took_ms: u64,
    /// From the last answer until no order, saga or event is in progress.
    pub settled_ms: u64,
    pub customers: PhaseReport,
    pub kills: Vec<Kill>,
    /// Whether every service exited with success after SIGTERM.
    pub clean_stop: bool,
    pub books: Books,
}

/// The parts of the report besides answers and audit.
pub(super) struct Run {
    pub(super) seed: u64,
    pub(super) stores: &'static str,
    pub(super) bus: &'static str,
    pub(super) kills: Vec<Kill>,
    pub(super) settled_ms: u64,
    pub(super) clean_stop: bool,
    pub(super) took: Duration,
}

impl Report {
    pub(super) fn new(seen: &[Seen], run: Run, books: Books) -> Self {
        let Run { seed, stores, bus, kills, settled_ms, clean_stop, took } = run;
        let customers = PhaseReport::new("kills", seen, 0, 0, Vec::new());
        Self { seed, stores, bus, took_ms: millis(took), settled_ms, customers, kills, clean_stop, books }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, stores, bus, customers, kills, books, .. } = self;
        let took = self.took_ms as f64 / 1000.0;
        writeln!(f, "{} orders, seed {seed}, {took:.1} s; {stores}, {bus}\n", customers.orders)?;
        writeln!(f, "{:<14}{:>6}{:>16}{:>16}", "killed", "times", "ready again in", "at worst")?;
        for name in Name::ALL.into_iter().rev() {
            let recoveries: Vec<_> =
                kills.iter().filter(|kill| kill.service == name.as_str()).map(|kill| kill.recovery_ms).collect();
            let (count, worst) = (recoveries.len() as u64, recoveries.iter().max().copied().unwrap_or(0));
            let mean = recoveries.iter().sum::<u64>() / count.max(1);
            writeln!(f, "{:<14}{count:>6}{mean:>13} ms{worst:>13} ms", name.as_str())?;
        }
        writeln!(f, "{:<14}{:>6}\n", "together", kills.len())?;
        let statuses: &BTreeMap<u16, usize> = &customers.statuses;
        let statuses: Vec<_> = statuses.iter().map(|(status, count)| format!("{count} x {status}")).collect();
        writeln!(f, "answers: {}; {} lost", statuses.join(", "), customers.lost)?;
        writeln!(f, "repeated with the same key: {} requests", customers.repeats)?;
        writeln!(f, "an answer took {:.1} ms (p50), {:.1} ms (p99)", customers.p50_ms, customers.p99_ms)?;
        let undone = books.sagas.get("compensated").copied().unwrap_or(0);
        writeln!(f, "sagas compensated: {undone}")?;
        writeln!(f, "all orders and events settled after {:.1} s more", self.settled_ms as f64 / 1000.0)?;
        writeln!(f, "all services stopped cleanly: {}\n", if self.clean_stop { "yes" } else { "NO" })?;
        write!(f, "{books}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::report::tests::{answers, books};

    #[test]
    fn kills_are_summed_up_by_service() {
        let kill = |service, recovery_ms| Kill { service, at_ms: 1, down_ms: 2, recovery_ms };
        let kills = vec![kill("order", 100), kill("payment", 70), kill("order", 400)];
        let took = Duration::from_millis(12_340);
        let run = Run { seed: 7, stores: "SQLite", bus: "Kafka", kills, settled_ms: 2_500, clean_stop: false, took };
        let report = Report::new(&answers(), run, books());
        let printed = report.to_string();
        let words = |name: &str| {
            let line = printed.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{printed}"));
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(words("order"), ["order", "2", "250", "ms", "400", "ms"]);
        assert_eq!(words("payment"), ["payment", "1", "70", "ms", "70", "ms"]);
        assert_eq!(words("legacy"), ["legacy", "0", "0", "ms", "0", "ms"]);
        assert_eq!(words("together"), ["together", "3"]);
        for line in [
            "8 orders, seed 7, 12.3 s; SQLite, Kafka",
            "answers: 3 x 201, 1 x 202, 1 x 402, 2 x 503; 1 lost",
            "repeated with the same key: 15 requests",
            "sagas compensated: 2",
            "all orders and events settled after 2.5 s more",
            "all services stopped cleanly: NO",
        ] {
            assert!(printed.lines().any(|printed| printed == line), "{line}\n{printed}");
        }
    }
}
