//! The sans-IO half of Buttress: the algorithms behind its Tower layers, and the words they share.
//!
//! Nothing in here knows tokio, tower, http, or a clock of its own. Time is an argument ([`Clock`], and a plain
//! [`Instant`](std::time::Instant) is one), randomness is seeded, and every algorithm can be stepped by hand in a test. The crate
//! `buttress` puts these algorithms behind Tower layers of the same names.
//!
//! Three questions are asked of every protective policy, and each has one answer here:
//!
//! * may this call start? — [`Policy`] and [`Admit`] return a [`Permit`] or a [`Rejection`];
//! * what became of it? — an [`Outcome`];
//! * what does that teach us? — [`Permit::settle`].
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod admit;
pub mod backoff;
pub mod bulkhead;
pub mod circuit_breaker;
mod clock;
mod config;
pub mod health;
#[cfg(all(test, loom))]
mod loom_models;
pub mod outcome;
mod rejection;
pub mod retry_budget;
pub mod shard;
mod sync;

pub use admit::{Admit, Permit, Policy, Progress, Refused, Waiters};
pub use backoff::Backoff;
pub use bulkhead::Bulkhead;
pub use circuit_breaker::CircuitBreaker;
pub use clock::Clock;
pub use config::{InvalidConfig, Ratio};
pub use health::Health;
pub use outcome::{Failure, FailureKind, Ignored, Outcome, Sent};
pub use rejection::{Label, Name, Reason, Rejection, TimeoutKind};
pub use retry_budget::RetryBudget;

#[cfg(test)]
mod testing {
    /// Some moment to count from. Tests add to it; none of them waits.
    #[allow(clippy::disallowed_methods, reason = "an Instant can only be made by reading the clock once")]
    pub(crate) fn start() -> std::time::Instant {
        std::time::Instant::now()
    }
}
