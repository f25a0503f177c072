//! The memory of a circuit, measured by the resident pages of a process with many. Linux only.
#![cfg(target_os = "linux")]

use buttress_core::{
    Clock, ManualClock, Outcome, Permit, Policy,
    circuit_breaker::{CircuitBreaker, CircuitBreakerPermit},
    shard::compact,
};
use std::{sync::LazyLock, time::Instant};

const CIRCUITS: usize = 20_000;

/// A clock of size zero, like the one used in production.
#[derive(Clone, Debug, Default)]
struct Still;

impl Clock for Still {
    fn now(&self) -> Instant {
        static NOW: LazyLock<Instant> = LazyLock::new(|| ManualClock::new().now());
        *NOW
    }
}

/// Returns the resident bytes of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn a_permit_with_a_clock_of_size_zero_is_two_words_long() {
    assert_eq!(size_of::<CircuitBreakerPermit<Still>>(), 2 * size_of::<usize>());
}

#[test]
fn a_closed_circuit_of_a_keyed_policy_takes_a_kilobyte() {
    let before = resident();
    let circuits: Vec<_> = (0..CIRCUITS)
        .map(|_| {
            let breaker = compact(|| CircuitBreaker::<Still>::new("host"));
            breaker.admit(&()).unwrap().settle(&Outcome::Success);
            breaker
        })
        .collect();
    let each = (resident() - before) / CIRCUITS;
    assert!(each < 1100, "{each} bytes each");
    drop(circuits);
}
