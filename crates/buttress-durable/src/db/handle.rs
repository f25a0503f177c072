use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use sqlx::Pool;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::DbError;
use super::database::{Arg, Database};
use super::fault::Faults;
use crate::clock::{Clock, Timestamp};

/// A service's database: a pool, the `buttress_*` tables, and a clock. Cheap to clone.
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// use buttress_durable::Db;
///
/// # let dir = tempfile::tempdir()?;
/// let db = Db::open(dir.path().join("orders.db")).await?;
/// let mut tx = db.begin().await?;
/// sqlx::query("CREATE TABLE orders (id TEXT PRIMARY KEY)").execute(&mut *tx).await?;
/// tx.commit().await?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Db<D: Database> {
    pool: Pool<D>,
    clock: Clock,
    faults: Faults,
    writers: Option<Arc<Semaphore>>,
}

/// A writing transaction. Dereferences to the connection, for statements of your own. Dropping it
/// rolls it back.
#[must_use = "dropping a transaction rolls it back"]
#[derive(Debug)]
pub struct Tx<D: Database> {
    inner: sqlx::Transaction<'static, D>,
    pub(super) faults: Faults,
    _permit: Option<OwnedSemaphorePermit>,
}

/// Equal to SQLite's busy timeout. Most callers give up before that.
const WRITE_LOCK_TIMEOUT: Duration = Duration::from_secs(5);

// === impl Db ===

impl<D: Database> Db<D> {
    /// Uses an existing pool. Call [`migrate`](Self::migrate) once before anything else.
    ///
    /// On SQLite the pool needs WAL and a busy timeout. [`Db::open`] sets both.
    pub fn new(pool: Pool<D>) -> Self {
        let writers = D::WRITERS.map(|writers| Arc::new(Semaphore::new(writers)));
        Self { pool, clock: Clock::system(), faults: Faults::default(), writers }
    }

    /// Sets the clock. Default: the system clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Calls `crash` at every fault point. Where it returns true, the operation never returns, as
    /// if the process had crashed.
    #[cfg(feature = "fault-points")]
    #[must_use]
    pub fn with_faults(mut self, crash: impl Fn(super::FaultPoint) -> bool + Send + Sync + 'static) -> Self {
        self.faults = Faults::new(crash);
        self
    }

    /// Migrates the `buttress_*` tables. The migrations are recorded in `buttress_migrations`,
    /// apart from those of the service.
    ///
    /// # Errors
    ///
    /// [`DbError::Migrate`] if a statement fails, or the tables belong to a newer version.
    pub async fn migrate(&self) -> Result<(), DbError> {
        Ok(D::migrate(&self.pool).await?)
    }

    /// Migrates the service's own tables. The migrations are recorded in sqlx's default table.
    ///
    /// # Errors
    ///
    /// [`DbError::Migrate`] if a statement fails, or an applied migration differs from the one in
    /// `migrator`.
    pub async fn migrate_own(&self, migrator: &sqlx::migrate::Migrator) -> Result<(), DbError> {
        Ok(D::migrate_own(&self.pool, migrator).await?)
    }

    /// Begins a writing transaction.
    ///
    /// On SQLite there is one at a time. Keep it short, and do not wait in it for a second
    /// transaction or another service.
    ///
    /// # Errors
    ///
    /// [`DbError::Busy`] after 5 s without the write lock (SQLite); [`DbError::Sqlx`] if the
    /// database fails.
    pub async fn begin(&self) -> Result<Tx<D>, DbError> {
        let permit = match &self.writers {
            Some(writers) => match tokio::time::timeout(WRITE_LOCK_TIMEOUT, writers.clone().acquire_owned()).await {
                Ok(permit) => permit.ok(),
                Err(_) => return Err(DbError::Busy(WRITE_LOCK_TIMEOUT)),
            },
            None => None,
        };
        let inner = self.pool.begin_with(D::BEGIN).await?;
        Ok(Tx { inner, faults: self.faults.clone(), _permit: permit })
    }

    /// Returns the pool, for the service's own statements.
    pub fn pool(&self) -> &Pool<D> {
        &self.pool
    }

    /// Returns the clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The time that leases are measured by, which all processes on this database must share.
    #[expect(clippy::unused_async, dead_code, reason = "a server may have to be asked")]
    pub(crate) async fn lease_now(&self) -> Result<Timestamp, DbError> {
        Ok(self.now())
    }

    /// Runs a query outside of any transaction.
    pub(crate) async fn read(&self, sql: &'static str, args: &[Arg<'_>]) -> Result<Vec<D::Row>, DbError> {
        let mut conn = self.pool.acquire().await?;
        self.fetch(&mut conn, sql, args).await
    }

    /// Runs a statement in its own transaction.
    pub(crate) async fn write(&self, sql: &'static str, args: &[Arg<'_>]) -> Result<u64, DbError> {
        let mut tx = self.begin().await?;
        let changed = self.execute(&mut tx, sql, args).await?;
        tx.commit().await?;
        Ok(changed)
    }

    pub(crate) async fn fetch(
        &self,
        conn: &mut D::Connection,
        sql: &'static str,
        args: &[Arg<'_>],
    ) -> Result<Vec<D::Row>, DbError> {
        self.faults.statement(sql).await;
        Ok(D::fetch(conn, sql, args).await?)
    }

    pub(crate) async fn execute(
        &self,
        conn: &mut D::Connection,
        sql: &'static str,
        args: &[Arg<'_>],
    ) -> Result<u64, DbError> {
        self.faults.statement(sql).await;
        Ok(D::execute(conn, sql, args).await?)
    }
}

impl<D: Database> Clone for Db<D> {
    fn clone(&self) -> Self {
        let Self { pool, clock, faults, writers } = self;
        Self { pool: pool.clone(), clock: clock.clone(), faults: faults.clone(), writers: writers.clone() }
    }
}

// === impl Tx ===

impl<D: Database> Tx<D> {
    /// Commits the transaction.
    ///
    /// # Errors
    ///
    /// If the database fails. If the connection broke, the commit may have happened nevertheless.
    pub async fn commit(self) -> Result<(), DbError> {
        self.faults.before_commit().await;
        self.inner.commit().await?;
        self.faults.after_commit().await;
        Ok(())
    }

    /// Rolls the transaction back.
    ///
    /// # Errors
    ///
    /// If the database fails. The writes are undone nevertheless.
    pub async fn rollback(self) -> Result<(), DbError> {
        Ok(self.inner.rollback().await?)
    }
}

impl<D: Database> Deref for Tx<D> {
    type Target = D::Connection;

    fn deref(&self) -> &D::Connection {
        &self.inner
    }
}

impl<D: Database> DerefMut for Tx<D> {
    fn deref_mut(&mut self) -> &mut D::Connection {
        &mut self.inner
    }
}
