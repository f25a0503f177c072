//! The rows of `docs/traffic.md` that depend on the settings of a layer: panics in the user's code,
//! limits, reloads, many keys, and layers of tower and tower-http.

use buttress::{
    Backoff, InvalidConfig,
    circuit_breaker::{CloseRule, State, Window},
    gate::GateLayer,
    health::{CheckConfig, Group, HealthExt, Probe},
    keyed::Keyed,
    outcome::{Failure, FailureKind, Outcome},
    policy::{Clock, Permit, Policy, TokioClock},
};
use buttress_http::{
    ReplayBody,
    ending::{HttpClient, HttpServer, ResponseHead},
    prelude::*,
};
use buttress_test::{
    Answer, BoxError, Inner, MakeError, Plan, TestBody,
    traffic::{Means, Protocol, Row, Shape, Traffic},
};
use http::{Request, Response, request::Parts};
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::{advance, sleep};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, limit::GlobalConcurrencyLimitLayer};

const SECOND: Duration = Duration::from_secs(1);
const ATTEMPT: Duration = Duration::from_millis(500);
const TOTAL: Duration = Duration::from_secs(2);
const DAY: Duration = Duration::from_secs(24 * 3600);

const FAILURE: Outcome = Outcome::Failure(Failure::new(FailureKind::Transport));

fn replayed(body: ReplayBody<TestBody>) -> ReplayBody<TestBody> {
    body
}

fn path(request: &Request<TestBody>) -> String {
    request.uri().path().to_owned()
}

// Row 16: panics in the user's code.

fn marked(name: &str) -> Shape {
    let mut response = Response::new(vec![]);
    response.headers_mut().insert("x-panic", 1.into());
    let backend = Plan::of(Answer::Response(response));
    Shape::new(Row::Panics, name).header("x-panic", "1").backend(backend).means(Means::Anything)
}

/// Panics without the panic hook, whose backtraces would take longer than the test.
fn panics_if(condition: bool) {
    if condition {
        resume_unwind(Box::new("the user's code panics"));
    }
}

fn panics_on_response(head: &ResponseHead<'_>) -> Option<Outcome> {
    panics_if(head.headers.contains_key("x-panic"));
    None
}

fn panics_on_request<B>(request: &Request<B>) -> bool {
    panics_if(request.headers().contains_key("x-panic"));
    true
}

fn panicking_key(request: &Request<TestBody>) -> String {
    panics_on_request(request);
    path(request)
}

#[test]
fn a_panic_in_a_classifier_holds_nothing() {
    let shape = marked("a classifier panics");
    let server = || BulkheadLayer::new(10).end(HttpServer::new().classify(panics_on_response));
    Traffic::through("bulkhead", server).at_once(10).send(&shape);
    let breaker = || CircuitBreakerLayer::new("x").end(HttpClient::new().classify(panics_on_response));
    Traffic::through("circuit breaker", breaker).opens().send(&shape);
    let queue = || BulkheadLayer::new(1).queue(5, SECOND).end(HttpClient::new().classify(panics_on_response));
    Traffic::through("queue", queue).at_once(1).send(&shape);
    let plain = || {
        let judge = |result: Result<&Response<TestBody>, &buttress::Error>| {
            let panics = result.is_ok_and(|response| response.headers().contains_key("x-panic"));
            panics_if(panics);
            if result.is_ok() { Outcome::Success } else { FAILURE }
        };
        CircuitBreakerLayer::new("x").end(buttress::ending::Plain::new().classify(judge))
    };
    Traffic::through("circuit breaker, .plain()", plain).opens().send(&shape);
}

