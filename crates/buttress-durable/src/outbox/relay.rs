use std::sync::Arc;
use std::time::Duration;

use buttress_core::Backoff;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::store::{Outbox, SHARDS};
use crate::bus::{BusError, EventBus};
use crate::db::database::args;
use crate::db::{Database, DbError, Lease};
use crate::event::DomainEvent;
use crate::task::{Stop, Worker, WorkerHealth};
use crate::text::storable;

/// Publishes the events of an outbox in the background. Dropping it aborts it; events that it has
/// not marked are published again.
#[derive(Debug)]
#[must_use = "dropping a relay stops it"]
pub struct Relay {
    worker: Worker,
}

/// Events of one publication. On PostgreSQL a shard stays locked meanwhile.
const BATCH: i64 = 128;
const LEASE: &str = "outbox";
/// Pauses between attempts while the bus or the database fails.
const PAUSE: Backoff = Backoff::equal_jitter(Duration::from_millis(100), Duration::from_secs(5));
/// Time limit for the last publication on shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

struct Work<D: Database> {
    outbox: Outbox<D>,
    bus: Arc<dyn EventBus>,
    owner: String,
    lease: Option<Lease>,
}

/// Rows of the outbox: sequence numbers and events, and the rows that cannot be decoded.
#[derive(Default)]
struct Batch {
    seqs: Vec<i64>,
    events: Vec<DomainEvent>,
    unreadable: Vec<(i64, String)>,
}

// === impl Outbox ===

impl<D: Database> Outbox<D> {
    /// Starts a relay that publishes to `bus` until it is dropped. Start one in every process: on
    /// PostgreSQL they share the shards, on SQLite one publishes and the others stand by.
    pub fn relay(&self, bus: Arc<dyn EventBus>) -> Relay {
        let (outbox, health) = (self.clone(), WorkerHealth::new(self.db.clock().clone()));
        let reports = health.clone();
        let run = move |stop| Work::new(outbox.clone(), bus.clone()).run(stop, reports.clone());
        Relay { worker: Worker::supervised(health, run) }
    }

    /// Publishes the events that are waiting, and returns their number.
    ///
    /// For tests, and for services with their own loop. On SQLite it does nothing while another
    /// relay has the lease.
    ///
    /// ```
    /// # #[cfg(feature = "sqlite")]
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// use buttress_durable::bus::{EventBus, LogBus};
    /// use buttress_durable::{Db, DomainEvent, Outbox};
    /// use std::sync::Arc;
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let db = Db::open(dir.path().join("orders.db")).await?;
    /// let outbox = Outbox::new(db.clone());
    /// let bus: Arc<dyn EventBus> = Arc::new(LogBus::new(db.clone()));
    /// let mut tx = db.begin().await?;
    /// outbox.append(&mut tx, &DomainEvent::new("OrderCreated", "order-7", db.clock().now(), &())?).await?;
    /// tx.commit().await?;
    ///
    /// assert_eq!(outbox.backlog().await?.unsent, 1);
    /// assert_eq!(outbox.relay_once(&bus).await?, 1);
    /// assert_eq!(outbox.backlog().await?.unsent, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`BusError`] if the database or the bus fails. Events that are not marked are published
    /// again by the next call.
    pub async fn relay_once(&self, bus: &Arc<dyn EventBus>) -> Result<u64, BusError> {
        let mut work = Work::new(self.clone(), bus.clone());
        let published = work.drain().await;
        work.give_back().await;
        published
    }
}

// === impl Relay ===

impl Relay {
    /// Reports how the relay is doing.
    pub fn health(&self) -> WorkerHealth {
        self.worker.health()
    }

    /// Publishes the events that are committed by now, within 5 s, and stops.
    pub async fn shutdown(self) {
        self.worker.shutdown().await;
    }
}

// === impl Work ===

impl<D: Database> Work<D> {
    fn new(outbox: Outbox<D>, bus: Arc<dyn EventBus>) -> Self {
        Self { outbox, bus, owner: Uuid::now_v7().to_string(), lease: None }
    }

