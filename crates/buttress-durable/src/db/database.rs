use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::Pool;

use super::DbError;
use crate::clock::Timestamp;

/// A supported database: `sqlx::Sqlite` or `sqlx::Postgres`. Sealed.
///
/// Its methods run a statement on either of them. A service for one database uses sqlx directly. A
/// service that supports both uses [`Tx::execute`](crate::Tx::execute),
/// [`Tx::rows`](crate::Tx::rows) and [`Db::rows`](crate::Db::rows).
pub trait Database: sqlx::Database<Connection: Send> + sealed::Sealed {
    /// The statement that begins a writing transaction.
    #[doc(hidden)]
    const BEGIN: &'static str;
    /// Number of concurrent writers, if the database limits it and queueing in the process helps.
    #[doc(hidden)]
    const WRITERS: Option<usize>;
    /// Whether [`try_lock_shard`](Self::try_lock_shard) locks. If not, the relay uses a lease.
    #[doc(hidden)]
    const SHARD_LOCKS: bool;

    /// Whether the database refuses to commit a transaction in which a statement has failed.
    #[doc(hidden)]
    const ABORTS: bool;
    /// Default time limit of a statement, in the client, where the database can fall silent.
    #[doc(hidden)]
    const LIMIT: Option<Duration>;
    /// The query that copies committed pages into the database file without the write lock, if
    /// commits would do it otherwise.
    #[doc(hidden)]
    const CHECKPOINT: Option<&'static str>;
    /// The query for the server's time in milliseconds, if the database is on a server.
    #[doc(hidden)]
    const SERVER_TIME: Option<&'static str>;

    /// Commits a transaction, or fails if a statement in it has failed and the database knows.
    #[doc(hidden)]
    fn commit(conn: &mut Self::Connection) -> BoxFuture<'_, Result<(), sqlx::Error>>;

    /// Whether a connection cannot be used after this error.
    #[doc(hidden)]
    fn breaks(error: &sqlx::Error) -> bool;

    /// Migrates the `buttress_*` tables.
    #[doc(hidden)]
    fn migrate(pool: &Pool<Self>) -> BoxFuture<'_, Result<(), DbError>>;

    /// Migrates the service's own tables.
    #[doc(hidden)]
    fn migrate_own<'a>(
        pool: &'a Pool<Self>,
        migrator: &'a sqlx::migrate::Migrator,
    ) -> BoxFuture<'a, Result<(), DbError>>;

    /// Runs a statement and returns the number of changed rows.
    #[doc(hidden)]
    fn execute<'a>(
        conn: &'a mut Self::Connection,
        sql: &'static str,
        args: &'a [Arg<'a>],
    ) -> BoxFuture<'a, Result<u64, sqlx::Error>>;

    /// Runs a statement and returns its rows.
    #[doc(hidden)]
    fn fetch<'a>(
        conn: &'a mut Self::Connection,
        sql: &'static str,
        args: &'a [Arg<'a>],
    ) -> BoxFuture<'a, Result<Vec<Self::Row>, sqlx::Error>>;

    /// Locks a key until the transaction ends. No operation where there is a single writer.
    #[doc(hidden)]
    fn lock_key(conn: &mut Self::Connection, key: i64) -> BoxFuture<'_, Result<(), sqlx::Error>>;

    /// Tries to lock a shard of the outbox until the transaction ends.
    #[doc(hidden)]
    fn try_lock_shard(conn: &mut Self::Connection, shard: i64) -> BoxFuture<'_, Result<bool, sqlx::Error>>;

    #[doc(hidden)]
    fn int(row: &Self::Row, column: usize) -> Result<i64, sqlx::Error>;
    #[doc(hidden)]
    fn maybe_int(row: &Self::Row, column: usize) -> Result<Option<i64>, sqlx::Error>;
    #[doc(hidden)]
    fn text(row: &Self::Row, column: usize) -> Result<String, sqlx::Error>;
    #[doc(hidden)]
    fn maybe_text(row: &Self::Row, column: usize) -> Result<Option<String>, sqlx::Error>;
    #[doc(hidden)]
    fn blob(row: &Self::Row, column: usize) -> Result<Vec<u8>, sqlx::Error>;
}

