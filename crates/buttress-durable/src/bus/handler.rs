use std::error::Error;
use std::fmt;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::dead_letter::DeadLetter;
use crate::event::DomainEvent;

/// What a group does with an event. Every `Fn(Delivery) -> impl Future<Output = Result<(), HandlerError>>` is one.
///
/// An event may come more than once: make the handler idempotent, most simply with an [`Inbox`](crate::Inbox).
pub trait Handler: Send + Sync + 'static {
    /// Handles one event. `Ok` acknowledges it; nothing else does.
    fn handle(&self, delivery: Delivery) -> BoxFuture<'_, Result<(), HandlerError>>;
}

/// An event on its way to a handler.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Delivery {
    /// What happened.
    pub event: DomainEvent,
    /// Where it was published. The event's type, except on a dead-letter topic.
    pub topic: String,
    /// The partition of the topic.
    pub partition: i64,
    /// The position in the partition. Later events have higher ones; on the embedded log there are no gaps.
    pub offset: i64,
    /// 1 for the first attempt. Counted across restarts.
    pub attempt: u32,
    /// On a dead-letter topic: where it failed, and why.
    pub dead_letter: Option<DeadLetter>,
}

/// A handler's failure. Every error converts into one that is worth another attempt, so `?` just works.
///
/// It is no [`Error`] itself, as that would forbid the conversion.
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
    /// Another attempt may succeed.
    pub fn retry(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: error.into(), reject: false }
    }

    /// No attempt will ever succeed: the event goes to the dead-letter topic at once.
    pub fn reject(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: error.into(), reject: true }
    }

    /// Whether the event goes to the dead-letter topic at once.
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
