//! All runs of a scenario.

use std::thread;

use serde::Serialize;

use crate::arm::{ARMS, Arm};
use crate::ours::Static;
use crate::scenario::{NOMINAL, Scenario};
use crate::simulation::{self, Run};

/// Limits among which the best static one is searched.
const LIMITS: [usize; 27] =
    [2, 4, 6, 8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 56, 64, 80, 96, 128, 192, 256, 320, 384, 512, 640, 720, 800, 1000];
/// By how much a larger limit has to be better.
const BETTER: f64 = 1.005;
/// The latency that still counts as recovered, as a multiple of the unloaded one.
const RECOVERED: f64 = 1.5;

/// The results of a scenario.
#[derive(Debug, Serialize)]
pub(crate) struct Study {
    pub(crate) scenario: &'static str,
    /// The 99th percentile of a tenth of the load, in milliseconds.
    pub(crate) unloaded: f64,
    pub(crate) best_limit: usize,
    pub(crate) best: Outcome,
    /// One for each arm.
    pub(crate) arms: Vec<Outcome>,
}

/// The results of an arm: the worst of its seeds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) arm: &'static str,
    /// Answers in time, as a share of those of the best static limit.
    pub(crate) goodput: f64,
    /// The 99th percentile of the latencies of admitted calls, as a multiple of the unloaded one.
    pub(crate) p99: f64,
    /// The share of the calls that were rejected.
    pub(crate) rejected: f64,
    /// Seconds from each step until it has recovered; infinite if it has not.
    pub(crate) recovery: Vec<f64>,
}

impl Study {
    pub(crate) fn all(scenarios: &[&Scenario], seeds: u64) -> Vec<Self> {
        thread::scope(|scope| {
            let threads: Vec<_> =
                scenarios.iter().map(|scenario| scope.spawn(move || Self::of(scenario, &ARMS, seeds))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no run panics")).collect()
        })
    }

    pub(crate) fn of(scenario: &Scenario, arms: &[Arm], seeds: u64) -> Self {
        let calm = Scenario { load: 0.1, streams: 0.0, server: |_| NOMINAL, ..*scenario };
        let unloaded = simulation::run(&calm, &mut Static::new(1_000_000), 0).p99();
        let (best_limit, best) = best_static(scenario);
        let outcome = |arm, run: &Run| Outcome {
            arm,
            goodput: run.good as f64 / best.good as f64,
            p99: run.p99() / unloaded,
            rejected: run.rejected as f64 / run.arrived.max(1) as f64,
            recovery: scenario.steps.iter().map(|step| recovery(scenario, run, *step, unloaded)).collect(),
        };
        let arms = arms.iter().map(|arm| {
            let runs = (0..seeds).map(|seed| {
                let run = simulation::run(scenario, &mut *(arm.make)(seed), seed);
                outcome(arm.name, &run)
            });
            runs.reduce(Outcome::worse).expect("there is a seed")
        });
        let arms = arms.collect();
        Self {
            scenario: scenario.name,
            unloaded: unloaded * 1e3,
            best_limit,
            best: outcome("best static", &best),
            arms,
        }
    }
}

impl Outcome {
    fn worse(self, other: Self) -> Self {
        let recovery = self.recovery.iter().zip(&other.recovery).map(|(a, b)| a.max(*b)).collect();
        Self {
            arm: self.arm,
            goodput: self.goodput.min(other.goodput),
            p99: self.p99.max(other.p99),
            rejected: self.rejected.max(other.rejected),
            recovery,
        }
    }
}

/// Finds the smallest limit that no larger one beats clearly.
pub(crate) fn best_static(scenario: &Scenario) -> (usize, Run) {
    let mut best = (0, Run::default());
    for limit in LIMITS {
        let run = simulation::run(scenario, &mut Static::new(limit), 0);
        if run.good as f64 > best.1.good as f64 * BETTER {
            best = (limit, run);
        }
    }
    best
}

fn recovery(scenario: &Scenario, run: &Run, step: f64, unloaded: f64) -> f64 {
    let after = step + simulation::BIN / 2.0;
    let capacity = scenario.capacity_at(after).min(scenario.capacity() * scenario.load);
    run.recovery(step, capacity, RECOVERED * unloaded * (scenario.server)(after).slower)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::arm::DEFAULT;
    use crate::scenario::Server;

    /// A smaller server for a shorter time, so that a build without optimizations takes seconds.
    pub(crate) const SMALL: Scenario = Scenario {
        name: "small",
        workers: 16,
        mean: Duration::from_millis(20),
        sigma: 0.5,
        warm_up: 10.0,
        lasts: 10.0,
        load: 1.5,
        streams: 0.0,
        mix: [0.0, 1.0, 0.0, 0.0],
        rejection: Duration::ZERO,
        server: |_| NOMINAL,
        steps: &[],
    };

    fn ours(scenario: &Scenario) -> Outcome {
        Study::of(scenario, &[DEFAULT], 1).arms.remove(0)
    }

    #[test]
    fn overload_costs_at_most_5_percent_of_the_best_static_goodput_and_half_of_the_latency() {
        for load in [1.5, 3.0, 10.0] {
            let Outcome { goodput, p99, .. } = ours(&Scenario { load, ..SMALL });
            assert!(goodput >= 0.95 && p99 <= 1.5, "{load}x: {goodput}, {p99}");
        }
    }

    #[test]
    fn it_recovers_within_two_seconds_of_a_change_of_capacity() {
        let halved = |t| Server { workers: if (3.0..7.0).contains(&t) { 0.5 } else { 1.0 }, ..NOMINAL };
        let outcome = ours(&Scenario { load: 1.3, server: halved, steps: &[3.0, 7.0], ..SMALL });
        assert!(outcome.recovery.iter().all(|seconds| *seconds <= 2.0), "{outcome:?}");
        assert!(outcome.goodput >= 0.9, "{outcome:?}");
    }

    #[test]
    fn responses_that_stream_for_long_take_no_capacity() {
        let outcome = ours(&Scenario { streams: 0.02, ..SMALL });
        assert!(outcome.goodput >= 0.95 && outcome.p99 <= 1.5, "{outcome:?}");
    }

    #[test]
    fn light_load_is_not_rejected() {
        let outcome = ours(&Scenario { load: 0.7, ..SMALL });
        assert!(outcome.rejected < 0.001 && outcome.p99 <= 1.2, "{outcome:?}");
    }

    #[test]
    fn a_start_under_overload_with_a_cold_server_finds_its_capacity() {
        let cold = |t: f64| Server { slower: 1.0 + 3.0 * (1.0 - t / 5.0).max(0.0), ..NOMINAL };
        let outcome = ours(&Scenario { warm_up: 0.0, load: 3.0, server: cold, ..SMALL });
        assert!(outcome.goodput >= 0.9, "{outcome:?}");
    }

    #[test]
    fn without_a_limit_overload_leaves_hardly_an_answer_in_time() {
        let run = simulation::run(&Scenario { load: 3.0, ..SMALL }, &mut Static::new(1_000_000), 0);
        assert!((run.good as f64) < 0.2 * SMALL.capacity() * SMALL.lasts, "{}", run.good);
    }

    #[test]
    fn a_run_is_repeatable() {
        let run = || simulation::run(&SMALL, &mut *(DEFAULT.make)(3), 3);
        let (a, b) = (run(), run());
        assert_eq!((a.good, a.rejected, a.arrived), (b.good, b.rejected, b.arrived));
    }
}
