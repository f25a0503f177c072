//! Tests of deadlines.

use crate::{MS, SECOND, layer, no_request, pass, refusal, request};
use buttress::{
    Backoff, BulkheadLayer, CircuitBreaker, CircuitBreakerLayer, ContextLayer, DeadlineLayer, Deadlines, Error,
    PlainExt, RateLimitLayer, RetryLayer, TimeoutLayer, context,
    deadline::{EXCEEDED, EXPIRED, Mode, TOO_SHORT},
    policy::{CallContext, Clock, Criticality, TokioClock},
    timeout,
};
use std::{
    convert::Infallible,
    future::pending,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task::spawn};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

fn in_time(left: Duration) -> CallContext {
    CallContext::default().with_deadline(TokioClock.now() + left)
}

/// Returns how much time the current call has left.
fn left() -> Option<Duration> {
    context::current().deadline.map(|deadline| deadline - TokioClock.now())
}

#[tokio::test(start_paused = true)]
async fn a_call_ends_at_its_deadline_and_the_inner_call_is_dropped() {
    let client = DeadlineLayer::new(SECOND).named("payments");
    let deadlines = client.handle().clone();
    let (mut service, mut handle) = layer(client.plain());
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    assert_pending!(call.poll());
    pass(SECOND - MS).await;
    assert_pending!(call.poll());
    pass(2 * MS).await;
    assert!(call.is_woken());
    let error = assert_ready_err!(call.poll());
    assert_eq!(error.to_string(), "deadline `payments`: the deadline passed before the call ended (1s)");
    drop(call);
    assert_eq!(request(&mut handle).0, "a");
    assert_eq!((deadlines.exceeded(), deadlines.expired(), deadlines.observed()), (1, 0, 0));
}

