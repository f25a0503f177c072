//! Retention: deletes what is no longer needed, in the background.
//!
//! Published events, handled ids, handled records of the log, dead letters and ended sagas stay in
//! their tables until they are deleted. [`Retention`] deletes each kind at an age of its own, in
//! transactions of about 10 ms, so that writers do not wait for it. [`Outbox::purge`],
//! [`Inbox::purge`], [`LogBus::trim`] and [`Admin::purge`] do the same once, for services with a
//! scheduler of their own.
//!
//! [`Outbox::purge`]: crate::Outbox::purge
//! [`Inbox::purge`]: crate::Inbox::purge
//! [`LogBus::trim`]: crate::LogBus::trim
//! [`Admin::purge`]: crate::saga::Admin::purge

mod bites;

use std::sync::Arc;
use std::time::Duration;

use buttress_core::InvalidConfig;
use tokio::time::{interval, sleep};
use uuid::Uuid;

pub(crate) use bites::{Bites, Delete};

use crate::bus::{trim_dead_letters, trim_log};
use crate::clock::Timestamp;
use crate::db::{Database, Db, DbError, Lease};
use crate::task::{Stop, Worker, WorkerHealth};
use crate::{inbox, outbox, saga};

/// Configures what is deleted from a database, and at which age. Nothing by default.
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// use buttress_durable::{Db, Retention};
/// use std::time::Duration;
///
/// const DAY: Duration = Duration::from_hours(24);
///
/// # let dir = tempfile::tempdir()?;
/// # let db = Db::open(dir.path().join("shipping.db")).await?;
/// let retention = Retention::new(db)
///     .outbox(DAY)
///     .inbox("shipping", 14 * DAY)
///     .log(7 * DAY)
///     .dead_letters(14 * DAY)
///     .sagas(30 * DAY)
///     .start()?;
/// // ... until the service stops:
/// retention.shutdown().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Start one in every process: one at a time works on a database.
#[derive(Debug)]
#[must_use]
pub struct Retention<D: Database> {
    db: Db<D>,
    rules: Vec<(Kind, Duration)>,
    every: Duration,
}

/// A retention in the background. Dropping it aborts it; a transaction that was under way is rolled
/// back, and the next start continues.
#[derive(Debug)]
#[must_use = "dropping a retention stops it"]
pub struct RunningRetention {
    worker: Worker,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Kind {
    Outbox,
    Inbox(Arc<str>),
    Log,
    DeadLetters,
    Sagas,
}

const LEASE: &str = "retention";
/// After a crash another process continues after this time.
const TTL: Duration = Duration::from_secs(30);

impl<D: Database> Retention<D> {
    /// Keeps everything, until one of the setters says otherwise. Looks for old rows every minute.
    pub fn new(db: Db<D>) -> Self {
        Self { db, rules: Vec::new(), every: Duration::from_mins(1) }
    }

    /// Deletes events from the outbox at this age, counted from their publication. Events that wait
    /// or are parked are kept.
    ///
    /// A writer that may append the same event again, with the same id, must do so before.
    pub fn outbox(self, age: Duration) -> Self {
        self.rule(Kind::Outbox, age)
    }

    /// Deletes a consumer's handled ids at this age. An event that is delivered again later would
    /// be handled again.
    pub fn inbox(self, consumer: impl Into<Arc<str>>, age: Duration) -> Self {
        self.rule(Kind::Inbox(consumer.into()), age)
    }

    /// Deletes records of the log at this age, once every group of their topic has handled them.
    /// Topics without a group keep their records. [`LogBus::retire`](crate::LogBus::retire) removes
    /// a group that no longer exists.
    pub fn log(self, age: Duration) -> Self {
        self.rule(Kind::Log, age)
    }

    /// Deletes dead letters at this age, also those that were not redriven.
    pub fn dead_letters(self, age: Duration) -> Self {
        self.rule(Kind::DeadLetters, age)
    }

    /// Deletes sagas at this age, counted from their end. Stuck ones are kept.
    pub fn sagas(self, age: Duration) -> Self {
        self.rule(Kind::Sagas, age)
    }

    /// Sets the pause between two searches for old rows. Default: 1 min; at least 10 ms.
    pub fn every(mut self, pause: Duration) -> Self {
        self.every = pause.max(Duration::from_millis(10));
        self
    }

