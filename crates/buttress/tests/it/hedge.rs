//! Tests of hedging.

mod backend;
mod effect;
mod percentile;
mod stack;

use crate::{MS, SECOND};
use backend::{Backend, Ended, budget};
use buttress::{
    Ending, Error, HedgeLayer, PlainExt, RetryBudget, context,
    policy::{CallContext, Clock, TokioClock},
};
use std::{convert::Infallible, time::Duration};
use tokio_test::{assert_pending, assert_ready_ok, task::spawn};
use tower::{Service, ServiceBuilder, ServiceExt};

const DELAY: Duration = Duration::from_millis(30);

fn after() -> HedgeLayer {
    HedgeLayer::after(DELAY).budget(budget(100))
}

async fn call(layer: HedgeLayer, backend: &Backend) -> Result<&'static str, Error> {
    layer.end(backend::ending()).layer_service(backend).oneshot("a").await
}

trait LayerService: tower::Layer<Backend> + Sized {
    fn layer_service(self, backend: &Backend) -> Self::Service {
        self.layer(backend.clone())
    }
}

impl<L: tower::Layer<Backend>> LayerService for L {}

#[tokio::test(start_paused = true)]
async fn an_answer_before_the_delay_is_not_hedged() {
    let backend = Backend::new([(29, Ok("first"))]);
    let layer = after();
    let stats = layer.stats();
    assert_eq!(call(layer, &backend).await.unwrap(), "first");
    assert_eq!((backend.starts(), stats.hedges(), stats.wins()), (vec![0], 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_without_an_answer_after_the_delay_is_sent_again_and_the_first_answer_wins() {
    let backend = Backend::new([(1000, Ok("slow")), (10, Ok("fast"))]);
    let layer = after();
    let stats = layer.stats();
    let started = TokioClock.now();
    assert_eq!(call(layer, &backend).await.unwrap(), "fast");
    let took = TokioClock.now() - started;
    assert!((40 * MS..=43 * MS).contains(&took), "{took:?}");
    assert_eq!((stats.hedges(), stats.wins(), stats.retries()), (1, 1, 0));
    assert_eq!(backend.ended(), [Ended::Answered(2), Ended::Dropped(1)]);
}

#[tokio::test(start_paused = true)]
async fn the_first_attempt_may_still_win() {
    let backend = Backend::new([(35, Ok("first")), (1000, Ok("second"))]);
    let layer = after();
    let stats = layer.stats();
    assert_eq!(call(layer, &backend).await.unwrap(), "first");
    assert_eq!((stats.hedges(), stats.wins()), (1, 0));
    assert_eq!(backend.ended(), [Ended::Answered(1), Ended::Dropped(2)]);
}

#[tokio::test(start_paused = true)]
async fn further_hedges_follow_at_multiples_of_the_delay_up_to_the_maximum() {
    let backend = Backend::new([(1000, Ok("a")), (1000, Ok("b")), (1000, Ok("c")), (1000, Ok("d"))]);
    assert_eq!(call(after().max_hedges(2), &backend).await.unwrap(), "a");
    assert_eq!(backend.starts(), [0, 30, 60]);
}

#[tokio::test(start_paused = true)]
async fn without_hedges_a_call_is_sent_once() {
    let backend = Backend::new([(1000, Err("failed")), (0, Ok("b"))]);
    call(after().max_hedges(0), &backend).await.unwrap_err();
    assert_eq!(backend.starts(), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_delay_of_zero_sends_all_attempts_at_once_and_the_longest_none() {
    let slow = || Backend::new([(100, Ok("a")), (50, Ok("b")), (10, Ok("c"))]);
    let at_once = slow();
    let layer = HedgeLayer::after(Duration::ZERO).budget(budget(100)).max_hedges(2);
    assert_eq!(call(layer, &at_once).await.unwrap(), "c");
    assert_eq!(at_once.starts(), [0, 0, 0]);
    let never = slow();
    assert_eq!(call(HedgeLayer::after(Duration::MAX).budget(budget(100)), &never).await.unwrap(), "a");
    assert_eq!(never.starts(), [0]);
    let almost = Backend::new([(100, Err("failed")), (50, Ok("b")), (10, Ok("c"))]);
    let layer = HedgeLayer::after(Duration::MAX - MS).budget(budget(100)).max_hedges(2);
    assert_eq!(call(layer, &almost).await.unwrap(), "b");
    assert_eq!(almost.starts(), [0, 100]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_before_the_delay_sends_the_next_attempt_at_once() {
    let backend = Backend::new([(5, Err("failed")), (10, Ok("second"))]);
    let layer = after();
    let stats = layer.stats();
    assert_eq!(call(layer, &backend).await.unwrap(), "second");
    assert_eq!(backend.starts(), [0, 5]);
    assert_eq!((stats.hedges(), stats.retries(), stats.wins()), (0, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn after_a_failure_the_delay_starts_anew() {
    let backend = Backend::new([(5, Err("failed")), (1000, Ok("b")), (1000, Ok("c"))]);
    assert_eq!(call(after().max_hedges(2), &backend).await.unwrap(), "b");
    assert_eq!(backend.starts(), [0, 5, 35]);
}

#[tokio::test(start_paused = true)]
async fn if_all_attempts_fail_the_failure_of_the_first_is_the_answer() {
    for plan in [[(60, Err("failed 1")), (5, Err("failed 2"))], [(5, Err("failed 1")), (60, Err("failed 2"))]] {
        let backend = Backend::new(plan);
        assert_eq!(call(after(), &backend).await.unwrap_err().to_string(), "failed 1");
        assert_eq!(backend.starts().len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_conclusive_failure_ends_the_call_and_cancels_the_other_attempts() {
    for (plan, number) in [([(40, Err("fatal")), (1000, Ok("b"))], 1), ([(1000, Ok("a")), (10, Err("fatal"))], 2)] {
        let backend = Backend::new(plan);
        let layer = after();
        let stats = layer.stats();
        assert_eq!(call(layer, &backend).await.unwrap_err().to_string(), "fatal");
        assert_eq!(backend.ended(), [Ended::Answered(number), Ended::Dropped(3 - number)]);
        assert_eq!(stats.wins(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_forbids_another_attempt_gets_none_and_those_in_flight_go_on() {
    let alone = Backend::new([(5, Err("never")), (5, Ok("b"))]);
    assert_eq!(call(after(), &alone).await.unwrap_err().to_string(), "never");
    assert_eq!(alone.starts(), [0]);
    // The failure of the last one would send another attempt.
    let backend = Backend::new([(100, Err("failed")), (10, Err("never")), (0, Ok("c")), (0, Ok("d"))]);
    assert_eq!(call(after().max_hedges(3), &backend).await.unwrap_err().to_string(), "failed");
    assert_eq!(backend.starts(), [0, 30]);
    let backend = Backend::new([(100, Ok("a")), (10, Err("never")), (0, Ok("c"))]);
    assert_eq!(call(after().max_hedges(2), &backend).await.unwrap(), "a");
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_asks_for_a_pause_gets_the_next_attempt_after_it() {
    let backend = Backend::new([(5, Err("after 200")), (5, Ok("b"))]);
    assert_eq!(call(after(), &backend).await.unwrap(), "b");
    assert_eq!(backend.starts(), [0, 205], "although nothing is in flight");
    let shorter = Backend::new([(1000, Ok("a")), (5, Err("after 10")), (5, Ok("c"))]);
    assert_eq!(call(after().max_hedges(2), &shorter).await.unwrap(), "c");
    assert_eq!(shorter.starts(), [0, 30, 45]);
    let too_long = Backend::new([(5, Err("after 2000")), (5, Ok("b"))]);
    assert_eq!(call(after(), &too_long).await.unwrap_err().to_string(), "after 2000");
    assert_eq!(too_long.starts(), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_call_does_not_pause_for_an_attempt_that_it_may_not_make() {
    for (layer, starts) in [(after(), 2), (HedgeLayer::after(DELAY).budget(budget(1)), 2)] {
        let backend = Backend::new([(5, Err("failed")), (5, Err("after 900")), (5, Ok("c"))]);
        let started = TokioClock.now();
        assert_eq!(call(layer, &backend).await.unwrap_err().to_string(), "failed");
        assert!(TokioClock.now() - started < 20 * MS);
        assert_eq!(backend.starts().len(), starts);
    }
}

#[tokio::test(start_paused = true)]
async fn a_rejection_by_a_layer_inside_sends_nothing_and_hides_no_answer() {
    let alone = Backend::new([(0, Err("rejected")), (0, Ok("b"))]);
    let error = call(after().max_hedges(2), &alone).await.unwrap_err();
    assert_eq!(error.rejection().unwrap().reason(), &buttress::bulkhead::FULL);
    assert_eq!(alone.starts(), [0]);
    let hedge = Backend::new([(100, Ok("a")), (0, Err("rejected"))]);
    assert_eq!(call(after(), &hedge).await.unwrap(), "a");
    assert_eq!(hedge.starts(), [0, 30]);
}

#[tokio::test(start_paused = true)]
async fn without_a_budget_a_call_waits_for_what_is_in_flight() {
    let layer = HedgeLayer::after(DELAY).budget(budget(1));
    let stats = layer.stats();
    stats.budget().try_withdraw().unwrap().spend();
    let backend = Backend::new([(100, Ok("a")), (5, Ok("b"))]);
    assert_eq!(call(layer, &backend).await.unwrap(), "a");
    assert_eq!((backend.starts().len(), stats.hedges(), stats.out_of_budget()), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn without_a_budget_and_with_nothing_in_flight_the_failure_is_the_answer_at_once() {
    let layer = HedgeLayer::after(DELAY).budget(budget(1));
    let stats = layer.stats();
    stats.budget().try_withdraw().unwrap().spend();
    let backend = Backend::new([(5, Err("failed")), (5, Ok("b"))]);
    let started = TokioClock.now();
    assert_eq!(call(layer, &backend).await.unwrap_err().to_string(), "failed");
    assert!(TokioClock.now() - started < 10 * MS);
    assert_eq!((backend.starts().len(), stats.out_of_budget()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn each_call_deposits_once_and_none_into_a_budget_of_a_layer_around() {
    let fast = || Backend::new([(0, Ok("a"))]);
    for (layer, balance) in [
        (HedgeLayer::after(DELAY).budget(budget(100)), 99.5),
        (HedgeLayer::after(DELAY).shared_budget(budget(100)), 99.0),
    ] {
        let stats = layer.stats();
        stats.budget().try_withdraw().unwrap().spend();
        call(layer, &fast()).await.unwrap();
        assert_eq!(stats.budget().balance(), balance);
    }
}

#[tokio::test(start_paused = true)]
async fn hedges_count_as_retries_in_flight_until_they_end() {
    let budget = RetryBudget::builder().without_ratio().in_flight(0.0, 1).build().unwrap();
    let layer = HedgeLayer::after(DELAY).budget(budget.clone());
    let backend = Backend::new([(1000, Ok("a")), (50, Ok("b")), (40, Ok("c"))]);
    let service = layer.end(backend::ending()).layer_service(&backend);
    let first = tokio::spawn(service.clone().oneshot("a"));
    tokio::time::sleep(40 * MS).await;
    assert_eq!(budget.retries_in_flight(), Some(1));
    assert_eq!(service.oneshot("a").await.unwrap(), "c", "without a hedge: the only place is taken");
    assert_eq!(first.await.unwrap().unwrap(), "b");
    assert_eq!((budget.retries_in_flight(), backend.starts().len()), (Some(0), 3));
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_a_service_below_has_repeated_is_not_sent_again() {
    let backend = Backend::new([(5, Err("retried")), (5, Ok("b"))]);
    assert_eq!(call(after(), &backend).await.unwrap_err().to_string(), "retried");
    assert_eq!(backend.starts(), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_a_caller_repeats_deposits_nothing() {
    let layer = after();
    let stats = layer.stats();
    stats.budget().try_withdraw().unwrap().spend();
    let repeated = CallContext::default().with_repeated(true);
    context::with(repeated, call(layer, &Backend::new([(0, Ok("a"))]))).await.unwrap();
    assert_eq!(stats.budget().balance(), 99.0);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_without_time_before_the_deadline_is_not_sent() {
    for (millis, starts) in [(59, 1), (61, 2)] {
        let backend = Backend::new([(1000, Ok("a")), (1000, Ok("b"))]);
        let deadline = TokioClock.now() + Duration::from_millis(millis);
        let context = CallContext::default().with_deadline(deadline);
        context::with(context, call(after(), &backend)).await.unwrap();
        assert_eq!(backend.starts().len(), starts, "{millis} ms");
    }
    let backend = Backend::new([(30, Err("failed")), (0, Ok("b"))]);
    let context = CallContext::default().with_deadline(TokioClock.now() + 20 * MS);
    assert!(context::with(context, call(after(), &backend)).await.is_err(), "the deadline is over");
}

#[tokio::test(start_paused = true)]
async fn the_request_may_set_the_delay_of_its_call() {
    let by = |name: &&'static str| match *name {
        "at once" => Some(Duration::ZERO),
        "never" => Some(Duration::MAX),
        _ => None,
    };
    for (name, starts) in [("at once", vec![0, 0]), ("never", vec![0]), ("usual", vec![0, 30])] {
        let backend = Backend::new([(100, Ok("a")), (100, Ok("b"))]);
        let service = after().delay_by(by).plain().layer_service(&backend);
        service.oneshot(name).await.unwrap();
        assert_eq!(backend.starts(), starts, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hedge_waits_until_its_service_is_ready_and_the_first_attempt_goes_on() {
    let backend = Backend::new([(50, Ok("a")), (5, Ok("b"))]);
    // Its permits are taken in `poll_ready`.
    let layers = ServiceBuilder::new().layer(after().plain()).concurrency_limit(1);
    assert_eq!(layers.service(backend.clone()).oneshot("a").await.unwrap(), "a");
    assert_eq!(backend.starts(), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_that_was_not_sent_costs_nothing() {
    let backend = Backend::new([(50, Ok("a"))]);
    let layer = after();
    let stats = layer.stats();
    let layers = ServiceBuilder::new().layer(layer.plain()).concurrency_limit(1);
    layers.service(backend).oneshot("a").await.unwrap();
    assert_eq!((stats.hedges(), stats.budget().balance()), (0, 100.0));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_drops_all_its_attempts() {
    let backend = Backend::new([(1000, Ok("a")), (1000, Ok("b")), (1000, Ok("c"))]);
    let mut call = spawn(call(after().max_hedges(2), &backend));
    assert_pending!(call.poll());
    crate::pass(31 * MS).await;
    assert_pending!(call.poll());
    assert_eq!(backend.starts().len(), 2);
    drop(call);
    assert_eq!(backend.ended(), [Ended::Dropped(2), Ended::Dropped(1)]);
}

#[tokio::test(start_paused = true)]
async fn the_task_is_woken_for_its_hedge_also_where_limits_around_share_the_timer() {
    let backend = Backend::new([(SECOND.as_millis() as u64, Ok("a")), (1, Ok("b"))]);
    let layers = ServiceBuilder::new()
        .layer(buttress::TimeoutLayer::total(500 * MS).plain())
        .layer(after().plain())
        .layer(buttress::TimeoutLayer::attempt(20 * SECOND).plain());
    assert_eq!(layers.service(backend.clone()).oneshot("a").await.unwrap(), "b");
}

/// Not in a runtime, where making a timer would panic.
#[test]
fn no_timer_is_made_for_a_call_that_is_answered_at_once() {
    let ready = tower::service_fn(async |text: &'static str| Ok::<_, Infallible>(text));
    let mut service = ServiceBuilder::new().layer(after().plain()).service(ready);
    assert_eq!(assert_ready_ok!(spawn(service.call("at once")).poll()), "at once");
}
