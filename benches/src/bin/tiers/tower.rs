//! Client stacks of tower's own layers.

use std::future;
use std::sync::Arc;
use std::time::Duration;

use tower::ServiceBuilder;
use tower::retry::budget::{Budget, TpsBudget};
use tower::retry::{Policy, RetryLayer};
use tower::timeout::TimeoutLayer;

use crate::service::{Request, Response, Service, Wire, service};

const ATTEMPTS: usize = 3;

/// Timeouts and three attempts.
pub(crate) fn bare(wire: Wire) -> Service {
    stack(wire, Retries { left: ATTEMPTS - 1, budget: None })
}

/// The same with tower's budget: 20 % of the calls, and 10 retries per second.
pub(crate) fn with_budget(wire: Wire) -> Service {
    stack(wire, Retries { left: ATTEMPTS - 1, budget: Some(Arc::default()) })
}

pub(crate) fn no_server(service: Service) -> Service {
    service
}

fn stack(wire: Wire, retries: Retries) -> Service {
    service(
        ServiceBuilder::new()
            .layer(TimeoutLayer::new(crate::load::PATIENCE))
            .layer(RetryLayer::new(retries))
            .layer(TimeoutLayer::new(ATTEMPT))
            .service(wire),
    )
}

/// The attempt timeout of all stacks.
pub(crate) const ATTEMPT: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct Retries {
    left: usize,
    budget: Option<Arc<TpsBudget>>,
}

impl<E> Policy<Request, Response, E> for Retries {
    type Future = future::Ready<()>;

    fn retry(&mut self, _: &mut Request, result: &mut Result<Response, E>) -> Option<Self::Future> {
        if result.as_ref().is_ok_and(|response| !response.status().is_server_error()) {
            if let Some(budget) = &self.budget {
                budget.deposit();
            }
            return None;
        }
        let may = self.left > 0 && self.budget.as_ref().is_none_or(|budget| budget.withdraw());
        self.left = self.left.saturating_sub(1);
        may.then(|| future::ready(()))
    }

    fn clone_request(&mut self, request: &Request) -> Option<Request> {
        Some(request.clone())
    }
}
