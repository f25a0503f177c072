//! Three tiers at 80 % load, whose backend does half of its work for 10 s.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use crate::backend::Backend;
use crate::chart::{Chart, Line};
use crate::load::{self, Call};
use crate::service::Arm;
use crate::{ours, tower, tower_resilience};

const TIERS: usize = 3;
const WORKERS: usize = 8;
const MEAN: Duration = Duration::from_millis(40);
const LOAD: f64 = 0.8;
/// Share of the users' calls that counts as recovered.
const RECOVERED: f64 = 0.95;

pub(crate) const ARMS: [Arm; 5] = [
    Arm { name: "tower, no budget", color: "#999999", client: tower::bare, server: tower::no_server },
    Arm { name: "tower, its budget", color: "#666666", client: tower::with_budget, server: tower::no_server },
    Arm { name: "tower-resilience", color: "#d62728", client: tower_resilience::client, server: tower::no_server },
    Arm { name: "buttress, adaptive limit", color: "#9ecae1", client: ours::client, server: ours::adaptive },
    Arm { name: "buttress, whole stack", color: "#08519c", client: ours::client, server: ours::server },
];

/// Seconds.
pub(crate) struct Plan {
    before: u64,
    trigger: u64,
    after: u64,
}

pub(crate) const FULL: Plan = Plan { before: 20, trigger: 10, after: 70 };

pub(crate) struct Outcome {
    name: &'static str,
    color: &'static str,
    /// For each second, the share of the calls made in it that was answered in time.
    seconds: Vec<f64>,
    /// Seconds from the end of the trigger until all later seconds, over five of them, are good.
    pub(crate) recovered: Option<u64>,
    /// The share of the calls in the last 10 s.
    pub(crate) at_last: f64,
}

pub(crate) fn all(arms: &[Arm], plan: &Plan, seed: u64) -> Vec<Outcome> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = arms.iter().map(|arm| scope.spawn(move || one(*arm, plan, seed))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no run panics")).collect()
    })
}

pub(crate) fn one(arm: Arm, plan: &Plan, seed: u64) -> Outcome {
    let backend = Backend::new(WORKERS, MEAN, 0.0, seed);
    let (begin, end) = (plan.before, plan.before + plan.trigger);
    let all = end + plan.after;
    let rate = LOAD * WORKERS as f64 / MEAN.as_secs_f64();
    let make = || arm.stack(TIERS, backend.service());
    let at = |second| backend.slow_down((begin..end).contains(&second));
    let calls = load::run(seed, rate, Duration::from_secs(all), make, at);
    let share = |from: u64, to: u64| {
        let within = |call: &&Call| (from as f64..to as f64).contains(&call.at);
        let good = calls.iter().filter(within).filter(|call| call.is_good).count();
        good as f64 / calls.iter().filter(within).count().max(1) as f64
    };
    let recovered = (end..all - 5).find(|from| (*from..all - 5).all(|at| share(at, at + 5) >= RECOVERED));
    Outcome {
        name: arm.name,
        color: arm.color,
        seconds: (0..all).map(|at| share(at, at + 1)).collect(),
        recovered: recovered.map(|at| at - end),
        at_last: share(all - 10, all),
    }
}

pub(crate) fn table(outcomes: &[Outcome]) -> String {
    let mut out = String::from("| | answered 60 s after the trigger | recovered after |\n|---|---|---|\n");
    for Outcome { name, recovered, at_last, .. } in outcomes {
        let recovered = recovered.map_or_else(|| "not at all".to_owned(), |seconds| format!("{seconds} s"));
        let _ = writeln!(out, "| {name} | {:.1} % | {recovered} |", at_last * 100.0);
    }
    out
}

pub(crate) fn draw(outcomes: &[Outcome], path: &Path) -> anyhow::Result<()> {
    let line = |outcome: &Outcome| Line {
        name: outcome.name,
        color: outcome.color,
        points: outcome.seconds.iter().enumerate().map(|(at, share)| (at as f64, share * 100.0)).collect(),
    };
    let lines: Vec<_> = outcomes.iter().map(line).collect();
    let seconds = outcomes.first().map_or(1, |outcome| outcome.seconds.len());
    let title = "Calls answered in time, in %, with a backend at half of its speed from 20 s to 30 s";
    Chart { title, x: seconds as f64, y: 100.0, unit: " s", lines: &lines }.write(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Plan = Plan { before: 5, trigger: 10, after: 25 };

    fn of(name: &str) -> Outcome {
        one(*ARMS.iter().find(|arm| arm.name == name).expect("a known arm"), &SHORT, 1)
    }

    #[test]
    fn the_whole_stack_recovers_within_10_s_of_an_overload() {
        let outcome = of("buttress, whole stack");
        assert!(outcome.recovered.is_some_and(|seconds| seconds <= 10), "{:?}", outcome.seconds);
        assert!(outcome.at_last >= 0.95, "{:?}", outcome.seconds);
    }

    #[test]
    fn retries_without_a_budget_keep_the_overload_up_after_its_cause_is_gone() {
        let outcome = of("tower, no budget");
        assert!(outcome.at_last < 0.2, "{:?}", outcome.seconds);
    }
}