#[test]
fn a_panic_in_a_function_of_the_request_holds_nothing() {
    let shape = marked("a function of the request panics");
    let keyed = || GateLayer::with_policy(Keyed::new(panicking_key, |_: &String| Bulkhead::new(10))).http();
    Traffic::through("keyed bulkhead", keyed).at_once(10).send(&shape);
    let probes = || CircuitBreakerLayer::new("x").can_probe(panics_on_request::<TestBody>).http();
    Traffic::through("circuit breaker with chosen probes", probes).opens().send(&shape);
    let idempotent = |head: &Parts| {
        panics_if(head.headers.contains_key("x-panic"));
        true
    };
    let retry = move || {
        ServiceBuilder::new()
            .layer(RetryLayer::new(3).http_client().idempotent(idempotent).map_request_body(replayed))
            .layer(BulkheadLayer::new(10).http_client())
    };
    Traffic::through("retry", retry).at_once(10).send(&shape);
}

#[test]
fn a_key_whose_policy_cannot_be_made_breaks_its_own_calls_only() {
    let make = |key: &String| {
        panics_if(key == "/panics");
        Bulkhead::new(10)
    };
    let keyed: Keyed<String, Bulkhead, fn(&String) -> String> = Keyed::new(String::clone, make);
    for _ in 0..2000 {
        let panic = catch_unwind(AssertUnwindSafe(|| keyed.admit(&"/panics".to_owned()).is_ok()));
        assert!(panic.is_err());
        drop(keyed.admit(&"/works".to_owned()).unwrap());
    }
    assert_eq!((keyed.len(), keyed.untracked()), (2, 0));
}

#[test]
fn a_panic_in_a_listener_changes_nothing() {
    let layer = || {
        let breaker = CircuitBreaker::new("x");
        breaker.on_transition(|_| panics_if(true));
        breaker.on_event(|_| panics_if(true));
        CircuitBreakerLayer::from(breaker).http_client()
    };
    let traffic = Traffic::through("circuit breaker with listeners that panic", layer).opens();
    for row in [Row::Rare, Row::HangUps, Row::Rejections, Row::Panics, Row::Ready] {
        traffic.check_row(row);
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_rule_breaks_the_calls_that_asked_it_only() {
    let panics = Arc::new(AtomicBool::new(true));
    let rule = panics.clone();
    let breaker = CircuitBreaker::builder("x")
        .custom_rule(move |_| {
            panics_if(rule.load(Ordering::Relaxed));
            false
        })
        .minimum_throughput(1)
        .build()
        .unwrap();
    let inner = Inner::new(Plan::of(Answer::Error));
    let service = CircuitBreakerLayer::from(breaker.clone()).http_client().layer(inner.clone());
    for _ in 0..3 {
        let service = service.clone();
        let _ = tokio::spawn(service.oneshot(Request::new(TestBody::default()))).await;
    }
    panics.store(false, Ordering::Relaxed);
    inner.follow(Plan::healthy());
    breaker.reset();
    service.oneshot(Request::new(TestBody::default())).await.unwrap();
    assert_eq!(breaker.in_flight(), 0);
}

struct PanicsInDisplay;

impl fmt::Display for PanicsInDisplay {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        resume_unwind(Box::new("`Display` panics"))
    }
}

impl fmt::Debug for PanicsInDisplay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PanicsInDisplay")
    }
}

impl std::error::Error for PanicsInDisplay {}

#[test]
fn an_error_whose_display_panics_is_a_failure_like_another() {
    let backend = || Plan::of(Answer::Fails(MakeError::new(|| -> BoxError { PanicsInDisplay.into() })));
    let shape = Shape::new(Row::Panics, "an error that cannot be shown").backend(backend()).means(Means::Failure);
    let stack = || {
        ServiceBuilder::new()
            .layer(RetryLayer::new(1).http_client().map_request_body(replayed))
            .layer(CircuitBreakerLayer::new("x").http_client())
            .layer(BulkheadLayer::new(10).http_client())
    };
    Traffic::through("a stack", stack).opens().at_once(10).send(&shape);
}

