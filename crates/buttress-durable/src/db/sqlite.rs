use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, Pool, Row, Sqlite};

use super::database::{Arg, Database, bind, sealed, statements};
use super::migrate::Own;
use super::{Db, DbError, error, session};

/// The migrations of the `buttress_*` tables: version, name and SQL. An applied one never changes.
const MIGRATIONS: [Own; 5] = [
    (1, "init", include_str!("../../migrations/sqlite/0001_init.sql")),
    (2, "groups and topics", include_str!("../../migrations/sqlite/0002_groups_and_topics.sql")),
    (3, "saga", include_str!("../../migrations/sqlite/0003_saga.sql")),
    (4, "retention", include_str!("../../migrations/sqlite/0004_retention.sql")),
    (5, "leases", include_str!("../../migrations/sqlite/0005_leases.sql")),
];

impl Db<Sqlite> {
    /// Opens the file at `path`, creates it if it does not exist, and migrates the tables.
    ///
    /// The database uses WAL and `synchronous = NORMAL`: a crash of the process loses nothing; a
    /// power cut may lose the last transactions, but never a part of one. The pool has at most 4
    /// connections and waits up to 2 s for one. A writer waits up to 5 s for writers of other
    /// processes.
    ///
    /// # Errors
    ///
    /// [`DbError::Sqlx`] if the file cannot be opened; the errors of [`migrate`](Self::migrate).
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, DbError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            // Readers do not wait for the writer, so that one file can serve a whole service.
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(Duration::from_secs(5));
        // One writer and three readers. More would only queue inside SQLite.
        let pool = SqlitePoolOptions::new()
            .max_connections(4)
            // A file does not disconnect, so testing a connection would waste a round trip to its
            // thread.
            .test_before_acquire(false)
            // Shorter than most callers' timeouts, so that they receive this error and not their
            // own.
            .acquire_timeout(Duration::from_secs(2))
            // After a transaction that SQLite has rolled back by itself, because the disk is full,
            // sqlx counts it as open and the connection can begin no other one.
            .before_acquire(|conn, _| std::future::ready(Ok(!conn.is_in_transaction())).boxed())
            .connect_with(options)
            .await?;
        let db = Self::new(pool);
        db.migrate().await?;
        Ok(db)
    }
}

impl Database for Sqlite {
    // A transaction that begins as a reader fails at its first write if another one has written
    // meanwhile, regardless of the busy timeout. One that begins as a writer waits.
    const BEGIN: &'static str = "BEGIN IMMEDIATE";
    // SQLite waits by sleeping for growing times and has no fair queue.
    const WRITERS: Option<usize> = Some(1);
    const SHARD_LOCKS: bool = false;

    const ABORTS: bool = false;
    // A statement waits for other processes only, and no longer than the busy timeout.
    const LIMIT: Option<Duration> = None;
    // PASSIVE neither waits for nor blocks other connections:
    // https://sqlite.org/pragma.html#pragma_wal_checkpoint
    const CHECKPOINT: Option<&'static str> = Some("PRAGMA wal_checkpoint(PASSIVE)");
    const SERVER_TIME: Option<&'static str> = None;

    fn commit(conn: &mut Self::Connection) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        async move {
            session::commit::<Self>(conn).await?;
            // Only a savepoint was released.
            if conn.is_in_transaction() {
                return Err(sqlx::Error::Protocol("commit with a nested transaction that has not ended".into()));
            }
            Ok(())
        }
        .boxed()
    }

    fn breaks(error: &sqlx::Error) -> bool {
        let code = error.as_database_error().and_then(|error| error.code());
        // The low byte is the primary result code: https://sqlite.org/rescode.html
        let primary = code.and_then(|code| code.parse::<u32>().ok()).map_or(0, |code| code & 0xff);
        // NOMEM, READONLY, IOERR, CORRUPT, FULL, CANTOPEN, PROTOCOL, NOTADB
        error::breaks(error) || matches!(primary, 7 | 8 | 10 | 11 | 13..=15 | 26)
    }

    statements!();

    fn lock_key(_: &mut Self::Connection, _: i64) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        std::future::ready(Ok(())).boxed()
    }

    fn try_lock_shard(_: &mut Self::Connection, _: i64) -> BoxFuture<'_, Result<bool, sqlx::Error>> {
        std::future::ready(Ok(true)).boxed()
    }
}

/// Returns a connection for migrations.
async fn migrating(pool: &Pool<Sqlite>) -> Result<PoolConnection<Sqlite>, sqlx::Error> {
    pool.acquire().await
}

impl sealed::Sealed for Sqlite {}

bind!(Sqlite);
