//! The mesh as its customers and its operators see it: real services, real sockets, real databases.

mod bad_input;
mod breaker;
mod cooked_books;
mod crash;
mod demo;
mod drain;
mod faults;
mod idempotency;
mod support;
mod view;
