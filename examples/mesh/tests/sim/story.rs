//! One run of one scenario: hosts, customers, faults, and the checks at the end.

use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use buttress_durable::{ManualClock, Timestamp};
use mesh::bus::Bus;
use mesh::db::{Databases, Files};
use mesh::demo::books::{self, Books};

use crate::customers::{Diary, shop};
use crate::faults::{LATENCY, Plan, Scenario};
use crate::host::{HOSTS, Town};
use crate::watch::{BOUND, Watch};

/// The results of a successful run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub(crate) confirmed: usize,
    pub(crate) cancelled: usize,
    /// How many times circuits opened.
    pub(crate) opened: usize,
    /// Failures that were not retried because the budget was empty.
    pub(crate) out_of_budget: u64,
}

/// Duration of a simulation step. Messages arrive at the beginning of a step, so a call takes at
/// least two.
const TICK: Duration = Duration::from_millis(5);
/// Maximum virtual duration: far longer than any order takes.
const LIMIT: Duration = Duration::from_secs(240);
/// How long events may take to be handled after the last customer has an answer.
const SETTLED: Duration = Duration::from_secs(90);
/// Limits of the client stacks from `stack.rs`: the wait for a place plus one attempt.
const PARTICIPANT: Duration = Duration::from_millis(50 + 400);
const ORDER: Duration = Duration::from_millis(50 + 8_500);
/// The total timeout of a call of the order service.
const CALL: Duration = Duration::from_secs(9);

/// Runs a scenario. If it fails, prints the command that repeats it.
pub(crate) fn run_or_report(scenario: Scenario, seed: u64) -> Outcome {
    catch_unwind(AssertUnwindSafe(|| run(scenario, seed))).unwrap_or_else(|panic| {
        println!("\nseed {seed} fails. Again, and with logs:\n");
        println!("    RUST_LOG=mesh=info MESH_SIM={scenario}:{seed} cargo test -p mesh --test sim -- --nocapture\n");
        resume_unwind(panic)
    })
}

fn run(scenario: Scenario, seed: u64) -> Outcome {
    // Seeds the global generator, which jitter without its own seed uses.
    fastrand::seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let hand = ManualClock::new(Timestamp::from_millis(1_700_000_000_000));
    let (diary, mut plan) = (Diary::default(), Plan::new(scenario, seed));
    let town = Town::new(dir.path().to_owned(), hand.clock(), seed);
    if matches!(scenario, Scenario::Unguarded) {
        for dependency in [&town.clients.payment, &town.clients.inventory, &town.gateway.order] {
            dependency.breaker().metrics_only();
        }
    }
    let mut watches = [
        Watch::new(&town.clients.payment, PARTICIPANT),
        Watch::new(&town.clients.inventory, PARTICIPANT),
        Watch::new(&town.gateway.order, ORDER),
    ];
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .simulation_duration(LIMIT)
        .min_message_latency(LATENCY.0)
        .max_message_latency(LATENCY.1)
        .fail_rate(0.0)
        .repair_rate(0.05)
        .build();
    for name in HOSTS {
        let town = town.clone();
        sim.host(name.as_str(), move || town.clone().live(name));
    }
    let silent = town.silent.clone();
    sim.client("customers", shop(town, scenario.times(), diary.clone()));

    let mut faults = Vec::new();
    let step = |sim: &mut turmoil::Sim<'_>, plan: &mut Plan, faults: &mut Vec<String>| {
        while let Some((at, act)) = plan.advance(sim, &silent) {
            faults.push(format!("{:>6} ms {act:?}", at.as_millis()));
        }
        hand.advance(TICK);
        sim.step()
    };
    let ended = loop {
        match step(&mut sim, &mut plan, &mut faults) {
            Ok(true) => break Ok(()),
            Ok(false) => {}
            Err(error) => break Err(error),
        }
        if sim.elapsed().as_millis() % 1_000 == 0 {
            watches.iter_mut().for_each(Watch::sample);
        }
    };
    let mut wrong = diary.wrongs();
    wrong.extend(diary.unanswered().into_iter().map(|key| format!("order {key} has no definite answer")));
    wrong.extend(ended.err().map(|error| error.to_string()));
    wrong.extend(watches.iter().flat_map(Watch::wrongs));
    if diary.longest() > CALL + BOUND {
        wrong.push(format!("a call took {:?} of {CALL:?}", diary.longest()));
    }
    let databases = Databases::Files(Files(dir.path().to_owned()));
    let mut books = audit(&databases, &diary);
    let begun = sim.elapsed();
    while !books.right && sim.elapsed() - begun < SETTLED {
        for _ in 0..200 {
            wrong.extend(step(&mut sim, &mut plan, &mut faults).err().map(|error| error.to_string()));
        }
        books = audit(&databases, &diary);
    }
    if !books.right {
        wrong.push(books.to_string());
    }
    faults.extend(diary.lines());
    assert!(wrong.is_empty(), "{}", report(scenario, seed, &faults, &wrong));
    let opened = watches.iter().map(Watch::opened).sum();
    let out_of_budget = watches.iter().map(Watch::out_of_budget).sum();
    Outcome { confirmed: books.confirmed, cancelled: books.cancelled, opened, out_of_budget }
}

/// Audits in a separate runtime. The simulation's time stands still meanwhile.
fn audit(databases: &Databases, diary: &Diary) -> Books {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(books::audit(databases, &Bus::Log, &diary.acknowledged())).unwrap()
}

fn report(scenario: Scenario, seed: u64, history: &[String], wrong: &[String]) -> String {
    let mut report = format!("{scenario}, seed {seed}\n");
    for line in history {
        let _ = writeln!(report, "  {line}");
    }
    for line in wrong {
        let _ = writeln!(report, "WRONG: {line}");
    }
    report
}
