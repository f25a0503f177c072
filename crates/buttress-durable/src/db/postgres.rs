use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Pool, Postgres, Row, SqlSafeStr};

use super::database::{Arg, Database, bind, sealed, statements};
use super::{Db, DbError};

/// The migrations of the `buttress_*` tables: version, name and SQL. An applied one never changes.
const MIGRATIONS: [(i64, &str, &str); 1] = [(1, "init", include_str!("../../migrations/postgres/0001_init.sql"))];

/// Separates our advisory locks from others in the same database: "butt" in ASCII.
const LOCK_CLASS: i64 = 0x6275_7474;

impl Db<Postgres> {
    /// Connects to `postgres://user:password@host:port/database` and migrates the tables. The pool
    /// has at most 10 connections.
    ///
    /// # Errors
    ///
    /// [`DbError::Sqlx`] if the URL is wrong or the server fails; [`DbError::Migrate`] if the
    /// tables belong to a newer version of this crate.
    pub async fn connect(url: &str) -> Result<Self, DbError> {
        let db = Self::new(PgPoolOptions::new().max_connections(10).connect(url).await?);
        db.migrate().await?;
        Ok(db)
    }
}

impl Database for Postgres {
    const BEGIN: &'static str = "BEGIN";
    const WRITERS: Option<usize> = None;
    const SHARD_LOCKS: bool = true;

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

    fn lock_key(conn: &mut Self::Connection, key: i64) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        // Advisory locks with one number. Shards use two numbers, so that they never collide.
        async move { sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(key).execute(conn).await.map(drop) }.boxed()
    }

    fn try_lock_shard(conn: &mut Self::Connection, shard: i64) -> BoxFuture<'_, Result<bool, sqlx::Error>> {
        async move {
            sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1::bigint::int4, $2::bigint::int4)")
                .bind(LOCK_CLASS)
                .bind(shard)
                .fetch_one(conn)
                .await
        }
        .boxed()
    }
}

impl sealed::Sealed for Postgres {}

bind!(Postgres);
