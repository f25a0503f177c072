use std::error::Error;
use std::fmt;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::dead_letter::DeadLetter;
use crate::event::DomainEvent;

/// Processes the events of a group.
///
/// Implemented for every `Fn(Delivery) -> impl Future<Output = Result<(), HandlerError>>`. An event
/// may be delivered more than once, so a handler must be idempotent. An [`Inbox`](crate::Inbox)
/// makes its database writes idempotent.
///
/// ```
/// use buttress_durable::bus::{Delivery, Handler, HandlerError};
///
/// fn handler() -> impl Handler {
///     |delivery: Delivery| async move {
///         let cents: i64 = delivery.event.decode().map_err(HandlerError::reject)?;
///         println!("{} costs {cents} cents", delivery.event.key());
///         Ok(())
///     }
/// }
/// ```
pub trait Handler: Send + Sync + 'static {
    /// Handles one event. Only `Ok` acknowledges it.
    fn handle(&self, delivery: Delivery) -> BoxFuture<'_, Result<(), HandlerError>>;
}

/// An event as a handler receives it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Delivery {
    /// The event.
    pub event: DomainEvent,
    /// The topic it was published to: the event's type, except on a dead-letter topic.
    pub topic: String,
    /// The partition of the topic.
    pub partition: i64,
    /// The position in the partition. It grows with each event; on the embedded log without gaps.
    pub offset: i64,
    /// Number of this attempt, beginning with 1. Counted across restarts.
    pub attempt: u32,
    /// On a dead-letter topic: where and why the event failed before.
    pub dead_letter: Option<DeadLetter>,
}

/// A handler's failure. Every error converts into a retriable one, so that `?` works in a handler.
///
/// It does not implement [`Error`], because that would conflict with the conversion.
///
/// ```
/// use buttress_durable::bus::HandlerError;
///
/// fn parse(text: &str) -> Result<i64, HandlerError> {
///     Ok(text.parse::<i64>()?)
/// }
///
/// assert!(parse("7").is_ok());
/// assert!(parse("seven").is_err_and(|error| !error.is_reject()));
/// assert!(HandlerError::reject("unknown currency").is_reject());
/// ```
pub struct HandlerError {
    source: Box<dyn Error + Send + Sync>,
    reject: bool,
}

// === impl Handler ===

impl<F, Fut> Handler for F
where
    F: Fn(Delivery) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    fn handle(&self, delivery: Delivery) -> BoxFuture<'_, Result<(), HandlerError>> {
        self(delivery).boxed()
    }
}

// === impl HandlerError ===

impl HandlerError {
    /// A failure that another attempt may overcome.
    pub fn retry(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: error.into(), reject: false }
    }

    /// A permanent failure: the event goes to the dead-letter topic without further attempts.
    pub fn reject(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: error.into(), reject: true }
    }

    /// Whether the failure is permanent.
    pub fn is_reject(&self) -> bool {
        self.reject
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerError").field("source", &self.source).field("reject", &self.reject).finish()
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::text::Chain(&*self.source).fmt(f)
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::retry(error)
    }
}
