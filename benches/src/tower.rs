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

use crate::family::{ADAPTIVE, ADAPTIVE_FULL, BULKHEAD, FULL, LIMIT, RETRY, STACK_TOWER, TIMEOUT};
use crate::subject::{Kind::Peer, Rows};

pub(crate) fn add(rows: &mut Rows) {
    let limit = GlobalConcurrencyLimitLayer::new;
    let shedding = |places| ServiceBuilder::new().layer(LoadShedLayer::new()).layer(limit(places));
    let retry = || RetryLayer::new(WithBudget::default());
    let timeout = || TimeoutLayer::new(Duration::from_secs(30));
    rows.of(Peer, "tower/load_shed+concurrency_limit", BULKHEAD).healthy(|| shedding(1_000));
    rows.of(Peer, "tower/load_shed+concurrency_limit", FULL).full(|| shedding(1));
    rows.of(Peer, "tower/concurrency_limit", LIMIT).healthy(|| limit(1_000));
    rows.of(Peer, "tower/load_shed+concurrency_limit(static)", ADAPTIVE).healthy(|| shedding(1_000));
    rows.of(Peer, "tower/load_shed+concurrency_limit(static)", ADAPTIVE_FULL).full(|| shedding(1));
    rows.of(Peer, "tower/retry", RETRY).healthy(retry);
    rows.of(Peer, "tower/timeout", TIMEOUT).healthy(timeout);
    rows.of(Peer, "tower/stack5", STACK_TOWER).healthy(|| {
        ServiceBuilder::new()
            .layer(timeout())
            .layer(retry())
            .layer(LoadShedLayer::new())
            .layer(limit(1_000))
            .layer(timeout())
    });
}

/// The policy in tower's documentation: retries failures within the budget.
#[derive(Clone, Default)]
pub(crate) struct WithBudget(Arc<TpsBudget>);

/// An answer that may be a failure.
pub(crate) trait Judged {
    fn is_failure(&self) -> bool {
        false
    }
}

impl Judged for u64 {}

impl<B> Judged for http::Response<B> {
    fn is_failure(&self) -> bool {
        self.status().is_server_error()
    }
}

impl<Req: Clone, Res: Judged, E> Policy<Req, Res, E> for WithBudget {
    type Future = future::Ready<()>;

    fn retry(&mut self, _: &mut Req, result: &mut Result<Res, E>) -> Option<Self::Future> {
        match result {
            Ok(answer) if !answer.is_failure() => {
                self.0.deposit();
                None
            }
            _ => self.0.withdraw().then(|| future::ready(())),
        }
    }

    fn clone_request(&mut self, req: &Req) -> Option<Req> {
        Some(req.clone())
    }
}
