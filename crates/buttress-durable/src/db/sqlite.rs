use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Pool, Row, SqlSafeStr, Sqlite};

use super::database::{Arg, Database, bind, sealed, statements};
use super::{Db, DbError};

/// The migrations of the `buttress_*` tables: version, name and SQL. An applied one never changes.
const MIGRATIONS: [(i64, &str, &str); 1] = [(1, "init", include_str!("../../migrations/sqlite/0001_init.sql"))];

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
    /// [`DbError::Sqlx`] if the file cannot be opened; [`DbError::Migrate`] if the tables belong to
    /// a newer version of this crate.
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

    fn migrate(pool: &Pool<Self>) -> BoxFuture<'_, Result<(), MigrateError>> {
        async move {
            let migration = |(version, name, sql): (i64, &'static str, &'static str)| {
                Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
            };
            let mut migrator = Migrator::with_migrations(MIGRATIONS.map(migration).to_vec());
            migrator.dangerous_set_table_name("buttress_migrations");
            migrator.run(pool).await
        }
        .boxed()
    }

    statements!();

    fn lock_key(_: &mut Self::Connection, _: i64) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        std::future::ready(Ok(())).boxed()
    }

    fn try_lock_shard(_: &mut Self::Connection, _: i64) -> BoxFuture<'_, Result<bool, sqlx::Error>> {
        std::future::ready(Ok(true)).boxed()
    }
}

impl sealed::Sealed for Sqlite {}

bind!(Sqlite);
