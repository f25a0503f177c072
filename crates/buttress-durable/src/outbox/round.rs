//! One round of a relay: reads events, publishes them, and marks what became of each.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use uuid::Uuid;

use super::store::Outbox;
use super::waiting::Waiting;
use crate::bus::{BusError, EventBus};
use crate::clock::monotonic;
use crate::db::database::args;
use crate::db::{Database, DbError, Lease};
use crate::event::DomainEvent;
use crate::text::storable;

/// Events of one topic in one publication. On PostgreSQL a shard stays locked meanwhile.
const BATCH: usize = 128;
/// Rows that are read at most to find events that need not wait.
const DEPTH: i64 = 65_536;
/// Each row that was read in vain delays the next round by this time, so that a relay behind a
/// large backlog that cannot be published does not spend its time reading it.
const SKIPPED: Duration = Duration::from_micros(100);
const LEASE: &str = "outbox";

pub(super) struct Work<D: Database> {
    pub(super) outbox: Outbox<D>,
    pub(super) waiting: Waiting,
    bus: Arc<dyn EventBus>,
    owner: String,
    lease: Option<Lease>,
    /// Rows that the last rounds have read in vain.
    skipped: usize,
}

/// Rows of the outbox: sequence numbers and events, and the rows that cannot be decoded.
#[derive(Default)]
struct Batch {
    seqs: Vec<i64>,
    events: Vec<DomainEvent>,
    unreadable: Vec<(i64, String)>,
}

/// What a publication has achieved.
#[derive(Default)]
struct Outcome {
    /// Rows that are done: published or parked.
    done: u64,
    /// The first failure of the bus.
    failed: Option<BusError>,
}

/// What a relay has published, and the first failure of the bus. What failed there waits, so that
/// the relay need not.
pub(super) struct Drained {
    pub(super) published: u64,
    pub(super) failed: Option<BusError>,
}

/// Unsent events of one topic. On PostgreSQL of one shard; on SQLite of all.
type Lane = (String, i64);

impl Batch {
    fn is_empty(&self) -> bool {
        self.seqs.is_empty() && self.unreadable.is_empty()
    }
}

impl<D: Database> Work<D> {
    pub(super) fn new(outbox: Outbox<D>, bus: Arc<dyn EventBus>) -> Self {
        let owner = Uuid::now_v7().to_string();
        Self { outbox, waiting: Waiting::default(), bus, owner, lease: None, skipped: 0 }
    }

    /// Publishes until no events are left that this relay may publish now. An error is one of the
    /// outbox's database.
    pub(super) async fn drain(&mut self) -> Result<Drained, DbError> {
        self.waiting.forget(monotonic());
        let (mut published, mut failed) = (0, None);
        loop {
            self.skipped = 0;
            let round = if D::SHARD_LOCKS { self.locked_round().await? } else { self.leased_round().await? };
            published += round.done;
            failed = failed.or(round.failed);
            if round.done > 0 {
                continue;
            }
            // A relay that reaches the database but not the bus makes way for one that may reach
            // both.
            if failed.is_some() && published == 0 {
                self.give_back().await;
            }
            return Ok(Drained { published, failed });
        }
    }

    /// Returns the time until the next round.
    pub(super) fn pause(&self) -> Duration {
        let poll = self.outbox.poll;
        let due = self.waiting.next(monotonic()).map_or(poll, |next| next.min(poll));
        due.max(SKIPPED.saturating_mul(u32::try_from(self.skipped).unwrap_or(u32::MAX)))
    }

    pub(super) async fn give_back(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        if let Err(error) = lease.release(&self.outbox.db).await {
            tracing::debug!(%error, "cannot release the relay's lease");
        }
    }

