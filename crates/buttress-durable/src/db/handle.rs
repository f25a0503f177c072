use std::sync::Arc;
use std::time::Duration;

use sqlx::Pool;
use tokio::sync::Semaphore;

use super::database::{Arg, Database, args};
use super::fault::Faults;
use super::server_time::ServerTime;
use super::session::{Session, within};
use super::{DbError, Tx};
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
    limit: Option<Duration>,
    server_time: Arc<ServerTime>,
}

/// Equal to SQLite's busy timeout. Most callers give up before that.
const WRITE_LOCK_TIMEOUT: Duration = Duration::from_secs(5);

// === impl Db ===

impl<D: Database> Db<D> {
    /// Uses an existing pool. Call [`migrate`](Self::migrate) once before anything else.
    ///
    /// On SQLite the pool needs WAL and a busy timeout. [`Db::open`] sets both. On PostgreSQL it
    /// needs time limits; `PostgresOptions` sets them.
    pub fn new(pool: Pool<D>) -> Self {
        let writers = D::WRITERS.map(|writers| Arc::new(Semaphore::new(writers)));
        let (clock, faults, server_time) = (Clock::system(), Faults::default(), Arc::default());
        Self { pool, clock, faults, writers, limit: D::LIMIT, server_time }
    }

    /// Sets how long a statement may take before the connection is given up (PostgreSQL only).
    /// Default: 30 s. It detects a server that no longer answers, so it should be longer than the
    /// server's `statement_timeout`.
    ///
    /// It limits what this crate runs: [`Tx`]'s methods, [`rows`](Self::rows), and the statements
    /// of outbox, inbox, bus and sagas. Migrations have no limit.
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> Self {
        self.limit = D::LIMIT.and(Some(limit));
        self
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
    /// Migrations only add, so that during a rolling update older versions of this crate run on the
    /// tables of newer ones. If a newer version ever has to break that, it says so in its
    /// changelog, and older versions refuse to start.
    ///
    /// # Errors
    ///
    /// [`DbError::Migrate`] if a statement fails; [`DbError::Newer`] if the tables belong to a
    /// newer version with which this one cannot run.
    pub async fn migrate(&self) -> Result<(), DbError> {
        D::migrate(&self.pool).await
    }

    /// Migrates the service's own tables. The migrations are recorded in sqlx's default table.
    ///
    /// # Errors
    ///
    /// [`DbError::Migrate`] if a statement fails, or an applied migration differs from the one in
    /// `migrator`; [`DbError::Newer`] if the tables have migrations that `migrator` does not know.
    /// For a rolling update, in which the old version runs on the new tables, let it ignore them:
    /// [`set_ignore_missing`](sqlx::migrate::Migrator::set_ignore_missing).
    pub async fn migrate_own(&self, migrator: &sqlx::migrate::Migrator) -> Result<(), DbError> {
        D::migrate_own(&self.pool, migrator).await
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
        let mut session = Session::acquire(&self.pool, self.limit, permit).await?;
        session.begin().await?;
        Ok(Tx::new(session, self.faults.clone()))
    }

    /// Checks that the database accepts writes, by committing one: for a health check.
    ///
    /// A read is not enough: a database on a full disk, and a server that is read-only after a
    /// failover, still answer queries.
    ///
    /// # Errors
    ///
    /// Those of [`begin`](Self::begin) and of a statement. Their [kind](DbError::kind) is
    /// [`Unavailable`](super::DbErrorKind::Unavailable).
    pub async fn check_writable(&self) -> Result<(), DbError> {
        // A row of the leases that no worker acquires: it is small, and is overwritten each time.
        let sql = "INSERT INTO buttress_lease (name, owner, generation, expires_at) VALUES ('check', '', 0, $1)
                   ON CONFLICT (name) DO UPDATE SET expires_at = excluded.expires_at";
        self.write(sql, args![self.now()]).await.map(drop)
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

    /// Returns the time by which leases are measured: the server's on PostgreSQL, where processes
    /// have clocks of their own. A manual clock is used as it is.
    pub(crate) async fn lease_now(&self) -> Result<Timestamp, DbError> {
        if self.clock.is_manual() { Ok(self.now()) } else { self.server_time.now(self).await }
    }

    /// Acquires a connection for several reads outside of any transaction.
    pub(crate) async fn session(&self) -> Result<Session<D>, DbError> {
        Ok(Session::acquire(&self.pool, self.limit, None).await?)
    }

    /// Runs a query outside of any transaction.
    pub(crate) async fn read(&self, sql: &'static str, args: &[Arg<'_>]) -> Result<Vec<D::Row>, DbError> {
        let mut session = self.session().await?;
        self.faults.statement(sql).await;
        Ok(session.fetch(sql, args).await?)
    }

    /// Runs a statement in its own transaction.
    pub(crate) async fn write(&self, sql: &'static str, args: &[Arg<'_>]) -> Result<u64, DbError> {
        let mut tx = self.begin().await?;
        let changed = tx.execute(sql, args).await?;
        tx.commit().await?;
        Ok(changed)
    }

    /// Locks a key until the transaction ends.
    pub(crate) async fn lock_key(&self, conn: &mut D::Connection, key: i64) -> Result<(), DbError> {
        Ok(within(self.limit, D::lock_key(conn, key)).await?)
    }

    /// Tries to lock a shard of the outbox until the transaction ends.
    pub(crate) async fn try_lock_shard(&self, conn: &mut D::Connection, shard: i64) -> Result<bool, DbError> {
        Ok(within(self.limit, D::try_lock_shard(conn, shard)).await?)
    }

    pub(crate) async fn fetch(
        &self,
        conn: &mut D::Connection,
        sql: &'static str,
        args: &[Arg<'_>],
    ) -> Result<Vec<D::Row>, DbError> {
        self.faults.statement(sql).await;
        Ok(within(self.limit, D::fetch(conn, sql, args)).await?)
    }

    pub(crate) async fn execute(
        &self,
        conn: &mut D::Connection,
        sql: &'static str,
        args: &[Arg<'_>],
    ) -> Result<u64, DbError> {
        self.faults.statement(sql).await;
        Ok(within(self.limit, D::execute(conn, sql, args)).await?)
    }
}

impl<D: Database> Clone for Db<D> {
    fn clone(&self) -> Self {
        Self {
            pool: self.pool.clone(),
            clock: self.clock.clone(),
            faults: self.faults.clone(),
            writers: self.writers.clone(),
            limit: self.limit,
            server_time: self.server_time.clone(),
        }
    }
}
