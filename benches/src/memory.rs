//! Memory per policy: the growth of the process while many instances are created, divided by their
//! number.

use std::fs;
use std::hint::black_box;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use buttress::keyed::Keyed;
use buttress::policy::{Idle, Policy, Report};
use buttress::{
    AdaptiveLimitLayer, Bulkhead, BulkheadLayer, CircuitBreaker, CircuitBreakerLayer, PlainExt, RateLimit, RetryBudget,
};
use buttress_core::shard::{compact, with_shards};
use recloser::Recloser;
use serde::Serialize;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::retry::budget::TpsBudget;

use crate::caller::{Wraps, call};
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
    add(Ours, "buttress/circuit_breaker(compact)", called(|| compact(|| CircuitBreakerLayer::new("backend")).plain()));
    add(Ours, "buttress/circuit_breaker", called(|| CircuitBreakerLayer::new("backend").plain()));
    add(
        Ours,
        "buttress/circuit_breaker, 64 shards",
        called(|| with_shards(64, || CircuitBreakerLayer::new("backend")).plain()),
    );
    add(Peer, "tower-resilience/circuit_breaker", called(tower_resilience::breaker));
    let context = seatbelt::context();
    add(Peer, "seatbelt/breaker", called(|| seatbelt::breaker_by_default(&context)));
    add(Peer, "recloser", each(|| Arc::new(Recloser::custom().build())));
    add(Peer, "failsafe", each(|| Arc::new(failsafe::Config::new().build())));

    add(Ours, "buttress/bulkhead(compact)", called(|| compact(|| BulkheadLayer::new(10)).plain()));
    add(Ours, "buttress/bulkhead", called(|| BulkheadLayer::new(10).plain()));
    add(Ours, "buttress/bulkhead, 64 shards", called(|| with_shards(64, || BulkheadLayer::new(10)).plain()));
    add(
        Ours,
        "buttress/bulkhead(queue)",
        called(|| BulkheadLayer::new(10).queue(10, Duration::from_millis(50)).plain()),
    );
    let adaptive = || AdaptiveLimitLayer::new("backend").plain();
    add(Ours, "buttress/concurrency(compact)", called(|| compact(adaptive)));
    add(Ours, "buttress/concurrency", called(adaptive));
    add(Peer, "tower/concurrency_limit", called(|| GlobalConcurrencyLimitLayer::new(10)));
    add(Peer, "tower-resilience/bulkhead", called(|| tower_resilience::bulkhead(10)));

    add(Ours, "buttress/retry_budget(compact)", each(|| compact(RetryBudget::new)));
    add(Ours, "buttress/retry_budget", each(RetryBudget::new));
    add(Ours, "buttress/retry_budget, 64 shards", each(|| with_shards(64, RetryBudget::new)));
    add(Peer, "tower/retry_budget", each(|| Arc::new(TpsBudget::default())));
    add(Peer, "tower-resilience/retry_budget", each(tower_resilience::budget));

    add(Ours, "buttress/rate_limit(compact)", each(|| compact(|| RateLimit::per_second(10))));
    let quota = RateLimit::per_second(10);
    add(Ours, "buttress/rate_limit(compact, shared quota)", each(|| compact(|| quota.new_bucket())));
    add(Ours, "buttress/rate_limit", each(|| RateLimit::per_second(10)));

    // Last, because the maps free memory as they grow, which others would reuse.
    add(Ours, "buttress/keyed(breaker)", keyed(|| CircuitBreaker::new("backend")));
    add(Ours, "buttress/keyed(bulkhead)", keyed(|| Bulkhead::new(10)));
    add(Ours, "buttress/keyed(rate_limit)", keyed(move || quota.new_bucket()));
    rows
}

/// The bytes of a key of a keyed policy.
fn keyed<P>(make: impl Fn() -> P + Send + Sync + 'static) -> Option<u64>
where
    P: Policy<u32> + Idle + Report + Send + Sync + 'static,
{
    const KEYS: u32 = 100_000;
    let before = resident()?;
    let keyed = Keyed::builder(|key: &u32| *key, move |_: &u32| make());
    let keyed = keyed.max_keys(KEYS as usize).build().expect("a valid number of keys");
    (0..KEYS).for_each(|key| drop(keyed.admit(&key)));
    let grown = resident()?.saturating_sub(before);
    mem::forget(keyed);
    Some(grown / u64::from(KEYS))
}

/// The bytes of a service that has made a call.
fn called<L: Wraps<Bare<Kept>>>(layer: impl Fn() -> L) -> Option<u64> {
    each(|| {
        let mut service = layer().layer(Bare::new());
        assert!(call(&mut service, ASK), "a call through a new layer succeeds");
        service
    })
}

/// The bytes of an instance: of so many that what was free before does not matter.
fn each<T>(make: impl Fn() -> T) -> Option<u64> {
    const ENOUGH: u64 = 8 << 20;
    /// For one that takes nothing from the heap.
    const MOST: u64 = 1_000_000;
    let before = resident()?;
    let mut instances = 0;
    loop {
        for _ in 0..500 {
            // Not freed: the next instances would reuse the memory and appear smaller.
            mem::forget(black_box(make()));
        }
        instances += 500;
        let grown = resident()?.saturating_sub(before);
        if grown >= ENOUGH || instances >= MOST {
            return Some(grown / instances + mem::size_of::<T>() as u64);
        }
    }
}

/// The resident set size of this process, in bytes.
fn resident() -> Option<u64> {
    const PAGE: u64 = 4096;
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    statm.split(' ').nth(1)?.parse::<u64>().ok().map(|pages| pages * PAGE)
}
