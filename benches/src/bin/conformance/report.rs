//! The results as a table for people and as JSON for programs.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::json;

use crate::breaker::Implementation;
use crate::run::{Deviation, Verdict};
use crate::trace::Trace;

/// The versions of the peers that this was compiled with.
const LOCK: &str = include_str!("../../../../Cargo.lock");

pub(crate) fn table(traces: &[Trace], implementations: &[Implementation], results: &[Vec<Verdict>]) -> String {
    let mut out = String::from("| trace |");
    for implementation in implementations {
        let _ = write!(out, " {} {} |", implementation.name, version(implementation.name));
    }
    let _ = writeln!(out, "\n|---|{}", "---|".repeat(implementations.len()));
    for (trace, verdicts) in traces.iter().zip(results) {
        let _ = write!(out, "| {} |", trace.name);
        for verdict in verdicts {
            let _ = match verdict {
                Verdict::Pass => write!(out, " pass |"),
                Verdict::Fail(deviation) => write!(out, " **FAIL at step {}** |", deviation.step),
                Verdict::NotApplicable(_) => write!(out, " n/a |"),
                Verdict::Late => write!(out, " too late |"),
            };
        }
        out.push('\n');
    }
    let count = |column: usize, is: fn(&Verdict) -> bool| results.iter().filter(|row| is(&row[column])).count();
    out.push_str("| **passed of applicable** |");
    for column in 0..implementations.len() {
        let passed = count(column, |verdict| matches!(verdict, Verdict::Pass));
        let applicable = count(column, |verdict| !matches!(verdict, Verdict::NotApplicable(_)));
        let _ = write!(out, " **{passed} of {applicable}** |");
    }
    out.push('\n');
    let mut first = true;
    for (column, implementation) in implementations.iter().enumerate() {
        for (trace, verdicts) in traces.iter().zip(results) {
            if let Verdict::Fail(Deviation { step, at_ms, what }) = &verdicts[column] {
                out.push_str(if first { "\n" } else { "" });
                first = false;
                let _ = writeln!(out, "- {}, {}: step {step}, at {at_ms} ms: {what}", implementation.name, trace.name);
            }
        }
    }
    out
}

pub(crate) fn write_json(
    traces: &[Trace],
    implementations: &[Implementation],
    results: &[Vec<Verdict>],
    path: &Path,
) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for (trace, verdicts) in traces.iter().zip(results) {
        for (implementation, verdict) in implementations.iter().zip(verdicts) {
            let mut row = json!({
                "trace": trace.name,
                "implementation": implementation.name,
                "version": version(implementation.name),
                "result": match verdict {
                    Verdict::Pass => "pass",
                    Verdict::Fail(_) => "fail",
                    Verdict::NotApplicable(_) => "n/a",
                    Verdict::Late => "too late",
                },
            });
            match verdict {
                Verdict::Fail(Deviation { step, at_ms, what }) => {
                    row["step"] = json!(step);
                    row["at_ms"] = json!(at_ms);
                    row["deviation"] = json!(what);
                }
                Verdict::NotApplicable(lacks) => {
                    row["lacks"] = lacks.iter().map(ToString::to_string).collect();
                }
                Verdict::Pass | Verdict::Late => {}
            }
            rows.push(row);
        }
    }
    fs::write(path, serde_json::to_string_pretty(&rows)? + "\n")?;
    Ok(())
}

fn version(package: &str) -> &'static str {
    let entry = format!("name = \"{package}\"\nversion = \"");
    LOCK.split_once(&entry).and_then(|(_, rest)| rest.split_once('"')).map_or("", |(version, _)| version)
}
