//! The database layer: one set of statements for SQLite and PostgreSQL.
//!
//! Statements use what both support: `$1` placeholders, `RETURNING`, `ON CONFLICT`; ids and JSON as
//! TEXT, timestamps as integer milliseconds, payloads as BLOB or BYTEA. [`Database`] hides the
//! differences: the migrations, how a writing transaction begins, and the advisory locks of
//! PostgreSQL.
//!
//! | | SQLite (feature `sqlite`, the default) | PostgreSQL (feature `postgres`) |
//! |---|---|---|
//! | a writing transaction | `BEGIN IMMEDIATE`, queued in the process | `BEGIN`, read committed |
//! | order of a key in the outbox | a single writer | an advisory lock for each key until the commit |
//! | relaying the outbox | one relay, by lease | any number, by an advisory lock for each shard |
//! | a server that does not answer | - | the client gives up, see `PostgresOptions` |
//!
//! Signatures and steps name the database by sqlx's type, as in `Db<sqlx::Sqlite>`. Depend on the
//! same minor version of sqlx (0.9), with `default-features = false`; this crate enables what it
//! needs.
//!
//! # Connections
//!
//! A connection returns to the pool only if nothing is known against it: every operation on it has
//! ended, none has failed in a way that concerns the connection (an I/O error, a fatal error of the
//! server, a full disk or damaged file of SQLite), and no transaction is open. Otherwise it is
//! closed, and the pool makes a new one when it is needed. This holds for [`Tx`], [`Db::rows`] and
//! everything in this crate, and for your own use of [`Db::pool`] as far as a pool can see it, if
//! the pool was made by [`Db::open`](Db) or `PostgresOptions`.
//!
//! # Versions
//!
//! Migrations of the `buttress_*` tables only add. So during a rolling update an older version runs
//! on the tables of a newer one, and a service can go back to it. A change that older versions
//! cannot live with would make them fail with [`DbError::Newer`] instead; there has been none.
//!
//! All tables are called `buttress_*`. They can be in the service's own database, so that the
//! outbox, the inbox and sagas write in the service's transactions.

pub(crate) mod database;
mod error;
mod fault;
mod handle;
mod lease;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod migrate;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "postgres")]
mod postgres_options;
mod server_time;
mod session;
#[cfg(feature = "sqlite")]
mod sqlite;
mod statement;
mod tx;

pub use database::{Arg, Database};
pub use error::{DbError, DbErrorKind, FailedStatement};
#[cfg(feature = "fault-points")]
pub use fault::FaultPoint;
pub use handle::Db;
pub(crate) use lease::Lease;
#[cfg(feature = "postgres")]
pub use postgres_options::PostgresOptions;
pub use statement::{Column, Columns};
pub use tx::Tx;