/// Not in a runtime, where making a timer would panic.
#[test]
fn no_timer_is_made_for_a_call_that_is_ready_at_once() {
    let ready = service_fn(async |text: &'static str| Ok::<_, Infallible>(text));
    let mut service = ServiceBuilder::new().layer(DeadlineLayer::new(SECOND).plain()).service(ready);
    assert_eq!(assert_ready_ok!(spawn(service.call("at once")).poll()), "at once");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_there_wins_over_a_deadline_that_has_passed() {
    let (mut service, mut handle) = layer(DeadlineLayer::new(SECOND).plain());
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    assert_pending!(call.poll());
    pass(2 * SECOND).await;
    request(&mut handle).1.send_response("just in time");
    assert_eq!(assert_ready_ok!(call.poll()), "just in time");
}

#[tokio::test(start_paused = true)]
async fn a_call_made_for_another_gets_what_is_left_of_its_time() {
    let backend = service_fn(async |_: ()| Ok::<_, Infallible>(left()));
    let client = DeadlineLayer::new(10 * SECOND).plain().layer(backend);
    let server = DeadlineLayer::server().default_limit(2 * SECOND).plain().layer(service_fn(move |()| {
        let client = client.clone();
        async move {
            tokio::time::sleep(500 * MS).await;
            client.oneshot(()).await
        }
    }));
    assert_eq!(server.oneshot(()).await.unwrap(), Some(1500 * MS));
    assert_eq!(context::current(), CallContext::default());
}

#[tokio::test(start_paused = true)]
async fn a_nested_limit_that_is_longer_changes_nothing_and_a_shorter_one_ends_first() {
    for (outer, inner, expected) in [(SECOND, 3 * SECOND, SECOND), (3 * SECOND, SECOND, SECOND)] {
        let started = TokioClock.now();
        let service = ServiceBuilder::new()
            .layer(DeadlineLayer::new(outer).plain())
            .layer(DeadlineLayer::new(inner).plain())
            .service_fn(|_: ()| pending::<Result<(), Infallible>>());
        let error = service.oneshot(()).await.unwrap_err();
        assert_eq!(error.rejection().unwrap().reason(), &EXCEEDED);
        assert_eq!(TokioClock.now() - started, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_without_limits_sets_no_deadline_and_hands_on_that_of_its_caller() {
    let handler = service_fn(async |_: ()| Ok::<_, Infallible>(left()));
    let server = DeadlineLayer::server().plain().layer(handler);
    assert_eq!(server.clone().oneshot(()).await.unwrap(), None);
    assert_eq!(context::with(in_time(SECOND), server.oneshot(())).await.unwrap(), Some(SECOND));
}

#[tokio::test(start_paused = true)]
async fn the_request_may_set_the_limit_of_its_call_and_the_caller_may_have_less() {
    let by = |name: &&'static str| match *name {
        "export" => Some(60 * SECOND),
        "stream" => Some(Duration::MAX),
        _ => None,
    };
    let handler = service_fn(async |_: &'static str| Ok::<_, Infallible>(left()));
    let client = DeadlineLayer::new(SECOND).by(by).plain().layer(handler);
    assert_eq!(client.clone().oneshot("export").await.unwrap(), Some(60 * SECOND));
    assert_eq!(client.clone().oneshot("order").await.unwrap(), Some(SECOND));
    assert_eq!(client.clone().oneshot("stream").await.unwrap(), None);
    assert_eq!(context::with(in_time(5 * SECOND), client.oneshot("stream")).await.unwrap(), Some(5 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_client_does_not_send_what_has_too_little_time() {
    let client = DeadlineLayer::new(SECOND);
    let deadlines = client.handle().clone();
    let (mut service, mut handle) = layer(client.plain());
    for (time, reason) in [(Duration::ZERO, &EXPIRED), (MS / 2, &TOO_SHORT)] {
        let context = in_time(time);
        assert_ready_ok!(service.poll_ready());
        let mut call = context.enter_for(|| spawn(service.call("late")));
        assert_eq!(refusal(&mut call), reason);
    }
    no_request(&mut handle);
    assert_eq!((deadlines.expired(), deadlines.exceeded()), (2, 0));
    let (mut service, mut handle) = layer(DeadlineLayer::new(SECOND).min_useful(Duration::ZERO).plain());
    assert_ready_ok!(service.poll_ready());
    let mut call = in_time(MS / 2).enter_for(|| spawn(service.call("soon")));
    assert_pending!(call.poll());
    assert_eq!(request(&mut handle).0, "soon");
}

trait EnterFor {
    fn enter_for<T>(self, call: impl FnOnce() -> T) -> T;
}

impl EnterFor for CallContext {
    fn enter_for<T>(self, call: impl FnOnce() -> T) -> T {
        let _entered = self.enter();
        call()
    }
}

/// Counts the calls that reach it, and answers after a time.
fn counting(
    calls: &Arc<AtomicUsize>,
    takes: Duration,
) -> impl Service<(), Response = Option<Duration>, Error = Infallible, Future: Send> + Clone {
    let calls = calls.clone();
    service_fn(move |()| {
        calls.fetch_add(1, Ordering::Relaxed);
        async move {
            tokio::time::sleep(takes).await;
            Ok::<_, Infallible>(left())
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_server_rejects_what_arrives_expired_up_to_a_fifth_of_its_calls() {
    let calls = Arc::new(AtomicUsize::new(0));
    let server = DeadlineLayer::server().max_limit(60 * SECOND);
    let deadlines = server.handle().clone();
    let server = server.plain().layer(counting(&calls, SECOND));
    let late = in_time(Duration::ZERO);
    let mut rejected = 0;
    for _call in 0..50 {
        match context::with(late, server.clone().oneshot(())).await {
            Ok(left) => assert_eq!(left, Some(59 * SECOND), "without the deadline that has passed"),
            Err(error) => {
                assert_eq!(error.rejection().unwrap().reason(), &EXPIRED);
                rejected += 1;
            }
        }
    }
    assert_eq!((calls.load(Ordering::Relaxed), deadlines.observed()), (50 - rejected, 50 - rejected as u64));
    assert!((5..=10).contains(&rejected), "{rejected} of 50");
    deadlines.set_mode(Mode::EnforceAll);
    let error = context::with(late, server.oneshot(())).await.unwrap_err();
    assert_eq!(error.rejection().unwrap().reason(), &EXPIRED);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_observes_rejects_and_ends_no_call_and_counts_both() {
    let calls = Arc::new(AtomicUsize::new(0));
    let server = DeadlineLayer::server().default_limit(500 * MS).mode(Mode::Observe);
    let deadlines = server.handle().clone();
    let server = server.plain().layer(counting(&calls, SECOND));
    assert_eq!(server.clone().oneshot(()).await.unwrap(), None, "a deadline that is observed is not handed on");
    assert_eq!((deadlines.exceeded(), deadlines.observed()), (1, 0));
    let late = in_time(Duration::ZERO);
    context::with(late, async { server.oneshot(()).await.unwrap() }).await;
    assert_eq!((deadlines.exceeded(), deadlines.observed(), deadlines.expired()), (1, 1, 0));
    assert_eq!(calls.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_deadline_passes_in_the_queue_does_not_reach_the_handler() {
    let calls = Arc::new(AtomicUsize::new(0));
    let server = ServiceBuilder::new()
        .layer(DeadlineLayer::server().default_limit(2 * SECOND).plain())
        .layer(BulkheadLayer::new(1).queue(10, Duration::MAX).plain())
        .service(counting(&calls, 3 * SECOND));
    let (first, second) = tokio::join!(
        context::with(CallContext::default(), server.clone().oneshot(())),
        context::with(in_time(SECOND), server.clone().oneshot(())),
    );
    let reason = |result: Result<Option<Duration>, Error>| result.unwrap_err().rejection().unwrap().reason().class();
    assert_eq!(reason(first), reason(second));
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_the_rate_that_the_deadline_does_not_allow_is_rejected_at_once() {
    let client = ServiceBuilder::new()
        .layer(DeadlineLayer::new(SECOND).plain())
        .layer(RateLimitLayer::per_second(1).burst(1).wait(Duration::MAX).plain())
        .service_fn(|_: ()| async { Ok::<_, Infallible>(()) });
    client.clone().oneshot(()).await.unwrap();
    client.clone().oneshot(()).await.unwrap();
    let started = TokioClock.now();
    let full = tokio::join!(client.clone().oneshot(()), client.clone().oneshot(()));
    assert!(full.0.is_ok() && full.1.is_err());
    assert_eq!(TokioClock.now() - started, SECOND);
}

fn failing(
    seen: &Arc<Mutex<Vec<Option<Duration>>>>,
    takes: Duration,
) -> impl Service<(), Response = (), Error = io::Error, Future: Send> + Clone {
    let seen = seen.clone();
    service_fn(move |()| {
        seen.lock().unwrap().push(left());
        async move {
            tokio::time::sleep(takes).await;
            Err::<(), _>(io::Error::other("down"))
        }
    })
}

#[tokio::test(start_paused = true)]
async fn attempts_and_pauses_share_the_time_of_a_call() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let client = ServiceBuilder::new()
        .layer(DeadlineLayer::new(SECOND).plain())
        .layer(RetryLayer::new(9).backoff(Backoff::constant(250 * MS)).plain())
        .layer(TimeoutLayer::attempt(500 * MS).plain())
        .service(failing(&seen, 300 * MS));
    let started = TokioClock.now();
    let error = client.oneshot(()).await.unwrap_err();
    // The second attempt ends at 850 ms, and a pause of 250 ms would end after the deadline.
    assert_eq!(TokioClock.now() - started, 850 * MS);
    assert!(error.rejection().is_none(), "the last answer of the backend");
    let seen = seen.lock().unwrap();
    assert!(seen.windows(2).all(|pair| pair[1] < pair[0]) && seen.len() >= 2, "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_takes_no_longer_than_the_deadline_and_its_error_says_which_of_both_it_was() {
    for (limit, attempt, reason, attempts) in
        [(SECOND, 5 * SECOND, &EXCEEDED, 1), (2 * SECOND, SECOND / 2, &timeout::ATTEMPT, 2)]
    {
        let calls = Arc::new(AtomicUsize::new(0));
        let attempt = TimeoutLayer::attempt(attempt).named("backend");
        let stats = attempt.stats().unwrap();
        let client = ServiceBuilder::new()
            .layer(DeadlineLayer::new(limit).plain())
            .layer(RetryLayer::new(2).backoff(Backoff::constant(Duration::ZERO)).plain())
            .layer(attempt.plain())
            .service(counting(&calls, Duration::from_secs(60)));
        let error = client.oneshot(()).await.unwrap_err();
        assert_eq!(error.rejection().unwrap().reason(), reason);
        assert_eq!((calls.load(Ordering::Relaxed), stats.timed_out()), (attempts, attempts as u64), "{limit:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_the_deadline_ends_is_evidence_for_the_breaker_around_it() {
    let breaker = CircuitBreaker::builder("backend").build().unwrap();
    let client = ServiceBuilder::new()
        .layer(DeadlineLayer::new(SECOND).plain())
        .layer(CircuitBreakerLayer::from(breaker.clone()).plain())
        .layer(TimeoutLayer::attempt(5 * SECOND).plain())
        .service_fn(|_: ()| pending::<Result<(), Infallible>>());
    client.oneshot(()).await.unwrap_err();
    assert_eq!(breaker.snapshot().counts.failed, 1);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_leaves_its_reserve_and_is_not_made_if_too_little_is_left() {
    let started = TokioClock.now();
    let attempt = |layer: TimeoutLayer| layer.plain().layer(service_fn(|_: ()| pending::<Result<(), Infallible>>()));
    let reserving = attempt(TimeoutLayer::attempt(5 * SECOND).reserve(100 * MS));
    let error = context::with(in_time(SECOND), reserving.clone().oneshot(())).await.unwrap_err();
    assert_eq!(error.to_string(), "timeout: the deadline passed before the call ended (900ms)");
    assert_eq!(TokioClock.now() - started, 900 * MS);
    for (layer, left, reason) in [
        (reserving, 100 * MS, &TOO_SHORT),
        (attempt(TimeoutLayer::attempt(SECOND)), MS / 2, &TOO_SHORT),
        (attempt(TimeoutLayer::attempt(SECOND)), Duration::ZERO, &EXPIRED),
        (attempt(TimeoutLayer::attempt(SECOND).min_useful(20 * MS)), 19 * MS, &TOO_SHORT),
    ] {
        let error = context::with(in_time(left), layer.oneshot(())).await.unwrap_err();
        assert_eq!(error.rejection().unwrap().reason(), reason);
    }
}

#[tokio::test(start_paused = true)]
async fn a_total_timeout_is_its_own_and_no_deadline() {
    let (mut service, _handle) = layer(TimeoutLayer::total(SECOND).plain());
    assert_ready_ok!(service.poll_ready());
    let mut call = in_time(MS / 2).enter_for(|| spawn(service.call("a")));
    assert_pending!(call.poll());
    pass(2 * SECOND).await;
    assert_eq!(refusal(&mut call), &timeout::TOTAL);
}

#[tokio::test(start_paused = true)]
async fn a_context_and_a_deadline_work_in_either_order_and_spawned_work_has_both() {
    let sheddable = Criticality::Sheddable.into();
    let handler = || {
        service_fn(async |_: ()| {
            let spawned = context::scope(async { (context::current().priority, left()) });
            Ok::<_, Infallible>(tokio::spawn(spawned).await.unwrap())
        })
    };
    let context = || ContextLayer::new().priority_by(move |_: &()| Some(sheddable)).plain();
    let deadline = || DeadlineLayer::new(SECOND).plain();
    let outside = ServiceBuilder::new().layer(context()).layer(deadline()).service(handler());
    let inside = ServiceBuilder::new().layer(deadline()).layer(context()).service(handler());
    let expected = (Some(sheddable), Some(SECOND));
    assert_eq!(outside.oneshot(()).await.unwrap(), expected);
    assert_eq!(inside.oneshot(()).await.unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_inner_service_restores_the_context() {
    let inner = service_fn(async |_: ()| -> Result<(), Infallible> { panic!("in the call") });
    let mut service = DeadlineLayer::new(SECOND).plain().layer(inner);
    let mut call = spawn(service.call(()));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| call.poll())).is_err());
    assert_eq!(context::current(), CallContext::default());
}

#[tokio::test(start_paused = true)]
async fn a_limit_beyond_all_time_never_ends_and_one_of_zero_starts_nothing() {
    for limit in [Duration::MAX, Duration::from_secs(99_999_999 * 3600)] {
        let (mut service, mut handle) = layer(DeadlineLayer::new(limit).plain());
        assert_ready_ok!(service.poll_ready());
        let mut call = spawn(service.call("a"));
        assert_pending!(call.poll());
        pass(3600 * SECOND).await;
        assert_pending!(call.poll());
        request(&mut handle).1.send_response("b");
        assert_eq!(assert_ready_ok!(call.poll()), "b");
    }
    let (mut service, mut handle) = layer(DeadlineLayer::new(Duration::ZERO).plain());
    assert_ready_ok!(service.poll_ready());
    assert_eq!(refusal(&mut spawn(service.call("a"))), &EXPIRED);
    no_request(&mut handle);
}

#[tokio::test(start_paused = true)]
async fn layers_that_share_a_handle_share_its_counts() {
    let deadlines = Deadlines::builder().mode(Mode::EnforceAll).build().unwrap();
    for _layer in 0..2 {
        let service = DeadlineLayer::server().deadlines(deadlines.clone()).plain();
        let service = service.layer(service_fn(async |_: ()| Ok::<_, Infallible>(())));
        assert!(context::with(in_time(Duration::ZERO), service.oneshot(())).await.is_err());
    }
    assert_eq!(deadlines.expired(), 2);
}
