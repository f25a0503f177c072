//! Tests of retries.

use crate::{Handle, MS, SECOND, layer, no_request, pass, request};
use buttress::{
    Backoff, BoxError, BulkheadLayer, Ending, Error, PlainExt, RetryBudget, RetryLayer,
    ending::{Judge, Plain},
    outcome::{Failure, FailureKind, Outcome, Sent},
    policy::{Clock, TokioClock},
};
use std::{
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task::spawn};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

pub(crate) const PAUSE: Duration = Duration::from_millis(100);

pub(crate) fn three() -> RetryLayer {
    RetryLayer::new(3).backoff(Backoff::constant(PAUSE))
}

/// Returns an ending that reads every error as `failure`.
pub(crate) fn failing(failure: Failure) -> Plain<impl Judge<&'static str, Error> + Clone> {
    Plain::new().classify(move |result: Result<&&'static str, &Error>| match result {
        Ok(_) => Outcome::Success,
        Err(_) => failure.into(),
    })
}

pub(crate) fn fail(handle: &mut Handle) {
    request(handle).1.send_error("failed");
}

#[tokio::test(start_paused = true)]
async fn a_failed_call_is_repeated_after_a_pause_and_the_answer_is_the_callers() {
    let layer_under_test = three();
    let stats = layer_under_test.stats();
    let (mut service, mut handle) = layer(layer_under_test.plain());
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    fail(&mut handle);
    assert_pending!(call.poll());
    pass(PAUSE - MS).await;
    assert_pending!(call.poll());
    no_request(&mut handle);
    pass(2 * MS).await;
    assert!(call.is_woken());
    assert_pending!(call.poll());
    request(&mut handle).1.send_response("done");
    assert_eq!(assert_ready_ok!(call.poll()), "done");
    assert_eq!((stats.retries(), stats.out_of_attempts()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn the_last_failure_is_the_answer() {
    let layer_under_test = three();
    let stats = layer_under_test.stats();
    let (mut service, mut handle) = layer(layer_under_test.plain());
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    for attempt in 1..=3 {
        assert_pending!(call.poll());
        request(&mut handle).1.send_error(format!("failure {attempt}"));
        if attempt < 3 {
            assert_pending!(call.poll());
            pass(PAUSE + MS).await;
        }
    }
    assert_eq!(assert_ready_err!(call.poll()).to_string(), "failure 3");
    assert_eq!((stats.retries(), stats.out_of_attempts()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn the_pauses_follow_the_backoff() {
    let (mut service, mut handle) = layer(RetryLayer::new(4).backoff(Backoff::exponential(PAUSE, 3 * PAUSE)).plain());
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    for pause in [PAUSE, 2 * PAUSE, 3 * PAUSE] {
        fail(&mut handle);
        assert_pending!(call.poll());
        pass(pause - MS).await;
        assert_pending!(call.poll());
        no_request(&mut handle);
        pass(2 * MS).await;
        assert_pending!(call.poll());
    }
    assert_eq!(request(&mut handle).0, "a");
}

#[tokio::test(start_paused = true)]
async fn a_rejection_of_our_own_is_not_repeated() {
    let (mut service, _handle) =
        layer(ServiceBuilder::new().layer(three().plain()).layer(BulkheadLayer::new(0).plain()));
    assert_ready_ok!(service.poll_ready());
    assert_eq!(crate::refusal(&mut spawn(service.call("a"))), &buttress::bulkhead::FULL);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_says_when_is_not_asked_before() {
    let failure = Failure { retry_after: Some(2 * SECOND), ..Failure::new(FailureKind::Http(503)) };
    let (mut service, mut handle) = layer(three().end(failing(failure)));
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    fail(&mut handle);
    assert_pending!(call.poll());
    pass(2 * SECOND - MS).await;
    assert_pending!(call.poll());
    no_request(&mut handle);
    // Jitter adds up to 10 % to the hint.
    pass(200 * MS + 2 * MS).await;
    assert_pending!(call.poll());
    assert_eq!(request(&mut handle).0, "a");
}

#[tokio::test(start_paused = true)]
async fn a_grpc_pushback_is_the_pause_exactly() {
    let failure = Failure { retry_after: Some(10 * MS), pushback: true, ..Failure::new(FailureKind::Grpc(14)) };
    let (mut service, mut handle) = layer(three().end(failing(failure)));
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    fail(&mut handle);
    assert_pending!(call.poll());
    pass(11 * MS).await;
    assert_pending!(call.poll());
    assert_eq!(request(&mut handle).0, "a", "the pushback replaces the longer backoff");
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_asks_for_too_long_is_left_alone() {
    let failure = Failure { retry_after: Some(61 * SECOND), ..Failure::new(FailureKind::Http(503)) };
    for (max_hint, repeated) in [(60, false), (61, true)] {
        let (mut service, mut handle) = layer(three().max_hint(Duration::from_secs(max_hint)).end(failing(failure)));
        assert_ready_ok!(service.poll_ready());
        let mut call = spawn(service.call("a"));
        fail(&mut handle);
        assert_eq!(call.poll().is_pending(), repeated);
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_forbids_it_is_not_asked_again() {
    let failure = Failure { no_retry: true, sent: Sent::Never, ..Failure::new(FailureKind::Http(501)) };
    let (mut service, mut handle) = layer(three().end(failing(failure)));
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    fail(&mut handle);
    assert_ready_err!(call.poll());
}

#[tokio::test(start_paused = true)]
async fn overload_is_answered_with_longer_pauses_that_grow() {
    let failure = Failure { overload: true, ..Failure::new(FailureKind::Http(429)) };
    // Drawn from 0 s to 1 s, then from 0 s to 2 s. The backoff alone would draw from 0 ms to 2 ms.
    for (attempts, sum) in [(2, SECOND), (3, 3 * SECOND)] {
        let mut longest = Duration::ZERO;
        for seed in 0..20 {
            let retry = RetryLayer::new(attempts).seed(seed).backoff(Backoff::full_jitter(MS, 20 * SECOND));
            let inner = service_fn(|_: &'static str| ready(Err::<&'static str, BoxError>("busy".into())));
            let mut service = ServiceBuilder::new().layer(retry.end(failing(failure))).service(inner);
            let start = TokioClock.now();
            service.ready().await.unwrap().call("a").await.unwrap_err();
            longest = longest.max(TokioClock.now() - start);
        }
        assert!(longest > sum * 3 / 4 && longest <= sum + 2 * MS, "{attempts} attempts: {longest:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_budget_ends_it() {
    let budget = RetryBudget::builder().percent(0.0).min_per_second(0.0).burst(1).build().unwrap();
    let layer_under_test = three().budget(budget.clone());
    let stats = layer_under_test.stats();
    let (mut service, mut handle) = layer(layer_under_test.plain());
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    fail(&mut handle);
    assert_pending!(call.poll());
    pass(PAUSE + MS).await;
    assert_pending!(call.poll());
    assert_eq!(budget.balance(), 0.0);
    fail(&mut handle);
    assert_ready_err!(call.poll());
    assert_eq!((stats.retries(), stats.out_of_budget()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn every_call_adds_its_share_to_the_budget_and_a_retry_does_not() {
    let budget = RetryBudget::builder().percent(50.0).min_per_second(0.0).burst(100).build().unwrap();
    for _ in 0..10 {
        budget.try_withdraw().unwrap().spend();
    }
    let (mut service, mut handle) = layer(three().budget(budget.clone()).plain());
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    fail(&mut handle);
    assert_pending!(call.poll());
    pass(PAUSE + MS).await;
    assert_pending!(call.poll());
    request(&mut handle).1.send_response("done");
    assert_ready_ok!(call.poll());
    assert_eq!(budget.balance(), 90.0 + 0.5 - 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_given_up_during_its_pause_puts_the_retry_back() {
    let budget = RetryBudget::builder().percent(0.0).min_per_second(0.0).burst(1).build().unwrap();
    let (mut service, mut handle) = layer(three().budget(budget.clone()).plain());
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    fail(&mut handle);
    assert_pending!(call.poll());
    assert_eq!(budget.balance(), 0.0);
    drop(call);
    assert_eq!(budget.balance(), 1.0);
}

#[tokio::test(start_paused = true)]
async fn what_was_never_sent_costs_nothing() {
    let budget = RetryBudget::builder().percent(0.0).min_per_second(0.0).burst(1).build().unwrap();
    let never = Failure::new(FailureKind::Connect).sent(Sent::Never);
    let (mut service, mut handle) = layer(three().budget(budget.clone()).end(failing(never)));
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    for _ in 0..2 {
        fail(&mut handle);
        assert_pending!(call.poll());
        pass(PAUSE + MS).await;
        assert_pending!(call.poll());
    }
    fail(&mut handle);
    assert_ready_err!(call.poll(), "unsent attempts are not limited");
    assert_eq!(budget.balance(), 1.0);
}

#[tokio::test(start_paused = true)]
async fn what_was_never_sent_does_not_count_as_an_attempt() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let made = attempts.clone();
    // Two refused connections, then failures of the backend.
    let classify = move |result: Result<&&'static str, &Error>| match result {
        Ok(_) => Outcome::Success,
        Err(_) if made.load(SeqCst) <= 2 => Failure::new(FailureKind::Connect).sent(Sent::Never).into(),
        Err(_) => Failure::new(FailureKind::Transport).into(),
    };
    let counter = attempts.clone();
    let inner = service_fn(move |_: &'static str| {
        counter.fetch_add(1, SeqCst);
        ready(Err::<&'static str, BoxError>("failed".into()))
    });
    let mut service = ServiceBuilder::new().layer(three().end(Plain::new().classify(classify))).service(inner);
    service.ready().await.unwrap().call("a").await.unwrap_err();
    assert_eq!(attempts.load(SeqCst), 2 + 3);
}

#[tokio::test(start_paused = true)]
async fn each_call_of_a_seeded_layer_draws_its_own_pauses_and_the_layer_repeats_them() {
    let pauses = |seed| async move {
        let retry = RetryLayer::new(2).seed(seed).backoff(Backoff::full_jitter(SECOND, SECOND));
        let inner = service_fn(|_: &'static str| ready(Err::<&'static str, BoxError>("failed".into())));
        let mut service = ServiceBuilder::new().layer(retry.plain()).service(inner);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let start = TokioClock.now();
            service.ready().await.unwrap().call("a").await.unwrap_err();
            pauses.push((TokioClock.now() - start).as_millis());
        }
        pauses
    };
    let (first, again) = (pauses(7).await, pauses(7).await);
    assert_eq!(first, again);
    assert!(first.iter().any(|pause| pause.abs_diff(first[0]) > 50), "all calls draw the same pauses: {first:?}");
}

#[tokio::test(start_paused = true)]
async fn stats_are_the_layers_whenever_they_were_asked_for() {
    let before = RetryLayer::new(3);
    let stats = before.stats();
    let (mut service, mut handle) = layer(before.backoff(Backoff::constant(PAUSE)).max_hint(SECOND).plain());
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    fail(&mut handle);
    assert_pending!(call.poll());
    assert_eq!(stats.retries(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_backend_refused_to_look_at_is_repeated_at_once_once_and_does_not_count() {
    let refused = Failure::new(FailureKind::Transport).sent(Sent::NotProcessed);
    let (mut service, mut handle) = layer(RetryLayer::new(2).backoff(Backoff::constant(PAUSE)).end(failing(refused)));
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    fail(&mut handle);
    assert_pending!(call.poll());
    fail(&mut handle);
    assert_pending!(call.poll());
    no_request(&mut handle);
    pass(PAUSE + MS).await;
    assert_pending!(call.poll());
    fail(&mut handle);
    assert_ready_err!(call.poll());
}

#[tokio::test(start_paused = true)]
async fn a_further_attempt_waits_for_readiness_and_a_failed_readiness_is_a_failed_attempt() {
    let (mut service, mut handle) = layer(three().plain());
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    fail(&mut handle);
    handle.allow(0);
    assert_pending!(call.poll());
    pass(PAUSE + MS).await;
    assert_pending!(call.poll());
    handle.send_error("no connection");
    assert!(call.is_woken());
    assert_pending!(call.poll());
    handle.allow(1);
    pass(PAUSE + MS).await;
    assert_pending!(call.poll());
    request(&mut handle).1.send_error("the third failure");
    assert_eq!(assert_ready_err!(call.poll()).to_string(), "the third failure");
}

struct Counted(Arc<AtomicUsize>);

impl Clone for Counted {
    fn clone(&self) -> Self {
        self.0.fetch_add(1, SeqCst);
        Self(self.0.clone())
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_sent_once_at_most_is_not_cloned() {
    for (attempts, clones) in [(0, 0), (1, 0), (2, 2)] {
        let counter = Arc::new(AtomicUsize::new(0));
        let inner = service_fn(|_: Counted| ready(Err::<(), BoxError>("failed".into())));
        let mut service = ServiceBuilder::new().layer(RetryLayer::new(attempts).plain()).service(inner);
        service.ready().await.unwrap().call(Counted(counter.clone())).await.unwrap_err();
        assert_eq!(counter.load(SeqCst), clones, "{attempts} attempts");
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_attempt_is_made_by_the_instance_that_was_ready() {
    let (mut service, mut handle) = layer(RetryLayer::new(1).plain());
    handle.allow(1);
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    request(&mut handle).1.send_response("b");
    assert_eq!(assert_ready!(call.poll()).unwrap(), "b");
}

#[tokio::test(start_paused = true)]
async fn a_backoff_a_budget_and_a_longest_hint_are_kept_whatever_is_set_after_them() {
    let budget = RetryBudget::builder().percent(0.0).min_per_second(0.0).burst(7).build().unwrap();
    let failure = Failure { retry_after: Some(2 * SECOND), ..Failure::new(FailureKind::Http(503)) };
    let retry = RetryLayer::new(2).budget(budget.clone()).max_hint(2 * SECOND).backoff(Backoff::constant(3 * SECOND));
    let retry = retry.named("payments").seed(7);
    let stats = retry.stats();
    let (mut service, mut handle) = layer(retry.end(failing(failure)));
    assert_ready_ok!(service.poll_ready());
    let mut call = spawn(service.call("a"));
    fail(&mut handle);
    assert_pending!(call.poll());
    pass(3 * SECOND - MS).await;
    assert_pending!(call.poll());
    no_request(&mut handle);
    pass(2 * MS).await;
    assert_pending!(call.poll());
    assert_eq!(request(&mut handle).0, "a");
    assert_eq!((budget.balance(), stats.budget().balance()), (6.0, 6.0));
    assert_eq!(buttress::policy::Report::name(&stats), Some("payments"));
}

#[tokio::test(start_paused = true)]
async fn a_hint_of_a_minute_is_waited_for_by_default_and_a_longer_one_is_not() {
    for (hint, repeated) in [(60 * SECOND, true), (60 * SECOND + MS, false)] {
        let failure = Failure { retry_after: Some(hint), ..Failure::new(FailureKind::Http(503)) };
        let (mut service, mut handle) = layer(three().end(failing(failure)));
        assert_ready_ok!(service.poll_ready());
        let mut call = spawn(service.call("a"));
        fail(&mut handle);
        assert_eq!(call.poll().is_pending(), repeated, "{hint:?}");
    }
}
