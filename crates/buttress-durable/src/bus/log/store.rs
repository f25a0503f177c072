//! The log's tables: records, and the head of each partition.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::db::database::args;
use crate::db::{Database, Db, DbError};

/// Number of partitions of every topic. Fixed, because a key that moved to another partition would
/// lose its order.
pub const PARTITIONS: u16 = 8;

/// The log's database and the settings of its members. Clones share one log.
#[derive(Debug)]
pub(super) struct Log<D: Database> {
    pub(super) db: Db<D>,
    pub(super) lease: Duration,
    pub(super) poll: Duration,
    published: Arc<watch::Sender<()>>,
}

/// A record that has no position yet.
pub(super) struct Record<'a> {
    pub(super) dedup: String,
    pub(super) payload: &'a [u8],
    pub(super) dead_letter: Option<&'a str>,
}

impl<D: Database> Log<D> {
    pub(super) fn new(db: Db<D>) -> Self {
        let (published, _) = watch::channel(());
        Self { db, lease: Duration::from_secs(10), poll: Duration::from_millis(100), published: Arc::new(published) }
    }

    /// Appends records to one partition, except those that it holds already.
    pub(super) async fn append(
        &self,
        conn: &mut D::Connection,
        topic: &str,
        part: i64,
        records: &[Record<'_>],
    ) -> Result<(), DbError> {
        // Locks the head until the commit, so that positions become visible in order and without
        // gaps. A sequence would assign them in one order and commit them in another.
        let rows = self
            .db
            .fetch(
                conn,
                "INSERT INTO buttress_log_head (topic, part, next) VALUES ($1, $2, 0)
                 ON CONFLICT (topic, part) DO UPDATE SET next = buttress_log_head.next RETURNING next",
                args![topic, part],
            )
            .await?;
        let mut next = rows.first().map(|row| D::int(row, 0)).transpose()?.unwrap_or(0);
        let now = self.db.now();
        for Record { dedup, payload, dead_letter } in records {
            let appended = self
                .db
                .execute(
                    conn,
                    "INSERT INTO buttress_log (topic, part, position, dedup, payload, dead_letter, published_at)
                     VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (topic, dedup) DO NOTHING",
                    args![topic, part, next, dedup, *payload, *dead_letter, now],
                )
                .await?;
            next += i64::from(appended == 1);
        }
        self.db
            .execute(
                conn,
                "UPDATE buttress_log_head SET next = $1 WHERE topic = $2 AND part = $3",
                args![next, topic, part],
            )
            .await
            .map(drop)
    }

    pub(super) fn wake(&self) {
        self.published.send_replace(());
    }

    pub(super) fn published(&self) -> watch::Receiver<()> {
        self.published.subscribe()
    }
}

impl<D: Database> Clone for Log<D> {
    fn clone(&self) -> Self {
        Self { db: self.db.clone(), published: self.published.clone(), ..*self }
    }
}
