//! Migrations, and which versions of this crate can share tables.
//!
//! During a rolling update the old version runs on tables that the new one has migrated. So
//! migrations only add: an older version ignores those that it does not know. A change with which
//! older versions cannot run begins the next [`ERA`] of version numbers, and they refuse to start.

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migrate, MigrateError, Migration, MigrationType, Migrator};

use super::DbError;

/// Version, name and SQL. An applied migration never changes.
pub(super) type Own = (i64, &'static str, &'static str);

const TABLE: &str = "buttress_migrations";

/// Versions of one era, 1 to 999 of the first, only add to the tables.
const ERA: i64 = 1_000;

/// Migrates the `buttress_*` tables.
pub(super) async fn own_tables<C: Migrate>(conn: &mut C, migrations: &[Own]) -> Result<(), DbError> {
    let known = migrations.last().map_or(0, |(version, ..)| *version);
    refuse_next_era(conn, known).await?;
    let migration = |&(version, name, sql): &Own| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    let mut migrator = Migrator::with_migrations(migrations.iter().map(migration).collect());
    migrator.dangerous_set_table_name(TABLE);
    migrator.set_ignore_missing(true);
    run(&migrator, conn).await
}

/// Runs a migrator. If the tables are newer than it, the error says so.
pub(super) async fn run<C: Migrate>(migrator: &Migrator, conn: &mut C) -> Result<(), DbError> {
    let known = migrator.iter().map(|migration| migration.version).max().unwrap_or(0);
    migrator.run_direct(None, conn, false).await.map_err(|error| match error {
        MigrateError::VersionMissing(tables) if tables > known => DbError::Newer { tables, known },
        error => error.into(),
    })
}

/// Fails before anything is changed if the tables belong to a later era.
async fn refuse_next_era<C: Migrate>(conn: &mut C, known: i64) -> Result<(), DbError> {
    conn.ensure_migrations_table(TABLE).await?;
    let applied = conn.list_applied_migrations(TABLE).await?;
    let tables = applied.iter().map(|migration| migration.version).max().unwrap_or(0);
    if tables / ERA > known / ERA { Err(DbError::Newer { tables, known }) } else { Ok(()) }
}
