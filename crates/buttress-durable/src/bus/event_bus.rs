use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::handler::Handler;
use super::subscribe::{Subscribe, Subscription};
use crate::db::DbError;
use crate::event::{DomainEvent, EventError};

/// A message broker: publishes events and delivers them to consumer groups.
///
/// It is object-safe, so that a service can choose the broker at start-up and hold it as `Arc<dyn
/// EventBus>`:
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// use buttress_durable::bus::{EventBus, LogBus};
/// use buttress_durable::{Db, DomainEvent};
/// use std::sync::Arc;
///
/// # let dir = tempfile::tempdir()?;
/// # let db = Db::open(dir.path().join("bus.db")).await?;
/// # let now = db.clock().now();
/// let bus: Arc<dyn EventBus> = Arc::new(LogBus::new(db));
/// bus.publish(&[DomainEvent::new("OrderConfirmed", "order-7", now, &())?]).await?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait EventBus: fmt::Debug + Send + Sync + 'static {
    /// Publishes events, each to the topic and under the key that it names.
    ///
    /// Returns `Ok` once the broker has stored all of them. Events of one key keep the order of the
    /// slice, and follow the events of that key that were published before.
    ///
    /// # Errors
    ///
    /// After an error some of the events may have been published. It is safe to publish the whole
    /// slice again: consumers recognise an event by its id.
    fn publish<'a>(&'a self, events: &'a [DomainEvent]) -> BoxFuture<'a, Result<(), BusError>>;

    /// Joins a consumer group and passes its events to `handler` until the subscription is dropped.
    ///
    /// # Errors
    ///
    /// If the broker cannot be reached now. Later failures are retried.
    fn subscribe(
        &self,
        subscribe: Subscribe,
        handler: Arc<dyn Handler>,
    ) -> BoxFuture<'_, Result<Subscription, BusError>>;
}

/// A broker operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// A temporary failure. The same call may succeed later.
    #[error("the bus is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The broker rejects this event permanently.
    #[error("the bus rejected event {event_id}: {reason}")]
    Refused {
        /// Id of the rejected event.
        event_id: Uuid,
        /// Why it was rejected.
        reason: String,
    },
    /// The bus is configured wrongly.
    #[error("invalid configuration of the bus: `{option}` {rule}")]
    Config {
        /// Name of the option.
        option: String,
        /// The rule that its value violates.
        rule: String,
    },
    /// The object does not exist, for example a dead letter.
    #[error("not found: {0}")]
    Unknown(String),
}

impl From<DbError> for BusError {
    fn from(error: DbError) -> Self {
        Self::Unavailable(Box::new(error))
    }
}

impl From<sqlx::Error> for BusError {
    fn from(error: sqlx::Error) -> Self {
        DbError::from(error).into()
    }
}

impl BusError {
    pub(super) fn refused(event: &DomainEvent, error: &EventError) -> Self {
        Self::Refused { event_id: event.event_id(), reason: error.to_string() }
    }
}

impl<B: EventBus + ?Sized> EventBus for Arc<B> {
    fn publish<'a>(&'a self, events: &'a [DomainEvent]) -> BoxFuture<'a, Result<(), BusError>> {
        (**self).publish(events)
    }

    fn subscribe(
        &self,
        subscribe: Subscribe,
        handler: Arc<dyn Handler>,
    ) -> BoxFuture<'_, Result<Subscription, BusError>> {
        (**self).subscribe(subscribe, handler)
    }
}
