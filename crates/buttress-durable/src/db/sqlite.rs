use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Pool, Row, SqlSafeStr, Sqlite};

use super::database::{Arg, Database, bind, sealed, statements};
use super::{Db, DbError};

const INIT: &str = include_str!("../../migrations/sqlite/0001_init.sql");

impl Db<Sqlite> {
    /// Opens the file at `path`, creates it if need be, and brings the tables up to date.
    ///
    /// WAL, `synchronous = NORMAL`: a crash of the process loses nothing, a power cut may lose the last transactions but
    /// never their atomicity. At most 4 connections, for which one waits up to 2 seconds; a writer waits up to 5 seconds for
    /// the writers of other processes.
    ///
    /// # Errors
    ///
    /// If the file cannot be opened, or holds tables of a newer version of this crate.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, DbError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            // Readers do not wait for the writer, which is what makes one file enough for a whole service.
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(Duration::from_secs(5));
        // One writes, the others read. More would only queue inside SQLite.
        let pool = SqlitePoolOptions::new()
            .max_connections(4)
            // A file does not hang up: asking each connection first would be a wasted trip to its thread.
            .test_before_acquire(false)
            // Shorter than most callers' patience, so that they learn why.
            .acquire_timeout(Duration::from_secs(2))
            .connect_with(options)
            .await?;
        let db = Self::new(pool);
        db.migrate().await?;
        Ok(db)
    }
}

impl Database for Sqlite {
    // A transaction that begins as a reader and then writes fails at once when another has written in between; no busy
    // timeout helps. One that begins as a writer waits.
    const BEGIN: &'static str = "BEGIN IMMEDIATE";
    // SQLite's own waiting is sleeping in ever longer steps, with nobody first in line.
    const WRITERS: Option<usize> = Some(1);
    const SHARD_LOCKS: bool = false;

    fn migrate(pool: &Pool<Self>) -> BoxFuture<'_, Result<(), MigrateError>> {
        async move {
            let init = Migration::new(1, "init".into(), MigrationType::Simple, INIT.into_sql_str(), false);
            let mut migrator = Migrator::with_migrations(vec![init]);
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
