use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::db::database::args;
use crate::db::{Database, Db, DbError};
use crate::event::{DomainEvent, EventError};
use crate::hash::{bucket, fnv1a};
use crate::retention::{Bites, Delete};

/// Number of shards of the outbox. Fixed, because events of a key that moved to another shard could
/// overtake each other.
pub const SHARDS: u16 = 16;

/// Events that wait to be published. Clones share one outbox.
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// use buttress_durable::bus::LogBus;
/// use buttress_durable::{Db, DomainEvent, Outbox};
/// use std::sync::Arc;
///
/// # let dir = tempfile::tempdir()?;
/// # let db = Db::open(dir.path().join("orders.db")).await?;
/// # sqlx::query("CREATE TABLE orders (id TEXT PRIMARY KEY)").execute(db.pool()).await?;
/// let outbox = Outbox::new(db.clone());
/// let relay = outbox.relay(Arc::new(LogBus::new(db.clone())));
///
/// let mut tx = db.begin().await?;
/// sqlx::query("INSERT INTO orders (id) VALUES ($1)").bind("order-7").execute(&mut *tx).await?;
/// outbox.append(&mut tx, &DomainEvent::new("OrderCreated", "order-7", db.clock().now(), &())?).await?;
/// tx.commit().await?;
/// outbox.wake();
/// # relay.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Outbox<D: Database> {
    pub(super) db: Db<D>,
    pub(super) poll: Duration,
    pub(super) lease: Duration,
    written: Arc<watch::Sender<()>>,
}

/// An event could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// The database failed. Roll the transaction back.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The event cannot be serialised.
    #[error(transparent)]
    Event(#[from] EventError),
}

/// The number of events that wait.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Backlog {
    /// Events that are not published yet.
    pub unsent: u64,
    /// When the oldest of them was written.
    pub oldest: Option<Timestamp>,
    /// Events that the bus has rejected.
    pub parked: u64,
}

/// An event that the bus has rejected.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Parked {
    /// The id of the event.
    pub event_id: Uuid,
    /// The event. `None` if this version cannot decode it.
    pub event: Option<DomainEvent>,
    /// Why the bus rejected it, or why it cannot be decoded.
    pub reason: String,
}

