//! The results in pages of the documentation, so that no figure there is typed by hand.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};

use crate::report::{Report, Row, Versus, losses, peers};
use crate::subject::Kind;

type Part = (&'static str, fn(&Report) -> String);

/// The parts of a result. Each replaces what is between `<!-- bench NAME -->` and `<!-- end -->`.
const PARTS: [Part; 5] = [
    ("machine", |report| format!("{}\n", report.machine)),
    ("losses", |report| lost(&report.rows)),
    ("comparisons", |report| comparisons(&report.rows)),
    ("rows", |report| all(&report.rows)),
    ("memory", memory),
];

const END: &str = "<!-- end -->\n";

/// Replaces the parts of a result that a page has.
pub(crate) fn write(report: &Report, path: &Path) -> anyhow::Result<()> {
    let mut page = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut replaced = 0;
    for (name, make) in PARTS {
        let begin = format!("<!-- bench {name} -->\n");
        let Some((before, rest)) = page.split_once(&begin) else { continue };
        let (_, after) = rest.split_once(END).with_context(|| format!("{begin} has no {END} in {}", path.display()))?;
        page = format!("{before}{begin}\n{}\n{END}{after}", make(report).trim_end());
        replaced += 1;
    }
    ensure!(replaced > 0, "{} has no mark for a result", path.display());
    fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))
}

/// The comparisons in which ours costs more, those with layers first.
fn lost(rows: &[Row]) -> String {
    let mut out = String::new();
    for (versus, title) in [(Versus::Layers, "a layer"), (Versus::Wrappers, "a call wrapper")] {
        let (lost, all) = losses(rows, versus);
        let _ = write!(out, "Against {title}, ours costs more in {} of {all} comparisons", lost.len());
        if lost.is_empty() {
            out.push_str(".\n\n");
            continue;
        }
        out.push_str(":\n\n| ours | added ns | peer | added ns | ratio |\n|---|---|---|---|---|\n");
        for (ratio, ours, peer) in lost {
            let (subject, added, other) = (&ours.subject, ours.added_ns, peer.added_ns);
            let _ = writeln!(out, "| {subject} | {added:.1} | {} | {other:.1} | {ratio:.2} |", peer.subject);
        }
        out.push('\n');
    }
    out
}

/// Each of our rows beside the cheapest layer that it is compared with. Rows with many shards are
/// among [`all`].
fn comparisons(rows: &[Row]) -> String {
    let mut out = String::from(
        "| | added ns | allocations | x2 | x2 tasks | cheapest peer | added ns | allocations | x2 | x2 tasks | ratio |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for ours in rows.iter().filter(|row| row.kind == Kind::Ours && !row.subject.contains(" shards")) {
        let cheapest = peers(ours, rows, Versus::Layers).min_by(|a, b| a.added_ns.total_cmp(&b.added_ns));
        if let Some(peer) = cheapest {
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {:.2} |",
                ours.subject,
                numbers(ours),
                peer.subject,
                numbers(peer),
                ours.added_ns / peer.added_ns
            );
        }
    }
    out
}

fn all(rows: &[Row]) -> String {
    let mut out = String::from("| | ns | added ns | allocations | x2 | x2 tasks |\n|---|---|---|---|---|---|\n");
    for row in rows {
        let _ = writeln!(out, "| {} | {:.1} | {} |", row.subject, row.ns, numbers(row));
    }
    out
}

fn numbers(row: &Row) -> String {
    format!("{:.1} | {} | {:.2} | {:.2}", row.added_ns, row.allocs, row.x2, row.x2_tasks)
}

fn memory(report: &Report) -> String {
    let mut out = String::from("| one instance | bytes |\n|---|---|\n");
    for row in &report.memory {
        let _ = writeln!(out, "| {} | {} |", row.subject, row.bytes);
    }
    out
}
