//! A circuit breaker: stops calling what fails, and finds out carefully when it is well again.
//!
//! * **Closed**: every call is admitted. A streak of failures, a failure rate, a rate of slow calls
//!   over a window, or a custom rule trips it. By default, the streak and the failure rate trip it
//!   only when chance does not explain them: see [`FailureStreak`] and [`FailureRate`].
//! * **Open**: every call is refused, with the time to come back, for a jittered time that grows
//!   with each relapse.
//! * **Half-open**: a few probes are let through. They close it or open it again, and nothing else
//!   does: a backend that is called once in ten minutes closes its circuit with the second call. A
//!   probe has a lease, which every part of its response renews: one that hangs is given up and
//!   counted as failed, and one that is cancelled gives its slot back.
//!
//! Every change of state begins a new *generation*, and a permit remembers the one it was given in.
//! What comes back from an earlier generation is counted as stale and changes nothing: a slow
//! success from before the trip must not close the circuit.
//!
//! # How it is fast
//!
//! State and generation are one atomic word, so admission in the closed state is one load.
//! Successes are counted on a shard per thread ([`Sharded`](crate::shard::Sharded)), and failures
//! and slow calls in one place, so that the shards are summed only when those are enough to meet a
//! rule. A breaker that trips on a fixed number of failures in a row alone writes nothing at all
//! while it is healthy, and reads no clock. The lock is for changes of state, probes and operators.
//!
//! # Clocks
//!
//! Time is expected not to go back. Where it does, by up to two hours, what is timed is taken for
//! shorter, and open times, leases and windows begin again at the new time.

mod admission;
mod breaker;
mod builder;
mod circuit;
mod config;
mod count_window;
mod event;
mod listeners;
mod log;
mod machine;
mod overdue;
mod permit;
mod ramp;
mod report;
mod round;
mod rules;
mod settings;
mod streak;
mod ticks;
mod time_window;
mod window;

pub use breaker::CircuitBreaker;
pub use builder::Builder;
pub use event::{Cause, Counts, Event, Snapshot, State, Transition};
pub use permit::CircuitBreakerPermit;
pub use report::METRICS;
pub use settings::{CallTime, CloseRule, FailureRate, FailureStreak, OnDrop, Window};

use crate::{Class, Reason};

/// The circuit is open.
pub static OPEN: Reason = Reason::new("circuit_open", "open", Class::Unavailable);
/// The circuit is half-open and all its probes are in flight, or this request may not be a probe.
pub static PROBES_EXHAUSTED: Reason =
    Reason::new("probes_exhausted", "half-open, all probes are in flight", Class::Unavailable);
/// The circuit has just closed, and admits a growing share of the calls.
pub static RECOVERING: Reason =
    Reason::new("recovering", "recovering, only a share of the calls is let through", Class::Unavailable);
/// An operator opened the circuit.
pub static FORCED_OPEN: Reason = Reason::new("forced_open", "forced open by an operator", Class::Unavailable);

/// As many as fit: 584 years.
#[inline]
fn nanos(duration: std::time::Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(duration.subsec_nanos().into())
}

#[cfg(all(test, not(loom)))]
mod tests;
