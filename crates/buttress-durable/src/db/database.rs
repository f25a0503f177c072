use futures_util::future::BoxFuture;
use sqlx::Pool;

use crate::clock::Timestamp;

/// A database that Buttress knows: `sqlx::Sqlite` or `sqlx::Postgres`. Sealed.
///
/// The methods are how statements run on either. A service that has chosen its database uses sqlx itself; one that leaves the
/// choice to its operator uses [`Tx::execute`](crate::Tx::execute), [`Tx::rows`](crate::Tx::rows) and [`Db::rows`](crate::Db::rows).
pub trait Database: sqlx::Database<Connection: Send> + sealed::Sealed {
    /// How a transaction that will write begins.
    #[doc(hidden)]
    const BEGIN: &'static str;
    /// Writers at a time, if the database has a limit worth queueing for.
    #[doc(hidden)]
    const WRITERS: Option<usize>;
    /// Whether [`try_lock_shard`](Self::try_lock_shard) locks anything. If not, a lease has to do.
    #[doc(hidden)]
    const SHARD_LOCKS: bool;

    /// Brings the `buttress_*` tables up to date.
    #[doc(hidden)]
    fn migrate(pool: &Pool<Self>) -> BoxFuture<'_, Result<(), sqlx::migrate::MigrateError>>;

    /// Brings a service's own tables up to date.
    #[doc(hidden)]
    fn migrate_own<'a>(
        pool: &'a Pool<Self>,
        migrator: &'a sqlx::migrate::Migrator,
    ) -> BoxFuture<'a, Result<(), sqlx::migrate::MigrateError>>;

    /// Runs a statement; the number of rows that it changed.
    #[doc(hidden)]
    fn execute<'a>(
        conn: &'a mut Self::Connection,
        sql: &'static str,
        args: &'a [Arg<'a>],
    ) -> BoxFuture<'a, Result<u64, sqlx::Error>>;

    /// Runs a statement; the rows that it returns.
    #[doc(hidden)]
    fn fetch<'a>(
        conn: &'a mut Self::Connection,
        sql: &'static str,
        args: &'a [Arg<'a>],
    ) -> BoxFuture<'a, Result<Vec<Self::Row>, sqlx::Error>>;

    /// Holds events of one key back until this transaction has ended. Nothing where there is one writer anyway.
    #[doc(hidden)]
    fn lock_key(conn: &mut Self::Connection, key: i64) -> BoxFuture<'_, Result<(), sqlx::Error>>;

    /// Takes a shard of the outbox until this transaction has ended.
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

/// A value for a placeholder. Most simply made with [`args!`](crate::args).
#[derive(Clone, Copy, Debug)]
pub enum Arg<'a> {
    /// BIGINT; also for moments.
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

/// `args![id, now, None::<i64>]`: the values for `$1`, `$2`, `$3`.
#[macro_export]
macro_rules! args {
    ($($value:expr),* $(,)?) => { &[$($crate::db::Arg::from($value)),*] };
}
pub(crate) use args;

/// The methods that read the same for every driver and that only a macro can share: sqlx's bounds differ by type.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
macro_rules! statements {
    () => {
        fn migrate_own<'a>(
            pool: &'a Pool<Self>,
            migrator: &'a sqlx::migrate::Migrator,
        ) -> BoxFuture<'a, Result<(), sqlx::migrate::MigrateError>> {
            Box::pin(migrator.run(pool))
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
