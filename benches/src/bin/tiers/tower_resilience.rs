//! The client stack of tower-resilience, without its breaker, which reads a clock that cannot be
//! paused.

use tower::ServiceBuilder;
use tower_resilience_retry::RetryLayer;
use tower_resilience_timelimiter::TimeLimiterLayer;

use crate::load::PATIENCE;
use crate::service::{Request, Response, Service, Wire, service};
use crate::tower::ATTEMPT;

/// Timeouts, and three attempts with its default pauses and without a budget, which is its default.
pub(crate) fn client(wire: Wire) -> Service {
    let timeout = |time| TimeLimiterLayer::builder().timeout_duration(time).build();
    let retry = RetryLayer::<Request, Response, _>::builder()
        .max_attempts(3)
        .retry_on_response(|response: &Response| response.status().is_server_error())
        .build();
    service(ServiceBuilder::new().layer(timeout(PATIENCE)).layer(retry).layer(timeout(ATTEMPT)).service(wire))
}