    /// Locks each shard that no other relay holds, while it reads, publishes and marks.
    async fn locked_round(&mut self) -> Result<Outcome, DbError> {
        let db = self.outbox.db.clone();
        let mut lanes = self.lanes().await?;
        // Another relay may be at the first shards, or they may be those that fail.
        let start = fastrand::usize(0..lanes.len().max(1));
        lanes.rotate_left(start);
        let mut shards: Vec<i64> = lanes.iter().map(|(_, shard)| *shard).collect();
        shards.dedup();
        let mut round = Outcome::default();
        for shard in shards {
            // Others have failed since the lanes were read.
            let ours = lanes.iter().filter(|lane| lane.1 == shard && !self.waiting.holds_topic(&lane.0, monotonic()));
            let ours: Vec<&Lane> = ours.collect();
            if ours.is_empty() {
                continue;
            }
            let mut tx = db.begin().await?;
            if !db.try_lock_shard(&mut tx, shard).await? {
                continue;
            }
            let batch = self.read(&mut tx, &ours).await?;
            if batch.is_empty() {
                continue;
            }
            let results = self.publish(&batch).await;
            let outcome = self.mark(&mut tx, &batch, results).await?;
            tx.commit().await?;
            round.done += outcome.done;
            round.failed = round.failed.or(outcome.failed);
        }
        Ok(round)
    }

    /// Publishes all shards under one lease. It is checked again when marking, so that a relay that
    /// was replaced while it published marks nothing. Consumers recognise duplicates by the event's
    /// id.
    async fn leased_round(&mut self) -> Result<Outcome, DbError> {
        let db = self.outbox.db.clone();
        let lanes = self.lanes().await?;
        // An idle relay writes nothing, not even its lease.
        if lanes.is_empty() {
            return Ok(Outcome::default());
        }
        let Some(lease) = self.lease().await? else { return Ok(Outcome::default()) };
        let mut conn = db.session().await?;
        let batch = self.read(&mut conn, &lanes.iter().collect::<Vec<_>>()).await?;
        drop(conn);
        if batch.is_empty() {
            return Ok(Outcome::default());
        }
        let results = self.publish(&batch).await;
        let mut tx = db.begin().await?;
        if !lease.hold(&db, &mut tx).await? {
            self.lease = None;
            return Ok(Outcome::default());
        }
        let outcome = self.mark(&mut tx, &batch, results).await?;
        tx.commit().await?;
        Ok(outcome)
    }

    async fn lease(&mut self) -> Result<Option<Lease>, DbError> {
        let (db, ttl) = (&self.outbox.db, self.outbox.lease);
        if let Some(lease) = &self.lease
            && !lease.renew(db, ttl).await?
        {
            self.lease = None;
        }
        if self.lease.is_none() {
            self.lease = Lease::acquire(db, LEASE, &self.owner, ttl).await?;
        }
        Ok(self.lease.clone())
    }

    /// Returns the lanes that have events and need not wait.
    async fn lanes(&self) -> Result<Vec<Lane>, DbError> {
        let sql = if D::SHARD_LOCKS {
            "SELECT DISTINCT shard, topic FROM buttress_outbox WHERE sent_at IS NULL AND refused IS NULL ORDER BY shard"
        } else {
            "SELECT DISTINCT 0, topic FROM buttress_outbox WHERE sent_at IS NULL AND refused IS NULL"
        };
        let (rows, now) = (self.outbox.db.read(sql, args![]).await?, monotonic());
        let lanes = rows.iter().map(|row| Ok((D::text(row, 1)?, D::int(row, 0)?)));
        let free = |lane: &Result<Lane, DbError>| {
            lane.as_ref().map_or(true, |(topic, _)| !self.waiting.holds_topic(topic, now))
        };
        lanes.filter(free).collect()
    }

    /// Reads the first events of each lane, except those whose keys wait, in the order in which
    /// they were written.
    async fn read(&mut self, conn: &mut D::Connection, lanes: &[&Lane]) -> Result<Batch, DbError> {
        let now = monotonic();
        // The more topics, the fewer events of each, so that a publication does not outlast the
        // lease.
        let most = (2 * BATCH / lanes.len().max(2)).max(16);
        let mut rows = Vec::new();
        for lane in lanes {
            let mut depth = i64::try_from(most).unwrap_or(i64::MAX);
            loop {
                // From the first row each time, and never by several queries: what commits between
                // two of them could be overtaken by a later event of its key.
                let read = self.rows(conn, lane, depth).await?;
                let all = i64::try_from(read.len()).unwrap_or(i64::MAX) < depth;
                let free = |row: &(i64, Result<DomainEvent, String>)| {
                    row.1.as_ref().map_or(true, |event| !self.waiting.holds(event, now))
                };
                let count = read.len();
                let mut free: Vec<_> = read.into_iter().filter(free).collect();
                if free.is_empty() && !all && depth < DEPTH {
                    depth *= 4;
                    continue;
                }
                self.skipped += count - free.len();
                free.truncate(most);
                rows.append(&mut free);
                break;
            }
        }
        rows.sort_by_key(|(seq, _)| *seq);
        let mut batch = Batch::default();
        for (seq, event) in rows {
            match event {
                Ok(event) => {
                    batch.seqs.push(seq);
                    batch.events.push(event);
                }
                Err(error) => batch.unreadable.push((seq, error)),
            }
        }
        Ok(batch)
    }

