//! Four tiers that make up to three attempts each, and a backend that fails.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use crate::backend::Backend;
use crate::chart::{Chart, Line};
use crate::service::Arm;
use crate::{load, ours, tower, tower_resilience};

const TIERS: usize = 4;

pub(crate) const ARMS: [Arm; 6] = [
    Arm { name: "tower, no budget", color: "#999999", client: tower::bare, server: tower::no_server },
    Arm { name: "tower, its budget", color: "#666666", client: tower::with_budget, server: tower::no_server },
    Arm { name: "tower-resilience", color: "#d62728", client: tower_resilience::client, server: tower::no_server },
    Arm { name: "buttress, budget", color: "#9ecae1", client: ours::budget, server: tower::no_server },
    Arm { name: "buttress, budget and marks", color: "#4292c6", client: ours::budget, server: ours::context },
    Arm { name: "buttress, whole stack", color: "#08519c", client: ours::client, server: ours::server },
];

pub(crate) struct Plan {
    rate: f64,
    lasts: Duration,
    /// Shares of the backend's calls that fail.
    failures: &'static [f64],
}

pub(crate) const FULL: Plan = Plan {
    rate: 200.0,
    lasts: Duration::from_secs(30),
    failures: &[0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0],
};

/// The results of an arm.
pub(crate) struct Outcome {
    name: &'static str,
    color: &'static str,
    points: Vec<Point>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Point {
    failures: f64,
    /// Calls that the backend got for one of a user.
    pub(crate) amplification: f64,
    /// Share of the calls of users that were answered.
    pub(crate) good: f64,
}

pub(crate) fn all(arms: &[Arm], plan: &Plan, seed: u64) -> Vec<Outcome> {
    std::thread::scope(|scope| {
        let of = |arm: &Arm| {
            let points = plan.failures.iter().map(|failures| one(*arm, plan, *failures, seed)).collect();
            Outcome { name: arm.name, color: arm.color, points }
        };
        let threads: Vec<_> = arms.iter().map(|arm| scope.spawn(move || of(arm))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no run panics")).collect()
    })
}

fn one(arm: Arm, plan: &Plan, failures: f64, seed: u64) -> Point {
    let backend = Backend::new(1_000, Duration::from_millis(10), failures, seed);
    let calls = load::run(seed, plan.rate, plan.lasts, || arm.stack(TIERS, backend.service()), |_| {});
    let good = calls.iter().filter(|call| call.is_good).count();
    Point {
        failures,
        amplification: backend.calls() as f64 / calls.len() as f64,
        good: good as f64 / calls.len() as f64,
    }
}

pub(crate) fn table(outcomes: &[Outcome]) -> String {
    let mut out = String::from("| Calls of the backend for one of a user, and answers, by failures |");
    let points = &outcomes.first().expect("there is an arm").points;
    points.iter().for_each(|point| {
        let _ = write!(out, " {:.0} % |", point.failures * 100.0);
    });
    let _ = writeln!(out, "\n|---|{}", "---|".repeat(points.len()));
    for Outcome { name, points, .. } in outcomes {
        let _ = write!(out, "| {name} |");
        for Point { amplification, good, .. } in points {
            let _ = write!(out, " {amplification:.2}, {:.1} % |", good * 100.0);
        }
        out.push('\n');
    }
    out
}

pub(crate) fn draw(outcomes: &[Outcome], path: &Path) -> anyhow::Result<()> {
    let line = |outcome: &Outcome| Line {
        name: outcome.name,
        color: outcome.color,
        points: outcome.points.iter().map(|point| (point.failures * 100.0, point.amplification)).collect(),
    };
    let lines: Vec<_> = outcomes.iter().map(line).collect();
    let title = "Calls of the backend for one of a user (cut off at 6), by the share of its calls that fail, in %";
    Chart { title, x: 100.0, y: 6.0, unit: " %", lines: &lines }.write(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shorter run, of which a build without optimizations takes seconds.
    const SHORT: Plan = Plan { rate: 100.0, lasts: Duration::from_secs(12), failures: &[1.0] };

    fn of(name: &str, plan: &Plan) -> Point {
        let arm = ARMS.iter().find(|arm| arm.name == name).expect("a known arm");
        one(*arm, plan, plan.failures[0], 1)
    }

    #[test]
    fn attempts_multiply_over_tiers_without_a_budget() {
        let point = of("tower, no budget", &Plan { rate: 5.0, ..SHORT });
        assert!((80.0..=81.0).contains(&point.amplification), "{point:?}");
    }

    #[test]
    fn the_whole_stack_makes_at_most_a_fifth_more_calls_when_all_of_them_fail() {
        let point = of("buttress, whole stack", &SHORT);
        assert!(point.amplification <= 1.2, "{point:?}");
    }

    #[test]
    fn marks_leave_retries_to_the_lowest_caller() {
        let (budget, marks) = (of("buttress, budget", &SHORT), of("buttress, budget and marks", &SHORT));
        // The reserve of a budget, 3 retries per second and a burst of 30, is 6 % of these few
        // calls.
        assert!(budget.amplification > 2.0 && marks.amplification <= 1.4, "{budget:?}, {marks:?}");
    }

    #[test]
    fn a_few_failures_are_hidden_from_users() {
        let point = of("buttress, whole stack", &Plan { failures: &[0.05], ..SHORT });
        assert!(point.good >= 0.995, "{point:?}");
    }
}
