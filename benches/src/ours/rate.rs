//! Rate limits: one whose burst no row uses up, and one that rejects.

use std::time::Duration;

use buttress::gate::GateLayer;
use buttress::keyed::Keyed;
use buttress::policy::AllOf;
use buttress::{AdaptiveRateLayer, PlainExt, RateLimit, RateLimitLayer};

use crate::family::{NONE, OVER_RATE, RATE_LIMIT};
use crate::subject::{Kind::Ours, Rows};

/// A call in each nanosecond, so that no call is over the rate.
const PER_SECOND: u32 = 1_000_000_000;
const HOUR: Duration = Duration::from_secs(3_600);

pub(super) fn add(rows: &mut Rows) {
    let limit = || RateLimit::per_second(PER_SECOND);
    rows.of(Ours, "buttress/rate_limit", RATE_LIMIT).healthy(|| RateLimitLayer::from(limit()).plain());
    rows.of(Ours, "buttress/rate_limit(wait)", RATE_LIMIT).healthy(|| RateLimitLayer::from(limit()).wait(HOUR).plain());
    rows.of(Ours, "buttress/rate_limit", OVER_RATE).open(|| RateLimitLayer::new(1, HOUR).plain());
    rows.of(Ours, "buttress/rate_limit(two, all or nothing)", NONE)
        .healthy(move || GateLayer::with_policy(AllOf::new(limit(), limit())).plain());
    rows.of(Ours, "buttress/keyed(rate_limit)", NONE).healthy(move || {
        let quota = limit();
        GateLayer::with_policy(Keyed::new(|request: &u64| *request, move |_: &u64| quota.new_bucket())).plain()
    });
    rows.of(Ours, "buttress/adaptive_rate(off)", NONE).healthy(|| AdaptiveRateLayer::new().plain());
}
