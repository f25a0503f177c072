use std::error::Error as StdError;
use std::time::Duration;

use buttress_core::InvalidConfig;
use sqlx::error::{DatabaseError, ErrorKind as Violation};

use crate::text::Chain;

/// A database operation failed, or a row cannot be read by this version.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DbError {
    /// A statement or the connection failed.
    #[error("database error")]
    Sqlx(#[from] sqlx::Error),
    /// A migration failed.
    #[error("database migration failed")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// Another transaction of this process held the write lock for too long (SQLite). Holds the
    /// timeout.
    #[error("no write lock within {0:?}")]
    Busy(Duration),
    /// The transaction was rolled back because a statement in it had failed. Holds the first one
    /// that failed, if it is known.
    #[error("the transaction was rolled back, because a statement in it had failed")]
    Aborted(#[source] Option<FailedStatement>),
    /// The tables were migrated by a newer version, with which this one cannot run.
    #[error(
        "the tables were migrated by a newer version (migration {tables}), and this one knows migrations up to \
         {known} only: deploy the newer version, or restore a backup of before its migration"
    )]
    Newer {
        /// The newest migration of the tables.
        tables: i64,
        /// The newest migration that this version knows.
        known: i64,
    },
    /// An option is set to a value that its rule excludes.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// A column holds a value that no version of this crate writes.
    #[error("unreadable {what} in the database: {value:?}")]
    Unreadable {
        /// The column.
        what: &'static str,
        /// Its value, or the error of parsing it.
        value: String,
    },
}

/// A statement that failed in a transaction.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{error} (in: {sql})")]
pub struct FailedStatement {
    sql: &'static str,
    /// The error, with its causes. The error itself was returned to the caller of the statement.
    error: String,
    kind: DbErrorKind,
}

/// What a database error says about the operation: whether the database, the value, or the
/// statement is at fault. See [`DbError::kind`].
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum DbErrorKind {
    /// The database cannot serve now: no connection, no free connection in the pool, a full disk,
    /// a read-only or damaged file, a lock timeout, a server that shuts down. Says
    /// nothing about the operation, which may succeed later.
    Unavailable,
    /// The statement took longer than the server's limit (`statement_timeout`), or was cancelled.
    /// The server may be overloaded, but the statement itself may also be too slow, each time. So
    /// in a handler it counts as an attempt.
    Timeout,
    /// The operation lost against a concurrent one: a deadlock or a serialization failure. Another
    /// attempt may succeed at once.
    Conflict,
    /// The database rejects a value: a constraint, a value out of range, a character that a column
    /// cannot hold. Another attempt fails as well.
    Data,
    /// Anything else: a wrong statement, a missing table, a column of another type. Most likely a
    /// bug.
    Other,
}

impl DbError {
    /// Returns whether the database, the value, or the statement is at fault.
    ///
    /// Decided by the primary result code on SQLite, and by the class of the SQLSTATE on PostgreSQL
    /// (Appendix A of its manual).
    ///
    /// ```
    /// use buttress_durable::DbError;
    /// use buttress_durable::db::DbErrorKind;
    ///
    /// let error = DbError::from(sqlx::Error::PoolTimedOut);
    /// assert_eq!(error.kind(), DbErrorKind::Unavailable);
    /// ```
    pub fn kind(&self) -> DbErrorKind {
        match self {
            Self::Sqlx(error) => sqlx_kind(error),
            Self::Migrate(sqlx::migrate::MigrateError::Execute(error)) => sqlx_kind(error),
            Self::Busy(_) => DbErrorKind::Unavailable,
            Self::Aborted(failed) => failed.as_ref().map_or(DbErrorKind::Other, |failed| failed.kind),
            Self::Config(_) | Self::Migrate(_) | Self::Newer { .. } | Self::Unreadable { .. } => DbErrorKind::Other,
        }
    }

    /// Finds a database error in a chain of sources, this crate's or sqlx's own, and returns its
    /// kind.
    ///
    /// ```
    /// use buttress_durable::DbError;
    /// use buttress_durable::bus::BusError;
    /// use buttress_durable::db::DbErrorKind;
    ///
    /// let error = BusError::from(sqlx::Error::PoolTimedOut);
    /// assert_eq!(DbError::kind_in(&error), Some(DbErrorKind::Unavailable));
    /// assert_eq!(DbError::kind_in(&std::fmt::Error), None);
    /// ```
    pub fn kind_in(error: &(dyn StdError + 'static)) -> Option<DbErrorKind> {
        let mut next = Some(error);
        while let Some(error) = next {
            let own = error.downcast_ref::<Self>().map(Self::kind);
            if let Some(kind) = own.or_else(|| error.downcast_ref().map(sqlx_kind)) {
                return Some(kind);
            }
            next = error.source();
        }
        None
    }
}

impl FailedStatement {
    pub(super) fn new(sql: &'static str, error: &DbError) -> Self {
        Self { sql, error: Chain(error).to_string(), kind: error.kind() }
    }

