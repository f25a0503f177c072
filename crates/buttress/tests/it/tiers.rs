//! Tests of retries with a deadline, with several budgets, and with other services that retry.

use crate::{
    MS, SECOND, layer, no_request, pass, request,
    retry::{PAUSE, fail, failing, three},
};
use buttress::{
    Backoff, BoxError, CircuitBreaker, CircuitBreakerLayer, ContextLayer, Ending, PlainExt, RetryBudget, RetryLayer,
    context::{self, Retried},
    outcome::{Failure, FailureKind, Sent},
    policy::{CallContext, Clock, TokioClock},
};
use std::{future::ready, time::Duration};
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task::spawn};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

fn unavailable() -> Failure {
    Failure::new(FailureKind::Grpc(14))
}

/// Returns the answer and its time after the start, for a call with this much time that fails.
async fn failed_within(time: Duration, layer: RetryLayer, failure: Failure) -> Duration {
    let inner = service_fn(|_: &'static str| ready(Err::<&'static str, BoxError>("failed".into())));
    let service = layer.end(failing(failure)).layer(inner);
    let start = TokioClock.now();
    let call = CallContext::default().with_deadline(start + time);
    let error = context::with(call, service.oneshot("a")).await.unwrap_err();
    assert_eq!(error.to_string(), "failed");
    TokioClock.now() - start
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_ends_too_near_to_the_deadline_is_not_made() {
    // Two pauses, and the shortest useful attempt.
    for (time, took, out_of_time) in [(201, 200, 0), (200, 100, 1), (101, 100, 1), (100, 0, 1), (0, 0, 1)] {
        let layer = three();
        let stats = layer.stats();
        let elapsed = failed_within(time * MS, layer, Failure::new(FailureKind::Transport)).await;
        assert!(elapsed >= took * MS && elapsed <= (took + 4) * MS, "{time} ms: {elapsed:?}");
        assert_eq!(stats.out_of_time(), out_of_time, "{time} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_needs_more_time_than_the_deadline_leaves_is_not_made() {
    for (min_useful, attempts) in [(50, 2), (51, 1)] {
        let layer = three().min_useful(min_useful * MS);
        let stats = layer.stats();
        failed_within(150 * MS, layer, Failure::new(FailureKind::Transport)).await;
        assert_eq!((stats.retries() + 1, stats.out_of_time()), (attempts, 1), "{min_useful} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn a_free_retry_is_not_made_after_the_deadline_either() {
    for failure in [
        Failure::new(FailureKind::Transport).sent(Sent::NotProcessed),
        Failure::new(FailureKind::Connect).sent(Sent::Never),
    ] {
        let layer = three();
        let stats = layer.stats();
        failed_within(Duration::ZERO, layer, failure).await;
        assert_eq!((stats.transparent(), stats.retries(), stats.out_of_time()), (0, 0, 1), "{failure:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_endless_hint_is_longer_than_any_deadline_and_no_overflow() {
    let failure = Failure { retry_after: Some(Duration::MAX), pushback: true, ..unavailable() };
    let layer = three().max_hint(Duration::MAX);
    let stats = layer.stats();
    failed_within(3600 * SECOND, layer, failure).await;
    assert_eq!(stats.out_of_time(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_retry_in_flight_keeps_its_place_until_its_attempt_has_ended() {
    let budget = RetryBudget::builder().percent(0.0).in_flight(0.0, 1).build().unwrap();
    let layer_under_test = three().budget(budget.clone());
    let stats = layer_under_test.stats();
    let (mut service, mut handle) = layer(layer_under_test.plain());
    assert_ready_ok!(service.poll_ready());
    let mut first = spawn(service.call("a"));
    fail(&mut handle);
    assert_pending!(first.poll());
    assert_ready_ok!(service.poll_ready());
    let mut denied = spawn(service.call("b"));
    fail(&mut handle);
    assert_ready_err!(denied.poll());
    assert_eq!((stats.out_of_budget(), budget.balance()), (1, 99.0), "a retry that is denied costs the ratio nothing");
    pass(PAUSE + MS).await;
    assert_pending!(first.poll());
    assert_eq!(budget.retries_in_flight(), Some(1));
    request(&mut handle).1.send_response("done");
    assert_ready_ok!(first.poll());
    assert_eq!(budget.retries_in_flight(), Some(0));
}

#[tokio::test(start_paused = true)]
async fn calls_allow_their_share_of_retries_while_they_are_in_flight() {
    let budget = RetryBudget::builder().in_flight(0.5, 0).build().unwrap();
    let (mut service, mut handle) = layer(three().budget(budget.clone()).plain());
    assert_ready_ok!(service.poll_ready());
    let other = spawn(service.call("other"));
    let _other = request(&mut handle);
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    fail(&mut handle);
    assert_pending!(call.poll());
    assert_eq!(budget.retries_in_flight(), Some(1));
    drop((call, other));
    assert_eq!(budget.retries_in_flight(), Some(0));
    assert_ready_ok!(service.poll_ready());
    let mut alone = spawn(service.call("b"));
    fail(&mut handle);
    assert_ready_err!(alone.poll());
}

#[tokio::test(start_paused = true)]
async fn tokens_are_taken_by_failed_attempts_and_added_by_successes() {
    let budget = RetryBudget::builder().without_ratio().grpc_tokens(4.0, 0.5).build().unwrap();
    let (mut service, mut handle) = layer(three().budget(budget.clone()).end(failing(unavailable())));
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    fail(&mut handle);
    assert_pending!(call.poll());
    assert_eq!(budget.tokens(), Some(3.0));
    pass(PAUSE + MS).await;
    assert_pending!(call.poll());
    request(&mut handle).1.send_response("done");
    assert_ready_ok!(call.poll());
    assert_eq!(budget.tokens(), Some(3.5));
    // 2.5 are left, more than a half; then 1.5.
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("b"));
    fail(&mut handle);
    assert_pending!(call.poll());
    pass(PAUSE + MS).await;
    assert_pending!(call.poll());
    fail(&mut handle);
    assert_ready_err!(call.poll());
}

#[tokio::test(start_paused = true)]
async fn a_transparent_retry_takes_no_token() {
    let budget = RetryBudget::builder().without_ratio().grpc_tokens(4.0, 0.5).build().unwrap();
    let refused = Failure::new(FailureKind::Transport).sent(Sent::NotProcessed);
    let (mut service, mut handle) = layer(three().budget(budget.clone()).end(failing(refused)));
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    fail(&mut handle);
    assert_pending!(call.poll());
    assert_eq!(budget.tokens(), Some(4.0));
    fail(&mut handle);
    assert_pending!(call.poll());
    assert_eq!(budget.tokens(), Some(3.0));
}

#[tokio::test(start_paused = true)]
async fn a_call_for_a_request_that_its_caller_repeats_adds_nothing_to_the_budget() {
    let budget = RetryBudget::builder().percent(100.0).min_per_second(0.0).burst(10).in_flight(1.0, 0).build().unwrap();
    (0..10).for_each(|_| drop(budget.call_in_flight()));
    let inner = service_fn(|_: &'static str| ready(Ok::<_, BoxError>("done")));
    let service = RetryLayer::new(3).budget(budget.clone()).plain().layer(inner);
    let _call = budget.call_in_flight();
    budget.try_withdraw().unwrap().spend();
    for (is_repeated, balance) in [(true, 9.0), (false, 10.0)] {
        let call = CallContext::default().with_repeated(is_repeated);
        context::with(call, service.clone().oneshot("a")).await.unwrap();
        assert_eq!(budget.balance(), balance, "repeated: {is_repeated}");
    }
}

/// Returns what a call through `service` notes.
async fn noted<S, R>(service: S, request: R) -> Option<u32>
where
    S: Service<R>,
{
    let mut retried = Retried::default();
    let mut call = std::pin::pin!(service.oneshot(request));
    let _ = std::future::poll_fn(|cx| {
        let _collecting = retried.collect();
        call.as_mut().poll(cx)
    })
    .await;
    retried.retries()
}

fn broken<L>(layer: L) -> L::Service
where
    L: Layer<tower::util::BoxCloneService<&'static str, &'static str, BoxError>>,
{
    let inner = service_fn(|_: &'static str| ready(Err::<&'static str, BoxError>("failed".into())));
    layer.layer(tower::util::BoxCloneService::new(inner))
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_was_repeated_in_vain_is_noted_and_one_that_was_not_repeated_is_not() {
    let failure = Failure::new(FailureKind::Http(503));
    let not_processed = Failure::new(FailureKind::Transport).sent(Sent::NotProcessed);
    for (attempts, failure, expected) in [
        (3, failure, Some(2)),
        (2, failure, Some(1)),
        (1, failure, None),
        (3, Failure { no_retry: true, ..failure }, None),
        (3, Failure { retry_after: Some(61 * SECOND), ..failure }, None),
        (1, Failure { retried: true, ..failure }, Some(0)),
        (3, Failure { retried: true, ..failure }, Some(0)),
        (3, not_processed, Some(2)),
        (3, Failure { kind: FailureKind::Connect, sent: Sent::Never, ..failure }, Some(2)),
    ] {
        let retry = RetryLayer::new(attempts).backoff(Backoff::constant(PAUSE));
        assert_eq!(noted(broken(retry.end(failing(failure))), "a").await, expected, "{attempts} {failure:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_for_which_the_budget_was_empty_is_noted() {
    let budget = RetryBudget::builder().percent(0.0).min_per_second(0.0).burst(1).build().unwrap();
    let service = broken(three().budget(budget).plain());
    assert_eq!(noted(service.clone(), "a").await, Some(1));
    assert_eq!(noted(service, "a").await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_circuit_that_opens_between_the_attempts_is_noted_and_one_that_was_open_before_is_not() {
    let breaker = CircuitBreaker::builder("backend").consecutive_failures(2).build().unwrap();
    let circuit = CircuitBreakerLayer::from(breaker).plain();
    let service = broken(ServiceBuilder::new().layer(three().plain()).layer(circuit));
    assert_eq!(noted(service.clone(), "a").await, Some(2));
    assert_eq!(noted(service, "a").await, None, "the call was rejected at once, and was repeated by no one");
}

#[tokio::test(start_paused = true)]
async fn a_success_after_a_retry_is_not_noted() {
    let fails = std::sync::atomic::AtomicBool::new(true);
    let inner = service_fn(|_: &'static str| {
        let fails = fails.swap(false, std::sync::atomic::Ordering::SeqCst);
        ready(if fails { Err(BoxError::from("failed")) } else { Ok("done") })
    });
    let layer = three();
    let stats = layer.stats();
    assert_eq!(noted(layer.plain().layer(inner), "a").await, None);
    assert_eq!(stats.retries(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_service_below_has_repeated_is_returned_at_once_and_counted() {
    let layer_under_test = three();
    let stats = layer_under_test.stats();
    // Not even for free.
    for kind in [FailureKind::Http(503), FailureKind::Transport] {
        let failure = Failure { retried: true, ..Failure::new(kind).sent(Sent::NotProcessed) };
        let (mut service, mut handle) = layer(layer_under_test.clone().end(failing(failure)));
        assert_ready_ok!(service.poll_ready());
        let mut call = spawn(service.call("a"));
        fail(&mut handle);
        assert_ready_err!(call.poll());
        no_request(&mut handle);
    }
    assert_eq!((stats.retries(), stats.transparent(), stats.retried_below()), (0, 0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_context_layer_that_is_no_server_leaves_the_note_to_the_call_around_it() {
    let service = broken(ServiceBuilder::new().layer(ContextLayer::new().plain()).layer(three().plain()));
    assert_eq!(noted(service, "a").await, Some(2));
}