#[tokio::test(start_paused = true)]
async fn a_health_check_that_panics_anywhere_has_failed_and_runs_again() {
    let health = Health::new();
    health.started();
    let round = Arc::new(AtomicUsize::new(0));
    let config = CheckConfig { fall: 1, ..CheckConfig::every(SECOND) };
    let _check = health.check("database", Group::Readiness, config, move || {
        let round = round.fetch_add(1, Ordering::Relaxed);
        panics_if(round == 0);
        async move {
            match round {
                1 => resume_unwind(Box::new("the check panics when it is polled")),
                2 => Err(PanicsInDisplay),
                _ => Ok(()),
            }
        }
    });
    sleep(Duration::from_millis(10)).await;
    for _ in 0..3 {
        assert!(!health.status(Probe::Readiness).is_serving());
        sleep(SECOND).await;
    }
    sleep(SECOND * 2).await;
    assert!(health.status(Probe::Readiness).is_serving());
}

// Row 19: limits.

#[test]
fn bounds_without_a_bound_are_none() {
    let timeouts = || {
        ServiceBuilder::new()
            .layer(TimeoutLayer::total(Duration::MAX).http().body_total(Duration::MAX).reader_stall(Duration::MAX))
            .layer(TimeoutLayer::attempt(Duration::MAX).http().body_idle(Duration::MAX))
    };
    Traffic::through("timeouts of Duration::MAX", timeouts).check();
    let bulkheads = || {
        ServiceBuilder::new()
            .layer(BulkheadLayer::new(usize::MAX).http())
            .layer(BulkheadLayer::new(usize::MAX).queue(usize::MAX, Duration::MAX).http())
            .layer(BulkheadLayer::new(usize::MAX).backpressure().http())
    };
    Traffic::through("bulkheads of usize::MAX", bulkheads).check();
}

#[test]
fn bounds_on_bodies_run_out() {
    let layer = || TimeoutLayer::attempt(ATTEMPT).body_idle(SECOND * 30).http_client();
    Traffic::through("body_idle", layer).attempt_within(ATTEMPT).frame_within(SECOND * 30).check();
    let layer = || TimeoutLayer::total(TOTAL).body_idle(SECOND * 30).grpc();
    let traffic = Traffic::through("body_idle, .grpc()", layer).speaking(Protocol::Grpc);
    traffic.answers_within(TOTAL).frame_within(SECOND * 30).check();
}

async fn call<S, B>(service: &S) -> Result<Response<B>, BoxError>
where
    S: Service<Request<TestBody>, Response = Response<B>, Error: Into<BoxError>> + Clone,
{
    service.clone().oneshot(Request::new(TestBody::default())).await.map_err(Into::into)
}

#[test]
fn hints_of_centuries_are_pauses_that_the_total_ends() {
    let stack = || {
        ServiceBuilder::new()
            .layer(TimeoutLayer::total(TOTAL).http_client())
            .layer(RetryLayer::new(3).max_hint(Duration::MAX).http_client().map_request_body(replayed))
    };
    let expect = |traffic: Traffic| traffic.attempts(3).answers_within(TOTAL).check_row(Row::Limits);
    expect(Traffic::through("retry with any hint", stack));
    let stack = || {
        ServiceBuilder::new()
            .layer(TimeoutLayer::total(TOTAL).grpc_client())
            .layer(RetryLayer::new(3).max_hint(Duration::MAX).grpc_client().map_request_body(replayed))
    };
    expect(Traffic::through("retry with any hint, gRPC", stack).speaking(Protocol::Grpc));
}

