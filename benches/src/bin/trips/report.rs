//! The results as tables for people and as JSON for programs.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::json;

use crate::simulation::{Errors, Outage, rates};
use crate::subjects::SUBJECTS;

pub(crate) fn tables(errors: &[Errors], outages: &[Outage]) -> String {
    let mut out = String::new();
    head(&mut out, "errors, calls/s");
    for percent in Errors::PERCENT {
        for per_second in rates() {
            let _ = write!(out, "| {percent} %, {per_second} |");
            for subject in &SUBJECTS {
                let runs = errors
                    .iter()
                    .filter(|run| (run.subject, run.percent, run.per_second) == (subject.name, percent, per_second));
                let (median, worst) = median_and_worst(runs.map(|run| run.refused * 100.0).collect());
                let _ = match (median, worst) {
                    (0.0, 0.0) => write!(out, " 0 |"),
                    _ => write!(out, " {} ({}) |", share(median), share(worst)),
                };
            }
            out.push('\n');
        }
    }
    for seconds in Outage::SECONDS {
        out.push('\n');
        head(&mut out, &format!("outage of about {seconds} s: errors before, calls/s"));
        for percent in Outage::PERCENT {
            for per_second in rates() {
                let _ = write!(out, "| {percent} %, {per_second} |");
                for subject in &SUBJECTS {
                    let runs: Vec<_> = outages
                        .iter()
                        .filter(|run| {
                            (run.subject, run.percent, run.per_second, run.seconds)
                                == (subject.name, percent, per_second, seconds)
                        })
                        .collect();
                    let _ = write!(out, " {} |", outage(&runs));
                }
                out.push('\n');
            }
        }
    }
    out
}

pub(crate) fn write_json(errors: &[Errors], outages: &[Outage], path: &Path) -> anyhow::Result<()> {
    fs::write(path, serde_json::to_string_pretty(&json!({ "errors": errors, "outages": outages }))? + "\n")?;
    Ok(())
}

fn head(out: &mut String, what: &str) {
    let _ = write!(out, "| {what} |");
    for subject in &SUBJECTS {
        let _ = write!(out, " {} |", subject.name);
    }
    let _ = writeln!(out, "\n|---|{}", "---|".repeat(SUBJECTS.len()));
}

/// Failures and time until it opened, calls that reached the backend, and time until it closed:
/// medians over the runs.
fn outage(runs: &[&Outage]) -> String {
    let most = |count: usize| count * 2 > runs.len();
    let opened: Vec<_> = runs.iter().filter_map(|run| run.opened).collect();
    let opening = if most(opened.len()) {
        let failures = opened.iter().map(|opened| f64::from(opened.failures)).collect();
        let seconds = opened.iter().map(|opened| opened.seconds).collect();
        format!("{} in {}", median_and_worst(failures).0, time(median_and_worst(seconds).0))
    } else if most(runs.iter().filter(|run| run.open_before).count()) {
        "open before".to_owned()
    } else {
        format!("opened in {} of {}", opened.len(), runs.len())
    };
    let reached = median_and_worst(runs.iter().map(|run| f64::from(run.reached)).collect()).0;
    let closed: Vec<_> = runs.iter().filter_map(|run| run.closed).collect();
    if closed.is_empty() {
        return format!("{opening}; {reached}; –");
    }
    let (median, worst) = median_and_worst(closed);
    format!("{opening}; {reached}; {} ({})", time(median), time(worst))
}

/// The upper median and the maximum.
fn median_and_worst(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], *values.last().expect("there is a run"))
}

fn share(percent: f64) -> String {
    if percent == 0.0 { "0".to_owned() } else { format!("{percent:.1} %") }
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s.is_infinite() => "not in 30 min".to_owned(),
        s if s < 0.1 => format!("{:.0} ms", s * 1000.0),
        s if s < 10.0 => format!("{s:.1} s"),
        s => format!("{s:.0} s"),
    }
}
