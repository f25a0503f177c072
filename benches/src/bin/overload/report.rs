//! The results as tables for people and as JSON for programs.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::by_class::{self, ByClass};
use crate::study::{Outcome, Study};

const BEGIN: &str = "<!-- overload tables -->\n";
const BEGIN_BY_CLASS: &str = "<!-- priority tables -->\n";
const END: &str = "<!-- end -->\n";

/// A table: its title, and the text of a cell.
type Table = (&'static str, fn(&Outcome) -> String);

const TABLES: [Table; 3] = [
    ("Goodput, % of the best static limit", |outcome| format!("{:.1}", outcome.goodput * 100.0)),
    ("p99 of admitted calls, in unloaded p99", |outcome| format!("{:.2}", outcome.p99)),
    ("Rejected, % of all calls", |outcome| format!("{:.1}", outcome.rejected * 100.0)),
];

pub(crate) fn tables(studies: &[Study]) -> String {
    let mut out = String::new();
    for (title, cell) in TABLES {
        head(&mut out, title, studies);
        for study in studies {
            let _ = write!(out, "| {} | {} ({}) |", study.scenario, cell(&study.best), study.best_limit);
            study.arms.iter().for_each(|outcome| {
                let _ = write!(out, " {} |", cell(outcome));
            });
            out.push('\n');
        }
        out.push('\n');
    }
    let steps: Vec<_> = studies.iter().filter(|study| !study.best.recovery.is_empty()).collect();
    if !steps.is_empty() {
        head(&mut out, "Seconds to recover from each step", studies);
        for study in steps {
            let _ = write!(out, "| {} |", study.scenario);
            for outcome in [&study.best].into_iter().chain(&study.arms) {
                let _ = write!(out, " {} |", outcome.recovery.iter().map(seconds).collect::<Vec<_>>().join("; "));
            }
            out.push('\n');
        }
        out.push('\n');
    }
    out
}

fn head(out: &mut String, title: &str, studies: &[Study]) {
    let arms = studies.first().map_or(&[][..], |study| &study.arms);
    let _ = write!(out, "| {title} | best static (limit) |");
    arms.iter().for_each(|outcome| {
        let _ = write!(out, " {} |", outcome.arm);
    });
    let _ = writeln!(out, "\n|---|---|{}", "---|".repeat(arms.len()));
}

fn seconds(time: &f64) -> String {
    if time.is_finite() { format!("{time:.1}") } else { "–".to_owned() }
}

pub(crate) fn write_json(studies: &[Study], by_class: &[ByClass], path: &Path) -> anyhow::Result<()> {
    fs::write(path, serde_json::to_string_pretty(&(studies, by_class))? + "\n")?;
    Ok(())
}

/// Replaces the tables in a page.
pub(crate) fn write_page(studies: &[Study], by_class: &[ByClass], path: &Path) -> anyhow::Result<()> {
    let page = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let page = replace(&page, BEGIN, &tables(studies))?;
    let page = replace(&page, BEGIN_BY_CLASS, &by_class::tables(by_class))?;
    fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))
}

/// Replaces what is between `begin` and the next end.
fn replace(page: &str, begin: &str, tables: &str) -> anyhow::Result<String> {
    let (before, rest) = page.split_once(begin).with_context(|| format!("the page has no {begin}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("the page has no {END} after {begin}"))?;
    Ok(format!("{before}{begin}\n{}\n{END}{after}", tables.trim_end()))
}
