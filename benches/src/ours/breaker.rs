//! Circuit breakers by the rules that peers have, on this machine and as on larger ones.

use std::time::Duration;

use buttress::circuit_breaker::{Builder, Window};
use buttress::ending::Plain;
use buttress::{CircuitBreaker, CircuitBreakerLayer, PlainExt};
use buttress_core::shard::with_shards;

use super::SHARDS;
use crate::family::{CONSECUTIVE, DEFAULTS, LAST_100, NONE, OPEN, SLOW, TEN_MILLISECONDS, TEN_SECONDS};
use crate::situation::{AllFail, Kept, MANY_IN_A_ROW, MostFail, NEARLY_ALL, TenthFails};
use crate::subject::{Kind::Ours, Rows};

pub(super) fn add(rows: &mut Rows) {
    rows.of(Ours, "buttress/circuit_breaker(consecutive)", CONSECUTIVE).healthy(|| layer(consecutive(5)));
    rows.of(Ours, "buttress/circuit_breaker(last 100)", LAST_100).healthy(|| layer(last_100(0.5)));
    rows.of(Ours, "buttress/circuit_breaker(10 s)", TEN_SECONDS).healthy(|| layer(ten_seconds(0.5)));
    failing(rows, "");
    for shards in SHARDS {
        with_shards(shards, || many_shards(rows, &format!(", {shards} shards")));
    }
    let ten_milliseconds = || layer(ten_seconds(0.5).window(Duration::from_millis(10)));
    rows.of(Ours, "buttress/circuit_breaker(10 ms)", TEN_MILLISECONDS)
        .when(Kept, ten_milliseconds)
        .when(TenthFails, ten_milliseconds);
    rows.of(Ours, "buttress/circuit_breaker(defaults)", DEFAULTS).when(Kept, || layer(builder()));
    let slow = || layer(last_100(0.5).slow_threshold(Duration::from_secs(1)).slow_rate(0.5));
    rows.of(Ours, "buttress/circuit_breaker(last 100, slow)", SLOW).when(Kept, slow).when(TenthFails, slow);
    let slow = || layer(ten_seconds(0.5).slow_threshold(Duration::from_secs(1)).slow_rate(0.5));
    rows.of(Ours, "buttress/circuit_breaker(10 s, slow)", NONE).when(Kept, slow).when(TenthFails, slow);
    rows.of(Ours, "buttress/circuit_breaker(open)", OPEN).open(|| layer(last_100(0.5)));
}

/// The rows of failing calls. The rules are judged and are not met: failures that are too few, a
/// share that nearly all calls reach, and a number of calls or failures that none reach.
fn failing(rows: &mut Rows, shards: &str) {
    rows.of(Ours, format!("buttress/circuit_breaker(consecutive){shards}"), CONSECUTIVE)
        .when(TenthFails, || layer(consecutive(MANY_IN_A_ROW)))
        .when(AllFail, || layer(consecutive(u32::MAX)));
    rows.of(Ours, format!("buttress/circuit_breaker(last 100){shards}"), LAST_100)
        .when(TenthFails, || layer(last_100(0.5)))
        .when(MostFail, || layer(last_100(NEARLY_ALL.into())));
    rows.of(Ours, format!("buttress/circuit_breaker(10 s){shards}"), TEN_SECONDS)
        .when(TenthFails, || layer(ten_seconds(0.5)))
        .when(MostFail, || layer(ten_seconds(NEARLY_ALL.into())))
        .when(AllFail, || layer(ten_seconds(0.5).minimum_throughput(u32::MAX)));
}

fn many_shards(rows: &mut Rows, shards: &str) {
    rows.of(Ours, format!("buttress/circuit_breaker(consecutive){shards}"), CONSECUTIVE)
        .when(Kept, || layer(consecutive(5)));
    rows.of(Ours, format!("buttress/circuit_breaker(last 100){shards}"), LAST_100).when(Kept, || layer(last_100(0.5)));
    rows.of(Ours, format!("buttress/circuit_breaker(10 s){shards}"), TEN_SECONDS)
        .when(Kept, || layer(ten_seconds(0.5)));
    failing(rows, shards);
    rows.of(Ours, format!("buttress/circuit_breaker(open){shards}"), OPEN).open(|| layer(last_100(0.5)));
}

fn builder() -> Builder {
    CircuitBreaker::builder("backend")
}

fn consecutive(failures: u32) -> Builder {
    builder().consecutive_failures(failures).failure_rate(None)
}

/// A rate alone, as peers have it.
fn by_rate(share: f64) -> Builder {
    const HOUR: Duration = Duration::from_secs(3_600);
    builder().consecutive_failures(None).failure_rate(share).minimum_throughput(100).open_time(HOUR..=HOUR)
}

pub(super) fn last_100(share: f64) -> Builder {
    by_rate(share).window(Window::Count(100))
}

pub(super) fn ten_seconds(share: f64) -> Builder {
    by_rate(share).window(Duration::from_secs(10))
}

pub(super) fn layer(builder: Builder) -> CircuitBreakerLayer<Plain> {
    CircuitBreakerLayer::from(builder.build().expect("a valid breaker")).plain()
}
