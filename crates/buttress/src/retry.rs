//! Repeats failed calls, where that is safe and a budget allows it.
//!
//! ```
//! use buttress::{Backoff, PlainExt, RetryBudget, RetryLayer};
//! use std::time::Duration;
//!
//! // One budget for each destination, shared by all its callers:
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
//! After each attempt these rules apply in order. *Return* means that the result of the attempt is
//! the result of the call.
//!
//! 1. A success, or a rejection by a layer of this crate: return. An attempt that timed out is a
//!    failure here.
//! 2. A failure for which the backend forbids a retry: return.
//! 3. A request that the transport returned before the backend processed it (`REFUSED_STREAM`, a
//!    GOAWAY, a connection that closed before a byte was written, or ended the request before it
//!    took anything of its body): repeat at once, but only once. The attempt does not count.
//! 4. A request that was never sent, because there was no connection: repeat up to two times. The
//!    attempts do not count.
//! 5. The failure of the last attempt: return.
//! 6. A request that may have been processed: return, unless it is idempotent. A request that the
//!    backend reports as not processed is repeated in any case.
//! 7. The pause is drawn from the backoff, from 1 s on when the backend sheds load, and is at least
//!    as long as the backend asks for. A gRPC pushback is the exact pause (gRFC A6). A failure that
//!    asks for more than [`max_hint`](RetryLayer::max_hint): return.
//! 8. A retry of a request that was sent is withdrawn from the budget. If the budget is empty:
//!    return.
//! 9. A request whose body cannot be replayed: return. The withdrawal is undone.
//!
//! # Where it belongs
//!
//! Inside the total timeout; outside breaker, bulkhead and attempt timeout. Then each attempt is a
//! sample for the breaker, and a call holds nothing during the pauses.
//!
//! # Differences
//!
//! * `tower`'s `Retry` needs a custom policy and has no pauses. Its budget rounds and can be
//!   overdrawn.
//! * `tower-resilience` deposits a whole retry for each success, ignores `Retry-After`, and clones
//!   requests that it never repeats.

mod layer;
mod service;

pub use buttress_core::retry_budget::Withdrawal;
pub use layer::{RetryLayer, RetryStats};
pub use service::Retry;

use crate::clock::TokioClock;
use buttress_core::retry_budget as core;

/// The future of a [`Retry`].
pub mod future {
    pub use super::service::ResponseFuture;
}

/// A budget that limits retries to a share of the calls. A cheap handle; clones share it.
///
/// It uses tokio's clock.
pub type RetryBudget = core::RetryBudget<TokioClock>;

/// Builds a [`RetryBudget`].
pub type Builder = core::Builder<TokioClock>;
