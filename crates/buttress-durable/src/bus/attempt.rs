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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DomainEvent, Timestamp};

    /// Attempts a handler with a limit of 7 s.
    async fn attempted<F>(handler: impl Fn() -> F + Send + Sync + 'static) -> Option<(String, bool)>
    where
        F: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let event = DomainEvent::new("T", "k", Timestamp::default(), &()).unwrap();
        let topic = event.topic().to_owned();
        let delivery = Delivery { event, topic, partition: 0, offset: 0, attempt: 1, dead_letter: None };
        let handler = move |_: Delivery| handler();
        let error = attempt(&handler, delivery, Duration::from_secs(7)).await.err()?;
        Some((error.to_string(), error.is_reject()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_and_a_panic_may_be_retried_and_a_rejection_may_not() {
        let told = |message: &str, reject| Some((message.to_owned(), reject));
        assert_eq!(attempted(|| async { Ok(()) }).await, None);
        assert_eq!(attempted(|| async { Err(HandlerError::retry("later")) }).await, told("later", false));
        assert_eq!(attempted(|| async { Err(HandlerError::reject("never")) }).await, told("never", true));
        assert_eq!(attempted(std::future::pending).await, told("the handler timed out after 7s", false));
        let panics = || async { std::panic::resume_unwind(Box::new("a bug")) };
        assert_eq!(attempted(panics).await, told("the handler panicked", false));
        let early = || async {
            tokio::time::sleep(Duration::from_secs(6)).await;
            Ok(())
        };
        assert_eq!(attempted(early).await, None, "within the limit");
    }
}
