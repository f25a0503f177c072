//! Databases in a simulation: the services' own SQLite files, in virtual time.
//!
//! SQLite runs on its own thread, and a paused clock does not wait for it: a statement of 50 µs
//! could be overtaken by seconds of virtual time, differently in every run. So the clock of a host
//! stands still while one of its connections is in use ([`Disk::keep_time`]). The virtual time that
//! the disk takes is drawn from the seed before each use.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use buttress_durable::{Clock, Db, DbError};
use mesh::db::Home;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqlitePool};
use tokio::sync::Notify;

/// Names of the databases that do not answer: a caller that asks for a connection waits, as for a
/// server that has vanished from the network. A transaction that has begun goes on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Silent(Arc<Mutex<HashSet<&'static str>>>);

impl Silent {
    pub(crate) fn insert(&self, name: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
    }

    pub(crate) fn remove(&self, name: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    fn contains(&self, name: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }
}

/// The disk of one host, from one start to the next crash.
#[derive(Clone, Debug)]
pub(crate) struct Disk(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    clock: Clock,
    silent: Silent,
    pools: Mutex<Vec<SqlitePool>>,
    /// Number of databases being opened.
    opening: AtomicUsize,
    /// Number of connections that wait for the disk, in virtual time.
    waiting: AtomicUsize,
    used: Notify,
    rng: Mutex<fastrand::Rng>,
}

/// Maximum delay of the disk, in milliseconds.
const SLOWEST: u64 = 3;
/// Pause between two looks whether a silent database answers again.
const SILENT_POLL: Duration = Duration::from_millis(20);
/// Maximum number of polls while waiting for a database in real time, which takes many seconds.
/// Only a deadlock takes longer.
const PATIENCE: u32 = 20_000_000;

impl Disk {
    pub(crate) fn new(dir: PathBuf, clock: Clock, silent: Silent, seed: u64) -> Self {
        Self(Arc::new(Inner {
            dir,
            clock,
            silent,
            pools: Mutex::default(),
            opening: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            used: Notify::new(),
            rng: Mutex::new(fastrand::Rng::with_seed(seed)),
        }))
    }

    /// Stops the runtime's clock while a database is in use: as long as a task is ready, tokio's
    /// paused clock does not advance.
    pub(crate) async fn keep_time(self) {
        loop {
            self.0.used.notified().await;
            let mut turns = 0;
            while self.is_busy() {
                turns += 1;
                assert!(turns < PATIENCE, "a database connection was never returned: {:?}", self.0);
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

    /// Waits for the disk before a connection is used. No wait while a database is opened, because
    /// the clock stands still then.
    async fn seek(&self, name: &str) {
        let pause = self.0.rng.lock().unwrap_or_else(PoisonError::into_inner).u64(0..=SLOWEST);
        if pause > 0 && self.0.opening.load(Ordering::SeqCst) == 0 {
            let _waiting = Counted::new(&self.0.waiting);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        self.hear(name).await;
        self.0.used.notify_one();
    }

    /// Waits until a database answers.
    async fn hear(&self, name: &str) {
        while self.0.silent.contains(name) {
            let _waiting = Counted::new(&self.0.waiting);
            tokio::time::sleep(SILENT_POLL).await;
        }
    }

    async fn pool(&self, name: &str) -> Result<SqlitePool, DbError> {
        let options = SqliteConnectOptions::new()
            .filename(self.0.dir.join(format!("{name}.db")))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // Simulated hosts lose their memory in a crash, but not their disk.
            .synchronous(SqliteSynchronous::Off)
            .busy_timeout(Duration::from_secs(5));
        let (disk, database) = (self.clone(), name.to_owned());
        let (new_disk, new_database) = (disk.clone(), database.clone());
        let pool = SqlitePoolOptions::new()
            // One connection, in FIFO order: two would race in real time.
            .min_connections(1)
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .test_before_acquire(false)
            // A pool opens another connection in place of one that did not answer in time.
            .after_connect(move |_, _| {
                let (disk, database) = (new_disk.clone(), new_database.clone());
                Box::pin(async move {
                    disk.hear(&database).await;
                    Ok(())
                })
            })
            .before_acquire(move |_, _| {
                let (disk, database) = (disk.clone(), database.clone());
                Box::pin(async move {
                    disk.seek(&database).await;
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