/// More than 2^32 milliseconds.
#[tokio::test(start_paused = true)]
async fn a_timeout_of_sixty_days_takes_sixty_days() {
    let inner = Inner::new(Plan::of(Answer::Never));
    let began = TokioClock.now();
    assert!(call(&TimeoutLayer::total(DAY * 60).http_client().layer(inner)).await.is_err());
    let took = TokioClock.now() - began;
    assert!(took >= DAY * 60 && took < DAY * 60 + SECOND, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn zero_refuses_or_does_once_and_does_not_hang() {
    let inner = Inner::new(Plan::healthy());
    assert!(call(&BulkheadLayer::new(0).http_client().layer(inner.clone())).await.is_err());
    let queue = BulkheadLayer::new(0).queue(usize::MAX, Duration::ZERO);
    assert!(call(&queue.http_client().layer(inner.clone())).await.is_err());
    assert!(call(&BulkheadLayer::new(1).queue(0, Duration::ZERO).http_client().layer(inner.clone())).await.is_ok());
    // A call that is ready at its first poll needs no time.
    assert!(call(&TimeoutLayer::attempt(Duration::ZERO).http_client().layer(inner.clone())).await.is_ok());
    inner.follow(Plan::healthy().after(1));
    assert!(call(&TimeoutLayer::total(Duration::ZERO).http_client().layer(inner.clone())).await.is_err());
    inner.follow(Plan::of(Answer::Error));
    let before = inner.calls();
    let once = RetryLayer::new(0).http_client().map_request_body(replayed);
    assert!(call(&once.layer(inner.clone())).await.is_err());
    assert_eq!(inner.calls() - before, 1);
}

#[tokio::test(start_paused = true)]
async fn the_budget_bounds_a_retry_without_a_bound() {
    let inner = Inner::new(Plan::of(Answer::Error));
    let budget = RetryBudget::builder().burst(7).min_per_second(0.0).percent(0.0).build().unwrap();
    let backoff = Backoff::constant(Duration::ZERO);
    let retry = RetryLayer::new(u32::MAX).budget(budget).backoff(backoff).http_client().map_request_body(replayed);
    assert!(call(&retry.layer(inner.clone())).await.is_err());
    assert_eq!(inner.calls(), 8);
}

#[tokio::test(start_paused = true)]
async fn a_circuit_with_every_limit_is_rejected_or_works() {
    const MAX: Duration = Duration::MAX;
    const LEAST: Duration = Duration::from_nanos(1);
    type Change = fn(buttress::circuit_breaker::Builder) -> buttress::circuit_breaker::Builder;
    let changes: &[(&str, Change)] = &[
        ("failures", |b| b.consecutive_failures(u32::MAX)),
        ("no failures", |b| b.consecutive_failures(0)),
        ("rate", |b| b.failure_rate(f64::MIN_POSITIVE)),
        ("NaN", |b| b.failure_rate(f64::NAN)),
        ("slow", |b| b.slow_rate(1.0).slow_threshold(MAX)),
        ("fast", |b| b.slow_rate(1.0).slow_threshold(LEAST)),
        ("throughput", |b| b.minimum_throughput(u32::MAX)),
        ("window of a day", |b| b.window(DAY)),
        ("window of MAX", |b| b.window(MAX)),
        ("window of no time", |b| b.window(Duration::ZERO)),
        ("window of a call", |b| b.window(Window::Count(1))),
        ("window of u32::MAX calls", |b| b.window(Window::Count(u32::MAX))),
        ("open for MAX", |b| b.open_time(MAX..=MAX)),
        ("open for a moment", |b| b.open_time(LEAST..=LEAST)),
        ("open time backwards", |b| b.open_time(SECOND..=LEAST)),
        ("probes", |b| b.probes(u32::MAX).concurrent_probes(u32::MAX)),
        ("no probes", |b| b.probes(0)),
        ("share", |b| b.close_rule(CloseRule::Share(f64::NAN))),
        ("lease of MAX", |b| b.probe_lease(MAX).max_half_open(MAX)),
        ("lease of a moment", |b| b.probe_lease(LEAST).max_half_open(LEAST)),
        ("ramp of MAX", |b| b.recovery_ramp(MAX)),
        ("ramp of a moment", |b| b.recovery_ramp(LEAST)),
    ];
    for (name, change) in changes {
        let builder = change(CircuitBreaker::builder("x"));
        let breaker = match builder.clone().build() {
            Ok(breaker) => breaker,
            Err(error) => {
                let error: InvalidConfig = error;
                assert!(!error.to_string().is_empty(), "{name}");
                continue;
            }
        };
        for pause in [Duration::ZERO, SECOND, DAY, DAY * 400, Duration::ZERO] {
            advance(pause).await;
            for outcome in [FAILURE, Outcome::Success, Outcome::CANCELLED] {
                for _ in 0..20 {
                    if let Ok(mut permit) = breaker.admit(&()) {
                        permit.settle(&outcome);
                    }
                }
            }
            let _ = (breaker.snapshot(), breaker.is_idle(), breaker.state());
        }
        assert_eq!(breaker.in_flight(), 0, "{name}");
        for time in [Duration::ZERO, LEAST, MAX] {
            breaker.open_for(time);
            let _ = breaker.admit(&()).map(drop);
            breaker.reload(&builder).unwrap();
        }
        breaker.reset();
        assert!(breaker.admit(&()).is_ok(), "{name}: a circuit rejects after a reset");
    }
}

// Row 20: reloads under load.

#[test]
fn an_equal_reload_before_each_call_changes_nothing() {
    let live = Arc::new(Mutex::new(None::<CircuitBreaker>));
    let newest = live.clone();
    let builder = || CircuitBreaker::builder("x");
    let layer = move || {
        let breaker = builder().build().unwrap();
        *newest.lock().unwrap() = Some(breaker.clone());
        CircuitBreakerLayer::from(breaker).http_client()
    };
    let reload = move || {
        if let Some(breaker) = &*live.lock().unwrap() {
            breaker.reload(&builder()).unwrap();
        }
    };
    Traffic::through("circuit breaker, reloaded", layer).opens().between_calls(reload).check();
}

#[tokio::test(start_paused = true)]
async fn a_new_threshold_holds_at_once_at_every_uptime() {
    for uptime in [Duration::ZERO, SECOND, DAY, DAY * 30, DAY * 400] {
        let breaker = CircuitBreaker::new("x");
        let inner = Inner::new(Plan::healthy());
        let service = CircuitBreakerLayer::from(breaker.clone()).http_client().layer(inner.clone());
        for _ in 0..100 {
            call(&service).await.unwrap();
            advance(uptime / 100).await;
        }
        let window = Window::from(SECOND * 100);
        breaker.reload(&CircuitBreaker::builder("x").consecutive_failures(2).window(window)).unwrap();
        inner.follow(Plan::of(Answer::Error));
        assert!(call(&service).await.is_err());
        assert_eq!(breaker.state(), State::Closed, "{uptime:?}");
        assert!(call(&service).await.is_err());
        assert_eq!(breaker.state(), State::Open, "{uptime:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_limit_holds_at_once_for_calls_that_wait_and_for_every_key() {
    let inner = Inner::new(Plan::healthy().slow(SECOND));
    let bulkhead = Bulkhead::new(0);
    let queued = BulkheadLayer::from(bulkhead.clone()).queue(1000, Duration::MAX).http_client().layer(inner.clone());
    let waits: Vec<_> = (0..100)
        .map(|_| {
            let service = queued.clone();
            tokio::spawn(async move { call(&service).await.map(drop) })
        })
        .collect();
    // Each call takes a second. Calls in flight continue when the limit falls below their number.
    for (limit, at_once, a_second_later) in [(0, 0, 0), (10, 10, 10), (3, 10, 3), (100, 80, 0)] {
        bulkhead.set_limit(limit);
        sleep(Duration::from_millis(1)).await;
        assert_eq!(bulkhead.in_flight(), at_once, "after a limit of {limit}");
        sleep(SECOND).await;
        assert_eq!(bulkhead.in_flight(), a_second_later, "a second after a limit of {limit}");
    }
    for call in waits {
        call.await.unwrap().unwrap();
    }
    let keyed = Keyed::new(path, |_: &String| Bulkhead::new(0));
    let service = GateLayer::with_policy(keyed.clone()).http_client().layer(inner.clone());
    assert!(call(&service).await.is_err());
    keyed.for_each(|_, bulkhead| bulkhead.set_limit(1));
    assert!(call(&service).await.is_ok());
}

// Row 21: many keys.

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_keys_take_bounded_memory_and_lose_no_open_circuit() {
    const KEPT: usize = 10_000;
    let keyed = Keyed::builder(path, |_: &String| CircuitBreaker::new("key")).max_keys(KEPT).build().unwrap();
    let inner = Inner::new(Plan::of(Answer::Error));
    let service = GateLayer::with_policy(keyed.clone()).http_client().layer(inner.clone());
    let to = |key: String| Request::get(key).body(TestBody::default()).unwrap();
    for key in 0..10 {
        while service.clone().oneshot(to(format!("/down/{key}"))).await.unwrap_err().rejection().is_none() {}
    }
    inner.follow(Plan::healthy());
    let before = inner.calls();
    for key in 0..100_000 {
        service.clone().oneshot(to(format!("/{key}"))).await.unwrap();
    }
    assert_eq!(inner.calls() - before, 100_000);
    assert_eq!((keyed.len(), keyed.untracked()), (KEPT, 0));
    for key in 0..10 {
        let refused = service.clone().oneshot(to(format!("/down/{key}"))).await.unwrap_err();
        assert!(refused.rejection().is_some(), "the open circuit of a key is lost");
    }
    // Policies of idle keys are removed: a day later a new key gets one.
    advance(DAY).await;
    service.clone().oneshot(to("/new".to_owned())).await.unwrap();
    assert!(keyed.get(&"/new".to_owned()).is_some());
}

// Row 22: layers of tower and tower-http.

#[test]
fn towers_layers_on_every_side_of_ours() {
    let client = || {
        ServiceBuilder::new()
            .layer(tower::load_shed::LoadShedLayer::new())
            .layer(GlobalConcurrencyLimitLayer::new(100))
            .layer(TimeoutLayer::total(TOTAL).http_client())
            .layer(RetryLayer::new(3).http_client().map_request_body(replayed))
            .layer(CircuitBreakerLayer::new("payments").http_client())
            .layer(GlobalConcurrencyLimitLayer::new(100))
            .layer(BulkheadLayer::new(10).queue(20, ATTEMPT).http_client())
            .layer(tower::timeout::TimeoutLayer::new(ATTEMPT))
            .layer(tower::load_shed::LoadShedLayer::new())
    };
    Traffic::through("client, with tower's layers", client)
        .opens()
        .at_once(10)
        .attempts(3)
        .attempt_within(ATTEMPT)
        .answers_within(TOTAL)
        .check();
}

#[test]
fn tower_https_layers_on_every_side_of_ours() {
    use tower_http::{
        catch_panic::CatchPanicLayer, cors::CorsLayer, limit::RequestBodyLimitLayer,
        sensitive_headers::SetSensitiveHeadersLayer, trace::TraceLayer,
    };
    let server = || {
        ServiceBuilder::new()
            .layer(TraceLayer::new_for_http())
            .layer(HealthLayer::new(Health::new()).http())
            .layer(CorsLayer::permissive())
            .layer(TimeoutLayer::total(TOTAL).http())
            .layer(SetSensitiveHeadersLayer::new([http::header::AUTHORIZATION]))
            .layer(BulkheadLayer::new(64).http())
            .layer(CatchPanicLayer::new())
            .layer(RequestBodyLimitLayer::new(1024))
    };
    Traffic::through("server, with tower-http's layers", server).at_once(64).answers_within(TOTAL).check();
}
