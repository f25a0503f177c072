//! Databases in a simulation: the services' own SQLite files, in virtual time.
//!
//! SQLite works on a thread of its own, and a paused clock does not wait for it: a statement that takes 50 µs would be
//! overtaken by seconds of virtual time, differently in every run. So the clock of a host stands still while one of its
//! connections is in use ([`Disk::keep_time`]). What the disk takes of virtual time is drawn from the seed instead, before
//! each use.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use buttress_durable::{Clock, Db, DbError};
use mesh::db::Home;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqlitePool};
use tokio::sync::Notify;

/// The disk of one host, for one life of it.
#[derive(Clone, Debug)]
pub(crate) struct Disk(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    clock: Clock,
    pools: Mutex<Vec<SqlitePool>>,
    /// Databases that are being opened.
    opening: AtomicUsize,
    /// Connections whose user waits for the disk, in virtual time.
    waiting: AtomicUsize,
    used: Notify,
    rng: Mutex<fastrand::Rng>,
}

/// The longest that the disk takes.
const SLOWEST: u64 = 3;
/// Turns of waiting for a database in real time: many seconds. Only a deadlock takes longer.
const PATIENCE: u32 = 20_000_000;

impl Disk {
    pub(crate) fn new(dir: PathBuf, clock: Clock, seed: u64) -> Self {
        Self(Arc::new(Inner {
            dir,
            clock,
            pools: Mutex::default(),
            opening: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            used: Notify::new(),
            rng: Mutex::new(fastrand::Rng::with_seed(seed)),
        }))
    }

    /// Holds the clock of the runtime while a database is at work: as long as a task is ready, tokio's paused clock does
    /// not move.
    pub(crate) async fn keep_time(self) {
        loop {
            self.0.used.notified().await;
            let mut turns = 0;
            while self.is_busy() {
                turns += 1;
                assert!(turns < PATIENCE, "a database is used for ever: {:?}", self.0);
                for _ in 0..4 {
                    std::thread::yield_now();
                }
                tokio::task::yield_now().await;
            }
        }
    }

    fn is_busy(&self) -> bool {
        let pools = self.0.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let used: usize = pools.iter().map(|pool| pool.size() as usize - pool.num_idle()).sum();
        used > self.0.waiting.load(Ordering::SeqCst) || self.0.opening.load(Ordering::SeqCst) > 0
    }

    /// What the disk takes, before a connection is used. Not while a database is opened: then the clock stands still.
    async fn seek(&self) {
        let pause = self.0.rng.lock().unwrap_or_else(PoisonError::into_inner).u64(0..=SLOWEST);
        if pause > 0 && self.0.opening.load(Ordering::SeqCst) == 0 {
            let _waiting = Counted::new(&self.0.waiting);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        self.0.used.notify_one();
    }

    async fn pool(&self, name: &str) -> Result<SqlitePool, DbError> {
        let options = SqliteConnectOptions::new()
            .filename(self.0.dir.join(format!("{name}.db")))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // The simulated hosts lose their memory, never their disk.
            .synchronous(SqliteSynchronous::Off)
            .busy_timeout(Duration::from_secs(5));
        let disk = self.clone();
        let pool = SqlitePoolOptions::new()
            // One at a time, first come first served: two would race in real time.
            .min_connections(1)
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .test_before_acquire(false)
            .before_acquire(move |_, _| {
                let disk = disk.clone();
                Box::pin(async move {
                    disk.seek().await;
                    Ok(true)
                })
            });
        let pool = pool.connect_with(options).await?;
        self.0.pools.lock().unwrap_or_else(PoisonError::into_inner).push(pool.clone());
        Ok(pool)
    }
}

impl Home for Disk {
    type Database = Sqlite;

    async fn open(&self, name: &str) -> Result<Db<Sqlite>, DbError> {
        let _opening = Counted::new(&self.0.opening);
        self.0.used.notify_one();
        let db = Db::new(self.pool(name).await?).with_clock(self.0.clock.clone());
        db.migrate().await?;
        Ok(db)
    }

    async fn look(&self, name: &str) -> Result<Db<Sqlite>, DbError> {
        self.open(name).await
    }
}

struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
