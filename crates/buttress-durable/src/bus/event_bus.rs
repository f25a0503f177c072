use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::handler::Handler;
use super::subscribe::{Subscribe, Subscription};
use crate::db::DbError;
use crate::event::{DomainEvent, EventError};

/// A broker. Usable as `Arc<dyn EventBus>`, so that a service can choose one when it starts.
pub trait EventBus: fmt::Debug + Send + Sync + 'static {
    /// Publishes events, each to its topic under its key. When this returns `Ok`, the broker has them all; the events of
    /// one key keep the order of the slice, and come after those that were published before.
    ///
    /// # Errors
    ///
    /// After an error some of the events may have been published. Publishing them all again is right: consumers know an
    /// event by its id.
    fn publish<'a>(&'a self, events: &'a [DomainEvent]) -> BoxFuture<'a, Result<(), BusError>>;

    /// Joins a group and hands its events to `handler` until the subscription is dropped.
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

/// Why the broker did not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// Not now. The same call may succeed later.
    #[error("the bus is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Never: this event cannot be published, however often one tries.
    #[error("the bus refuses event {event_id}: {reason}")]
    Refused {
        /// Which event of the slice.
        event_id: Uuid,
        /// What is wrong with it.
        reason: String,
    },
    /// The bus cannot be set up like this.
    #[error("invalid configuration of the bus: `{option}` {rule}")]
    Config {
        /// The option, as it is set.
        option: String,
        /// The rule that its value breaks.
        rule: String,
    },
    /// There is no such thing, for example a dead letter that was never there.
    #[error("there is no {0}")]
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
