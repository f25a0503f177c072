//! End-to-end tests of the mesh, with real services, sockets and databases.

mod admin;
mod alerts;
mod bad_input;
mod breaker;
mod browser;
mod contract;
mod cooked_books;
mod crash;
mod dashboard;
mod demo;
mod drain;
mod edge;
mod events;
mod faults;
mod idempotency;
mod load;
mod logs;
mod ops;
mod probe;
mod processes;
mod readme;
mod sagas;
mod shutdown;
mod support;
mod telemetry;
mod view;
