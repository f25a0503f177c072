//! Tests of health: answers in front of all layers, and periodic checks.

use crate::{Handle, MS, SECOND, layer, no_request, pass, request};
use buttress::{
    Health, HealthLayer,
    ending::{Ended, Ending},
    health::{Answer, CheckConfig, Group, HealthExt, Probe, Status},
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

/// A protocol whose only probe is `ping`.
#[derive(Clone)]
struct Ping;

impl Ended for Ping {}

impl Answer<&'static str, &'static str> for Ping {
    type Response = &'static str;

    fn answer(&self, request: &&'static str, health: &Health) -> Option<&'static str> {
        (*request == "ping").then(|| health.status(Probe::Readiness).as_str())
    }

    fn pass(&self, response: &'static str) -> &'static str {
        response
    }
}

type Service = buttress::health::HealthService<Mock<&'static str, &'static str>, Ping>;

fn service() -> (Health, Spawn<Service>, Handle) {
    let health = Health::new();
    let (service, handle) = layer(HealthLayer::new(health.clone()).end(Ping));
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
async fn a_probe_takes_no_place_of_the_inner_service() {
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
async fn a_probe_is_answered_while_the_inner_service_is_broken_and_other_requests_get_its_error() {
    let (health, mut service, mut handle) = service();
    health.started();
    handle.send_error("broken");
    assert_ready_ok!(service.poll_ready());
    let mut work = spawn(service.call("work"));
    assert_ready_ok!(service.poll_ready());
    assert_eq!(assert_ready_ok!(spawn(service.call("ping")).poll()), "up");
    assert_eq!(assert_ready_err!(work.poll()).to_string(), "broken");
}

/// A service that is never ready and counts its polls.
#[derive(Clone, Default)]
struct Stuck(Arc<AtomicUsize>);

impl tower::Service<&'static str> for Stuck {
    type Response = &'static str;
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<&'static str, std::convert::Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        self.0.fetch_add(1, SeqCst);
        std::task::Poll::Pending
    }

    fn call(&mut self, _: &'static str) -> Self::Future {
        ready(Ok("done"))
    }
}

#[tokio::test(start_paused = true)]
async fn probes_are_answered_for_an_hour_while_the_inner_service_is_never_ready() {
    use tower::{Layer, ServiceExt};
    let (health, stuck) = (Health::new(), Stuck::default());
    health.started();
    let service = HealthLayer::new(health).end(Ping).layer(stuck.clone());
    let mut work = spawn(service.clone().oneshot("work"));
    for _ in 0..360 {
        assert_pending!(work.poll());
        assert_eq!(service.clone().oneshot("ping").await, Ok("up"));
        pass(10 * SECOND).await;
    }
    assert_eq!(stuck.0.load(SeqCst), 360, "a probe polled the inner service");
}

/// Returns a started health with a check that counts its runs and returns `results` in order, then
/// the last one.
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

/// Waits for the next run of the check. Intervals vary by 10 %.
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
        assert_eq!(runs.load(SeqCst), before, "the check ran too early");
        next_check(&runs).await;
        assert_eq!(health.status(Probe::Readiness), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_check_that_hangs_has_failed() {
    let health = Health::new();
    health.started();
    let usual = CheckConfig::every(10 * SECOND);
    for (config, timeout) in [(usual, SECOND), (CheckConfig { timeout: 3 * SECOND, ..usual }, 3 * SECOND)] {
        let _check = health.check("db", Group::Readiness, config, pending::<Result<(), &str>>);
        tokio::time::sleep(timeout - MS).await;
        assert_eq!(health.status(Probe::Readiness), Status::Unknown);
        tokio::time::sleep(10 * MS).await;
        assert_eq!(health.status(Probe::Readiness), Status::Down);
        assert_eq!(health.report().indicators[0].detail, Some(format!("no answer within {timeout:?}")));
    }
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

/// An error whose `Display` panics.
struct PanicsOnDisplay;

impl std::fmt::Display for PanicsOnDisplay {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("a bug in Display")
    }
}

#[tokio::test(start_paused = true)]
async fn a_check_whose_error_panics_when_it_is_shown_is_down_and_runs_again() {
    let (health, runs) = (Health::new(), Arc::new(AtomicUsize::new(0)));
    health.started();
    let counter = runs.clone();
    let _check = health.check("db", Group::Readiness, CheckConfig::every(10 * SECOND), move || {
        ready(if counter.fetch_add(1, SeqCst) < 3 { Err(PanicsOnDisplay) } else { Ok(()) })
    });
    next_check(&runs).await;
    assert_eq!(health.status(Probe::Readiness), Status::Down);
    assert_eq!(health.report().indicators[0].detail.as_deref(), Some("the check panicked"));
    for _ in 0..3 {
        next_check(&runs).await;
    }
    assert_eq!(health.status(Probe::Readiness), Status::Up);
}

#[tokio::test(start_paused = true)]
async fn a_check_every_minute_by_struct_update_does_not_flap() {
    let health = Health::new();
    health.started();
    let config = CheckConfig { interval: 60 * SECOND, ..CheckConfig::default() };
    let _check = health.check("db", Group::Readiness, config, || ready(Ok::<_, &str>(())));
    tokio::time::sleep(SECOND).await;
    for _ in 0..3600 {
        tokio::time::sleep(SECOND).await;
        assert_eq!(health.status(Probe::Readiness), Status::Up);
    }
}

#[tokio::test(start_paused = true)]
async fn an_age_that_is_set_wins_over_that_of_the_interval() {
    let health = Health::new();
    health.started();
    let config = CheckConfig { interval: 60 * SECOND, max_age: Some(5 * SECOND), ..CheckConfig::default() };
    let _check = health.check("db", Group::Readiness, config, || ready(Ok::<_, &str>(())));
    tokio::time::sleep(SECOND).await;
    assert_eq!(health.status(Probe::Readiness), Status::Up);
    tokio::time::sleep(5 * SECOND).await;
    assert_eq!(health.status(Probe::Readiness), Status::Unknown);
}

#[tokio::test(start_paused = true)]
async fn an_interval_of_zero_does_not_keep_the_runtime_busy() {
    let (health, runs) = (Health::new(), Arc::new(AtomicUsize::new(0)));
    let (counter, config) = (runs.clone(), CheckConfig::every(std::time::Duration::ZERO));
    let _check = health.check("db", Group::Readiness, config, move || {
        counter.fetch_add(1, SeqCst);
        ready(Ok::<_, &str>(()))
    });
    tokio::time::sleep(SECOND).await;
    assert!(runs.load(SeqCst) <= 1001);
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

#[tokio::test(start_paused = true)]
async fn as_many_good_and_bad_runs_turn_a_check_as_its_settings_say() {
    let (health, runs) = (Health::new(), Arc::new(AtomicUsize::new(0)));
    health.started();
    let results = [Ok(()), Err("gone"), Err("gone"), Ok(()), Ok(()), Ok(())];
    let config = CheckConfig { rise: 3, fall: 2, ..CheckConfig::every(10 * SECOND) };
    let counter = runs.clone();
    let _check = health.check("db", Group::Readiness, config, move || ready(results[counter.fetch_add(1, SeqCst)]));
    for expected in [Status::Up, Status::Up, Status::Down, Status::Down, Status::Down, Status::Up] {
        next_check(&runs).await;
        assert_eq!(health.status(Probe::Readiness), expected, "after {runs:?} runs");
    }
}
