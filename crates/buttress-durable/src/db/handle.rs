use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use sqlx::Pool;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::database::{Arg, Database};
use super::fault::Faults;
use crate::clock::{Clock, Timestamp};

/// A service's database: its pool, the `buttress_*` tables in it, and a clock. Cheap to clone.
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

/// A transaction that may write. Dereferences to the connection, for statements of your own. Dropped, it is rolled back.
#[must_use = "dropping a transaction rolls it back"]
#[derive(Debug)]
pub struct Tx<D: Database> {
    inner: sqlx::Transaction<'static, D>,
    pub(super) faults: Faults,
    _turn: Option<OwnedSemaphorePermit>,
}

/// The database failed, or holds what this version cannot read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DbError {
    /// A statement or the connection failed.
    #[error("the database failed")]
    Sqlx(#[from] sqlx::Error),
    /// The tables could not be brought up to date.
    #[error("the migrations failed")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// Another transaction of this process has been writing for too long.
    #[error("no turn to write within {0:?}")]
    Busy(Duration),
    /// A value in a row that no version of this code has written.
    #[error("unreadable {what} in the database: {value:?}")]
    Unreadable {
        /// Which column.
        what: &'static str,
        /// What it holds, or what is wrong with it.
        value: String,
    },
}

/// As long as SQLite's busy timeout: whoever waits longer has a caller who has given up.
const TURN: Duration = Duration::from_secs(5);

// === impl Db ===

impl<D: Database> Db<D> {
    /// Uses a pool of the service's own. Call [`migrate`](Self::migrate) once before anything else.
    ///
    /// On SQLite the pool needs WAL and a busy timeout; [`Db::open`] sets both.
    pub fn new(pool: Pool<D>) -> Self {
        let writers = D::WRITERS.map(|writers| Arc::new(Semaphore::new(writers)));
        Self { pool, clock: Clock::system(), faults: Faults::default(), writers }
    }

    /// Takes the time from `clock`. Default: the machine's.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Asks `crash` at every boundary whether the process is dead from here on.
    #[cfg(feature = "fault-points")]
    #[must_use]
    pub fn with_faults(mut self, crash: impl Fn(super::FaultPoint) -> bool + Send + Sync + 'static) -> Self {
        self.faults = Faults::new(crash);
        self
    }

    /// Brings the `buttress_*` tables up to date, noted in `buttress_migrations`: never in the way of the service's own.
    ///
    /// # Errors
    ///
    /// If a statement fails, or the tables belong to a newer version.
    pub async fn migrate(&self) -> Result<(), DbError> {
        Ok(D::migrate(&self.pool).await?)
    }

    /// Brings the service's own tables up to date, noted where sqlx notes them.
    ///
    /// # Errors
    ///
    /// If a statement fails, or what was done before is not what `migrator` says.
    pub async fn migrate_own(&self, migrator: &sqlx::migrate::Migrator) -> Result<(), DbError> {
        Ok(D::migrate_own(&self.pool, migrator).await?)
    }

    /// Begins a transaction that may write. On SQLite it is the only one, so keep it short and never wait for a second
    /// one, or for another service, inside it.
    ///
    /// # Errors
    ///
    /// [`DbError::Busy`] after 5 seconds without a turn (SQLite), or what the database says.
    pub async fn begin(&self) -> Result<Tx<D>, DbError> {
        let turn = match &self.writers {
            Some(writers) => match tokio::time::timeout(TURN, writers.clone().acquire_owned()).await {
                Ok(turn) => turn.ok(),
                Err(_) => return Err(DbError::Busy(TURN)),
            },
            None => None,
        };
        let inner = self.pool.begin_with(D::BEGIN).await?;
        Ok(Tx { inner, faults: self.faults.clone(), _turn: turn })
    }

    /// The pool, for the service's own statements.
    pub fn pool(&self) -> &Pool<D> {
        &self.pool
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Reads outside of any transaction.
    pub(crate) async fn read(&self, sql: &'static str, args: &[Arg<'_>]) -> Result<Vec<D::Row>, DbError> {
        let mut conn = self.pool.acquire().await?;
        self.fetch(&mut conn, sql, args).await
    }

    /// A transaction of one statement.
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
    /// Makes the transaction's writes durable.
    ///
    /// # Errors
    ///
    /// What the database says. Whether the transaction happened is then unknown if the connection broke.
    pub async fn commit(self) -> Result<(), DbError> {
        self.faults.before_commit().await;
        self.inner.commit().await?;
        self.faults.after_commit().await;
        Ok(())
    }

    /// Undoes the transaction's writes.
    ///
    /// # Errors
    ///
    /// What the database says. The writes are undone all the same.
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
