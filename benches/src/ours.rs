//! Buttress's layers.

mod breaker;
mod keyed;
mod stack;

use std::time::Duration;

use buttress::{BulkheadLayer, PlainExt, RetryBudget, RetryLayer, TimeoutLayer};
use buttress_core::shard::with_shards;

use crate::family::{BULKHEAD, FULL, LIMIT, RETRY, TIMEOUT};
use crate::subject::{Kind::Ours, Rows};

const HALF_A_MINUTE: Duration = Duration::from_secs(30);

/// Numbers of shards: of a machine with 4, 8, and 16 or more cores.
const SHARDS: [usize; 3] = [16, 32, 64];

pub(crate) fn add(rows: &mut Rows) {
    breaker::add(rows);
    rows.of(Ours, "buttress/bulkhead", BULKHEAD).healthy(|| BulkheadLayer::new(1_000).plain());
    rows.of(Ours, "buttress/bulkhead", FULL).full(|| BulkheadLayer::new(1).plain());
    for shards in SHARDS {
        let full = || with_shards(shards, || BulkheadLayer::new(1)).plain();
        rows.of(Ours, format!("buttress/bulkhead, {shards} shards"), FULL).full(full);
    }
    rows.of(Ours, "buttress/bulkhead(queue)", LIMIT)
        .healthy(|| BulkheadLayer::new(1_000).queue(1_000, Duration::from_millis(50)).plain());
    rows.of(Ours, "buttress/bulkhead(backpressure)", LIMIT)
        .healthy(|| BulkheadLayer::new(1_000).backpressure().plain());
    rows.of(Ours, "buttress/retry", RETRY).healthy(|| retry().plain());
    rows.of(Ours, "buttress/timeout", TIMEOUT).healthy(|| TimeoutLayer::attempt(HALF_A_MINUTE).plain());
    stack::add(rows);
    keyed::add(rows);
}

fn retry() -> RetryLayer {
    RetryLayer::new(3).budget(RetryBudget::new())
}
