//! The database layer: one set of statements over SQLite and PostgreSQL.
//!
//! Statements keep to what both understand: `$1` placeholders, `RETURNING`, `ON CONFLICT`, ids and JSON as TEXT, moments as
//! integer milliseconds, payloads as BLOB or BYTEA. What differs sits behind [`Database`]: the folder of migrations, how a
//! writing transaction begins, and the advisory locks that only PostgreSQL has.
//!
//! | | SQLite (feature `sqlite`, the default) | PostgreSQL (feature `postgres`) |
//! |---|---|---|
//! | a writing transaction | `BEGIN IMMEDIATE`, queued in the process | `BEGIN`, read committed |
//! | order of a key in the outbox | there is one writer | an advisory lock per key until the commit |
//! | who relays the outbox | one relay, by lease | any number, by an advisory lock per shard |
//!
//! Every table is called `buttress_*`, so the tables can live in a service's own database, which is what makes "in the
//! caller's transaction" true.

pub(crate) mod database;
mod fault;
mod handle;
mod lease;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;
mod statement;

pub use database::{Arg, Database};
#[cfg(feature = "fault-points")]
pub use fault::FaultPoint;
pub use handle::{Db, DbError, Tx};
pub(crate) use lease::Lease;
pub use statement::{Column, Columns};
