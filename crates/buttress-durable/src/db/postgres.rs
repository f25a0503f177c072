use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryStreamExt};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgDatabaseError, PgSeverity};
use sqlx::{Executor as _, Pool, Postgres, Row};

use super::database::{Arg, Database, bind, sealed, statements};
use super::migrate::Own;
use super::{Db, DbError, PostgresOptions, error, session};

/// The migrations of the `buttress_*` tables: version, name and SQL. An applied one never changes.
const MIGRATIONS: [Own; 5] = [
    (1, "init", include_str!("../../migrations/postgres/0001_init.sql")),
    (2, "groups and topics", include_str!("../../migrations/postgres/0002_groups_and_topics.sql")),
    (3, "saga", include_str!("../../migrations/postgres/0003_saga.sql")),
    (4, "retention", include_str!("../../migrations/postgres/0004_retention.sql")),
    (5, "leases", include_str!("../../migrations/postgres/0005_leases.sql")),
];

/// Separates our advisory locks from others in the same database: "butt" in ASCII.
const LOCK_CLASS: i64 = 0x6275_7474;

impl Db<Postgres> {
    /// Connects to `postgres://user:password@host:port/database` and migrates the tables, with the
    /// defaults of [`PostgresOptions`].
    ///
    /// # Errors
    ///
    /// [`DbError::Sqlx`] if the URL is wrong or the server fails; the errors of
    /// [`migrate`](Self::migrate).
    pub async fn connect(url: &str) -> Result<Self, DbError> {
        let db = PostgresOptions::new(url)?.connect().await?;
        db.migrate().await?;
        Ok(db)
    }
}

impl Database for Postgres {
    const BEGIN: &'static str = "BEGIN";
    const WRITERS: Option<usize> = None;
    const SHARD_LOCKS: bool = true;

    const ABORTS: bool = true;
    const LIMIT: Option<Duration> = Some(Duration::from_secs(30));
    const CHECKPOINT: Option<&'static str> = None;
    const SERVER_TIME: Option<&'static str> =
        Some("SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)");

    fn commit(conn: &mut Self::Connection) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        commit(conn).boxed()
    }

    fn breaks(error: &sqlx::Error) -> bool {
        let fatal = |error: &PgDatabaseError| matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic);
        let reported = error.as_database_error().and_then(|error| error.try_downcast_ref());
        error::breaks(error) || reported.is_some_and(fatal)
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

/// The server answers COMMIT with success also if a statement has failed and it rolls back; only
/// the tag of the answer differs, which sqlx does not expose. So another statement goes first, in
/// the same round trip: it fails in such a transaction, and then the rest is not run. This one also
/// runs the checks of deferred constraints before the commit.
///
/// sqlx still counts the transaction as open then, and can only end it by a rollback, which it
/// queues and sends with the ping on return. BEGIN gives that rollback something to end; otherwise
/// the server warns each time.
const COMMIT: &str = "SET CONSTRAINTS ALL IMMEDIATE; COMMIT; BEGIN";

async fn commit(conn: &mut sqlx::PgConnection) -> Result<(), sqlx::Error> {
    if session::depth::<Postgres>(conn) != 1 {
        return Err(sqlx::Error::Protocol("commit with a nested transaction that has not ended".into()));
    }
    let mut results = (&mut *conn).fetch_many(sqlx::raw_sql(COMMIT));
    let mut done = 0;
    loop {
        match results.try_next().await {
            Ok(Some(_)) => done += 1,
            Ok(None) => break,
            // Committed. The connection is tested when it returns.
            Err(_) if done >= 2 => break,
            Err(error) => return Err(error),
        }
    }
    drop(results);
    session::start_rollback::<Postgres>(conn);
    Ok(())
}

/// Returns a connection for migrations, which take as long as the tables are large. It does not
/// return to the pool.
async fn migrating(pool: &Pool<Postgres>) -> Result<PoolConnection<Postgres>, sqlx::Error> {
    let mut conn = pool.acquire().await?;
    conn.close_on_drop();
    conn.execute("SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0")
        .await?;
    Ok(conn)
}

impl sealed::Sealed for Postgres {}

bind!(Postgres);
