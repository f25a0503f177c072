//! Runs a handler once. Both buses use it.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::timeout;

use super::handler::{Delivery, Handler, HandlerError};

/// Calls the handler with a time limit. A panic and a timeout are failures that may be retried.
pub(super) async fn attempt(handler: &dyn Handler, delivery: Delivery, limit: Duration) -> Result<(), HandlerError> {
    let attempt = AssertUnwindSafe(async { timeout(limit, handler.handle(delivery)).await }).catch_unwind();
    match attempt.await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(HandlerError::retry(format!("the handler timed out after {limit:?}"))),
        Err(_) => Err(HandlerError::retry("the handler panicked")),
    }
}