    async fn run(mut self, mut stop: Stop, health: WorkerHealth) {
        let mut written = self.outbox.written();
        let mut failures = 0;
        while !stop.is_set() {
            let pause = match self.drain().await {
                Ok(_) => {
                    health.succeeded();
                    failures = 0;
                    self.outbox.poll
                }
                Err(error) => {
                    health.failed(&error);
                    let pause = PAUSE.pause(failures, &mut fastrand::Rng::new());
                    failures = failures.saturating_add(1);
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        ?pause,
                        "cannot publish from the outbox; retrying"
                    );
                    pause
                }
            };
            tokio::select! {
                () = stop.wait() => {}
                _ = written.changed(), if failures == 0 => {}
                () = sleep(pause) => {}
            }
        }
        let _ = timeout(SHUTDOWN_TIMEOUT, self.drain()).await;
        self.give_back().await;
    }

    /// Publishes until no events are left that this relay may publish.
    async fn drain(&mut self) -> Result<u64, BusError> {
        let mut published = 0;
        loop {
            let round = if D::SHARD_LOCKS { self.locked_round().await? } else { self.leased_round().await? };
            published += round;
            if round == 0 {
                return Ok(published);
            }
        }
    }

    /// Locks each shard that no other relay holds, while it reads, publishes and marks.
    async fn locked_round(&self) -> Result<u64, BusError> {
        let db = &self.outbox.db;
        let mut published = 0;
        for shard in self.shards().await? {
            let mut tx = db.begin().await?;
            if !db.try_lock_shard(&mut tx, shard).await? {
                continue;
            }
            let batch = self.read(&mut tx, shard, shard).await?;
            let outcome = self.publish(&batch).await;
            published += self.mark(&mut tx, &batch, &outcome).await?;
            tx.commit().await?;
            settle(outcome)?;
        }
        Ok(published)
    }

    /// Publishes all shards under one lease. It is checked again when marking, so that a relay that
    /// was replaced while it published marks nothing. Consumers recognise duplicates by the event's
    /// id.
    async fn leased_round(&mut self) -> Result<u64, BusError> {
        let db = self.outbox.db.clone();
        // An idle relay writes nothing, not even its lease.
        if self.shards().await?.is_empty() {
            return Ok(0);
        }
        let Some(lease) = self.lease().await? else { return Ok(0) };
        let mut conn = db.session().await?;
        let batch = self.read(&mut conn, 0, i64::from(SHARDS)).await?;
        drop(conn);
        let outcome = self.publish(&batch).await;
        let mut tx = db.begin().await?;
        if !lease.hold(&db, &mut tx).await? {
            self.lease = None;
            return Ok(0);
        }
        let published = self.mark(&mut tx, &batch, &outcome).await?;
        tx.commit().await?;
        settle(outcome)?;
        Ok(published)
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

    async fn give_back(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        if let Err(error) = lease.release(&self.outbox.db).await {
            tracing::debug!(%error, "cannot release the relay's lease");
        }
    }

    async fn shards(&self) -> Result<Vec<i64>, DbError> {
        let sql = "SELECT DISTINCT shard FROM buttress_outbox WHERE sent_at IS NULL AND refused IS NULL";
        let rows = self.outbox.db.read(sql, args![]).await?;
        rows.iter().map(|row| Ok(D::int(row, 0)?)).collect()
    }

    async fn read(&self, conn: &mut D::Connection, from: i64, to: i64) -> Result<Batch, DbError> {
        let rows = self
            .outbox
            .db
            .fetch(
                conn,
                "SELECT seq, payload FROM buttress_outbox
                 WHERE shard >= $1 AND shard <= $2 AND sent_at IS NULL AND refused IS NULL ORDER BY seq LIMIT $3",
                args![from, to, BATCH],
            )
            .await?;
        let mut batch = Batch::default();
        for row in &rows {
            let seq = D::int(row, 0)?;
            match DomainEvent::from_bytes(&D::blob(row, 1)?) {
                Ok(event) => {
                    batch.seqs.push(seq);
                    batch.events.push(event);
                }
                Err(error) => batch.unreadable.push((seq, storable(error))),
            }
        }
        Ok(batch)
    }

    async fn publish(&self, batch: &Batch) -> Result<(), BusError> {
        if batch.events.is_empty() { Ok(()) } else { self.bus.publish(&batch.events).await }
    }

    /// Writes the outcome of each row, by its sequence number. "All up to the last one" would
    /// include rows that became visible after reading.
    async fn mark(
        &self,
        conn: &mut D::Connection,
        batch: &Batch,
        outcome: &Result<(), BusError>,
    ) -> Result<u64, DbError> {
        let db = &self.outbox.db;
        let refuse = "UPDATE buttress_outbox SET refused = $1 WHERE seq = $2";
        for (seq, reason) in &batch.unreadable {
            tracing::error!(seq, reason, "cannot decode an event of the outbox; parking it");
            db.execute(conn, refuse, args![reason, *seq]).await?;
        }
        // A parked row counts as progress, so that the next round continues without it.
        let mut done = batch.unreadable.len() as u64;
        match outcome {
            Ok(()) => {
                let now = db.now();
                for seq in &batch.seqs {
                    let sent = "UPDATE buttress_outbox SET sent_at = $1 WHERE seq = $2";
                    db.execute(conn, sent, args![now, *seq]).await?;
                }
                done += batch.seqs.len() as u64;
            }
            Err(BusError::Refused { event_id, reason }) => {
                let refused = batch.seqs.iter().zip(&batch.events).find(|(_, event)| event.event_id() == *event_id);
                if let Some((seq, event)) = refused {
                    tracing::error!(%event_id, topic = event.topic(), reason, "the bus rejected an event; parking it");
                    db.execute(conn, refuse, args![&storable(reason), *seq]).await?;
                    done += 1;
                }
            }
            Err(_) => {}
        }
        Ok(done)
    }
}

/// Treats a rejection as success, since the event has been parked. Other failures have to wait.
fn settle(outcome: Result<(), BusError>) -> Result<(), BusError> {
    match outcome {
        Err(BusError::Refused { .. }) => Ok(()),
        other => other,
    }
}
