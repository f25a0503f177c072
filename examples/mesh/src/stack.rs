//! Every stack of layers in the mesh.
//!
//! Read a stack from the top: a request passes the layers in the order in which they are written,
//! its response in reverse. The reasons for the order:
//!
//! ```text
//! client, outside in                           server, outside in
//!   context          writes the priority, and    health     answers probes even when the rest is full
//!                      is known to the rest      context    the priority: of the route at the gateway,
//!   total timeout    bounds retries and pauses                of the caller behind it
//!   retry            each attempt is a sample    load shed  at the gateway: what is rejected has cost
//!   circuit breaker    of the breaker, and                    next to nothing, and reads go before orders
//!   bulkhead           holds no place during     timeout    longer than callers wait; frees the place
//!   attempt timeout    the pauses                             of a client that stopped reading
//!                                                customer   at the gateway: who is it, and is that over
//!                                                             the rate? Rejected before a place is taken
//!                                                bulkhead   or adaptive limit: rejects now what would be
//!                                                             answered too late
//!                                                faults     injected as if they were faults of the
//!                                                             handler
//! ```
//!
//! A server reads a request's body outside timeout and bulkhead: a slow upload holds no place (see
//! [`crate::edge`]). Limits come in pairs, on both sides, one for reads and one for the rest
//! ([`crate::lanes`]): orders that wait for a slow payment leave places for the catalogue. Routes
//! of the gateway wait for different services, and each [`Lane`] of them has a bulkhead of its own:
//! a service that hangs fills the lanes of its callers and no others.
//!
//! The state (circuits, places, budgets, counters) is in handles, created once by the starter of
//! the mesh. So it can be observed there, it survives a restart of the service, and axum may build
//! any number of copies of a stack.

mod admission;
mod callers;
mod client;
mod customers;
mod server;

pub use buttress::InvalidConfig;
pub use buttress_http::prelude::Health;

pub(crate) use admission::word;
pub use admission::{Admission, Lane, Rate};
pub use callers::{GatewayClients, OrderClients, admin_client, retry_after, timed_out};
pub use client::{Dependency, GrpcChannel, HttpChannel, HttpError, Stats};
pub use customers::{CustomerRate, ORDERS_PER_SECOND};
pub use server::{gateway_server, grpc_server, in_lane, of_customers, rest_server};

/// Number of reads that a service answers at the same time. By Little's law, 10 reads of 1 ms are
/// 10,000 a second; and on a machine that serves only 60 a second, an attempt with 10 in flight
/// still takes less than half of its timeout. With 32 it took longer, and the circuit opened.
const READS: usize = 10;

/// Number of order views that the gateway answers at the same time. A view takes 5 ms if its four
/// services are healthy, which makes 1,200 a second, and at most 2.5 s if one of them stalls.
const ORDER_VIEWS: usize = 6;
