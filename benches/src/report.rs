//! The table and the JSON rows.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::machine::Machine;
use crate::measure::Measured;
use crate::memory::Memory;
use crate::subject::{BARE, Kind, Subject};

/// A row of the result, as in the JSON file.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) subject: String,
    pub(crate) kind: Kind,
    /// What is compared: the family and the situation. Empty: nothing.
    pub(crate) group: String,
    pub(crate) ns: f64,
    /// `ns` minus the same call without the layer, in the same run.
    pub(crate) added_ns: f64,
    pub(crate) allocs: f64,
    pub(crate) x2: f64,
    pub(crate) x2_tasks: f64,
}

pub(crate) fn rows(subjects: &[Subject], measured: &[Measured]) -> Vec<Row> {
    let ns_of = |name: &str| {
        let at = subjects.iter().position(|s| s.name() == name);
        measured[at.expect("every baseline is a subject")].ns
    };
    let row = |(subject, m): (&Subject, &Measured)| Row {
        subject: subject.name(),
        kind: subject.kind,
        group: subject.group(),
        ns: rounded(m.ns),
        added_ns: rounded(m.ns - ns_of(&subject.baseline)),
        allocs: rounded(m.allocs),
        x2: rounded(m.x2),
        x2_tasks: rounded(m.x2_tasks),
    };
    subjects.iter().zip(measured).map(row).collect()
}

/// A whole result.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) rows: Vec<Row>,
    pub(crate) memory: Vec<Memory>,
}

/// Formats the comparisons that we lose, and then all rows, in groups of comparable ones.
pub(crate) fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.subject.len()).max().unwrap_or(0);
    let mut out = format_losses(rows, width);
    let _ = writeln!(
        out,
        "\n{:width$}  {:>9}  {:>9}  {:>6}  {:>5}  {:>8}  added cost over the cheapest peer's",
        "", "ns/call", "added ns", "allocs", "x2", "x2 tasks"
    );
    let mut groups: Vec<&str> = Vec::new();
    for row in rows {
        if !groups.contains(&row.group.as_str()) {
            groups.push(&row.group);
        }
    }
    for group in groups {
        let _ = writeln!(out, "\n{}", if group.is_empty() { "not compared" } else { group });
        for row in rows.iter().filter(|row| row.group == group) {
            let ratio = peers(row, rows, Versus::Layers)
                .min_by(|a, b| a.added_ns.total_cmp(&b.added_ns))
                .map(|peer| format!("{:.2} of {}", row.added_ns / peer.added_ns, peer.subject))
                .unwrap_or_default();
            let line = format!(
                "{:width$}  {:>9.1}  {:>9.1}  {:>6.2}  {:>5.2}  {:>8.2}  {ratio}",
                row.subject, row.ns, row.added_ns, row.allocs, row.x2, row.x2_tasks,
            );
            let _ = writeln!(out, "{}", line.trim_end());
        }
    }
    out
}

/// What ours is compared with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Versus {
    Layers,
    /// What wraps a closure, and so does less than a layer must.
    Wrappers,
}

/// Formats each pair of ours and a comparable peer in which ours costs more, the worst first.
fn format_losses(rows: &[Row], width: usize) -> String {
    let mut out = String::new();
    for (versus, title) in [(Versus::Layers, "a layer"), (Versus::Wrappers, "a call wrapper")] {
        let (lost, all) = losses(rows, versus);
        let _ = writeln!(out, "{} of {all} comparisons in which ours adds more than {title}", lost.len());
        for (ratio, ours, peer) in lost {
            let _ = writeln!(
                out,
                "{:width$}  {ratio:>6.2} times {} ({:.1} against {:.1} ns)",
                ours.subject, peer.subject, ours.added_ns, peer.added_ns
            );
        }
    }
    out
}

/// Returns the comparisons that we lose with their ratios, the worst first, and the number of all.
pub(crate) fn losses(rows: &[Row], versus: Versus) -> (Vec<(f64, &Row, &Row)>, usize) {
    let pairs = rows.iter().flat_map(|row| peers(row, rows, versus).map(move |peer| (row, peer)));
    let mut pairs: Vec<_> = pairs.map(|(row, peer)| (row.added_ns / peer.added_ns, row, peer)).collect();
    let all = pairs.len();
    pairs.retain(|(ratio, ..)| *ratio > 1.0);
    pairs.sort_by(|(a, ..), (b, ..)| b.total_cmp(a));
    (pairs, all)
}

