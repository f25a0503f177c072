//! Repeats failed calls, within a budget.
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
//! The ending says which failures are safe to repeat. Those of HTTP and gRPC look at the request,
//! the response and the error. [`.plain()`](crate::ending::Plain) cannot: it takes every request
//! for idempotent, and every error that is not a rejection for a failure, so it repeats all of
//! them.
//!
//! After each attempt these rules apply in order. *Return* means that the result of the attempt is
//! the result of the call. A call that may make a single attempt returns in any case.
//!
//! 1. A success, or a rejection by a layer of this crate: return. An attempt that timed out is a
//!    failure here.
//! 2. A failure for which the backend forbids a retry, and one that a service below has repeated
//!    already ([below](#tiers)): return.
//! 3. A request that the transport returned before the backend processed it (`REFUSED_STREAM`, a
//!    GOAWAY, a connection that closed before a byte was written, or ended the request before it
//!    took anything of its body): repeat at once, but only once. The attempt does not count.
//! 4. A request that was never sent, because there was no connection: repeat up to two times. The
//!    attempts do not count.
//! 5. The failure of the last attempt: return.
//! 6. A request that may have been processed: return, unless it is idempotent. A request that the
//!    backend reports as not processed is repeated in any case.
//! 7. A failure that asks for a pause above [`max_hint`](RetryLayer::max_hint): return. Otherwise
//!    the pause is drawn from the backoff; where the backend sheds load, it is the longer one of
//!    that and of a pause with a base of 1 s. It is at least as long as the backend asks for. A
//!    gRPC pushback is the exact pause (gRFC A6).
//! 8. A pause after which the [deadline](buttress_core::context::CallContext::deadline) of the call
//!    leaves less than [`min_useful`](RetryLayer::min_useful) for an attempt: return. This also
//!    applies to rules 3 and 4.
//! 9. A retry of a request that was sent is withdrawn from the budget. If the budget is empty:
//!    return.
//! 10. A request whose body cannot be replayed: return. The withdrawal is undone. This also applies
//!     to rule 3.
//!
//! # Tiers
//!
//! A failure that this layer has repeated in vain, or could not repeat because the budget was
//! empty, says so: over HTTP and gRPC in the header `x-buttress-retried`, with the number of
//! retries, and for a handler that turns it into a response of its own through the
//! [context](crate::context#retries-over-tiers) of its call. A retry layer above, in this process
//! or in another one, does not repeat it once more. So only the lowest caller of a failing service
//! repeats its calls, and the attempts of several tiers do not multiply. The mark can only lead to
//! fewer retries, so it is taken from any sender.
//!
//! A request that is itself a retry of a caller adds nothing to the budget.
//!
//! # Where it belongs
//!
//! Inside the total timeout; outside breaker, bulkhead and attempt timeout. Then each attempt is a
//! sample for the breaker, and a call holds nothing during the pauses.
//!
//! # Differences
//!
//! * `tower`'s `Retry` needs a policy of yours, which also makes the pauses; `tower` has backoffs
//!   for them. Its `TpsBudget` rounds, and calls that withdraw at the same time can overdraw it.
//! * `tower-resilience` (0.14.0) has no budget by default. Its budgets deposit a whole retry for
//!   each success, unless the AIMD budget is told to withdraw more for a retry. It knows nothing of
//!   HTTP, so it does not see `Retry-After`. It clones the request for each attempt, the last one
//!   included.

mod layer;
mod service;

pub use buttress_core::retry_budget::{CallInFlight, RetryInFlight, Withdrawal};
pub use layer::{RetryLayer, RetryStats};
pub use service::Retry;

use crate::clock::TokioClock;
use buttress_core::{context::CallContext, retry_budget as core};

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

/// Adds a call to the budget, and counts it as in flight until the guard is dropped. A call that is
/// made for one that a caller repeats adds nothing.
#[inline]
pub(crate) fn enter(budget: &RetryBudget) -> Option<CallInFlight> {
    if CallContext::current().is_repeated {
        return None;
    }
    budget.deposit();
    budget.call_in_flight()
}
