//! The mesh in a simulation: order, payment, inventory, shipping and notification unmodified, with
//! their stacks, databases, sagas, outboxes and inboxes, on simulated hosts and links in one thread
//! and in virtual time. Customers order through the gateway's client stack and repeat an order
//! until it is decided. Meanwhile links break, hosts crash, and messages are delayed, lost or held,
//! as drawn from a seed.
//!
//! At the end of every run
//!
//! * the audit of the demo finds no violation in stock, money, events and acknowledged orders;
//! * every order has a final answer, and every saga has ended;
//! * no attempt took longer than its timeout, and no call longer than its deadline, within 15 ms;
//! * retries stayed within the budget, in any window of whole seconds;
//! * every circuit that opened is closed again, and new orders succeed.
//!
//! # Differences from the real mesh
//!
//! * The bus is the embedded log, a file shared by all hosts. No link to it ever breaks.
//! * A host's clock stands still while SQLite works (see `disk.rs`), so a crash never interrupts a
//!   transaction. The kill tests of `buttress-durable` cover that.
//! * The gateway and the old shop are not simulated: neither owns a part of an order.
//!
//! # Replaying
//!
//! A failing run prints its seed and the command that repeats it. The seed determines the faults,
//! the customers, the network and the jitter. It does not determine the ids of orders and events,
//! which branch a `select!` polls first, or which of a host's two databases is faster. So two runs
//! of one seed differ by milliseconds, and a race may end differently: a seed given in the
//! environment is run up to 20 times, until it fails. `MESH_SIM=partition:100..200` runs other
//! seeds than the default ones, once each.

mod customers;
mod disk;
mod faults;
mod host;
mod story;
mod watch;

use std::ops::Range;

use faults::Scenario;
use mesh::telemetry::{LogConfig, install_logs};
use story::Outcome;

/// Default seeds of each scenario.
const SEEDS: Range<u64> = 0..17;
/// Those of scenarios that last longer.
const LONG_SEEDS: Range<u64> = 0..4;
/// Number of runs of a single seed.
const REPLAYS: usize = 20;
/// `scenario:seed` or `scenario:from..to`.
const VARIABLE: &str = "MESH_SIM";

/// The default seeds, or those of the environment. If it names another scenario, there are none.
fn seeds(scenario: Scenario) -> Vec<u64> {
    let Ok(wanted) = std::env::var(VARIABLE) else {
        let long = matches!(scenario, Scenario::Outage | Scenario::Silence);
        return if long { LONG_SEEDS } else { SEEDS }.collect();
    };
    let read = || {
        let (name, seeds) = wanted.split_once(':')?;
        let seeds = match seeds.split_once("..") {
            Some((from, to)) => (from.parse().ok()?..to.parse().ok()?).collect(),
            None => vec![seeds.parse().ok()?; REPLAYS],
        };
        Some(if name == scenario.to_string() { seeds } else { Vec::new() })
    };
    read().unwrap_or_else(|| panic!("{VARIABLE} must be scenario:seed or scenario:from..to, not {wanted:?}"))
}

fn runs(scenario: Scenario) -> Vec<Outcome> {
    install_logs(std::env::var_os("RUST_LOG").map(|_| LogConfig::default()));
    let outcomes: Vec<_> = seeds(scenario).into_iter().map(|seed| story::run_or_report(scenario, seed)).collect();
    let sum = |of: fn(&Outcome) -> usize| outcomes.iter().map(of).sum::<usize>();
    println!(
        "{scenario}: {} runs, {} orders confirmed and {} cancelled, circuits opened {} times",
        outcomes.len(),
        sum(|outcome| outcome.confirmed),
        sum(|outcome| outcome.cancelled),
        sum(|outcome| outcome.opened),
    );
    outcomes
}

#[test]
fn orders_end_well_when_services_cannot_reach_each_other() {
    let outcomes = runs(Scenario::Partition);
    // Otherwise the check that they are closed at the end proves nothing.
    assert!(outcomes.is_empty() || outcomes.iter().any(|outcome| outcome.opened > 0), "no circuit has opened");
}

#[test]
fn retries_stay_in_their_budget_when_no_circuit_opens() {
    let outcomes = runs(Scenario::Unguarded);
    // Otherwise the budget was never exhausted and the check proves nothing.
    assert!(outcomes.is_empty() || outcomes.iter().any(|outcome| outcome.out_of_budget > 0), "no budget was empty");
}

#[test]
fn orders_end_well_when_services_crash_and_come_back() {
    runs(Scenario::Crash);
}

#[test]
fn orders_end_well_when_a_service_is_slow() {
    runs(Scenario::Slow);
}

#[test]
fn orders_end_well_when_messages_are_lost_or_held() {
    runs(Scenario::Lossy);
}

#[test]
fn orders_end_well_when_everything_happens_at_once() {
    runs(Scenario::Storm);
}

#[test]
fn orders_end_well_when_a_service_is_away_for_half_a_minute() {
    runs(Scenario::Outage);
}

#[test]
fn orders_end_well_when_a_database_or_the_bus_does_not_answer_for_half_a_minute() {
    runs(Scenario::Silence);
}
