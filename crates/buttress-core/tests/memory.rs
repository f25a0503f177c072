//! What a circuit costs in memory, by the pages that a process of many has. Linux only.
#![cfg(target_os = "linux")]

use buttress_core::{CircuitBreaker, Outcome, Permit, Policy, shard::compact};

const CIRCUITS: usize = 20_000;

/// The bytes that this process has in memory.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn a_closed_circuit_of_a_keyed_policy_takes_a_kilobyte() {
    #[allow(clippy::disallowed_methods, reason = "an Instant can only be made by reading the clock once")]
    let now = std::time::Instant::now();
    let before = resident();
    let circuits: Vec<_> = (0..CIRCUITS)
        .map(|_| {
            let breaker = compact(|| CircuitBreaker::new("host"));
            breaker.reserve(&now).unwrap().settle(&Outcome::Success, &now);
            breaker
        })
        .collect();
    let each = (resident() - before) / CIRCUITS;
    assert!(each < 1100, "{each} bytes each");
    drop(circuits);
}
