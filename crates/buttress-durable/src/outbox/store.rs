use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::db::database::args;
use crate::db::{Database, Db, DbError};
use crate::event::{DomainEvent, EventError};
use crate::hash::{bucket, fnv1a};

/// Shards of the outbox. Fixed, because a key that moves to another shard could overtake itself.
pub const SHARDS: u16 = 16;

/// Events on their way to the bus. Clones share one outbox.
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
    /// The event does not serialise.
    #[error(transparent)]
    Event(#[from] EventError),
}

/// How much is waiting.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Backlog {
    /// Events that are not published yet.
    pub unsent: u64,
    /// When the oldest of them was written.
    pub oldest: Option<Timestamp>,
    /// Events that the bus has refused.
    pub parked: u64,
}

/// An event that the bus has refused.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Parked {
    /// The event's id.
    pub event_id: Uuid,
    /// The event. `None` if this version cannot read it.
    pub event: Option<DomainEvent>,
    /// What the bus said.
    pub reason: String,
}

impl<D: Database> Outbox<D> {
    /// The outbox in `db`. The relay looks every 100 ms, and its lease (SQLite) lasts 10 s.
    pub fn new(db: Db<D>) -> Self {
        let (written, _) = watch::channel(());
        Self { db, poll: Duration::from_millis(100), lease: Duration::from_secs(10), written: Arc::new(written) }
    }

    /// How often the relay looks for events when nobody wakes it. Default: 100 ms.
    #[must_use]
    pub fn with_poll(mut self, poll: Duration) -> Self {
        self.poll = poll.max(Duration::from_millis(1));
        self
    }

    /// How long a relay that has crashed keeps others from relaying (SQLite only). Default: 10 s.
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(Duration::from_millis(10));
        self
    }

    /// Writes an event in the caller's transaction. Written twice, it is there once.
    ///
    /// `conn` must be in a transaction, or the order of the key is not kept. On PostgreSQL the key is locked until that
    /// transaction ends: append last, and several keys always in the same order, or two transactions may wait for each
    /// other until the server aborts one.
    ///
    /// # Errors
    ///
    /// What the database says; the transaction is then of no use.
    pub async fn append(&self, conn: &mut D::Connection, event: &DomainEvent) -> Result<(), OutboxError> {
        let payload = event.to_bytes()?;
        D::lock_key(conn, fnv1a(event.key()).cast_signed()).await.map_err(DbError::from)?;
        self.db
            .execute(
                conn,
                "INSERT INTO buttress_outbox (event_id, shard, payload, created_at) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (event_id) DO NOTHING",
                args![&event.event_id().to_string(), bucket(event.key(), SHARDS), &payload[..], self.db.now()],
            )
            .await?;
        Ok(())
    }

    /// Tells the relay of this process that a transaction with events has committed, to save it the wait. Nothing is lost
    /// without.
    pub fn wake(&self) {
        self.written.send_replace(());
    }

    /// How much is waiting.
    ///
    /// # Errors
    ///
    /// What the database says.
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

    /// The events that the bus has refused, oldest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// What the database says.
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

    /// Lets the relay try a parked event again. False if it is not parked.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn unpark(&self, event_id: Uuid) -> Result<bool, DbError> {
        let sql = "UPDATE buttress_outbox SET refused = NULL
                   WHERE event_id = $1 AND sent_at IS NULL AND refused IS NOT NULL";
        let changed = self.db.write(sql, args![&event_id.to_string()]).await?;
        self.wake();
        Ok(changed == 1)
    }

    /// Deletes what was published before a moment; how many events that were.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn purge(&self, before: Timestamp) -> Result<u64, DbError> {
        self.db.write("DELETE FROM buttress_outbox WHERE sent_at < $1", args![before]).await
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
