//! Our stacks: with all that a page of the documentation recommends, and with parts of it.

use std::time::Duration;

use buttress_http::prelude::*;
use tower::ServiceBuilder;

use crate::load::PATIENCE;
use crate::service::{Service, Wire, service};
use crate::tower::ATTEMPT;

/// Timeouts, and three attempts within a budget.
pub(crate) fn budget(wire: Wire) -> Service {
    retrying(wire, RetryLayer::new(3))
}

fn retrying(wire: Wire, retry: RetryLayer) -> Service {
    service(
        ServiceBuilder::new()
            .layer(TimeoutLayer::total(PATIENCE).http_client())
            .layer(retry.http_client())
            .layer(TimeoutLayer::attempt(ATTEMPT).http_client())
            .service(wire),
    )
}

/// A server that hands on what its calls carry, and limits nothing.
pub(crate) fn context(inner: Service) -> Service {
    service(ServiceBuilder::new().layer(ContextLayer::new().http()).service(inner))
}

/// The whole client stack.
pub(crate) fn client(wire: Wire) -> Service {
    service(
        ServiceBuilder::new()
            .layer(DeadlineLayer::new(PATIENCE).http_client())
            .layer(ContextLayer::new().http_client())
            .layer(RetryLayer::new(3).http_client())
            .layer(CircuitBreakerLayer::new("next").http_client())
            .layer(TimeoutLayer::attempt(ATTEMPT).http_client())
            .service(wire),
    )
}

/// The whole server stack, for a server that is known: eight calls take its workers, and some more
/// may wait.
pub(crate) fn server(inner: Service) -> Service {
    service(
        ServiceBuilder::new()
            .layer(ContextLayer::new().http())
            .layer(DeadlineLayer::server().http())
            .layer(BulkheadLayer::new(64).queue(64, Duration::from_millis(100)).http())
            .service(inner),
    )
}

/// The whole server stack, for a server that is not known.
pub(crate) fn adaptive(inner: Service) -> Service {
    service(
        ServiceBuilder::new()
            .layer(ContextLayer::new().http())
            .layer(DeadlineLayer::server().http())
            .layer(AdaptiveLimitLayer::new("server").http())
            .service(inner),
    )
}
