//! Repeats calls that failed, as far as that is safe and a budget allows.
//!
//! ```
//! use buttress::{Backoff, PlainExt, RetryBudget, RetryLayer};
//! use std::time::Duration;
//!
//! // One budget for each destination, shared by all that call it:
//! let budget = RetryBudget::builder().percent(10.0).build()?;
//! let layer = RetryLayer::new(3) // attempts, the first included
//!     .backoff(Backoff::full_jitter(Duration::from_millis(20), Duration::from_secs(2)))
//!     .budget(budget)
//!     .plain();
//! # let _ = layer;
//! # Ok::<(), buttress::InvalidConfig>(())
//! ```
//!
//! # What is repeated
//!
//! After each attempt, in this order:
//!
//! 1. a success, or a rejection by a layer of this family, is the answer;
//! 2. a failure whose backend forbade another attempt is the answer;
//! 3. a request that the transport handed back before the backend looked at it (`REFUSED_STREAM`, a
//!    GOAWAY, a connection that closed before a byte was written, or gave the request up before it
//!    took anything of its body) is repeated at once, once, and does not count as an attempt;
//! 4. a request that was never sent, because there was no connection, is repeated up to two times
//!    and does not count either;
//! 5. the failure of the last attempt is the answer;
//! 6. a request that may have been processed is repeated only if it is idempotent; one that the
//!    backend says it did not process always;
//! 7. the pause is drawn from the backoff (from one second up when the backend sheds load) and is
//!    at least as long as the backend asked for. A failure that asks for more than
//!    [`max_hint`](RetryLayer::max_hint) is the answer;
//! 8. a retry of a request that was sent is withdrawn from the budget, or the failure is the
//!    answer;
//! 9. a request whose body cannot be replayed is not repeated. What was withdrawn goes back.
//!
//! # Where it belongs
//!
//! Inside the total timeout, outside breaker, bulkhead and attempt timeout: each attempt is a sample, and
//! nothing is held during the pauses.
//!
//! # Differences
//!
//! * `tower`'s `Retry` asks you for a policy, has no pauses, and its budget rounds and can be overdrawn.
//! * `tower-resilience` deposits a whole retry for each success, knows no `Retry-After`, and clones requests it will never repeat.

mod layer;
mod service;

pub use buttress_core::retry_budget::Withdrawal;
pub use layer::{RetryLayer, RetryStats};
pub use service::Retry;

use crate::clock::TokioClock;
use buttress_core::retry_budget as core;

/// The future of a service that retries.
pub mod future {
    pub use super::service::ResponseFuture;
}

/// A budget that keeps retries a share of the traffic. A cheap handle; clones share it. Its time is
/// tokio's.
pub type RetryBudget = core::RetryBudget<TokioClock>;

/// Builds a [`RetryBudget`].
pub type Builder = core::Builder<TokioClock>;