    /// Returns what the error said about the statement.
    pub fn kind(&self) -> DbErrorKind {
        self.kind
    }
}

/// Whether a connection cannot be used after this error, whatever the database.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(super) fn breaks(error: &sqlx::Error) -> bool {
    matches!(
        error,
        sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::BeginFailed
    )
}

fn sqlx_kind(error: &sqlx::Error) -> DbErrorKind {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed => DbErrorKind::Unavailable,
        sqlx::Error::Encode(_) => DbErrorKind::Data,
        sqlx::Error::Database(error) => reported_kind(&**error),
        _ => DbErrorKind::Other,
    }
}

fn reported_kind(error: &dyn DatabaseError) -> DbErrorKind {
    let code = error.code().unwrap_or_default();
    if error.kind() != Violation::Other {
        return DbErrorKind::Data;
    }
    // SQLSTATEs have five characters, SQLite's extended result codes at most four digits.
    if code.len() == 5 { sqlstate_kind(&code) } else { sqlite_kind(code.parse().unwrap_or(0)) }
}

fn sqlstate_kind(code: &str) -> DbErrorKind {
    match (code.get(..2).unwrap_or_default(), code) {
        // query_canceled
        (_, "57014") => DbErrorKind::Timeout,
        // A transaction that is read-only after a failover, and one that the server ended while
        // idle.
        (_, "25006" | "25P03" | "25P04" | "55P03") => DbErrorKind::Unavailable,
        // Connection, authorization, resources, operator intervention, system, data
        // corrupted.
        ("08" | "28" | "53" | "57" | "58" | "XX", _) => DbErrorKind::Unavailable,
        ("40", _) => DbErrorKind::Conflict,
        ("22" | "23", _) => DbErrorKind::Data,
        _ => DbErrorKind::Other,
    }
}

fn sqlite_kind(code: u32) -> DbErrorKind {
    // The low byte is the primary result code: https://sqlite.org/rescode.html
    match code & 0xff {
        // BUSY, LOCKED, NOMEM, READONLY, INTERRUPT, IOERR, CORRUPT, FULL, CANTOPEN, PROTOCOL,
        // NOTADB
        5..=11 | 13..=15 | 26 => DbErrorKind::Unavailable,
        // TOOBIG, CONSTRAINT, MISMATCH, RANGE
        18..=20 | 25 => DbErrorKind::Data,
        _ => DbErrorKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_of_a_sqlstate_tells_who_is_at_fault() {
        assert_eq!(sqlstate_kind("57014"), DbErrorKind::Timeout);
        let kinds = ["57P01", "53300", "08006", "25006", "55P03", "XX001"].map(sqlstate_kind);
        assert_eq!(kinds, [DbErrorKind::Unavailable; 6]);
        assert_eq!(["40001", "40P01"].map(sqlstate_kind), [DbErrorKind::Conflict; 2]);
        assert_eq!(["22021", "22003", "23505"].map(sqlstate_kind), [DbErrorKind::Data; 3]);
        assert_eq!(["42601", "25P02", "0A000"].map(sqlstate_kind), [DbErrorKind::Other; 3]);
    }

    #[test]
    fn the_primary_code_of_sqlite_tells_who_is_at_fault() {
        // FULL, IOERR_WRITE, READONLY_DBMOVED, BUSY_SNAPSHOT, CORRUPT
        assert_eq!([13, 778, 1032, 517, 11].map(sqlite_kind), [DbErrorKind::Unavailable; 5]);
        // CONSTRAINT_UNIQUE, TOOBIG
        assert_eq!([2067, 18].map(sqlite_kind), [DbErrorKind::Data; 2]);
        // ERROR, MISUSE
        assert_eq!([1, 21].map(sqlite_kind), [DbErrorKind::Other; 2]);
    }

    #[test]
    fn a_database_error_is_found_behind_other_errors() {
        let deep = crate::bus::BusError::Unavailable(Box::new(DbError::Busy(Duration::from_secs(5))));
        assert_eq!(DbError::kind_in(&deep), Some(DbErrorKind::Unavailable));
        assert_eq!(DbError::kind_in(&sqlx::Error::RowNotFound), Some(DbErrorKind::Other));
        assert_eq!(DbError::kind_in(&std::fmt::Error), None);
    }
}
