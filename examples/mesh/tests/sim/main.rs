//! The mesh in a simulation: order, payment, inventory, shipping and notification as they are, with their stacks, databases,
//! sagas, outboxes and inboxes, on hosts and links that exist in one thread only, in virtual time. Customers order through the
//! gateway's client stack and ask again until they know what has become of their order. Meanwhile links break, hosts crash,
//! and messages are late, lost or held, as drawn from a seed.
//!
//! Whatever happened, in the end
//!
//! * the audit of the demo finds the books right: stock, money, events, and what customers were told;
//! * every order has a definite answer, and every saga has ended;
//! * no attempt has taken longer than its timeout, and no call longer than its deadline, to within 15 ms;
//! * there were never more retries than the budget allows, in any span of seconds;
//! * every circuit that has opened is closed again, and orders placed then succeed.
//!
//! # What is different from the real thing
//!
//! * The bus is the embedded log, which all hosts have as a file; no link to it ever breaks.
//! * A host's clock stands still while SQLite works (see `disk.rs`), so a crash never falls into a transaction. Crashes in
//!   there are what the kill tests of `buttress-durable` are for.
//! * The gateway and the old shop are not there: neither owns a part of an order.
//!
//! # Replaying
//!
//! A run that fails prints its seed and the command that runs it again. The seed decides the faults, the customers, the network
//! and every jitter. It does not decide the ids of orders and events, nor which of two branches a `select!` looks at first, nor
//! which of two databases of a host is faster. So two runs of one seed differ by milliseconds, and a race that one of them has
//! lost another one may win: a seed that is asked for is run up to twenty times, until it fails. `MESH_SIM=partition:100..200`
//! runs other seeds than the usual ones, once each.

mod customers;
mod disk;
mod faults;
mod host;
mod story;
mod watch;

use std::ops::Range;

use faults::Scenario;
use mesh::telemetry::{LogFormat, install_logs};
use story::Outcome;

/// Of each scenario.
const SEEDS: Range<u64> = 0..17;
/// How often a single seed is run.
const REPLAYS: usize = 20;
/// `scenario:seed` or `scenario:from..to`.
const VARIABLE: &str = "MESH_SIM";

/// The usual seeds, or what the environment says: then the other scenarios have none.
fn seeds(scenario: Scenario) -> Vec<u64> {
    let Ok(wanted) = std::env::var(VARIABLE) else { return SEEDS.collect() };
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
    install_logs(std::env::var_os("RUST_LOG").map(|_| LogFormat::Text));
    let outcomes: Vec<_> = seeds(scenario).into_iter().map(|seed| story::told(scenario, seed)).collect();
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
    // Or it would say nothing that they are closed in the end.
    assert!(outcomes.is_empty() || outcomes.iter().any(|outcome| outcome.opened > 0), "no circuit has opened");
}

#[test]
fn retries_stay_in_their_budget_when_no_circuit_opens() {
    let outcomes = runs(Scenario::Unguarded);
    // Or the budget was never asked for more than it has.
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
