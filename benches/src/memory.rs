//! Memory per policy: the growth of the process while many instances are created, divided by their
//! number.

use std::fs;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use buttress::keyed::Keyed;
use buttress::policy::{Idle, Policy, Report};
use buttress::{Bulkhead, BulkheadLayer, CircuitBreaker, CircuitBreakerLayer, PlainExt, RetryBudget};
use buttress_core::shard::{compact, with_shards};
use recloser::Recloser;
use serde::Serialize;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::retry::budget::TpsBudget;

use crate::caller::{Caller, Wraps, now};
use crate::inner::Bare;
use crate::situation::{ASK, Kept};
use crate::subject::Kind::{self, Ours, Peer};
use crate::{seatbelt, tower_resilience};

/// A row: bytes per instance.
#[derive(Debug, Serialize)]
pub(crate) struct Memory {
    pub(crate) subject: &'static str,
    pub(crate) kind: Kind,
    pub(crate) bytes: u64,
}

/// Measures all policies. Empty on systems without `/proc`, that is, other than Linux.
pub(crate) fn rows() -> Vec<Memory> {
    let mut rows = Vec::new();
    let mut add = |kind, subject, bytes: Option<u64>| {
        rows.extend(bytes.map(|bytes| Memory { subject, kind, bytes }));
    };
    // Breakers and bulkheads are called once, because peers create parts of them in the first call.
    add(Ours, "buttress/keyed(breaker)", keyed(|| CircuitBreaker::new("backend")));
    add(Ours, "buttress/circuit_breaker(compact)", called(|| compact(|| CircuitBreakerLayer::new("backend")).plain()));
    add(Ours, "buttress/circuit_breaker", called(|| CircuitBreakerLayer::new("backend").plain()));
    add(
        Ours,
        "buttress/circuit_breaker, 64 shards",
        called(|| with_shards(64, || CircuitBreakerLayer::new("backend")).plain()),
    );
    add(Peer, "tower-resilience/circuit_breaker", called(tower_resilience::breaker));
    let context = seatbelt::context();
    add(Peer, "seatbelt/breaker", called(|| seatbelt::breaker(&context)));
    add(Peer, "recloser", each(|| Arc::new(Recloser::custom().build())));
    add(Peer, "failsafe", each(|| Arc::new(failsafe::Config::new().build())));

    add(Ours, "buttress/keyed(bulkhead)", keyed(|| Bulkhead::new(10)));
    add(Ours, "buttress/bulkhead(compact)", called(|| compact(|| BulkheadLayer::new(10)).plain()));
    add(Ours, "buttress/bulkhead", called(|| BulkheadLayer::new(10).plain()));
    add(Ours, "buttress/bulkhead, 64 shards", called(|| with_shards(64, || BulkheadLayer::new(10)).plain()));
    add(
        Ours,
        "buttress/bulkhead(queue)",
        called(|| BulkheadLayer::new(10).queue(10, Duration::from_millis(50)).plain()),
    );
    add(Peer, "tower/concurrency_limit", called(|| GlobalConcurrencyLimitLayer::new(10)));
    add(Peer, "tower-resilience/bulkhead", called(|| tower_resilience::bulkhead(10)));

    add(Ours, "buttress/retry_budget(compact)", each(|| compact(RetryBudget::new)));
    add(Ours, "buttress/retry_budget", each(RetryBudget::new));
    add(Ours, "buttress/retry_budget, 64 shards", each(|| with_shards(64, RetryBudget::new)));
    add(Peer, "tower/retry_budget", each(|| Arc::new(TpsBudget::default())));
    add(Peer, "tower-resilience/retry_budget", each(tower_resilience::budget));
    rows
}

/// The bytes of a key of a keyed policy.
fn keyed<P>(make: impl Fn() -> P + Send + Sync + 'static) -> Option<u64>
where
    P: Policy<u32> + Idle + Report + Send + Sync + 'static,
{
    const KEYS: u32 = 100_000;
    bytes(KEYS, || {
        let keyed = Keyed::builder(|key: &u32| *key, move |_: &u32| make());
        let keyed = keyed.max_keys(KEYS as usize).build().expect("a valid number of keys");
        (0..KEYS).for_each(|key| drop(keyed.admit(&key)));
        keyed
    })
}

/// The bytes of a service that has made a call.
fn called<L: Wraps<Bare<Kept>>>(layer: impl Fn() -> L) -> Option<u64> {
    each(|| {
        let mut service = layer().layer(Bare::new());
        assert!(now(service.call_once(ASK)), "a call through a new layer succeeds");
        service
    })
}

fn each<T>(make: impl Fn() -> T) -> Option<u64> {
    const INSTANCES: u32 = 2_000;
    bytes(INSTANCES, || (0..INSTANCES).map(|_| make()).collect::<Vec<_>>())
}

fn bytes<T>(instances: u32, make: impl FnOnce() -> T) -> Option<u64> {
    let before = resident()?;
    let made = black_box(make());
    let after = resident()?;
    // Not freed: the next instances would reuse the memory and appear smaller than they are.
    std::mem::forget(made);
    Some(after.saturating_sub(before) / u64::from(instances))
}

/// The resident set size of this process, in bytes.
fn resident() -> Option<u64> {
    const PAGE: u64 = 4096;
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    statm.split(' ').nth(1)?.parse::<u64>().ok().map(|pages| pages * PAGE)
}
