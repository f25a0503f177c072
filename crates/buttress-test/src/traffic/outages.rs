//! Rows 13 and 14: random errors, and outages.

use super::{
    Caller, Field, Row, Traffic,
    field::{Came, Stopwatch},
};
use crate::{Answer, Plan};
use std::{sync::Arc, time::Duration};
use tokio::time::{interval, sleep};

/// Calls per second, and the duration in seconds. Row 13 and 14 of `docs/traffic.md`.
const RATES: [(u32, u32); 3] = [(10, 60), (100, 10), (1000, 2)];

/// Maximum number of failures before a circuit opens: 5 consecutive ones by default, and those that
/// a retry layer adds.
const TO_OPEN: usize = 20;

/// Duration of an outage. By default, a circuit probes after 5 s and again some 10 s later.
const OUTAGE: Duration = Duration::from_secs(12);

/// Maximum time to recover: a circuit that has opened twice in [`OUTAGE`] probes again and needs
/// two successes.
const RECOVERS_WITHIN: Duration = Duration::from_secs(20);

/// The circuit has recovered after this time without a rejection.
const CALM: Duration = Duration::from_secs(2);

/// Maximum number of calls that reach a backend that is down: concurrent probes, and calls that
/// arrive while the circuit opens or closes.
const PROBES: usize = 10;

fn every(per_second: u32) -> Duration {
    Duration::from_secs(1) / per_second
}

/// A circuit must not reject calls at an error rate that it is [promised](Traffic::bears) to bear.
pub(super) fn random_errors(traffic: &Traffic) {
    // Without a circuit, the share makes no difference.
    let shares: &[u32] = if traffic.opens { &[1, 5, 10, 20, 30, 40] } else { &[20] };
    for percent in shares.iter().copied().filter(|percent| *percent <= traffic.bears) {
        for (rate, seconds) in RATES {
            let what = format!("{percent} % of {rate} calls a second fail");
            traffic.run(Row::RandomErrors, &what, random(traffic, percent, rate, seconds));
        }
    }
}

async fn random(traffic: &Traffic, percent: u32, rate: u32, seconds: u32) {
    let field = Field::new(traffic);
    field.inner.seed((percent * rate).into());
    let share = f64::from(percent) / 100.0;
    let Answer::Body(_) = field.healthy().answer else { unreachable!("a healthy backend answers with a body") };
    let plan = Plan::of(Answer::Sometimes(share, Box::new(field.healthy().answer)));
    let (calls, request) = (rate * seconds, field.request());
    let mut refused = 0;
    for _ in 0..calls {
        let seen = field.call(&plan, &request, Caller::ReadsAll).await;
        refused += u32::from(seen.is_refused());
        sleep(every(rate)).await;
    }
    let refused = f64::from(refused) / f64::from(calls);
    let bound = if traffic.opens { 0.02 } else { 0.0 };
    assert!(refused <= bound, "{:.1} % of the calls are rejected", refused * 100.0);
    field.holds_nothing();
}

pub(super) fn outage(traffic: &Traffic) {
    for (rate, _) in RATES {
        traffic.run(Row::Outage, &format!("an outage at {rate} calls a second"), down_and_up(traffic, rate));
        traffic.run(Row::Outage, &format!("a slow recovery at {rate} calls a second"), no_crowd(traffic, rate));
    }
}

async fn down_and_up(traffic: &Traffic, rate: u32) {
    let field = Field::new(traffic);
    let (request, down, well) = (field.request(), Plan::of(Answer::Error), field.healthy());
    for _ in 0..rate * 2 {
        let seen = field.call(&well, &request, Caller::ReadsAll).await;
        assert!(!seen.is_refused(), "a call to a healthy backend is rejected: {seen}");
        sleep(every(rate)).await;
    }
    let (mut reached, mut opened) = (0, false);
    let began = Stopwatch::start();
    while began.elapsed() < OUTAGE {
        let seen = field.call(&down, &request, Caller::ReadsAll).await;
        reached += seen.reached;
        opened |= seen.is_refused();
        assert!(opened || reached <= TO_OPEN, "{reached} failures do not open the circuit");
        sleep(every(rate)).await;
    }
    assert!(opened, "{reached} failures do not open the circuit");
    assert!(reached <= TO_OPEN + PROBES, "{reached} calls reach a backend that is down");
    let (mut last_refusal, began) = (Duration::ZERO, Stopwatch::start());
    while last_refusal < RECOVERS_WITHIN {
        if field.call(&well, &request, Caller::ReadsAll).await.is_refused() {
            last_refusal = began.elapsed();
        }
        // Between two rounds of probes, an open circuit rejects every call.
        if began.elapsed() > last_refusal + CALM {
            break;
        }
        sleep(every(rate)).await;
    }
    assert!(last_refusal < RECOVERS_WITHIN, "calls are rejected {last_refusal:?} after the recovery");
    field.is_closed().await;
}

/// The backend has recovered and answers slowly. Until its first answer, only probes reach it.
async fn no_crowd(traffic: &Traffic, rate: u32) {
    let field = Field::new(traffic);
    field.trip().await;
    let delay = traffic.attempt_within.unwrap_or(Duration::from_secs(2)) / 2;
    let plan = field.healthy().slow(delay);
    field.inner.follow(plan);
    let first = Arc::new(tokio::sync::Notify::new());
    let before = field.inner.calls();
    let mut answered = Box::pin(first.notified());
    let (mut ticks, mut sent) = (interval(every(rate)), 0);
    let reached = loop {
        tokio::select! {
            biased;
            () = &mut answered => break field.inner.calls() - before,
            _ = ticks.tick() => {}
        }
        sent += 1;
        let (mut service, request, first) = (field.service(), field.request().make(), first.clone());
        tokio::spawn(async move {
            let ready = tower::ServiceExt::ready(&mut service);
            let Ok(Ok(service)) = tokio::time::timeout(Duration::from_millis(1), ready).await else { return };
            let reply = tower::Service::call(service, request).await;
            let succeeded = reply.as_ref().is_ok_and(|reply| {
                reply.status().is_success() && reply.headers().get("grpc-status").is_none_or(|status| status == "0")
            });
            if succeeded && matches!(super::field::read(reply, usize::MAX).await, Came::Whole(..)) {
                first.notify_one();
            }
        });
        assert!(sent < rate * 1200, "the circuit admits no probe");
    };
    assert!(reached <= PROBES, "{reached} calls reach the backend before its first answer");
}
