//! Row 17: a backend that never answers, and one whose future spends the budget of its task.

use super::{
    Caller, Field, Row, Traffic,
    field::{Came, Stopwatch},
};
use crate::{Answer, Part, Plan};
use std::time::Duration;
use tokio::time::advance;
use tower::ServiceExt;

/// A paused clock does not advance while a task is busy, so another task advances it by this time
/// in a loop.
const TICK: Duration = Duration::from_millis(10);

pub(super) fn all(traffic: &Traffic) {
    let bounds = [traffic.answers_within, traffic.attempt_within.filter(|_| traffic.attempts == 1)];
    waits(traffic);
    stops(traffic);
    let Some(within) = bounds.into_iter().flatten().min() else { return };
    for (name, answer) in
        [("a backend that never answers", Answer::Never), ("a backend that keeps its task busy", Answer::SpendsBudget)]
    {
        traffic.run(Row::Hung, &name, ends(traffic, answer, within));
    }
}

async fn ends(traffic: &Traffic, answer: Answer, within: Duration) {
    let field = Field::new(traffic);
    let ticker = tokio::spawn(async {
        loop {
            advance(TICK).await;
        }
    });
    for number in 1..=3 {
        let began = Stopwatch::start();
        let seen = field.call(&Plan::of(answer.clone()), &field.request(), Caller::HangsUpAfter(within * 3)).await;
        let took = began.elapsed();
        assert!(!matches!(seen.came, Came::Left), "call {number} has not ended after {took:?}, expected {within:?}");
        assert!(took <= within + TICK * 2, "call {number} ends after {took:?}, expected {within:?}");
        field.holds_nothing();
    }
    ticker.abort();
}

/// Every permit is held by a call that never ends.
fn waits(traffic: &Traffic) {
    let Some((within, places)) = traffic.waits_within.zip(traffic.at_once) else { return };
    traffic.run(Row::Hung, &"every permit is held by a call that hangs", async {
        let field = Field::new(traffic);
        field.inner.follow(Plan::of(Answer::Never));
        let hung: Vec<_> = (0..places).map(|_| tokio::spawn(field.service().oneshot(field.request().make()))).collect();
        tokio::task::yield_now().await;
        assert_eq!(field.inner.calls(), places, "the number of admitted calls is not the number of permits");
        let began = Stopwatch::start();
        let seen = field.call(&Plan::of(Answer::Never), &field.request(), Caller::HangsUpAfter(within * 3)).await;
        let took = began.elapsed();
        assert!(seen.is_refused() && !matches!(seen.came, Came::Left), "the call waits for {took:?}: {seen}");
        assert!(took <= within + TICK * 2, "the call is rejected after {took:?}, expected {within:?}");
        hung.iter().for_each(tokio::task::JoinHandle::abort);
        tokio::task::yield_now().await;
        field.is_as_before().await;
    });
}

/// The body of a response yields no more frames.
fn stops(traffic: &Traffic) {
    let Some(within) = traffic.frame_within else { return };
    traffic.run(Row::Hung, &"a body that stops", async {
        let field = Field::new(traffic);
        let plan = Plan::of(Answer::Body(vec![Part::Data("first"), Part::Never]));
        let began = Stopwatch::start();
        let seen = field.call(&plan, &field.request(), Caller::HangsUpAfter(within * 3)).await;
        let took = began.elapsed();
        assert!(matches!(seen.came, Came::Broken(_)), "the body does not end with an error within {within:?}: {seen}");
        assert!(took <= within + TICK * 2, "the body ends with an error after {took:?}, expected {within:?}");
        field.is_as_before().await;
    });
}