/// The peers that one of our rows is compared with.
pub(crate) fn peers<'a>(row: &Row, rows: &'a [Row], versus: Versus) -> impl Iterator<Item = &'a Row> {
    let group = (row.kind == Kind::Ours && !row.group.is_empty()).then(|| row.group.clone());
    let kind = match versus {
        Versus::Layers => Kind::Peer,
        Versus::Wrappers => Kind::Wrapper,
    };
    rows.iter().filter(move |other| other.kind == kind && Some(&other.group) == group.as_ref())
}

/// Formats the bytes of one instance.
pub(crate) fn memory_table(memory: &[Memory]) -> String {
    let width = memory.iter().map(|row| row.subject.len()).max().unwrap_or(0);
    memory
        .iter()
        .map(|Memory { subject, bytes, .. }| format!("\n{subject:width$}  {bytes:>9} bytes"))
        .collect::<String>()
        + "\n"
}

/// Warns if two threads did not get two cores. They then met less often than usual, and the columns
/// "x2" are not meaningful.
pub(crate) fn disturbed(rows: &[Row]) -> Option<String> {
    // These share nothing, so a value well below 2 means that other work was running.
    const ALONE: [&str; 2] = [BARE, "floor/instant_now"];
    let alone = rows.iter().filter(|row| ALONE.contains(&row.subject.as_str()));
    let lowest = alone.map(|row| row.x2).min_by(f64::total_cmp)?;
    let warning = "times the throughput of one: the machine is busy, x2 is not meaningful";
    (lowest < 1.7).then(|| format!("warning: two threads that share nothing had {lowest} {warning}"))
}

/// Writes the machine and then one row per line inside an array, so that programs can read it and
/// `diff` can compare two runs.
pub(crate) fn write_json(report: &Report, path: &Path) -> anyhow::Result<()> {
    let mut lines = vec![serde_json::to_string(&report.machine)?];
    for row in &report.rows {
        lines.push(serde_json::to_string(row)?);
    }
    for row in &report.memory {
        lines.push(serde_json::to_string(row)?);
    }
    fs::write(path, format!("[\n{}\n]\n", lines.join(",\n")))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Rounds to two decimals. A shared machine gives no higher precision.
fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(subject: &str, kind: Kind, group: &str, added_ns: f64) -> Row {
        let (subject, group) = (subject.to_owned(), group.to_owned());
        Row { subject, kind, group, ns: added_ns, added_ns, allocs: 0.0, x2: 2.0, x2_tasks: 2.0 }
    }

    #[test]
    fn losses_are_against_peers_of_the_same_group_and_the_worst_is_first() {
        let rows = [
            row("ours/a", Kind::Ours, "a", 20.0),
            row("peer/a", Kind::Peer, "a", 10.0),
            row("slow-peer/a", Kind::Peer, "a", 30.0),
            row("wrapper/a", Kind::Wrapper, "a", 5.0),
            row("ours/b", Kind::Ours, "b", 30.0),
            row("peer/b", Kind::Peer, "b", 10.0),
            row("ours/none", Kind::Ours, "", 30.0),
            row("floor", Kind::Floor, "", 1.0),
        ];
        let losses = format_losses(&rows, 0);
        let lines: Vec<_> = losses.lines().collect();
        assert_eq!(lines.len(), 5, "{losses}");
        assert!(lines[0].starts_with("2 of 3 ") && lines[3].starts_with("1 of 1 "), "{losses}");
        assert!(lines[1].contains("ours/b") && lines[1].contains("3.00 times peer/b"), "{losses}");
        assert!(lines[2].contains("ours/a") && lines[2].contains("2.00 times peer/a"), "{losses}");
        assert!(lines[4].contains("ours/a") && lines[4].contains("4.00 times wrapper/a"), "{losses}");
    }
}
