//! One database for each service: nobody reads another service's tables.
//!
//! SQLite is the embedded default. The queries keep to what PostgreSQL understands too (`$1`, `RETURNING`,
//! `ON CONFLICT`), and the names below are the only ones that the stores know, so a second backend starts here.

use std::path::Path;
use std::time::Duration;

use buttress::Health;
use buttress::health::{Check, CheckConfig, Group};
use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

pub type Db = sqlx::Sqlite;
pub type Pool = sqlx::Pool<Db>;
pub type Transaction = sqlx::Transaction<'static, Db>;

/// One file of a service's migrations folder: version, name and text.
pub type MigrationFile = (i64, &'static str, &'static str);

/// Opens (and creates) the database at `path` and brings its schema up to date.
pub async fn open(path: &Path, migrations: &[MigrationFile]) -> Result<Pool, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        // Readers do not wait for the writer, which is what makes one file enough for a whole service.
        .journal_mode(SqliteJournalMode::Wal)
        // With WAL a crash of the process loses nothing; only a power cut may lose the last transactions.
        .synchronous(SqliteSynchronous::Normal)
        // SQLite has one writer at a time: wait for it instead of failing with SQLITE_BUSY.
        .busy_timeout(Duration::from_secs(5));
    let pool = SqlitePoolOptions::new()
        // One writes, the others read. More would only queue inside SQLite.
        .max_connections(4)
        // Shorter than any caller's patience, so that the caller learns why.
        .acquire_timeout(Duration::from_secs(2))
        .connect_with(options)
        .await?;
    migrator(migrations).run(&pool).await?;
    Ok(pool)
}

/// Opens an existing database to look at it, as the audit does: it can change nothing.
pub async fn open_read_only(path: &Path) -> Result<Pool, sqlx::Error> {
    let options = SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(Duration::from_secs(5));
    SqlitePoolOptions::new().max_connections(1).connect_with(options).await
}

/// Asks the database every few seconds whether it is there, and takes the service out of rotation while it is not. Probes
/// read the last answer and never wait for the next. Dropping the check ends it.
pub fn check(health: &Health, pool: Pool) -> Check {
    health.check("database", Group::Readiness, CheckConfig::every(Duration::from_secs(5)), move || {
        let pool = pool.clone();
        async move { sqlx::query("SELECT 1").execute(&pool).await.map(drop) }
    })
}

fn migrator(files: &[MigrationFile]) -> Migrator {
    Migrator::with_migrations(
        files
            .iter()
            .map(|&(version, name, sql)| {
                Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
            })
            .collect(),
    )
}
