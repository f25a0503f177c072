//! Health: answers in front of everything, and checks on a schedule.

use crate::{Handle, MS, SECOND, layer, no_request, pass, request};
use buttress::{
    Health, HealthLayer,
    health::{Answer, CheckConfig, Group, Probe, Status},
};
use std::{
    cell::Cell,
    future::{pending, ready},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task::spawn};
use tower_test::mock::{Mock, Spawn};

/// A protocol of one word.
#[derive(Clone)]
struct Ping;

impl Answer<&'static str, &'static str> for Ping {
    fn answer(&self, request: &&'static str, health: &Health) -> Option<&'static str> {
        (*request == "ping").then(|| health.status(Probe::Readiness).as_str())
    }
}

type Service = buttress::health::HealthService<Mock<&'static str, &'static str>, Ping>;

fn service() -> (Health, Spawn<Service>, Handle) {
    let health = Health::new();
    let (service, handle) = layer(HealthLayer::new(health.clone()).answer(Ping));
    (health, service, handle)
}

#[tokio::test(start_paused = true)]
async fn a_probe_is_answered_while_the_inner_service_is_busy() {
    let (health, mut service, mut handle) = service();
    handle.allow(0);
    for expected in ["out-of-service", "up", "out-of-service"] {
        assert_ready_ok!(service.poll_ready());
        assert_eq!(assert_ready_ok!(spawn(service.call("ping")).poll()), expected);
        if expected == "up" { health.drain() } else { health.started() }
    }
}

#[tokio::test(start_paused = true)]
async fn other_requests_wait_for_the_inner_service_in_their_future() {
    let (_health, mut service, mut handle) = service();
    handle.allow(0);
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("work"));
    assert_pending!(call.poll());
    no_request(&mut handle);
    handle.allow(1);
    assert!(call.is_woken());
    assert_pending!(call.poll());
    request(&mut handle).1.send_response("done");
    assert_eq!(assert_ready_ok!(call.poll()), "done");
}

#[tokio::test(start_paused = true)]
async fn a_probe_does_not_use_up_the_readiness_of_the_inner_service() {
    let (_health, mut service, mut handle) = service();
    handle.allow(1);
    assert_ready_ok!(service.poll_ready());
    assert_ready_ok!(spawn(service.call("ping")).poll());
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("work"));
    assert_pending!(call.poll());
    assert_eq!(request(&mut handle).0, "work");
}

#[tokio::test(start_paused = true)]
async fn an_inner_service_that_is_broken_says_so() {
    let (_health, mut service, mut handle) = service();
    handle.send_error("broken");
    assert_eq!(assert_ready_err!(service.poll_ready()).to_string(), "broken");
}

/// A health that has started, and a check that counts its runs and gives these results, the last one for ever.
fn checked<const N: usize>(
    results: [Result<(), &'static str>; N],
) -> (Health, buttress::health::Check, Arc<AtomicUsize>) {
    let (health, runs) = (Health::new(), Arc::new(AtomicUsize::new(0)));
    health.started();
    let counter = runs.clone();
    let check = health.check("db", Group::Readiness, CheckConfig::every(10 * SECOND), move || {
        ready(results[counter.fetch_add(1, SeqCst).min(N - 1)])
    });
    (health, check, runs)
}

/// Lets the next check run. Intervals vary by a tenth.
async fn next_check(runs: &AtomicUsize) {
    let before = runs.load(SeqCst);
    while runs.load(SeqCst) == before {
        tokio::time::sleep(100 * MS).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_check_is_unknown_until_it_has_run_and_then_tells() {
    let (health, _check, runs) = checked([Ok(())]);
    assert_eq!((health.status(Probe::Readiness), runs.load(SeqCst)), (Status::Unknown, 0));
    next_check(&runs).await;
    assert_eq!(health.status(Probe::Readiness), Status::Up);
}

#[tokio::test(start_paused = true)]
async fn a_check_runs_once_in_an_interval_and_three_failures_in_a_row_take_it_out() {
    let (health, _check, runs) = checked([Ok(()), Err("gone"), Err("gone"), Err("gone"), Ok(())]);
    next_check(&runs).await;
    for expected in [Status::Up, Status::Up, Status::Down, Status::Up] {
        let before = runs.load(SeqCst);
        pass(9 * SECOND - 200 * MS).await;
        assert_eq!(runs.load(SeqCst), before, "it came too early");
        next_check(&runs).await;
        assert_eq!(health.status(Probe::Readiness), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_check_that_hangs_has_failed() {
    let health = Health::new();
    health.started();
    let config = CheckConfig { timeout: SECOND, ..CheckConfig::every(10 * SECOND) };
    let _check = health.check("db", Group::Readiness, config, pending::<Result<(), &str>>);
    tokio::time::sleep(SECOND + 10 * MS).await;
    assert_eq!(health.status(Probe::Readiness), Status::Down);
    assert_eq!(health.report().indicators[0].detail.as_deref(), Some("no answer within 1s"));
}

#[tokio::test(start_paused = true)]
async fn a_check_that_panics_does_not_become_healthy_by_it() {
    let health = Health::new();
    health.started();
    let runs = Cell::new(0);
    let _check = health.check("db", Group::Readiness, CheckConfig::every(10 * SECOND), move || {
        runs.set(runs.get() + 1);
        assert!(runs.get() < 2, "a bug in a check");
        ready(Ok::<_, &str>(()))
    });
    tokio::time::sleep(60 * SECOND).await;
    assert!(!health.status(Probe::Readiness).is_serving(), "{:?}", health.report());
}

#[tokio::test(start_paused = true)]
async fn dropping_a_check_stops_it_and_takes_it_out_of_the_answer() {
    let (health, check, runs) = checked([Err("gone")]);
    next_check(&runs).await;
    assert_eq!(health.status(Probe::Readiness), Status::Down);
    drop(check);
    assert_eq!(health.status(Probe::Readiness), Status::Up);
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(runs.load(SeqCst), 1);
}
