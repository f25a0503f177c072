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
