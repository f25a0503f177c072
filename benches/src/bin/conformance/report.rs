//! The results as tables for people and as JSON for programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use anyhow::Context;
use serde_json::json;

use crate::breaker::Implementation;
use crate::schedule::{Deviation, Verdict};
use crate::trace::{Basis, Trace};

/// The versions of the peers that this was compiled with.
const LOCK: &str = include_str!("../../../../Cargo.lock");

/// The marks in a page between which its results are.
const BEGIN: &str = "<!-- results: the command writes from here -->\n";
const END: &str = "<!-- results: to here -->\n";
const BEGIN_RATES: &str = "<!-- rate limits: the command writes from here -->\n";
const END_RATES: &str = "<!-- rate limits: to here -->\n";

pub(crate) fn results(
    traces: &[Trace],
    implementations: &[Implementation],
    results: &[Vec<Verdict>],
    stretch: u32,
) -> String {
    let mut out = String::new();
    #[expect(clippy::disallowed_methods, reason = "says when it was run")]
    let now = httpdate::fmt_http_date(SystemTime::now());
    let day = now.get(5..16).unwrap_or(&now);
    let _ = writeln!(out, "{} traces, run on {day} with `--stretch {stretch}`.\n", traces.len());
    table(&mut out, traces, implementations, results);
    out.push_str("\n### Failures\n\n");
    failures(&mut out, traces, implementations, results);
    out.push_str("\n### Judgements\n\n");
    judgements(&mut out, traces);
    out.push_str("\n### Features\n\n");
    features(&mut out, traces, implementations);
    out
}

/// Replaces the results of circuit breakers in a page.
pub(crate) fn write_page(results: &str, path: &Path) -> anyhow::Result<()> {
    write_between(BEGIN, END, results, path)
}

/// Replaces the results of rate limits in a page.
pub(crate) fn write_rates(results: &str, path: &Path) -> anyhow::Result<()> {
    write_between(BEGIN_RATES, END_RATES, results, path)
}

fn write_between(begin: &str, end: &str, results: &str, path: &Path) -> anyhow::Result<()> {
    let page = fs::read_to_string(path)?;
    let parts = page.split_once(begin).and_then(|(before, rest)| Some((before, rest.split_once(end)?.1)));
    let (before, after) = parts.with_context(|| format!("{} has no marks for the results", path.display()))?;
    fs::write(path, format!("{before}{begin}\n{results}\n{end}{after}"))?;
    Ok(())
}

fn heading(out: &mut String, first: &str, implementations: &[Implementation]) {
    let _ = write!(out, "| {first} |");
    for implementation in implementations {
        let _ = write!(out, " {} {} |", implementation.name, version(implementation.name));
    }
    let _ = writeln!(out, "\n|{}", "---|".repeat(first.split('|').count() + implementations.len()));
}

fn table(out: &mut String, traces: &[Trace], implementations: &[Implementation], results: &[Vec<Verdict>]) {
    heading(out, "trace | basis", implementations);
    for (trace, verdicts) in traces.iter().zip(results) {
        let _ = write!(out, "| {} | {} |", trace.name, basis(trace));
        for verdict in verdicts {
            let _ = match (verdict, &trace.basis) {
                (Verdict::Pass, _) => write!(out, " pass |"),
                (Verdict::Fail(Deviation { step, .. }), Basis::Documented(_)) => {
                    write!(out, " **FAIL at step {step}** |")
                }
                (Verdict::Fail(Deviation { step, .. }), Basis::Judgement(_)) => write!(out, " *fail at step {step}* |"),
                (Verdict::NotApplicable(_), _) => write!(out, " n/a |"),
                (Verdict::Late, _) => write!(out, " too late |"),
            };
        }
        out.push('\n');
    }
    let mut total = |name: &str, count: &dyn Fn(usize) -> String| {
        let counts: Vec<_> = (0..implementations.len()).map(count).collect();
        let _ = writeln!(out, "| **{name}** | | {} |", counts.join(" | "));
    };
    let all = |column: usize, is: fn(&Trace, &Verdict) -> bool| {
        traces.iter().zip(results).filter(|(trace, row)| is(trace, &row[column])).count()
    };
    total("passed of applicable", &|column| {
        let passed = all(column, |_, verdict| matches!(verdict, Verdict::Pass));
        let applicable = all(column, |_, verdict| !matches!(verdict, Verdict::NotApplicable(_)));
        format!("{passed} of {applicable}")
    });
    total("failed what is documented", &|column| {
        all(column, |trace, verdict| matches!((verdict, &trace.basis), (Verdict::Fail(_), Basis::Documented(_))))
            .to_string()
    });
    total("failed by judgement", &|column| {
        all(column, |trace, verdict| matches!((verdict, &trace.basis), (Verdict::Fail(_), Basis::Judgement(_))))
            .to_string()
    });
}

fn failures(out: &mut String, traces: &[Trace], implementations: &[Implementation], results: &[Vec<Verdict>]) {
    for (column, implementation) in implementations.iter().enumerate() {
        for (trace, verdicts) in traces.iter().zip(results) {
            if let Verdict::Fail(Deviation { step, at_ms, what }) = &verdicts[column] {
                let (name, basis) = (implementation.name, basis(trace));
                let _ = writeln!(out, "- {name}, {} ({basis}): step {step}, at {at_ms} ms: {what}", trace.name);
            }
        }
    }
}

/// The traces of each reason for a judgement.
fn judgements(out: &mut String, traces: &[Trace]) {
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for trace in traces {
        if let Basis::Judgement(reason) = &trace.basis {
            reasons.entry(reason).or_default().push(&trace.name);
        }
    }
    for (reason, names) in reasons {
        let _ = writeln!(out, "- {}: {reason}", names.join(", "));
    }
}

fn features(out: &mut String, traces: &[Trace], implementations: &[Implementation]) {
    heading(out, "feature", implementations);
    let features: BTreeSet<_> = traces.iter().flat_map(|trace| &trace.requires).copied().collect();
    for feature in features {
        let _ = write!(out, "| `{feature}` |");
        for implementation in implementations {
            out.push_str(if implementation.offers(feature) { " yes |" } else { " |" });
        }
        out.push('\n');
    }
}

fn basis(trace: &Trace) -> &'static str {
    match trace.basis {
        Basis::Documented(_) => "documented",
        Basis::Judgement(_) => "judgement",
    }
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
                "basis": basis(trace),
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

pub(crate) fn version(package: &str) -> &'static str {
    let entry = format!("name = \"{package}\"\nversion = \"");
    LOCK.split_once(&entry).and_then(|(_, rest)| rest.split_once('"')).map_or("", |(version, _)| version)
}
