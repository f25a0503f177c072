//! The mesh as its customers and its operators see it: real services, real sockets, real databases.

mod bad_input;
mod breaker;
mod contract;
mod cooked_books;
mod crash;
mod demo;
mod drain;
mod events;
mod faults;
mod idempotency;
mod load;
mod processes;
mod sagas;
mod support;
mod view;
