//! The layers that peers' stacks have, in their order, and stacks of ours alone.

use std::time::Duration;

use buttress::{BulkheadLayer, CircuitBreakerLayer, PlainExt, TimeoutLayer};
use tower::ServiceBuilder;

use super::breaker::{last_100, layer, ten_seconds};
use super::{HALF_A_MINUTE, retry};
use crate::family::{NONE, STACK_RESILIENCE, STACK_SEATBELT, STACK_TOWER};
use crate::subject::{Kind::Ours, Rows};

pub(super) fn add(rows: &mut Rows) {
    let total = || TimeoutLayer::total(HALF_A_MINUTE).plain();
    let attempt = || TimeoutLayer::attempt(HALF_A_MINUTE).plain();
    let bulkhead = || BulkheadLayer::new(1_000).plain();
    // Our bulkhead sheds load by itself: one layer for two of tower's.
    rows.of(Ours, "buttress/stack4(as tower)", STACK_TOWER)
        .healthy(|| ServiceBuilder::new().layer(total()).layer(retry().plain()).layer(bulkhead()).layer(attempt()));
    rows.of(Ours, "buttress/stack5(as tower-resilience)", STACK_RESILIENCE).healthy(|| {
        ServiceBuilder::new()
            .layer(total())
            .layer(retry().plain())
            .layer(layer(last_100(0.5)))
            .layer(bulkhead())
            .layer(attempt())
    });
    rows.of(Ours, "buttress/stack3(as seatbelt)", STACK_SEATBELT)
        .healthy(|| ServiceBuilder::new().layer(retry().plain()).layer(layer(ten_seconds(0.5))).layer(attempt()));
    // A full client stack: a total timeout, retry with a budget, a breaker, a queueing bulkhead for
    // the dependency, a bulkhead without queue for a share of it, and an attempt timeout.
    let breaker = || CircuitBreakerLayer::new("backend").plain();
    rows.of(Ours, "buttress/stack6", NONE).healthy(|| {
        ServiceBuilder::new()
            .layer(total())
            .layer(retry().plain())
            .layer(breaker())
            .layer(BulkheadLayer::new(1_000).queue(1_000, Duration::from_millis(50)).plain())
            .layer(bulkhead())
            .layer(attempt())
    });
    // Without bulkheads, and with a breaker for the endpoint in addition to the service's.
    rows.of(Ours, "buttress/stack5", NONE).healthy(|| {
        ServiceBuilder::new().layer(total()).layer(retry().plain()).layer(breaker()).layer(breaker()).layer(attempt())
    });
}
