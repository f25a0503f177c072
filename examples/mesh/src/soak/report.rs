//! The report of a soak: JSON for programs, tables for people.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Serialize, Serializer};

pub use super::orders::Counts;
use super::timeline::clock;
pub use super::vitals::{Readings, Vitals};
use crate::demo::books::Books;
use crate::launch::Name;

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub seed: u64,
    #[serde(serialize_with = "seconds")]
    pub took: Duration,
    pub episodes: Vec<Episode>,
    /// Troubles that are not possible here, with the reasons.
    pub left_out: Vec<(&'static str, String)>,
    /// Troubles for which there was no time.
    pub not_reached: Vec<&'static str>,
    /// All orders.
    pub counts: Counts,
    /// Memory and descriptors before the first trouble and after the last.
    pub before: Readings,
    pub after: Readings,
    /// Everything that was not as it must be, apart from the books.
    pub wrong: Vec<String>,
    /// Directory of the logs.
    pub kept: PathBuf,
    pub books: Books,
}

/// One trouble and the recovery after it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Episode {
    pub trouble: &'static str,
    /// Time since the start.
    #[serde(serialize_with = "seconds")]
    pub at: Duration,
    /// Orders that were decided between its begin and the recovery.
    pub counts: Counts,
    pub recovery: Recovery,
}

/// Times since the end of a trouble. `None` if it did not happen in time.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Recovery {
    #[serde(serialize_with = "optional_seconds")]
    pub first_success: Option<Duration>,
    #[serde(serialize_with = "optional_seconds")]
    pub all_ready: Option<Duration>,
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

fn optional_seconds<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_secs_f64()).serialize(serializer)
}

impl Report {
    pub fn is_right(&self) -> bool {
        self.wrong.is_empty() && self.books.right
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nseed {}, {:.0} s; {}\n", self.seed, self.took.as_secs_f64(), self.counts)?;
        writeln!(
            f,
            "{:<20}{:>8}{:>11}{:>11}{:>9}{:>15}{:>12}",
            "trouble", "at", "confirmed", "cancelled", "refused", "first success", "all ready"
        )?;
        for Episode { trouble, at, counts, recovery } in &self.episodes {
            let Counts { confirmed, cancelled, refused, .. } = counts;
            let (first, ready) = (after(recovery.first_success), after(recovery.all_ready));
            let at = clock(*at);
            writeln!(f, "{trouble:<20}{at:>8}{confirmed:>11}{cancelled:>11}{refused:>9}{first:>15}{ready:>12}")?;
        }
        for (trouble, reason) in &self.left_out {
            writeln!(f, "{trouble:<20}left out: {reason}")?;
        }
        for trouble in &self.not_reached {
            writeln!(f, "{trouble:<20}not reached: a longer soak has time for it")?;
        }
        writeln!(f, "\n{:<20}{:>20}{:>20}", "", "memory in MiB", "open descriptors")?;
        for name in Name::ALL.into_iter().rev().map(Name::as_str) {
            let (Some(before), Some(after)) = (self.before.get(name), self.after.get(name)) else { continue };
            let memory = format!("{} -> {}", before.memory, after.memory);
            let descriptors = format!("{} -> {}", before.descriptors, after.descriptors);
            writeln!(f, "{name:<20}{memory:>20}{descriptors:>20}")?;
        }
        write!(f, "\n{}", self.books)?;
        for wrong in &self.wrong {
            writeln!(f, "WRONG: {wrong}")?;
        }
        match self.is_right() {
            true => writeln!(f, "all is well"),
            false => writeln!(f, "logs and databases are in {}", self.kept.display()),
        }
    }
}

fn after(time: Option<Duration>) -> String {
    time.map_or_else(|| "never".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::report::tests::books;

    fn report(wrong: Vec<String>) -> Report {
        let recovery = Recovery { first_success: Some(Duration::from_millis(1_250)), all_ready: None };
        let counts = Counts { confirmed: 30, cancelled: 2, refused: 1, repeats: 9 };
        let readings = |memory| Readings::from([("order", Vitals { memory, descriptors: 40 })]);
        Report {
            seed: 7,
            took: Duration::from_secs(61),
            episodes: vec![Episode { trouble: "full-disk", at: Duration::from_secs(75), counts, recovery }],
            left_out: vec![("clock-one", "no library".to_owned())],
            not_reached: vec!["hang-ups"],
            counts,
            before: readings(20),
            after: readings(25),
            wrong,
            kept: "/tmp/soak".into(),
            books: books(),
        }
    }

    #[test]
    fn a_soak_is_printed_with_its_troubles_and_growth() {
        let printed = report(Vec::new()).to_string();
        let lines: Vec<_> = printed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for line in [
            "seed 7, 61 s; 30 confirmed, 2 cancelled, 1 refused, 9 requests repeated",
            "full-disk 1:15.0 30 2 1 1.2 s never",
            "clock-one left out: no library",
            "hang-ups not reached: a longer soak has time for it",
            "order 20 -> 25 40 -> 40",
        ] {
            assert!(lines.iter().any(|printed| printed == line), "{line}\n{printed}");
        }
    }

    #[test]
    fn whatever_is_wrong_is_printed_and_decides() {
        let wrong = report(vec!["order ended by itself".to_owned()]);
        assert!(!wrong.is_right());
        let printed = wrong.to_string();
        assert!(printed.contains("WRONG: order ended by itself\nlogs and databases are in /tmp/soak\n"), "{printed}");
    }
}
