//! Deletes records of the log, and groups that no longer exist.
//!
//! Records are deleted from the front of each partition, so that a bite reads no more than it
//! deletes. A record that is young keeps those behind it, which are younger unless a clock has
//! jumped.

use super::bus::LogBus;
use crate::bus::event_bus::BusError;
use crate::clock::Timestamp;
use crate::db::database::args;
use crate::db::{Database, Db, DbError};
use crate::retention::{Bites, Delete};

/// The partitions whose first record is older than `$1`, and handled by all groups of which there
/// is at least one.
const HANDLED: &str = "SELECT h.topic, h.part FROM buttress_log_head h
    JOIN buttress_log l ON l.topic = h.topic AND l.part = h.part AND l.position =
        (SELECT MIN(m.position) FROM buttress_log m WHERE m.topic = h.topic AND m.part = h.part)
    WHERE l.published_at < $1 AND l.position <
        (SELECT MIN(g.position) FROM buttress_group g WHERE g.topic = h.topic AND g.part = h.part)";

/// The same for dead-letter topics, with or without groups.
const LETTERS: &str = "SELECT h.topic, h.part FROM buttress_log_head h
    JOIN buttress_log l ON l.topic = h.topic AND l.part = h.part AND l.position =
        (SELECT MIN(m.position) FROM buttress_log m WHERE m.topic = h.topic AND m.part = h.part)
    WHERE h.topic LIKE 'dead.%' AND l.published_at < $1 AND l.position < COALESCE(
        (SELECT MIN(g.position) FROM buttress_group g WHERE g.topic = h.topic AND g.part = h.part), h.next)";

/// Deletes from the front of a partition what all groups have handled. The partition was due, but
/// its last group may have been retired since: then nothing is handled, and nothing is deleted.
const TRIM: Delete = Delete {
    due: DUE,
    statements: &["DELETE FROM buttress_log WHERE topic = $1 AND part = $2 AND published_at < $3
         AND position < (SELECT MIN(m.position) FROM buttress_log m WHERE m.topic = $1 AND m.part = $2) + $4
         AND position < (SELECT MIN(g.position) FROM buttress_group g WHERE g.topic = $1 AND g.part = $2)"],
};

/// The same for dead letters, with or without groups.
const BURN: Delete = Delete {
    due: DUE,
    statements: &["DELETE FROM buttress_log WHERE topic = $1 AND part = $2 AND published_at < $3
         AND position < (SELECT MIN(m.position) FROM buttress_log m WHERE m.topic = $1 AND m.part = $2) + $4
         AND position < COALESCE(
             (SELECT MIN(g.position) FROM buttress_group g WHERE g.topic = $1 AND g.part = $2),
             (SELECT h.next FROM buttress_log_head h WHERE h.topic = $1 AND h.part = $2))"],
};

const DUE: &str = "SELECT 1 FROM buttress_log WHERE topic = $1 AND part = $2 AND published_at < $3 LIMIT 1";

/// Deletes what every group has handled, of all topics but those of dead letters.
pub(crate) async fn trim_log<D: Database>(db: &Db<D>, before: Timestamp, bites: &mut Bites) -> Result<u64, DbError> {
    trim(db, (HANDLED, &TRIM), |topic| !topic.starts_with("dead."), before, bites).await
}

/// Deletes dead letters.
pub(crate) async fn trim_dead_letters<D: Database>(
    db: &Db<D>,
    before: Timestamp,
    bites: &mut Bites,
) -> Result<u64, DbError> {
    // SQLite's LIKE ignores the case.
    trim(db, (LETTERS, &BURN), |topic| topic.starts_with("dead."), before, bites).await
}

async fn trim<D: Database>(
    db: &Db<D>,
    (due, delete): (&'static str, &Delete),
    wanted: impl Fn(&str) -> bool + Send,
    before: Timestamp,
    bites: &mut Bites,
) -> Result<u64, DbError> {
    let mut trimmed = 0;
    for row in &db.read(due, args![before]).await? {
        let (topic, part) = (D::text(row, 0)?, D::int(row, 1)?);
        if wanted(&topic) {
            trimmed += bites.delete(db, delete, args![&topic, part, before]).await?;
        }
    }
    Ok(trimmed)
}

impl<D: Database> LogBus<D> {
    /// Deletes records of a topic that were published before a moment and that every group has
    /// handled, in small transactions. Returns their number.
    ///
    /// A topic without any group keeps its records. That includes dead-letter topics.
    /// [`Retention`](crate::Retention) does this in the background, for all topics.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn trim(&self, topic: &str, before: Timestamp) -> Result<u64, BusError> {
        Ok(trim(&self.log.db, (HANDLED, &TRIM), |due| due == topic, before, &mut Bites::default()).await?)
    }

    /// Deletes a group that no service subscribes any more, with its positions. Records that waited
    /// for it only can be deleted then. If the group is subscribed again, it starts as a new one.
    /// Its dead letters remain.
    ///
    /// ```
    /// # #[cfg(feature = "sqlite")]
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// use buttress_durable::bus::{Delivery, EventBus, LogBus, Subscribe};
    /// use buttress_durable::Db;
    /// use std::sync::Arc;
    ///
    /// # let dir = tempfile::tempdir()?;
    /// let bus = LogBus::new(Db::open(dir.path().join("bus.db")).await?);
    /// let handler = Arc::new(|_: Delivery| async { Ok(()) });
    /// let invoices = bus.subscribe(Subscribe::new("invoices", ["OrderConfirmed"])?, handler).await?;
    /// // Some releases later no service has this group any more.
    /// invoices.shutdown().await;
    /// bus.retire("invoices").await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`BusError::Unknown`] if there is no such group; [`BusError::Config`] if it has members that
    /// are alive, or died less than a lease ago; [`BusError::Unavailable`] if the database fails.
    pub async fn retire(&self, group: &str) -> Result<(), BusError> {
        let db = &self.log.db;
        let now = db.lease_now().await?;
        let mut tx = db.begin().await?;
        let alive = "SELECT member FROM buttress_group_member WHERE name = $1 AND expires_at > $2 LIMIT 1";
        if !db.fetch(&mut tx, alive, args![group, now]).await?.is_empty() {
            let rule = "must have no live member: stop its subscriptions first".to_owned();
            return Err(BusError::Config { option: "group".to_owned(), rule });
        }
        db.execute(&mut tx, "DELETE FROM buttress_group_member WHERE name = $1", args![group]).await?;
        let rows = db.execute(&mut tx, "DELETE FROM buttress_group WHERE name = $1", args![group]).await?;
        if rows == 0 {
            return Err(BusError::Unknown(format!("group {group}")));
        }
        Ok(tx.commit().await?)
    }
}
