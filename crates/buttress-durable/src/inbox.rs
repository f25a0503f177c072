//! The inbox: handles an event once, however often it is delivered.
//!
//! The id of the event is inserted in the transaction of the handler's own writes. On a repeated
//! delivery the id exists already, and the handler does not run again. Effects of the handler
//! *outside* that transaction may still be repeated.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use uuid::Uuid;

use crate::bus::{Delivery, Handler, HandlerError};
use crate::clock::Timestamp;
use crate::db::database::args;
use crate::db::{Database, Db, DbError, Tx};
use crate::event::DomainEvent;
use crate::retention::{Bites, Delete};

/// The events that a consumer has handled.
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// use buttress_durable::bus::{EventBus, LogBus, Subscribe};
/// use buttress_durable::{Db, Inbox};
/// use futures_util::FutureExt;
/// use std::sync::Arc;
///
/// # let dir = tempfile::tempdir()?;
/// # let db = Db::open(dir.path().join("shipping.db")).await?;
/// # sqlx::query("CREATE TABLE parcels (order_id TEXT)").execute(db.pool()).await?;
/// # let bus = LogBus::new(db.clone());
/// let handler = Inbox::new(db.clone(), "shipping").handler(|tx, event| {
///     async move {
///         sqlx::query("INSERT INTO parcels (order_id) VALUES ($1)").bind(event.key()).execute(&mut **tx).await?;
///         Ok(())
///     }
///     .boxed()
/// });
/// let shipping = bus.subscribe(Subscribe::new("shipping", ["OrderConfirmed"])?, Arc::new(handler)).await?;
/// # shipping.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Inbox<D: Database> {
    db: Db<D>,
    consumer: Arc<str>,
}

/// A [`Handler`] that writes once for each event. See [`Inbox::handler`].
#[derive(Debug)]
pub struct InboxHandler<D: Database, F> {
    inbox: Inbox<D>,
    handle: F,
}

const PURGE: Delete = Delete {
    due: "SELECT event_id FROM buttress_inbox WHERE consumer = $1 AND handled_at < $2 LIMIT 1",
    statements: &["DELETE FROM buttress_inbox WHERE consumer = $1 AND event_id IN
         (SELECT event_id FROM buttress_inbox WHERE consumer = $1 AND handled_at < $2 ORDER BY handled_at LIMIT $3)"],
};

/// Deletes the ids of events that a consumer handled before a moment.
pub(crate) async fn purge<D: Database>(
    db: &Db<D>,
    consumer: &str,
    before: Timestamp,
    bites: &mut Bites,
) -> Result<u64, DbError> {
    bites.delete(db, &PURGE, args![consumer, before]).await
}

impl<D: Database> Inbox<D> {
    /// Creates the inbox of a consumer. Use the name of its group: two consumers with one name
    /// share what they have handled.
    pub fn new(db: Db<D>, consumer: impl Into<Arc<str>>) -> Self {
        Self { db, consumer: consumer.into() }
    }

    /// Marks an event as handled, in the caller's transaction. Returns false if it was handled
    /// before; then acknowledge it without any work.
    ///
    /// On PostgreSQL a second delivery waits here until the transaction of the first has ended.
    ///
    /// ```
    /// # #[cfg(feature = "sqlite")]
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// use buttress_durable::{Db, Inbox};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let db = Db::open(dir.path().join("shipping.db")).await?;
    /// # let event_id = uuid::Uuid::now_v7();
    /// let inbox = Inbox::new(db.clone(), "shipping");
    /// let mut tx = db.begin().await?;
    /// assert!(inbox.claim(&mut tx, event_id).await?);
    /// // The writes of the handler belong here.
    /// tx.commit().await?;
    ///
    /// let mut tx = db.begin().await?;
    /// assert!(!inbox.claim(&mut tx, event_id).await?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn claim(&self, conn: &mut D::Connection, event_id: Uuid) -> Result<bool, DbError> {
        let id = event_id.to_string();
        let rows = self
            .db
            .fetch(
                conn,
                "INSERT INTO buttress_inbox (consumer, event_id, handled_at) VALUES ($1, $2, $3)
                 ON CONFLICT (consumer, event_id) DO NOTHING RETURNING event_id",
                args![&*self.consumer, &id, self.db.now()],
            )
            .await?;
        Ok(!rows.is_empty())
    }

    /// Returns a handler that begins a transaction, claims the event, runs `handle` if it is new,
    /// and commits.
    pub fn handler<F>(self, handle: F) -> InboxHandler<D, F>
    where
        F: for<'a> Fn(&'a mut Tx<D>, &'a DomainEvent) -> BoxFuture<'a, Result<(), HandlerError>>,
        F: Send + Sync + 'static,
    {
        InboxHandler { inbox: self, handle }
    }

    /// Deletes the ids of events that were handled before a moment, in small transactions, and
    /// returns their number. [`Retention`](crate::Retention) does this in the background.
    ///
    /// Keep them for longer than a redelivery can take: the broker's retention, plus the time until
    /// a dead letter is redriven.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn purge(&self, before: Timestamp) -> Result<u64, DbError> {
        purge(&self.db, &self.consumer, before, &mut Bites::default()).await
    }
}

impl<D: Database> Clone for Inbox<D> {
    fn clone(&self) -> Self {
        Self { db: self.db.clone(), consumer: self.consumer.clone() }
    }
}

impl<D: Database, F> Handler for InboxHandler<D, F>
where
    F: for<'a> Fn(&'a mut Tx<D>, &'a DomainEvent) -> BoxFuture<'a, Result<(), HandlerError>>,
    F: Send + Sync + 'static,
{
    fn handle(&self, delivery: Delivery) -> BoxFuture<'_, Result<(), HandlerError>> {
        async move {
            let mut tx = self.inbox.db.begin().await?;
            if !self.inbox.claim(&mut tx, delivery.event.event_id()).await? {
                return Ok(());
            }
            (self.handle)(&mut tx, &delivery.event).await?;
            Ok(tx.commit().await?)
        }
        .boxed()
    }
}
