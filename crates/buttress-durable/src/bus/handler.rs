use std::error::Error;
use std::fmt;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::dead_letter::DeadLetter;
use crate::event::DomainEvent;
use crate::unavailable;

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

/// A handler's failure, and what it says about the event.
///
/// Every error converts into one, so that `?` works in a handler. The conversion looks at the whole
/// chain of sources: it is [unavailable](Self::unavailable) if the cause is a database or a bus
/// that is away, a transaction that lost against a concurrent one, or a call that a layer of the
/// crate `buttress` rejected before it was sent, such as an open circuit. Any other error may be
/// [retried](Self::retry).
///
/// | kind | attempts | afterwards |
/// |---|---|---|
/// | [`retry`](Self::retry) | one is used up | next attempt after the [backoff](super::Subscribe::backoff), after the last one a dead letter |
/// | [`reject`](Self::reject) | one is used up | a dead letter |
/// | [`unavailable`](Self::unavailable) | none | the partition pauses and tries again, without a limit |
/// | [`postpone`](Self::postpone) | none | the partition pauses and tries again, until the [patience](super::Subscribe::patience) is over; then a dead letter |
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
///
/// let busy = buttress_durable::DbError::Busy(std::time::Duration::from_secs(5));
/// assert!(HandlerError::from(busy).is_unavailable());
/// ```
pub struct HandlerError {
    source: Box<dyn Error + Send + Sync>,
    kind: Kind,
}

/// What a failure says about the event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Retry,
    Reject,
    /// Nothing: infrastructure is away. May name the time until another attempt makes sense.
    Unavailable {
        after: Option<Duration>,
    },
    /// This version cannot handle it, and a later one can.
    Postponed,
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
        Self { source: error.into(), kind: Kind::Retry }
    }

    /// A permanent failure: the event goes to the dead-letter topic without further attempts.
    pub fn reject(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: error.into(), kind: Kind::Reject }
    }

    /// A failure of infrastructure, which says nothing about the event: the partition pauses until
    /// the infrastructure is back, and no attempt is used up. Pauses are 100 ms to 10 s, with equal
    /// jitter.
    pub fn unavailable(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: error.into(), kind: Kind::Unavailable { after: None } }
    }

    /// The event is of a version that this program does not know, but a later one does: the
    /// partition pauses until a program that knows it takes the partition over.
    pub fn postpone(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: error.into(), kind: Kind::Postponed }
    }

    /// Sets the pause after an [unavailable](Self::unavailable) failure, at most 60 s. Has no
    /// effect on other kinds.
    #[must_use]
    pub fn after(mut self, pause: Duration) -> Self {
        if let Kind::Unavailable { after } = &mut self.kind {
            *after = Some(pause);
        }
        self
    }

    /// Whether the failure is permanent.
    pub fn is_reject(&self) -> bool {
        self.kind == Kind::Reject
    }

    /// Whether infrastructure is away, and the event uses up no attempt.
    pub fn is_unavailable(&self) -> bool {
        matches!(self.kind, Kind::Unavailable { .. })
    }

    /// Whether the event waits for a later version of this program.
    pub fn is_postponed(&self) -> bool {
        self.kind == Kind::Postponed
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerError").field("source", &self.source).field("kind", &self.kind).finish()
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::text::Chain(&*self.source).fmt(f)
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let kind = if unavailable::is_unavailable(&error) {
            Kind::Unavailable { after: unavailable::retry_after(&error) }
        } else {
            Kind::Retry
        };
        Self { source: Box::new(error), kind }
    }
}
