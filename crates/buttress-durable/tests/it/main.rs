//! Tests of the crate's guarantees on real databases: SQLite always, PostgreSQL if
//! `BUTTRESS_TEST_POSTGRES` names a server (`postgres://user@host:port`, whose user may create
//! databases); on Kafka's mock cluster, and on a broker if `BUTTRESS_TEST_KAFKA` names one
//! (`host:port`).

mod bus;
mod db;
mod inbox;
#[cfg(unix)]
mod kill;
mod log_bus;
mod log_groups;
mod log_settings;
mod outbox;
mod retention;
mod saga;
mod saga_admin;
mod saga_claim;
mod saga_crash;
mod saga_decisions;
mod saga_edges;
mod saga_ids;
mod saga_settings;
mod shop;
mod support;
