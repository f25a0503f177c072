//! A circuit breaker: stops calling what fails, and finds out carefully when it is well again.
//!
//! * **Closed**: every call is admitted. Failures in a row, a failure rate or a rate of slow calls over a window, or a rule of
//!   your own trip it.
//! * **Open**: every call is refused, with the time to come back, for a jittered time that grows with each relapse.
//! * **Half-open**: a few probes are let through. They close it or open it again. A probe has a lease: one that
//!   hangs is given up and counted as failed, and one that is cancelled gives its slot back, so that a breaker cannot stay
//!   half-open.
//!
//! Every change of state begins a new *generation*, and a permit remembers the one it was given in. What comes back from an
//! earlier generation is counted as stale and changes nothing: a slow success from before the trip must not close the circuit.
//!
//! # How it is fast
//!
//! State and generation are one atomic word, so admission in the closed state is one load. Results are counted on a shard per
//! thread ([`Sharded`](crate::shard::Sharded)) and only a failure or a slow call sums the shards. A breaker that trips on failures in a
//! row alone writes nothing at all while it is healthy, and reads no clock. The lock is for
//! changes of state, probes and operators.

mod breaker;
mod circuit;
mod config;
mod count_window;
mod event;
mod listeners;
mod machine;
mod overdue;
mod permit;
mod rules;
mod time_window;

pub use breaker::CircuitBreaker;
pub use config::{Builder, CloseRule, OnDrop, Window};
pub use event::{Cause, Counts, Event, Snapshot, State, Transition};
pub use permit::CircuitBreakerPermit;

/// 584 years are enough for everybody.
#[inline]
fn nanos(duration: std::time::Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(duration.subsec_nanos().into())
}

#[cfg(all(test, not(loom)))]
mod tests;