    /// Starts to delete in the background.
    ///
    /// # Errors
    ///
    /// If an inbox forgets events that the log or its dead letters can still deliver: its age must
    /// be at least theirs.
    pub fn start(self) -> Result<RunningRetention, InvalidConfig> {
        self.check()?;
        let health = WorkerHealth::new(self.db.clock().clone());
        let (work, reports) = (Arc::new(self), health.clone());
        let run = move |stop| work.clone().run(stop, reports.clone());
        Ok(RunningRetention { worker: Worker::supervised(health, run) })
    }

    /// Deletes what is old now, and returns the number of rows; none while another process is at
    /// it. For tests, and for services with a scheduler of their own.
    ///
    /// # Errors
    ///
    /// If the database fails. What was deleted before is not restored.
    pub async fn run_once(&self) -> Result<u64, DbError> {
        self.pass(Bites::default()).await
    }

    fn rule(mut self, kind: Kind, age: Duration) -> Self {
        self.rules.retain(|(other, _)| *other != kind);
        self.rules.push((kind, age));
        self
    }

    fn check(&self) -> Result<(), InvalidConfig> {
        let delivers = |kind: &Kind| matches!(kind, Kind::Log | Kind::DeadLetters);
        let longest = self.rules.iter().filter(|(kind, _)| delivers(kind)).map(|(_, age)| *age).max();
        let forgets = |(kind, age): &(Kind, Duration)| matches!(kind, Kind::Inbox(_)) && Some(*age) < longest;
        if self.rules.iter().any(forgets) {
            return Err(InvalidConfig::new("inbox", "must be at least as long as `log` and `dead_letters`"));
        }
        Ok(())
    }

    async fn run(self: Arc<Self>, mut stop: Stop, health: WorkerHealth) {
        while !stop.is_set() {
            match self.pass(Bites::until(stop.clone())).await {
                Ok(0) => health.succeeded(),
                Ok(rows) => {
                    tracing::debug!(rows, "deleted old rows");
                    health.succeeded();
                }
                Err(error) => {
                    health.failed(&error);
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, retry_in = ?self.every, "cannot delete old rows");
                }
            }
            tokio::select! {
                () = stop.wait() => {}
                () = sleep(self.every) => {}
            }
        }
    }

    async fn pass(&self, bites: Bites) -> Result<u64, DbError> {
        let owner = Uuid::now_v7().to_string();
        let Some(lease) = Lease::acquire(&self.db, LEASE, &owner, TTL).await? else { return Ok(0) };
        let outcome = tokio::select! {
            outcome = self.delete(bites) => outcome,
            // Another process continues.
            () = keep(&lease, &self.db) => Ok(0),
        };
        // Without it, the lease expires.
        let _ = lease.release(&self.db).await;
        outcome
    }

    async fn delete(&self, mut bites: Bites) -> Result<u64, DbError> {
        let mut deleted = 0;
        for (kind, age) in &self.rules {
            let before = self.db.now().minus(*age);
            deleted += self.delete_kind(kind, before, &mut bites).await?;
        }
        Ok(deleted)
    }

    async fn delete_kind(&self, kind: &Kind, before: Timestamp, bites: &mut Bites) -> Result<u64, DbError> {
        match kind {
            Kind::Outbox => outbox::purge(&self.db, before, bites).await,
            Kind::Inbox(consumer) => inbox::purge(&self.db, consumer, before, bites).await,
            Kind::Log => trim_log(&self.db, before, bites).await,
            Kind::DeadLetters => trim_dead_letters(&self.db, before, bites).await,
            Kind::Sagas => saga::purge(&self.db, before, bites).await,
        }
    }
}

/// Renews the lease until another process has it. A failed renewal is repeated.
async fn keep<D: Database>(lease: &Lease, db: &Db<D>) {
    let mut beat = interval(TTL / 3);
    beat.tick().await;
    loop {
        beat.tick().await;
        if let Ok(false) = lease.renew(db, TTL).await {
            return;
        }
    }
}

impl RunningRetention {
    /// Reports how the retention is doing.
    pub fn health(&self) -> WorkerHealth {
        self.worker.health()
    }

    /// Finishes the transaction at hand and stops.
    pub async fn shutdown(self) {
        self.worker.shutdown().await;
    }
}
