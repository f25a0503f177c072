use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::dead_letter::DeadLettered;
use super::handler::Handler;
use super::lag::Lag;
use super::subscribe::{Subscribe, Subscription};
use crate::db::{DbError, DbErrorKind};
use crate::event::{DomainEvent, EventError};
use crate::unavailable;

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
    /// Publishes events, each to the topic and under the key that it names, and returns the result
    /// of each, in the order of the slice.
    ///
    /// `Ok` means that the broker has stored the event. Events of one topic and key keep the order
    /// of the slice, and follow those that were published before. So an event behind one that is
    /// [unavailable](BusError::Unavailable) is not published either, but
    /// [held back](BusError::HeldBack). Other topics and keys do not wait for it. An event that is
    /// [refused](BusError::Refused) holds nothing back.
    ///
    /// It is safe to publish an event with an error again: consumers recognise it by its id.
    ///
    /// ```
    /// # #[cfg(feature = "sqlite")]
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// use buttress_durable::bus::{EventBus, LogBus};
    /// use buttress_durable::{Db, DomainEvent};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let db = Db::open(dir.path().join("bus.db")).await?;
    /// # let now = db.clock().now();
    /// let bus = LogBus::new(db);
    /// let events = [DomainEvent::new("OrderConfirmed", "order-7", now, &())?];
    /// for (event, result) in events.iter().zip(bus.publish_each(&events).await) {
    ///     match result {
    ///         Ok(()) => println!("{} is stored", event.key()),
    ///         Err(error) => println!("{} is not: {error}", event.key()),
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn publish_each<'a>(&'a self, events: &'a [DomainEvent]) -> BoxFuture<'a, Vec<Result<(), BusError>>>;

    /// Publishes events, and returns `Ok` once the broker has stored all of them.
    ///
    /// # Errors
    ///
    /// The first error of [`publish_each`](Self::publish_each). Events of other keys may have been
    /// published.
    fn publish<'a>(&'a self, events: &'a [DomainEvent]) -> BoxFuture<'a, Result<(), BusError>> {
        async move { self.publish_each(events).await.into_iter().collect() }.boxed()
    }

    /// Joins a consumer group and passes its events to `handler` until the subscription is dropped.
    ///
    /// It returns at once: a member that cannot reach the broker keeps trying, and its
    /// [health](Subscription::health) shows it.
    ///
    /// # Errors
    ///
    /// If the subscription can never succeed, for example [`BusError::Config`].
    fn subscribe(
        &self,
        subscribe: Subscribe,
        handler: Arc<dyn Handler>,
    ) -> BoxFuture<'_, Result<Subscription, BusError>>;

    /// Lists the events of a topic that a group could not handle, oldest first, at most `limit`.
    /// Those that were redriven or discarded are not listed.
    ///
    /// ```
    /// # #[cfg(feature = "sqlite")]
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// use buttress_durable::bus::{EventBus, LogBus};
    /// # use buttress_durable::Db;
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let db = Db::open(dir.path().join("bus.db")).await?;
    /// # let bus = LogBus::new(db);
    /// for letter in bus.dead_letters("shipping", "OrderConfirmed", 100).await? {
    ///     println!("{}: {}", letter.cause.failed_at, letter.cause.error);
    ///     bus.redrive("shipping", "OrderConfirmed", letter.partition, letter.offset).await?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`BusError::Unavailable`] if the broker does not answer, [`BusError::Unsupported`] if it has
    /// no dead letters.
    fn dead_letters<'a>(
        &'a self,
        _group: &'a str,
        _topic: &'a str,
        _limit: u32,
    ) -> BoxFuture<'a, Result<Vec<DeadLettered>, BusError>> {
        unsupported("dead_letters")
    }

    /// Publishes a dead letter on its original topic for another attempt, and removes it from the
    /// list.
    ///
    /// Every group of the topic receives it; groups that have handled the event recognise it by
    /// their [`Inbox`](crate::Inbox).
    ///
    /// # Errors
    ///
    /// [`BusError::Unknown`] if there is no such letter, or no more, [`BusError::Unavailable`] if
    /// the broker does not answer.
    fn redrive<'a>(
        &'a self,
        _group: &'a str,
        _topic: &'a str,
        _partition: i64,
        _offset: i64,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        unsupported("redrive")
    }

    /// Removes a dead letter from the list without another attempt.
    ///
    /// # Errors
    ///
    /// Those of [`redrive`](Self::redrive).
    fn discard<'a>(
        &'a self,
        _group: &'a str,
        _topic: &'a str,
        _partition: i64,
        _offset: i64,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        unsupported("discard")
    }

    /// Returns how far a group has come in each partition of its topics, ordered by topic and
    /// partition. Empty for a group that has not committed anything yet.
    ///
    /// # Errors
    ///
    /// [`BusError::Unavailable`] if the broker does not answer.
    fn lag<'a>(&'a self, _group: &'a str) -> BoxFuture<'a, Result<Vec<Lag>, BusError>> {
        unsupported("lag")
    }
}

