//! Charts of single runs as SVG: lines over time, and nothing that would need a library.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::arm::{ARMS, Arm, DEFAULT, Limiter};
use crate::ours::Static;
use crate::priorities::BY_PRIORITY;
use crate::scenario::{BY_CLASS, SCENARIOS, Scenario};
use crate::simulation::{self, BIN, Class, Run};
use crate::study::best_static;

/// The files and the parts of their scenarios' names.
const CHARTS: [(&str, &str); 5] = [
    ("overload-10x", "overload 10x"),
    ("overload-capacity", "half of the workers"),
    ("overload-latency", "twice as long"),
    ("overload-cold", "cold start"),
    ("overload-streams", "streams"),
];

/// Part of the name of the scenario for the chart by class.
const CLASSES_IN: &str = "half of the workers";

const WIDTH: f64 = 860.0;
const PANEL: f64 = 150.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 46.0;
/// Bins in a point of a line.
const PER_POINT: usize = 5;

struct Line {
    name: String,
    color: &'static str,
    run: Run,
}

pub(crate) fn write_all(folder: &Path) -> anyhow::Result<()> {
    for (file, name) in CHARTS {
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name.contains(name));
        let chart = chart(scenario.with_context(|| format!("no scenario is called {name}"))?);
        let path = folder.join(file).with_extension("svg");
        fs::write(&path, chart).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let scenario = BY_CLASS.iter().find(|scenario| scenario.name.contains(CLASSES_IN));
    let chart = chart_by_class(scenario.with_context(|| format!("no scenario is called {CLASSES_IN}"))?);
    let path = folder.join("overload-classes.svg");
    fs::write(&path, chart).with_context(|| format!("cannot write {}", path.display()))
}

fn chart(scenario: &Scenario) -> String {
    let line = |name: &str, color, limiter: &mut dyn Limiter| Line {
        name: name.to_owned(),
        color,
        run: simulation::run(scenario, limiter, 1),
    };
    let arm = |arm: &Arm, color| line(arm.name, color, &mut *(arm.make)(1));
    let (limit, _) = best_static(scenario);
    let lines = [
        arm(&ARMS[0], "#999999"),
        line(&format!("best static, {limit}"), "#222222", &mut Static::new(limit)),
        arm(&DEFAULT, "#c1272d"),
        arm(&ARMS[8], "#1f77b4"),
    ];
    let capacity = scenario.capacity();
    let good = |run: &Run, bins: std::ops::Range<usize>| {
        let (good, n) = (run.bins[bins.clone()].iter().map(|bin| f64::from(bin.good)).sum::<f64>(), bins.len());
        good / (n as f64 * BIN * capacity)
    };
    let p99 = |run: &Run, bins| run.quantile(0.99, bins) * 1e3;
    let limit = |run: &Run, bins: std::ops::Range<usize>| run.bins[bins.end - 1].limit as f64;
    let most = 1.2 * lines[2].run.bins.iter().map(|bin| bin.limit).max().unwrap_or(1) as f64;
    let slow = 4.0 * p99(&lines[2].run, 0..lines[2].run.bins.len());

    let mut svg = head(&lines, 3);
    panel(&mut svg, 0, "answers in time, share of the nominal capacity", 1.2, scenario.lasts, &lines, good);
    panel(&mut svg, 1, "p99 of admitted calls, ms", slow, scenario.lasts, &lines, p99);
    panel(&mut svg, 2, "limit", most, scenario.lasts, &lines, limit);
    svg + "</svg>\n"
}

/// Draws the served share of the classes, for the arms without and with priorities and the queue.
fn chart_by_class(scenario: &Scenario) -> String {
    let arms = [(0, "#999999"), (1, "#c1272d"), (2, "#222222"), (5, "#1f77b4")];
    let lines = arms.map(|(arm, color)| {
        let Arm { name, make } = BY_PRIORITY[arm];
        Line { name: name.to_owned(), color, run: simulation::run(scenario, &mut *make(1), 1) }
    });
    let mut svg = head(&lines, 3);
    for (index, (class, name)) in [(0, "CriticalPlus"), (1, "Critical"), (3, "Sheddable")].into_iter().enumerate() {
        let served = |run: &Run, bins: std::ops::Range<usize>| {
            let classes = run.bins[bins].iter().map(|bin| bin.classes[class]);
            let sum = classes.reduce(|a, b| Class { ended: a.ended + b.ended, good: a.good + b.good });
            sum.and_then(Class::served).unwrap_or(f64::NAN)
        };
        panel(
            &mut svg,
            index,
            &format!("{name}: share of the calls that is served"),
            1.0,
            scenario.lasts,
            &lines,
            served,
        );
    }
    svg + "</svg>\n"
}

/// Begins a picture, with the names of the lines.
fn head(lines: &[Line], panels: usize) -> String {
    let height = TOP + panels as f64 * (PANEL + 40.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut x = LEFT;
    for Line { name, color, .. } in lines {
        let _ = writeln!(svg, "<rect x=\"{x}\" y=\"14\" width=\"14\" height=\"4\" fill=\"{color}\"/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"20\">{name}</text>", x + 18.0);
        x += 40.0 + 6.6 * name.len() as f64;
    }
    svg
}

/// Draws a panel with one line for each run.
fn panel(
    svg: &mut String,
    index: usize,
    title: &str,
    most: f64,
    seconds: f64,
    lines: &[Line],
    value: impl Fn(&Run, std::ops::Range<usize>) -> f64,
) {
    let top = TOP + index as f64 * (PANEL + 40.0);
    let (bottom, right) = (top + PANEL, WIDTH - 20.0);
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\">{title}</text>", top - 6.0);
    for part in 0..=4 {
        let (y, label) = (bottom - PANEL * f64::from(part) / 4.0, most * f64::from(part) / 4.0);
        let label = if most < 10.0 { format!("{label:.1}") } else { format!("{label:.0}") };
        let _ = writeln!(svg, "<path d=\"M{LEFT} {y}H{right}\" stroke=\"#dddddd\"/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{label}</text>", LEFT - 6.0, y + 4.0);
        let (x, time) = (LEFT + (right - LEFT) * f64::from(part) / 4.0, seconds * f64::from(part) / 4.0);
        let _ = writeln!(svg, "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{time:.0} s</text>", bottom + 16.0);
    }
    for Line { color, run, .. } in lines {
        let points = run.bins.len() / PER_POINT;
        let mut path = String::new();
        for point in 0..points {
            let value = value(run, point * PER_POINT..(point + 1) * PER_POINT);
            if value.is_finite() {
                let x = LEFT + (right - LEFT) * (point as f64 + 0.5) / points as f64;
                let y = bottom - PANEL * (value / most).min(1.0);
                let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { 'M' } else { 'L' });
            }
        }
        let _ = writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\"/>");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chart_has_a_scenario() {
        for (_, name) in CHARTS {
            assert!(SCENARIOS.iter().any(|scenario| scenario.name.contains(name)), "{name}");
        }
        assert!(BY_CLASS.iter().any(|scenario| scenario.name.contains(CLASSES_IN)));
    }
}
