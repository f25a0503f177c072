//! Tests of the timeout.

use crate::{MS, SECOND, layer, no_request, pass, refusal, request};
use buttress::{Backoff, PlainExt, RetryLayer, TimeoutLayer, timeout};
use std::{convert::Infallible, time::Duration};
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task::spawn};
use tower::{Service, ServiceBuilder};

#[tokio::test(start_paused = true)]
async fn a_call_that_takes_too_long_is_given_up() {
    for (timeout, reason) in [
        (TimeoutLayer::attempt(SECOND).plain(), &timeout::ATTEMPT),
        (TimeoutLayer::total(SECOND).plain(), &timeout::TOTAL),
    ] {
        let (mut service, mut handle) = layer(timeout);
        assert_ready_ok!(service.poll_ready());
        let mut call = spawn(service.call("a"));
        assert_pending!(call.poll());
        pass(SECOND - MS).await;
        assert_pending!(call.poll());
        pass(2 * MS).await;
        assert!(call.is_woken());
        assert_eq!(refusal(&mut call), reason);
        assert_eq!(request(&mut handle).0, "a");
    }
}

#[tokio::test(start_paused = true)]
async fn the_request_may_set_the_bound_of_its_call() {
    let by = |name: &&'static str| name.starts_with("export").then_some(60 * SECOND);
    let (mut service, mut handle) = layer(TimeoutLayer::total(SECOND).by(by).plain());
    for (name, bound) in [("export orders", 60 * SECOND), ("order 7", SECOND)] {
        assert_ready_ok!(service.poll_ready());
        let mut call = spawn(service.call(name));
        assert_pending!(call.poll());
        pass(bound - MS).await;
        assert_pending!(call.poll());
        pass(2 * MS).await;
        assert_eq!(refusal(&mut call), &timeout::TOTAL);
        assert_eq!(request(&mut handle).0, name);
    }
}

