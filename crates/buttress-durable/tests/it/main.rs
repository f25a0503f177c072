//! What the crate promises, on real databases: SQLite always, PostgreSQL when `BUTTRESS_TEST_POSTGRES` names a server
//! (`postgres://user@host:port`, whose user may create databases); and on Kafka's mock cluster, and a broker that
//! `BUTTRESS_TEST_KAFKA` names (`host:port`).

mod bus;
#[cfg(unix)]
mod kill;
mod log_bus;
mod outbox;
mod saga;
mod saga_claim;
mod saga_crash;
mod shop;
mod support;
