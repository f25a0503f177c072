//! Buttress's layers.

mod breaker;
mod keyed;
mod rate;
mod single_flight;
mod stack;

use std::ops::RangeInclusive;
use std::time::Duration;

use buttress::bulkhead::Discipline;
use buttress::policy::Criticality;
use buttress::{
    AdaptiveLimit, AdaptiveLimitLayer, Bulkhead, BulkheadLayer, Chaos, ChaosLayer, ContextLayer, DeadlineLayer,
    FallbackLayer, HedgeLayer, LoadShed, LoadShedLayer, PlainExt, RetryBudget, RetryLayer, ThrottleLayer, TimeoutLayer,
};
use buttress_core::shard::with_shards;

use crate::family::{ADAPTIVE, ADAPTIVE_FULL, BULKHEAD, FULL, LIMIT, NONE, RETRY, TIMEOUT};
use crate::situation::Kept;
use crate::subject::{Kind::Ours, Rows};

const HALF_A_MINUTE: Duration = Duration::from_secs(30);

/// Numbers of shards: of a machine with 4, 8, and 16 or more cores.
const SHARDS: [usize; 3] = [16, 32, 64];

/// Limits of bulkheads, which two threads call.
const LIMITS: [usize; 3] = [16, 64, 1_000];

pub(crate) fn add(rows: &mut Rows) {
    breaker::add(rows);
    rows.of(Ours, "buttress/bulkhead", BULKHEAD).healthy(|| BulkheadLayer::new(1_000).plain());
    rows.of(Ours, "buttress/bulkhead", FULL).full(|| BulkheadLayer::new(1).plain());
    for shards in SHARDS {
        let full = || with_shards(shards, || BulkheadLayer::new(1)).plain();
        rows.of(Ours, format!("buttress/bulkhead, {shards} shards"), FULL).full(full);
    }
    // How the exact limit scales: fewer places than shards, about as many, and many more.
    for limit in LIMITS {
        let layer = move || BulkheadLayer::new(limit);
        rows.of(Ours, format!("buttress/bulkhead(limit {limit})"), NONE).when(Kept, || layer().plain());
        for shards in SHARDS {
            let layer = || with_shards(shards, layer).plain();
            rows.of(Ours, format!("buttress/bulkhead(limit {limit}), {shards} shards"), NONE).when(Kept, layer);
        }
    }
    rows.of(Ours, "buttress/bulkhead(queue)", LIMIT)
        .healthy(|| BulkheadLayer::new(1_000).queue(1_000, Duration::from_millis(50)).plain());
    let queue = || BulkheadLayer::new(1_000).queue(1_000, Duration::from_millis(50));
    for (name, discipline) in [("LIFO", Discipline::Lifo), ("adaptive", Discipline::Adaptive)] {
        rows.of(Ours, format!("buttress/bulkhead(queue, {name})"), NONE)
            .when(Kept, || queue().discipline(discipline).plain());
    }
    rows.of(Ours, "buttress/bulkhead(queue, shares)", NONE)
        .when(Kept, || queue().reserve(Criticality::CriticalPlus, 0.2).expect("a valid share").plain());
    rows.of(Ours, "buttress/bulkhead(backpressure)", LIMIT)
        .healthy(|| BulkheadLayer::new(1_000).backpressure().plain());
    let adaptive = |limits: RangeInclusive<usize>| {
        let limit = AdaptiveLimit::builder("bench").initial(*limits.start()).limits(limits).build();
        AdaptiveLimitLayer::from(limit.expect("a valid limit"))
    };
    rows.of(Ours, "buttress/concurrency", ADAPTIVE).healthy(move || adaptive(1_000..=2_000).plain());
    rows.of(Ours, "buttress/concurrency(backpressure)", ADAPTIVE)
        .healthy(move || adaptive(1_000..=2_000).backpressure().plain());
    rows.of(Ours, "buttress/concurrency", ADAPTIVE_FULL).full(move || adaptive(1..=1).plain());
    rows.of(Ours, "buttress/retry", RETRY).healthy(|| retry().plain());
    rows.of(Ours, "buttress/retry(budget: ratio, in flight, gRPC tokens)", NONE).healthy(|| {
        let budget = RetryBudget::builder().in_flight(0.2, 3).grpc_tokens(10.0, 0.1).build();
        RetryLayer::new(3).budget(budget.expect("a valid budget")).plain()
    });
    let often = || RetryBudget::builder().percent(5.0).burst(100).build().expect("a valid budget");
    rows.of(Ours, "buttress/hedge", NONE).healthy(move || HedgeLayer::after(HALF_A_MINUTE).budget(often()).plain());
    rows.of(Ours, "buttress/hedge(p95)", NONE)
        .healthy(move || HedgeLayer::percentile(95.0).expect("a valid percentile").budget(often()).plain());
    rows.of(Ours, "buttress/timeout", TIMEOUT).healthy(|| TimeoutLayer::attempt(HALF_A_MINUTE).plain());
    rows.of(Ours, "buttress/chaos(off)", NONE).healthy(|| ChaosLayer::from(Chaos::new()).plain());
    // The value is of the type of the responses.
    rows.of(Ours, "buttress/fallback", NONE).healthy(|| FallbackLayer::to(Default::default()).plain());
    rate::add(rows);
    rows.of(Ours, "buttress/context", NONE).healthy(|| ContextLayer::new().plain());
    rows.of(Ours, "buttress/deadline", NONE).healthy(|| DeadlineLayer::new(HALF_A_MINUTE).plain());
    rows.of(Ours, "buttress/deadline(server)", NONE)
        .healthy(|| DeadlineLayer::server().max_limit(HALF_A_MINUTE).plain());
    rows.of(Ours, "buttress/load_shed", NONE).healthy(|| load_shed().plain());
    rows.of(Ours, "buttress/throttle", NONE).healthy(|| ThrottleLayer::new("backend").plain());
    single_flight::add(rows);
    stack::add(rows);
    keyed::add(rows);
}

/// Watches a bulkhead, and is below its limit.
fn load_shed() -> LoadShedLayer {
    let shed = LoadShed::builder("server").monitor_at(0.9, Bulkhead::new(1_000)).build();
    shed.expect("valid").into()
}

fn retry() -> RetryLayer {
    RetryLayer::new(3).budget(RetryBudget::new())
}