const PURGE: Delete = Delete {
    due: "SELECT seq FROM buttress_outbox WHERE sent_at < $1 LIMIT 1",
    statements: &["DELETE FROM buttress_outbox WHERE seq IN
         (SELECT seq FROM buttress_outbox WHERE sent_at < $1 ORDER BY sent_at LIMIT $2)"],
};

/// Deletes events that were published before a moment.
pub(crate) async fn purge<D: Database>(db: &Db<D>, before: Timestamp, bites: &mut Bites) -> Result<u64, DbError> {
    bites.delete(db, &PURGE, args![before]).await
}

impl<D: Database> Outbox<D> {
    /// Creates an outbox in `db`, with a poll interval of 100 ms and, on SQLite, leases of 10 s.
    pub fn new(db: Db<D>) -> Self {
        let (written, _) = watch::channel(());
        Self { db, poll: Duration::from_millis(100), lease: Duration::from_secs(10), written: Arc::new(written) }
    }

    /// Sets how often the relay looks for events without being woken. Default: 100 ms; at least 1
    /// ms.
    #[must_use]
    pub fn with_poll(mut self, poll: Duration) -> Self {
        self.poll = poll.max(Duration::from_millis(1));
        self
    }

    /// Sets how long a crashed relay keeps others from publishing (SQLite only). Default: 10 s; at
    /// least 10 ms.
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(Duration::from_millis(10));
        self
    }

    /// Writes an event in the caller's transaction. It is idempotent by the event's id.
    ///
    /// `conn` must be in a transaction, otherwise the order of the key is not kept. On PostgreSQL
    /// the key is locked until that transaction ends: append last, and several keys always in the
    /// same order, otherwise two transactions may deadlock and the server aborts one.
    ///
    /// # Errors
    ///
    /// [`OutboxError`] if the event cannot be serialised or the database fails. After a database
    /// error the transaction can only be rolled back.
    pub async fn append(&self, conn: &mut D::Connection, event: &DomainEvent) -> Result<(), OutboxError> {
        let payload = event.to_bytes()?;
        self.db.lock_key(conn, fnv1a(event.key()).cast_signed()).await?;
        self.db
            .execute(
                conn,
                "INSERT INTO buttress_outbox (event_id, shard, topic, payload, created_at) VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT (event_id) DO NOTHING",
                args![
                    &event.event_id().to_string(),
                    bucket(event.key(), SHARDS),
                    event.topic(),
                    &payload[..],
                    self.db.now(),
                ],
            )
            .await?;
        Ok(())
    }

    /// Wakes the relay of this process after a commit, so that it does not wait for its next poll.
    /// Optional.
    pub fn wake(&self) {
        self.written.send_replace(());
    }

    /// Returns the number of events that wait, for a metric.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn backlog(&self) -> Result<Backlog, DbError> {
        let rows = self
            .db
            .read(
                "SELECT COUNT(*), MIN(created_at),
                     (SELECT COUNT(*) FROM buttress_outbox WHERE sent_at IS NULL AND refused IS NOT NULL)
                 FROM buttress_outbox WHERE sent_at IS NULL AND refused IS NULL",
                args![],
            )
            .await?;
        let Some(row) = rows.first() else { return Ok(Backlog::default()) };
        let count = |column| D::int(row, column).map(|count| u64::try_from(count).unwrap_or(0));
        let oldest = D::maybe_int(row, 1)?.map(Timestamp::from_millis);
        Ok(Backlog { unsent: count(0)?, oldest, parked: count(2)? })
    }

    /// Lists the events that the bus has rejected, oldest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn parked(&self, limit: u32) -> Result<Vec<Parked>, DbError> {
        let rows = self
            .db
            .read(
                "SELECT event_id, payload, refused FROM buttress_outbox
                 WHERE sent_at IS NULL AND refused IS NOT NULL ORDER BY seq LIMIT $1",
                args![i64::from(limit)],
            )
            .await?;
        rows.iter()
            .map(|row| {
                let id = D::text(row, 0)?;
                let event_id = id.parse().map_err(|_| DbError::Unreadable { what: "event id", value: id })?;
                let event = DomainEvent::from_bytes(&D::blob(row, 1)?).ok();
                Ok(Parked { event_id, event, reason: D::text(row, 2)? })
            })
            .collect()
    }

    /// Makes the relay try a parked event again. Returns false if the event is not parked.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn unpark(&self, event_id: Uuid) -> Result<bool, DbError> {
        let sql = "UPDATE buttress_outbox SET refused = NULL
                   WHERE event_id = $1 AND sent_at IS NULL AND refused IS NOT NULL";
        let changed = self.db.write(sql, args![&event_id.to_string()]).await?;
        self.wake();
        Ok(changed == 1)
    }

    /// Deletes a parked event, which is then never published. Returns false if the event is not
    /// parked.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn discard(&self, event_id: Uuid) -> Result<bool, DbError> {
        let sql = "DELETE FROM buttress_outbox WHERE event_id = $1 AND sent_at IS NULL AND refused IS NOT NULL";
        Ok(self.db.write(sql, args![&event_id.to_string()]).await? == 1)
    }

    /// Deletes events that were published before a moment, in small transactions, and returns their
    /// number. [`Retention`](crate::Retention) does this in the background.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn purge(&self, before: Timestamp) -> Result<u64, DbError> {
        purge(&self.db, before, &mut Bites::default()).await
    }

    pub(super) fn written(&self) -> watch::Receiver<()> {
        self.written.subscribe()
    }
}

impl<D: Database> Clone for Outbox<D> {
    fn clone(&self) -> Self {
        Self { db: self.db.clone(), written: self.written.clone(), ..*self }
    }
}
