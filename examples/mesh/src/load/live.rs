//! The live table while the load runs: redrawn on a terminal, otherwise one line per second.

use std::fmt::Write;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::drive::TICK;
use super::latency::Quantiles;
use super::outcome::Outcome;
use super::tally::{Lately, Tally};

#[derive(Debug)]
pub(super) struct Live {
    /// `None` if output is not a terminal.
    bar: Option<ProgressBar>,
    lines: u64,
}

/// Lines between two headers.
const PAGE: u64 = 20;

impl Live {
    pub(super) fn new(terminal: bool) -> anyhow::Result<Self> {
        let style = ProgressStyle::with_template("{msg}")?;
        // On stdout, like the report, since the table is part of the output.
        let draw = || ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout()).with_style(style);
        Ok(Self { bar: terminal.then(draw), lines: 0 })
    }

    /// Shows the last second, and the totals since the start.
    pub(super) fn show(&mut self, tally: &mut Tally, rate: f64, at: Duration, in_flight: usize) {
        let Lately { sent, completed, latencies } = &tally.lately;
        let last = Line { at, rate, sent: *sent, completed: *completed, in_flight, latencies: latencies.quantiles() };
        match &self.bar {
            Some(bar) => bar.set_message(table(&last, tally)),
            None => {
                if self.lines.is_multiple_of(PAGE) {
                    println!("{}", Line::header());
                }
                println!("{}", last.row(tally));
                self.lines += 1;
            }
        }
        tally.lately.sent = 0;
        tally.lately.completed = 0;
        tally.lately.latencies.clear();
    }

    /// Prints a line that is not overwritten.
    pub(super) fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => println!("{line}"),
        }
    }

    /// Shows the current activity.
    pub(super) fn say(&self, what: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(what.to_owned()),
            None => println!("{what}"),
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// One second of the load.
struct Line {
    at: Duration,
    rate: f64,
    sent: u64,
    completed: u64,
    in_flight: usize,
    latencies: Quantiles,
}

impl Line {
    fn per_second(count: u64) -> f64 {
        count as f64 / TICK.as_secs_f64()
    }

    fn header() -> String {
        let mut header = format!(
            "{:>6}{:>8}{:>8}{:>10}{:>8}{:>9}{:>9}{:>9}{:>9}{:>9}",
            "time", "due/s", "sent/s", "ended/s", "out", "p50", "p90", "p99", "p99.9", "max"
        );
        for outcome in Outcome::ALL {
            let _ = write!(header, "{:>11}", outcome.as_str());
        }
        header + "   not sent"
    }

    /// Formats rates and latencies (in milliseconds) of this second, and outcomes since the start.
    fn row(&self, tally: &Tally) -> String {
        let Quantiles { p50_ms, p90_ms, p99_ms, p999_ms, max_ms, .. } = self.latencies;
        let mut row = format!(
            "{:>4} s{:>8.0}{:>8.0}{:>10.0}{:>8}{p50_ms:>9.1}{p90_ms:>9.1}{p99_ms:>9.1}{p999_ms:>9.1}{max_ms:>9.1}",
            self.at.as_secs(),
            self.rate,
            Self::per_second(self.sent),
            Self::per_second(self.completed),
            self.in_flight,
        );
        for outcome in Outcome::ALL {
            let _ = write!(row, "{:>11}", tally.count(outcome));
        }
        row + &format!("{:>11}", tally.unsent)
    }
}

/// Formats the table for a terminal of 80 columns.
fn table(last: &Line, tally: &Tally) -> String {
    let all = tally.served().quantiles();
    let mut table = format!(
        "{:>6} s   due {:.0}/s   sent {:.0}/s   ended {:.0}/s   out {}\n\n{:<14}{:>11}{:>11}{:>11}{:>11}{:>11}\n",
        last.at.as_secs(),
        last.rate,
        Line::per_second(last.sent),
        Line::per_second(last.completed),
        last.in_flight,
        "",
        "p50",
        "p90",
        "p99",
        "p99.9",
        "max"
    );
    for (name, Quantiles { p50_ms, p90_ms, p99_ms, p999_ms, max_ms, .. }) in
        [("last second", last.latencies), ("all", all)]
    {
        let _ = write!(table, "{name:<14}");
        for ms in [p50_ms, p90_ms, p99_ms, p999_ms, max_ms] {
            let _ = write!(table, "{ms:>8.1} ms");
        }
        table.push('\n');
    }
    table.push('\n');
    for outcome in Outcome::ALL {
        let _ = writeln!(table, "{:<14}{:>11}", outcome.as_str(), tally.count(outcome));
    }
    let _ = write!(table, "{:<14}{:>11}", "not sent", tally.unsent);
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::report::tests::{confirmed, refused, run};

    fn words(line: &str) -> Vec<&str> {
        line.split_whitespace().collect()
    }

    #[test]
    fn every_column_holds_what_its_header_says() {
        let mut tally = run([(confirmed(), 100), (confirmed(), 100), (refused(503), 1), (None, 7_000)]).tally;
        tally.unsent = 9;
        let latencies =
            Quantiles { count: 1, mean_ms: 0.0, p50_ms: 1.0, p90_ms: 2.0, p99_ms: 3.0, p999_ms: 4.0, max_ms: 5.0 };
        let line = Line { at: Duration::from_secs(61), rate: 50.0, sent: 48, completed: 47, in_flight: 12, latencies };
        let header = Line::header();
        let expected = ["time", "due/s", "sent/s", "ended/s", "out", "p50", "p90", "p99", "p99.9", "max"];
        assert_eq!(words(&header)[..10], expected);
        assert!(header.ends_with("not sent"));
        let row = line.row(&tally);
        let expected = ["61", "s", "50", "48", "47", "12", "1.0", "2.0", "3.0", "4.0", "5.0"];
        assert_eq!(words(&row)[..11], expected);
        assert_eq!(words(&row)[11..], ["2", "0", "0", "1", "0", "1", "9"], "outcomes since the start, and not sent");
        assert_eq!(row.len(), header.len(), "aligned");

        let table = table(&line, &tally);
        let mut lines = table.lines();
        assert_eq!(words(lines.next().unwrap()).join(" "), "61 s due 50/s sent 48/s ended 47/s out 12");
        let of = |name: &str| words(table.lines().find(|line| line.starts_with(name)).unwrap()).join(" ");
        assert_eq!(of("last second"), "last second 1.0 ms 2.0 ms 3.0 ms 4.0 ms 5.0 ms");
        assert_eq!(
            (of("confirmed"), of("rejected"), of("timed out")),
            ("confirmed 2".into(), "rejected 1".into(), "timed out 1".into())
        );
        assert_eq!(of("not sent"), "not sent 9");
        assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    }

    #[test]
    fn each_second_begins_at_zero() {
        let mut tally = run([(confirmed(), 100)]).tally;
        let mut live = Live::new(false).unwrap();
        live.show(&mut tally, 50.0, TICK, 1);
        assert_eq!((tally.lately.sent, tally.lately.completed, tally.lately.latencies.count()), (0, 0, 0));
        assert_eq!((tally.sent, tally.completed()), (1, 1), "the totals stay");
    }
}
