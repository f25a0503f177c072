//! A circuit breaker: stops calling a backend that fails, and probes it until it has recovered.
//!
//! # States
//!
//! * **Closed**: every call is admitted. The circuit trips on a streak of failures, a failure rate,
//!   a rate of slow calls in a window, or a custom rule. By default, a streak and a failure rate
//!   trip it only if chance does not explain them: see [`FailureStreak`] and [`FailureRate`].
//! * **Open**: every call is rejected, with the time after which to retry. The open time has jitter
//!   and doubles each time the probes fail.
//! * **Half-open**: a limited number of calls is admitted as probes, and the other calls are
//!   rejected. Only the results of probes close the circuit or open it again. A probe has a lease,
//!   which the parts of its response renew. If the lease expires, the probe counts as failed. A
//!   probe that is cancelled releases its slot.
//!
//! An operator can also set a circuit to forced-open, disabled or metrics-only: see [`State`].
//!
//! Every change of state begins a new *generation*, and a permit contains the generation in which
//! it was issued. A result of an earlier generation is counted as stale and changes nothing:
//! otherwise, a slow success from before the trip could close the circuit.
//!
//! ```
//! use buttress_core::circuit_breaker::{CircuitBreaker, State};
//! use buttress_core::{Failure, FailureKind, ManualClock, Outcome, Permit, Policy};
//! use std::time::Duration;
//!
//! let clock = ManualClock::new();
//! let breaker = CircuitBreaker::<ManualClock>::builder("payments")
//!     .consecutive_failures(3)
//!     .open_time(Duration::from_secs(5)..=Duration::from_secs(30))
//!     .probes(1)
//!     .clock(clock.clone())
//!     .build()?;
//! let call = |outcome: Outcome| breaker.admit("a request").map(|mut permit| permit.settle(&outcome));
//!
//! for _ in 0..3 {
//!     call(Failure::new(FailureKind::Http(503)).into())?;
//! }
//! assert_eq!(breaker.state(), State::Open);
//! assert!(call(Outcome::Success).is_err());
//!
//! clock.advance(Duration::from_secs(5));
//! call(Outcome::Success)?; // a probe
//! assert_eq!(breaker.state(), State::Closed);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Performance
//!
//! State and generation are one atomic word, and a load of it decides whether a closed circuit
//! admits a call. A permit is counted per shard of threads ([`Sharded`](crate::shard::Sharded)),
//! and so are successes in a time window. Failures and slow calls are counted in one place, and
//! the shards are summed only if these are enough to meet a rule. A breaker whose only rule is a
//! fixed number of consecutive failures counts no successes and reads no clock while calls succeed.
//!
//! A call that a closed circuit admits, and that succeeds, takes no lock, unless a listener of
//! events is called for it. A lock is taken for changes of state, for probes, for the calls of
//! listeners, and by methods that read or set the state.
//!
//! # Clocks that are set back
//!
//! Time should not go back. If a clock is set back by up to two hours, the calls that are being
//! timed count as shorter, open times and leases are moved back with the clock, and windows and
//! recovery ramps start again.

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
mod probes;
mod ramp;
mod reload;
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

use crate::timeline::nanos;
use crate::{Class, Reason};

/// The circuit is open, so the call was rejected.
pub static OPEN: Reason = Reason::new("circuit_open", "open", Class::Unavailable);
/// The circuit is half-open, and either all its probes are in flight, or the request may not be a
/// probe.
pub static PROBES_EXHAUSTED: Reason =
    Reason::new("probes_exhausted", "half-open, all probes are in flight", Class::Unavailable);
/// The circuit has closed recently and admits only a share of the calls, which grows with time. See
/// [`Builder::recovery_ramp`].
pub static RECOVERING: Reason =
    Reason::new("recovering", "recovering, only a share of the calls is let through", Class::Unavailable);
/// An operator has opened the circuit: see [`CircuitBreaker::force_open`].
pub static FORCED_OPEN: Reason = Reason::new("forced_open", "forced open by an operator", Class::Unavailable);

#[cfg(all(test, not(loom)))]
mod tests;
