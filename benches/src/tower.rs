//! tower's own layers.

use std::future;
use std::sync::Arc;
use std::time::Duration;

use tower::ServiceBuilder;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::load_shed::LoadShedLayer;
use tower::retry::budget::{Budget, TpsBudget};
use tower::retry::{Policy, RetryLayer};
use tower::timeout::TimeoutLayer;

use crate::subject::{Again, Bare, Expect, Family, Kind, Subject};

pub(crate) fn subjects() -> Vec<Subject> {
    let concurrency = GlobalConcurrencyLimitLayer::new(1_000);
    let timeout = TimeoutLayer::new(Duration::from_secs(30));
    let retry = RetryLayer::new(WithBudget::default());
    macro_rules! stack {
        ($inner:expr) => {
            ServiceBuilder::new()
                .layer(timeout.clone())
                .layer(RetryLayer::new(WithBudget::default()))
                .layer(LoadShedLayer::new())
                .layer(concurrency.clone())
                .layer(timeout.clone())
                .service($inner)
        };
    }
    vec![
        peer(
            "tower/concurrency_limit",
            Family::Bulkhead,
            ServiceBuilder::new().layer(concurrency.clone()).service(Bare),
        ),
        peer("tower/load_shed", Family::Other, ServiceBuilder::new().layer(LoadShedLayer::new()).service(Bare)),
        peer("tower/retry", Family::Retry, ServiceBuilder::new().layer(retry).service(Bare)),
        peer("tower/timeout", Family::Timeout, ServiceBuilder::new().layer(timeout.clone()).service(Bare)),
        // tower has no breaker, so its nearest stack has two timeouts, a retry and a bulkhead that
        // sheds load.
        Subject::cloned("tower/stack5", Kind::Peer, Family::Stack, stack!(Bare)),
        peer("tower/stack5(kept)", Family::KeptStack, stack!(Again(Bare))),
    ]
}

fn peer<S>(name: &'static str, family: Family, service: S) -> Subject
where
    S: tower::Service<u64> + Clone + Send + 'static,
{
    Subject::service(name, Kind::Peer, family, Expect::Ok, service)
}

/// The policy in tower's documentation: retries errors within the budget.
#[derive(Clone, Default)]
struct WithBudget(Arc<TpsBudget>);

impl<E> Policy<u64, u64, E> for WithBudget {
    type Future = future::Ready<()>;

    fn retry(&mut self, _: &mut u64, result: &mut Result<u64, E>) -> Option<Self::Future> {
        match result {
            Ok(_) => {
                self.0.deposit();
                None
            }
            Err(_) => self.0.withdraw().then(|| future::ready(())),
        }
    }

    fn clone_request(&mut self, req: &u64) -> Option<u64> {
        Some(*req)
    }
}
