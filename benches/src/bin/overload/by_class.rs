//! The runs of the scenarios with priorities, and their tables.

use std::fmt::Write;
use std::thread;
use std::time::Duration;

use serde::Serialize;

use crate::arm::Arm;
use crate::ours::Static;
use crate::priorities::BY_PRIORITY;
use crate::scenario::{NOMINAL, Scenario};
use crate::simulation::{self, Class, Run};
use crate::study::best_static;

/// The results of a scenario: the worst of its seeds for each arm.
#[derive(Debug, Serialize)]
pub(crate) struct ByClass {
    pub(crate) scenario: &'static str,
    pub(crate) rows: Vec<Row>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) arm: &'static str,
    /// Share of the calls of each class that were answered in time; `None` without calls.
    pub(crate) served: [Option<f64>; 4],
    /// Answers in time, as a share of those of the best static limit.
    pub(crate) goodput: f64,
    /// The 99th percentile of the latencies of admitted calls, as a multiple of the unloaded one.
    pub(crate) p99: f64,
}

impl ByClass {
    pub(crate) fn all(scenarios: &[&Scenario], seeds: u64) -> Vec<Self> {
        thread::scope(|scope| {
            let threads: Vec<_> =
                scenarios.iter().map(|scenario| scope.spawn(move || Self::of(scenario, &BY_PRIORITY, seeds))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no run panics")).collect()
        })
    }

    pub(crate) fn of(scenario: &Scenario, arms: &[Arm], seeds: u64) -> Self {
        let calm = Scenario { load: 0.1, server: |_| NOMINAL, ..*scenario };
        let unloaded = simulation::run(&calm, &mut Static::new(1_000_000), 0).p99();
        // Of a server whose rejections cost nothing: what it can do at best.
        let best = best_static(&Scenario { rejection: Duration::ZERO, ..*scenario }).1.good as f64;
        let row = |arm: &Arm, run: &Run| Row {
            arm: arm.name,
            served: run.classes.map(Class::served),
            goodput: run.good as f64 / best,
            p99: run.p99() / unloaded,
        };
        let rows = arms.iter().map(|arm| {
            let runs = (0..seeds).map(|seed| row(arm, &simulation::run(scenario, &mut *(arm.make)(seed), seed)));
            runs.reduce(Row::worse).expect("there is a seed")
        });
        let rows = rows.collect();
        Self { scenario: scenario.name, rows }
    }
}

impl Row {
    fn worse(self, other: Self) -> Self {
        let served = std::array::from_fn(|class| Some(self.served[class]?.min(other.served[class]?)));
        Self { served, goodput: self.goodput.min(other.goodput), p99: self.p99.max(other.p99), ..self }
    }
}

pub(crate) fn tables(studies: &[ByClass]) -> String {
    let mut out = String::new();
    for ByClass { scenario, rows } in studies {
        let _ = writeln!(
            out,
            "| {scenario} | CriticalPlus | Critical | Sheddable | goodput | p99 |\n|---|---|---|---|---|---|"
        );
        for Row { arm, served: [first, second, _, last], goodput, p99 } in rows {
            let percent = |share: &Option<f64>| share.map_or("–".to_owned(), |share| format!("{:.2}", share * 100.0));
            let [first, second, last] = [first, second, last].map(percent);
            let _ = writeln!(out, "| {arm} | {first} | {second} | {last} | {:.1} | {p99:.2} |", goodput * 100.0);
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arm::{Admission, Limiter};
    use crate::priorities::{Adaptive, DEFAULT};
    use crate::study::tests::SMALL;
    use buttress_core::Priority;

    /// A tenth of the calls is of the first class, and six tenths of the last.
    const MIXED: Scenario = Scenario { workers: 32, mix: [0.1, 0.3, 0.0, 0.6], lasts: 30.0, ..SMALL };

    fn row(scenario: &Scenario, arm: Arm) -> Row {
        ByClass::of(scenario, &[arm], 1).rows.remove(0)
    }

    #[test]
    fn all_but_a_few_of_the_most_important_calls_are_served_and_no_capacity_is_lost() {
        for (load, mix) in [(1.5, MIXED.mix), (3.0, MIXED.mix), (10.0, [0.05, 0.35, 0.0, 0.6])] {
            let scenario = Scenario { load, mix, ..MIXED };
            let row = row(&scenario, DEFAULT);
            assert!(row.goodput >= 0.95 && row.p99 <= 1.5, "{load}x: {row:?}");
            let [_, second, _, last] = row.served.map(Option::unwrap_or_default);
            assert!(second > last && second < 1.0, "{load}x: {row:?}");
            // The target of 99.9 % is reached by the scenarios of the page. This server is half as
            // fast, and has 99.88 % at 10 times its capacity.
            let runs = (0..3).map(|seed| simulation::run(&scenario, &mut *(DEFAULT.make)(seed), seed).classes[0]);
            let all = runs.reduce(|a, b| Class { ended: a.ended + b.ended, good: a.good + b.good });
            let first = all.and_then(Class::served).unwrap_or_default();
            assert!(first >= 0.998, "{load}x: {first}");
        }
    }

    #[test]
    fn a_throttle_spares_a_server_whose_rejections_cost_time() {
        let rejection = Duration::from_millis(1);
        let scenario = Scenario { load: 10.0, mix: [0.05, 0.35, 0.0, 0.6], rejection, lasts: 10.0, ..MIXED };
        let (without, with) = (row(&scenario, DEFAULT), row(&scenario, BY_PRIORITY[7]));
        assert!(with.goodput > 1.3 * without.goodput, "{with:?} {without:?}");
    }

    /// Notes the share of the load shed with every call.
    struct Watched(Adaptive, Vec<(Duration, f64)>);

    impl Limiter for Watched {
        fn admit(&mut self, now: Duration, id: usize, priority: Priority) -> Admission {
            let admission = self.0.admit(now, id, priority);
            self.1.push((now, self.0.share()));
            admission
        }

        fn head(&mut self, now: Duration, id: usize) {
            self.0.head(now, id);
        }

        fn end(&mut self, now: Duration, id: usize, is_answered: bool) {
            self.0.end(now, id, is_answered);
        }
    }

    #[test]
    fn the_share_of_a_load_shed_around_an_adaptive_limit_settles() {
        let scenario = Scenario { load: 3.0, mix: [0.0, 1.0, 0.0, 0.0], ..MIXED };
        let mut watched = Watched(Adaptive::new(1, 0.2, Some(0.9)), Vec::new());
        simulation::run(&scenario, &mut watched, 1);
        let settled = Duration::from_secs_f64(scenario.warm_up + 5.0);
        let shares: Vec<f64> = watched.1.iter().filter(|(at, _)| *at > settled).map(|(_, share)| *share).collect();
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        let (least, most) = shares.iter().fold((1.0f64, 0.0f64), |(a, b), share| (a.min(*share), b.max(*share)));
        assert!((0.4..0.67).contains(&mean), "{mean}: the limit rejects the rest");
        assert!(most - least < 0.2, "{least} to {most}");
    }
}