/// A broker operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// A temporary failure. The same call may succeed later.
    #[error("the bus is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Not tried, because an earlier event of its topic and key could not be published. The same
    /// call may succeed later.
    #[error("held back by an earlier event of its key")]
    HeldBack,
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
    /// The bus's database answered, and the operation failed: it rejects a value, a statement is
    /// wrong or took too long, or a row cannot be read. Another attempt most likely fails as well,
    /// so in a handler it counts as one.
    #[error("the bus failed")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The object does not exist, for example a dead letter.
    #[error("not found: {0}")]
    Unknown(String),
    /// The bus does not offer this operation.
    #[error("this bus does not support `{0}`")]
    Unsupported(&'static str),
}

fn unsupported<T: Send + 'static>(operation: &'static str) -> BoxFuture<'static, Result<T, BusError>> {
    std::future::ready(Err(BusError::Unsupported(operation))).boxed()
}

impl From<DbError> for BusError {
    /// [`Unavailable`](Self::Unavailable) if the database cannot serve now or the operation lost
    /// against a concurrent one, otherwise [`Failed`](Self::Failed).
    fn from(error: DbError) -> Self {
        Self::of_kind(error.kind(), Box::new(error))
    }
}

impl From<sqlx::Error> for BusError {
    fn from(error: sqlx::Error) -> Self {
        DbError::from(error).into()
    }
}

impl BusError {
    /// Returns how long to wait before another attempt, if the error says so: a rejection by a
    /// layer of the crate `buttress`, such as an open circuit, does.
    pub fn retry_after(&self) -> Option<Duration> {
        unavailable::retry_after(self)
    }

    /// The error of a database operation of this kind.
    pub(super) fn of_kind(kind: DbErrorKind, error: Box<dyn std::error::Error + Send + Sync>) -> Self {
        match kind {
            DbErrorKind::Unavailable | DbErrorKind::Conflict => Self::Unavailable(error),
            DbErrorKind::Timeout | DbErrorKind::Data | DbErrorKind::Other => Self::Failed(error),
        }
    }

    pub(super) fn refused(event: &DomainEvent, error: &EventError) -> Self {
        Self::Refused { event_id: event.event_id(), reason: error.to_string() }
    }
}

impl<B: EventBus + ?Sized> EventBus for Arc<B> {
    fn publish_each<'a>(&'a self, events: &'a [DomainEvent]) -> BoxFuture<'a, Vec<Result<(), BusError>>> {
        (**self).publish_each(events)
    }

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

    fn dead_letters<'a>(
        &'a self,
        group: &'a str,
        topic: &'a str,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<DeadLettered>, BusError>> {
        (**self).dead_letters(group, topic, limit)
    }

    fn redrive<'a>(
        &'a self,
        group: &'a str,
        topic: &'a str,
        partition: i64,
        offset: i64,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        (**self).redrive(group, topic, partition, offset)
    }

    fn discard<'a>(
        &'a self,
        group: &'a str,
        topic: &'a str,
        partition: i64,
        offset: i64,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        (**self).discard(group, topic, partition, offset)
    }

    fn lag<'a>(&'a self, group: &'a str) -> BoxFuture<'a, Result<Vec<Lag>, BusError>> {
        (**self).lag(group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_database_that_cannot_serve_makes_the_bus_unavailable() {
        let is_unavailable = |error: sqlx::Error| matches!(BusError::from(error), BusError::Unavailable(_));
        assert!(is_unavailable(sqlx::Error::PoolTimedOut));
        assert!(matches!(BusError::from(DbError::Busy(Duration::from_secs(5))), BusError::Unavailable(_)));
        let data = sqlx::Error::Encode("a NUL in a text".into());
        assert_eq!(DbError::kind_in(&data), Some(DbErrorKind::Data));
        assert!(!is_unavailable(data) && !is_unavailable(sqlx::Error::RowNotFound));
        let kinds = [
            (DbErrorKind::Unavailable, true),
            (DbErrorKind::Conflict, true),
            (DbErrorKind::Timeout, false),
            (DbErrorKind::Data, false),
            (DbErrorKind::Other, false),
        ];
        for (kind, unavailable) in kinds {
            let error = BusError::of_kind(kind, "an error".into());
            assert_eq!(matches!(error, BusError::Unavailable(_)), unavailable, "{kind:?}");
        }
    }
}
