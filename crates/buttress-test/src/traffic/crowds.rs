//! Places are held as long as a response is on its way, and thousands of calls that wait for one
//! cost little.

use super::{Field, Row, Traffic, shape::Outgoing, table};
use crate::{Answer, Part, Plan, subject::Boxed};
use http::Response;
use std::{
    future::{Future, poll_fn},
    time::Duration,
};
use tokio_test::task::{self, Spawn};
use tower::Service;

const TASKS: usize = 10_000;

/// Tasks that one free place may wake: the next in line, and one whose timer is due.
const WAKES: usize = 2;

type Reply = crate::subject::Reply;

/// A call from readiness to its head, stepped by hand.
fn call(mut service: Boxed, request: &Outgoing) -> impl Future<Output = Reply> + use<> {
    let request = request.make();
    async move {
        poll_fn(|cx| service.poll_ready(cx)).await?;
        service.call(request).await
    }
}

/// A stream holds its place to its end, and gives it back when it is dropped.
pub(super) fn places(traffic: &Traffic) {
    let Some(places) = traffic.at_once.filter(|places| *places > 0) else { return };
    let stream = || vec![Part::Data("first"), Part::Wait(Duration::from_secs(100)), Part::Data("last")];
    held(traffic, places, "streams", Plan::of(Answer::Body(stream())));
    // Such a head decides the outcome, but not when the response has ended. Where failures open a
    // circuit or are repeated, they say nothing of places.
    if traffic.opens || traffic.attempts > 1 {
        return;
    }
    held(traffic, places, "responses with a status of 500", table::with_body(500, &[], stream()));
}

fn held(traffic: &Traffic, places: usize, what: &str, plan: Plan) {
    traffic.run(Row::Streams, &format!("as many {what} as there are places"), async {
        let field = Field::new(traffic);
        field.inner.follow(plan);
        let mut streams: Vec<Response<_>> = Vec::new();
        for _ in 0..places {
            let reply = tokio::time::timeout(Duration::from_secs(1), call(field.service(), &field.request())).await;
            streams.push(reply.expect("there is a place").expect("the backend answers"));
        }
        let mut other = task::spawn(call(field.service(), &field.request()));
        let refused = other.poll().is_ready();
        assert_eq!(field.inner.calls(), places, "a call gets in while every place is held by a stream");
        drop(streams.pop());
        if refused {
            other = task::spawn(call(field.service(), &field.request()));
        } else {
            assert!(other.is_woken(), "a call that waits is not woken by a stream that is dropped");
        }
        assert!(other.poll().is_ready(), "a stream that was dropped keeps its place");
        assert_eq!(field.inner.calls(), places + 1, "a stream that was dropped keeps its place");
        drop((streams, other));
        field.is_as_before().await;
    });
}

/// Counts wake-ups, because time says nothing on a clock that stands still.
pub(super) fn waiting_tasks(traffic: &Traffic) {
    let Some(places) = traffic.at_once.filter(|places| *places > 0) else { return };
    traffic.run(Row::Crowds, &format!("{TASKS} calls at once"), async {
        let field = Field::new(traffic);
        field.inner.follow(Plan::of(Answer::Never));
        let mut tasks: Vec<_> =
            (0..TASKS).map(|_| Some(task::spawn(call(field.service(), &field.request())))).collect();
        for task in &mut tasks {
            if task.as_mut().is_some_and(|task| task.poll().is_ready()) {
                *task = None;
            }
        }
        assert_eq!(field.inner.calls(), places, "another number of calls than there are places");
        for round in 0..10 {
            let waiting = tasks.iter().flatten().count();
            assert_eq!(woken(&mut tasks), 0, "tasks are woken although no place is free");
            // The oldest has a place: calls are admitted in order.
            let oldest = tasks.iter_mut().find(|task| task.is_some()).expect("a call has a place");
            *oldest = None;
            let woken = woken(&mut tasks);
            if waiting > places {
                assert!((1..=WAKES).contains(&woken), "a place that became free wakes {woken} of {waiting} tasks");
                assert_eq!(field.inner.calls(), places + round + 1, "the call that was woken does not get in");
            }
        }
        drop(tasks);
        field.is_as_before().await;
    });
}

/// Polls the tasks that are woken, and counts them.
fn woken<F: Future<Output = Reply>>(tasks: &mut [Option<Spawn<F>>]) -> usize {
    let mut woken = 0;
    for slot in tasks {
        let Some(task) = slot.as_mut().filter(|task| task.is_woken()) else { continue };
        woken += 1;
        if task.poll().is_ready() {
            *slot = None;
        }
    }
    woken
}
