//! Memory per policy: the growth of the process while many instances are created, divided by their
//! number.

use std::fs;
use std::hint::black_box;

use buttress::keyed::Keyed;
use buttress::{Bulkhead, CircuitBreaker, RetryBudget, policy::Policy};
use buttress_core::shard::compact;
use serde::Serialize;

use crate::subject::Kind;

/// A row: bytes per instance.
#[derive(Debug, Serialize)]
pub(crate) struct Memory {
    pub(crate) subject: &'static str,
    pub(crate) kind: Kind,
    pub(crate) bytes: u64,
}

/// Measures all policies. Empty on systems without `/proc`, that is, other than Linux.
pub(crate) fn rows() -> Vec<Memory> {
    const KEYS: u32 = 100_000;
    let keyed_breaker = || {
        let keyed = Keyed::builder(|key: &u32| *key, |_: &u32| CircuitBreaker::new("backend"));
        let keyed = keyed.max_keys(KEYS as usize).build().expect("a valid number of keys");
        (0..KEYS).for_each(|key| drop(keyed.admit(&key)));
        keyed
    };
    let keyed_bulkhead = || {
        let keyed = Keyed::builder(|key: &u32| *key, |_: &u32| Bulkhead::new(10));
        let keyed = keyed.max_keys(KEYS as usize).build().expect("a valid number of keys");
        (0..KEYS).for_each(|key| drop(keyed.admit(&key)));
        keyed
    };
    fn many<T>(n: u32, make: impl Fn() -> T) -> Vec<T> {
        (0..n).map(|_| make()).collect()
    }
    [
        ("buttress/keyed(breaker)", bytes(KEYS, keyed_breaker)),
        ("buttress/keyed(bulkhead)", bytes(KEYS, keyed_bulkhead)),
        (
            "buttress/circuit_breaker(compact)",
            bytes(20_000, || many(20_000, || compact(|| CircuitBreaker::new("backend")))),
        ),
        ("buttress/bulkhead(compact)", bytes(20_000, || many(20_000, || compact(|| Bulkhead::new(10))))),
        ("buttress/retry_budget(compact)", bytes(20_000, || many(20_000, || compact(RetryBudget::new)))),
        ("buttress/circuit_breaker", bytes(2_000, || many(2_000, || CircuitBreaker::new("backend")))),
        ("buttress/bulkhead", bytes(2_000, || many(2_000, || Bulkhead::new(10)))),
        ("buttress/retry_budget", bytes(2_000, || many(2_000, RetryBudget::new))),
    ]
    .into_iter()
    .filter_map(|(subject, bytes)| Some(Memory { subject, kind: Kind::Ours, bytes: bytes? }))
    .collect()
}

fn bytes<T>(instances: u32, make: impl Fn() -> T) -> Option<u64> {
    let before = resident()?;
    let made = black_box(make());
    let after = resident()?;
    // Not freed: the next instances would reuse the memory and appear smaller than they are.
    std::mem::forget(made);
    Some(after.saturating_sub(before) / u64::from(instances))
}

/// The resident set size of this process, in bytes.
fn resident() -> Option<u64> {
    const PAGE: u64 = 4096;
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    statm.split(' ').nth(1)?.parse::<u64>().ok().map(|pages| pages * PAGE)
}