/// A value for a placeholder. [`args!`](crate::args) converts values.
///
/// ```
/// use buttress_durable::Timestamp;
/// use buttress_durable::db::Arg;
///
/// assert!(matches!(Arg::from("tea"), Arg::Text("tea")));
/// assert!(matches!(Arg::from(Timestamp::from_millis(7)), Arg::Int(7)));
/// ```
#[derive(Clone, Copy, Debug)]
pub enum Arg<'a> {
    /// BIGINT, also for timestamps.
    Int(i64),
    /// BIGINT or NULL.
    MaybeInt(Option<i64>),
    /// TEXT.
    Text(&'a str),
    /// TEXT or NULL.
    MaybeText(Option<&'a str>),
    /// BLOB or BYTEA.
    Blob(&'a [u8]),
}

pub(super) mod sealed {
    pub trait Sealed {}
}

/// Converts values into a slice of [`Arg`](crate::db::Arg)s for `$1`, `$2`, `$3`.
///
/// ```
/// use buttress_durable::args;
/// use buttress_durable::db::Arg;
///
/// let args: &[Arg<'_>] = args!["tea", 3, None::<i64>];
/// assert_eq!(args.len(), 3);
/// ```
#[macro_export]
macro_rules! args {
    ($($value:expr),* $(,)?) => { &[$($crate::db::Arg::from($value)),*] };
}
pub(crate) use args;

/// The methods with the same text for every driver. sqlx's bounds differ by type, so that only a
/// macro can share them.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
macro_rules! statements {
    () => {
        fn migrate(pool: &Pool<Self>) -> BoxFuture<'_, Result<(), DbError>> {
            Box::pin(async move { $crate::db::migrate::own_tables(&mut *migrating(pool).await?, &MIGRATIONS).await })
        }

        fn migrate_own<'a>(
            pool: &'a Pool<Self>,
            migrator: &'a sqlx::migrate::Migrator,
        ) -> BoxFuture<'a, Result<(), DbError>> {
            Box::pin(async move { $crate::db::migrate::run(migrator, &mut *migrating(pool).await?).await })
        }

        fn execute<'a>(
            conn: &'a mut Self::Connection,
            sql: &'static str,
            args: &'a [Arg<'a>],
        ) -> BoxFuture<'a, Result<u64, sqlx::Error>> {
            Box::pin(async move { Ok(bind(sql, args).execute(conn).await?.rows_affected()) })
        }

        fn fetch<'a>(
            conn: &'a mut Self::Connection,
            sql: &'static str,
            args: &'a [Arg<'a>],
        ) -> BoxFuture<'a, Result<Vec<Self::Row>, sqlx::Error>> {
            Box::pin(async move { bind(sql, args).fetch_all(conn).await })
        }

        fn int(row: &Self::Row, column: usize) -> Result<i64, sqlx::Error> {
            row.try_get(column)
        }

        fn maybe_int(row: &Self::Row, column: usize) -> Result<Option<i64>, sqlx::Error> {
            row.try_get(column)
        }

        fn text(row: &Self::Row, column: usize) -> Result<String, sqlx::Error> {
            row.try_get(column)
        }

        fn maybe_text(row: &Self::Row, column: usize) -> Result<Option<String>, sqlx::Error> {
            row.try_get(column)
        }

        fn blob(row: &Self::Row, column: usize) -> Result<Vec<u8>, sqlx::Error> {
            row.try_get(column)
        }
    };
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
macro_rules! bind {
    ($db:ty) => {
        fn bind<'q>(
            sql: &'static str,
            args: &[Arg<'_>],
        ) -> sqlx::query::Query<'q, $db, <$db as sqlx::Database>::Arguments> {
            args.iter().fold(sqlx::query(sql), |query, arg| match *arg {
                Arg::Int(value) => query.bind(value),
                Arg::MaybeInt(value) => query.bind(value),
                Arg::Text(value) => query.bind(value),
                Arg::MaybeText(value) => query.bind(value),
                Arg::Blob(value) => query.bind(value),
            })
        }
    };
}
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(super) use {bind, statements};

// === impl Arg ===

impl From<i64> for Arg<'_> {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<Option<i64>> for Arg<'_> {
    fn from(value: Option<i64>) -> Self {
        Self::MaybeInt(value)
    }
}

impl From<Timestamp> for Arg<'_> {
    fn from(value: Timestamp) -> Self {
        Self::Int(value.as_millis())
    }
}

impl<'a> From<&'a str> for Arg<'a> {
    fn from(value: &'a str) -> Self {
        Self::Text(value)
    }
}

impl<'a> From<&'a String> for Arg<'a> {
    fn from(value: &'a String) -> Self {
        Self::Text(value)
    }
}

impl<'a> From<Option<&'a str>> for Arg<'a> {
    fn from(value: Option<&'a str>) -> Self {
        Self::MaybeText(value)
    }
}

impl<'a> From<&'a [u8]> for Arg<'a> {
    fn from(value: &'a [u8]) -> Self {
        Self::Blob(value)
    }
}
