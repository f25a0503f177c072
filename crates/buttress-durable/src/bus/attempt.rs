//! One attempt at one event, on whichever bus.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::timeout;

use super::handler::{Delivery, Handler, HandlerError};

/// A panic is a failure like any other: the event is not handled, and the group goes on.
pub(super) async fn attempt(handler: &dyn Handler, delivery: Delivery, limit: Duration) -> Result<(), HandlerError> {
    let attempt = AssertUnwindSafe(async { timeout(limit, handler.handle(delivery)).await }).catch_unwind();
    match attempt.await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(HandlerError::retry(format!("the handler took longer than {limit:?}"))),
        Err(_) => Err(HandlerError::retry("the handler panicked")),
    }
}