    async fn rows(
        &self,
        conn: &mut D::Connection,
        (topic, shard): &Lane,
        limit: i64,
    ) -> Result<Vec<(i64, Result<DomainEvent, String>)>, DbError> {
        let db = &self.outbox.db;
        // Two statements, so that each reads the first rows of its index without sorting.
        let rows = if D::SHARD_LOCKS {
            let sql = "SELECT seq, payload FROM buttress_outbox
                       WHERE shard = $1 AND topic = $2 AND sent_at IS NULL AND refused IS NULL ORDER BY seq LIMIT $3";
            db.fetch(conn, sql, args![*shard, topic, limit]).await?
        } else {
            let sql = "SELECT seq, payload FROM buttress_outbox
                       WHERE topic = $1 AND sent_at IS NULL AND refused IS NULL ORDER BY seq LIMIT $2";
            db.fetch(conn, sql, args![topic, limit]).await?
        };
        rows.iter()
            .map(|row| Ok((D::int(row, 0)?, DomainEvent::from_bytes(&D::blob(row, 1)?).map_err(storable))))
            .collect()
    }

    async fn publish(&mut self, batch: &Batch) -> Vec<Result<(), BusError>> {
        if batch.events.is_empty() {
            return Vec::new();
        }
        // A panic must not cost the lease, which a new relay would have to wait for.
        let publish = AssertUnwindSafe(async { self.bus.publish_each(&batch.events).await });
        let mut results = publish.catch_unwind().await.unwrap_or_default();
        let missing = || Err(BusError::Unavailable("the bus panicked, or has no result for this event".into()));
        results.resize_with(batch.events.len(), missing);
        self.waiting.note(&batch.events, &results, monotonic());
        results
    }

    /// Writes the outcome of each row, by its sequence number. "All up to the last one" would
    /// include rows that became visible after reading.
    async fn mark(
        &self,
        conn: &mut D::Connection,
        batch: &Batch,
        results: Vec<Result<(), BusError>>,
    ) -> Result<Outcome, DbError> {
        let (db, now) = (&self.outbox.db, self.outbox.db.now());
        let (refuse, sent) = (
            "UPDATE buttress_outbox SET refused = $1 WHERE seq = $2",
            "UPDATE buttress_outbox SET sent_at = $1 WHERE seq = $2",
        );
        for (seq, reason) in &batch.unreadable {
            tracing::error!(seq, reason, "cannot decode an event of the outbox; parking it");
            db.execute(conn, refuse, args![reason, *seq]).await?;
        }
        // A parked row counts as progress, so that the next round continues without it.
        let mut outcome = Outcome { done: batch.unreadable.len() as u64, failed: None };
        for ((seq, event), result) in batch.seqs.iter().zip(&batch.events).zip(results) {
            match result {
                Ok(()) => {
                    db.execute(conn, sent, args![now, *seq]).await?;
                    outcome.done += 1;
                }
                Err(BusError::Refused { event_id, reason }) => {
                    tracing::error!(%event_id, topic = event.topic(), reason, "the bus rejected an event; parking it");
                    db.execute(conn, refuse, args![&storable(reason), *seq]).await?;
                    outcome.done += 1;
                }
                Err(BusError::HeldBack) => {}
                Err(error) => outcome.failed = outcome.failed.or(Some(error)),
            }
        }
        Ok(outcome)
    }
}
