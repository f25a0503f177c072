//! Memory of policies that exist once for each key, measured as resident pages of a process with
//! many of them. One test, because tests of one process share its memory. Linux only.
#![cfg(target_os = "linux")]

use buttress::{
    Bulkhead, CircuitBreaker, RetryBudget,
    keyed::Keyed,
    outcome::Outcome,
    policy::{Permit, Policy},
};
use buttress_core::shard::compact;

const MANY: usize = 20_000;

/// Returns the resident memory of this process in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Returns the bytes that each of many values takes.
fn each<T>(make: impl Fn() -> T) -> usize {
    let before = resident();
    let many: Vec<_> = (0..MANY).map(|_| compact(&make)).collect();
    let each = (resident() - before) / MANY;
    // Leaked: the next measurement would reuse freed pages.
    std::mem::forget(many);
    each
}

#[test]
fn policies_of_a_keyed_policy_are_small() {
    let bulkhead = each(|| Bulkhead::new(1));
    assert!(bulkhead <= 512, "a bulkhead takes {bulkhead} bytes");
    let budget = each(RetryBudget::new);
    assert!(budget <= 256, "a budget takes {budget} bytes");

    let circuits = Keyed::builder(|key: &usize| *key, |_: &usize| CircuitBreaker::new("tenant"));
    let circuits = circuits.max_keys(MANY).build().unwrap();
    let before = resident();
    for key in 0..MANY {
        circuits.admit(&key).unwrap().settle(&Outcome::Success);
    }
    let circuit = (resident() - before) / MANY;
    assert!(circuit < 1500, "a key with a closed circuit takes {circuit} bytes: more than 150 MB for 100,000 keys");
}