/// Not in a runtime, where making a timer would panic.
#[test]
fn no_timer_is_made_for_a_call_that_is_ready_at_once() {
    let ready = tower::service_fn(async |text: &'static str| Ok::<_, Infallible>(text));
    let mut service = ServiceBuilder::new().layer(TimeoutLayer::attempt(SECOND).plain()).service(ready);
    assert_eq!(assert_ready_ok!(spawn(service.call("at once")).poll()), "at once");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_there_wins_over_a_timer_that_has_run_out() {
    let (mut service, mut handle) = layer(TimeoutLayer::attempt(SECOND).plain());
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    assert_pending!(call.poll());
    pass(2 * SECOND).await;
    request(&mut handle).1.send_response("just in time");
    assert_eq!(assert_ready_ok!(call.poll()), "just in time");
}

#[tokio::test(start_paused = true)]
async fn the_longest_timeout_never_runs_out() {
    let (mut service, mut handle) = layer(TimeoutLayer::total(Duration::MAX).plain());
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    assert_pending!(call.poll());
    pass(Duration::from_secs(365 * 24 * 3600)).await;
    assert_pending!(call.poll());
    request(&mut handle).1.send_response("at last");
    assert_eq!(assert_ready_ok!(call.poll()), "at last");
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_zero_lets_through_only_what_is_ready_at_once() {
    let (mut service, mut handle) = layer(TimeoutLayer::attempt(Duration::ZERO).plain());
    assert_ready_ok!(service.poll_ready());
    let mut ready = spawn(service.call("ready"));
    request(&mut handle).1.send_response("at once");
    assert_eq!(assert_ready_ok!(ready.poll()), "at once");
    assert_ready_ok!(service.poll_ready());
    assert_eq!(refusal(&mut spawn(service.call("slow"))), &buttress::timeout::ATTEMPT);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_timed_out_is_repeated_until_the_total_is_over() {
    let (mut service, mut handle) = layer(
        ServiceBuilder::new()
            .layer(TimeoutLayer::total(5 * SECOND).plain())
            .layer(RetryLayer::new(10).backoff(Backoff::constant(SECOND)).plain())
            .layer(TimeoutLayer::attempt(SECOND).plain()),
    );
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    for _ in 0..2 {
        assert_pending!(call.poll());
        // Held, because the mock fails a call whose response is dropped.
        let _never_answered = request(&mut handle);
        pass(SECOND - MS).await;
        assert_pending!(call.poll());
        pass(2 * MS).await;
        assert_pending!(call.poll());
        no_request(&mut handle);
        pass(SECOND + MS).await;
    }
    pass(SECOND).await;
    assert_eq!(refusal(&mut call), &buttress::timeout::TOTAL);
}

/// After the total the caller no longer waits, even if retry is outside the total.
#[tokio::test(start_paused = true)]
async fn a_total_that_is_over_is_not_repeated() {
    let retry = RetryLayer::new(3).backoff(Backoff::constant(Duration::ZERO)).plain();
    let (mut service, mut handle) =
        layer(ServiceBuilder::new().layer(retry).layer(TimeoutLayer::total(SECOND).plain()));
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    assert_pending!(call.poll());
    let _never_answered = request(&mut handle);
    pass(2 * SECOND).await;
    assert_eq!(refusal(&mut call), &buttress::timeout::TOTAL);
    no_request(&mut handle);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_has_the_name_and_the_limit_of_its_timeout_and_is_counted() {
    let by = |name: &&'static str| (*name == "export").then_some(60 * SECOND);
    let named = TimeoutLayer::total(SECOND).named("payments").by(by);
    let stats = named.stats().unwrap();
    let unnamed = TimeoutLayer::attempt(2 * SECOND);
    assert!(unnamed.stats().is_none());
    let (mut service, mut handle) = layer(named.plain());
    let mut clone = service.clone();
    for (n, (request, limit)) in [("export", 60 * SECOND), ("order", SECOND)].into_iter().enumerate() {
        let service = if n == 0 { &mut service } else { &mut clone };
        assert_ready_ok!(service.poll_ready());
        let mut call = spawn(service.call(request));
        assert_pending!(call.poll());
        let _never_answered = crate::request(&mut handle);
        pass(limit).await;
        let error = assert_ready_err!(call.poll());
        let rejection = error.rejection().unwrap();
        assert_eq!(
            (rejection.policy(), rejection.name(), rejection.limit()),
            ("timeout", Some("payments"), Some(limit))
        );
        assert_eq!((stats.timed_out(), buttress::policy::Report::name(&stats)), (n as u64 + 1, Some("payments")));
    }
    let (mut service, _handle) = layer(unnamed.plain());
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    assert_pending!(call.poll());
    pass(2 * SECOND).await;
    let error = assert_ready_err!(call.poll());
    let rejection = error.rejection().unwrap();
    assert_eq!((rejection.policy(), rejection.name(), rejection.limit()), ("timeout", None, Some(2 * SECOND)));
    assert_eq!(stats.timed_out(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_ends_a_call_that_uses_up_the_budget_of_its_task_in_each_poll() {
    let greedy = tower::service_fn(|_: &'static str| {
        std::future::poll_fn(|cx| {
            while std::pin::pin!(tokio::task::consume_budget()).poll(cx).is_ready() {}
            std::task::Poll::<Result<&'static str, Infallible>>::Pending
        })
    });
    let mut service = ServiceBuilder::new().layer(TimeoutLayer::attempt(SECOND).plain()).service(greedy);
    let mut call = spawn(service.call("a"));
    assert_pending!(call.poll());
    pass(2 * SECOND).await;
    assert_eq!(refusal(&mut call), &timeout::ATTEMPT);
}

/// Not in a runtime, where making a timer would panic.
#[test]
fn a_deadline_of_zero_or_of_the_longest_time_needs_no_timer() {
    let expired = |after| {
        spawn(std::future::poll_fn(move |cx| std::pin::pin!(buttress::timer::Deadline::new()).poll_expired(after, cx)))
            .poll()
            .is_ready()
    };
    assert_eq!((expired(Duration::ZERO), expired(Duration::MAX)), (true, false));
}
