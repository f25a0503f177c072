//! The table and the JSON rows.

use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::measure::Measured;
use crate::memory::Memory;
use crate::subject::{Family, Kind, Subject};

/// A row of the result, as in the JSON file.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    subject: &'static str,
    kind: Kind,
    ns: f64,
    /// `ns` minus the same call without the layer, in the same run.
    added_ns: f64,
    allocs: f64,
    x2: f64,
    #[serde(skip)]
    family: Family,
}

pub(crate) fn rows(subjects: &[Subject], measured: &[Measured]) -> Vec<Row> {
    let ns_of = |name: &str| {
        let at = subjects.iter().position(|s| s.name == name);
        measured[at.expect("every baseline is a subject")].ns
    };
    subjects
        .iter()
        .zip(measured)
        .map(|(subject, m)| Row {
            subject: subject.name,
            kind: subject.kind,
            ns: rounded(m.ns),
            added_ns: rounded(m.ns - ns_of(subject.baseline)),
            allocs: rounded(m.allocs),
            x2: rounded(m.x2),
            family: subject.family,
        })
        .collect()
}

/// Formats the rows, ours with the ratio to the fastest peers of the same family.
pub(crate) fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|r| r.subject.len()).max().unwrap_or(0);
    let mut out = format!(
        "{:width$}  {:>9}  {:>9}  {:>6}  {:>5}  added cost over the fastest peer's\n",
        "", "ns/call", "added ns", "allocs", "x2"
    );
    for kind in [Kind::Ours, Kind::Peer, Kind::Floor] {
        out.push('\n');
        for row in rows.iter().filter(|row| row.kind == kind) {
            let line = format!(
                "{:width$}  {:>9.1}  {:>9.1}  {:>6.2}  {:>5.2}  {}",
                row.subject,
                row.ns,
                row.added_ns,
                row.allocs,
                row.x2,
                ratios(row, rows)
            );
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }
    out
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

/// Warns if two threads did not get two cores. They then met less often than usual, and the column
/// "x2" is not meaningful.
pub(crate) fn disturbed(rows: &[Row]) -> Option<String> {
    // These share nothing, so a value well below 2 means that other work was running.
    const ALONE: [&str; 2] = [crate::subject::BARE, "floor/instant_now"];
    let lowest = rows.iter().filter(|row| ALONE.contains(&row.subject)).map(|row| row.x2).min_by(f64::total_cmp)?;
    (lowest < 1.7).then(|| format!("warning: two threads that share nothing had {lowest} times the throughput of one: the machine is busy, x2 is not meaningful"))
}

/// Writes one row per line inside an array, so that programs can read it and `diff` can compare two
/// runs.
pub(crate) fn write_json(rows: &[Row], memory: &[Memory], path: &Path) -> anyhow::Result<()> {
    let mut lines: Vec<String> = rows.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    for row in memory {
        lines.push(serde_json::to_string(row)?);
    }
    fs::write(path, format!("[\n{}\n]\n", lines.join(",\n")))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn ratios(row: &Row, rows: &[Row]) -> String {
    if row.kind != Kind::Ours {
        return String::new();
    }
    let families = match row.family {
        Family::Breaker => vec![Family::Breaker, Family::BreakerCall],
        Family::Other => vec![],
        family => vec![family],
    };
    families
        .into_iter()
        .filter_map(|family| fastest_peer(family, rows))
        .map(|peer| format!("{:.2} of {}", row.added_ns / peer.added_ns, peer.subject))
        .collect::<Vec<_>>()
        .join(", ")
}

fn fastest_peer(family: Family, rows: &[Row]) -> Option<&Row> {
    rows.iter()
        .filter(|row| row.kind == Kind::Peer && row.family == family)
        .min_by(|a, b| a.added_ns.total_cmp(&b.added_ns))
}

/// Rounds to two decimals. A shared machine gives no higher precision.
fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
