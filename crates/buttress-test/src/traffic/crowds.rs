//! Rows 3 and 21: a permit is held until the response body ends, and a released permit wakes few of
//! thousands of waiting tasks.

use super::{Field, Row, Traffic, shape::Outgoing, table};
use crate::{Answer, Part, Plan, subject::Boxed};
use http::Response;
use std::{
    future::{Future, poll_fn},
    time::Duration,
};
use tokio_test::task::{self, Spawn};
use tower::Service;

/// Row 21 of `docs/traffic.md`.
const TASKS: usize = 10_000;

/// Tasks that one released permit may wake: the first in the queue, and one whose timer is due.
const WAKES: usize = 2;

type Reply = crate::subject::Reply;

/// Returns the future of a call from readiness to its head, which a test polls by hand.
fn call(mut service: Boxed, request: &Outgoing) -> impl Future<Output = Reply> + use<> {
    let request = request.make();
    async move {
        poll_fn(|cx| service.poll_ready(cx)).await?;
        service.call(request).await
    }
}

/// A stream holds its permit until it ends or is dropped.
pub(super) fn places(traffic: &Traffic) {
    let Some(places) = traffic.at_once.filter(|places| *places > 0) else { return };
    let stream = || vec![Part::Data("first"), Part::Wait(Duration::from_secs(100)), Part::Data("last")];
    held(traffic, places, "streams", Plan::of(Answer::Body(stream())));
    // A status of 500 decides the outcome at the head, which must not release the permit. Where
    // failures open a circuit or are repeated, such calls do not fill the permits.
    if traffic.opens || traffic.attempts > 1 {
        return;
    }
    held(traffic, places, "responses with status 500", table::with_body(500, &[], stream()));
}

fn held(traffic: &Traffic, places: usize, what: &str, plan: Plan) {
    traffic.run(Row::Streams, &format!("as many {what} as permits"), async {
        let field = Field::new(traffic);
        field.inner.follow(plan);
        let mut streams: Vec<Response<_>> = Vec::new();
        for _ in 0..places {
            let reply = tokio::time::timeout(Duration::from_secs(1), call(field.service(), &field.request())).await;
            streams.push(reply.expect("a permit is free").expect("the backend answers"));
        }
        let mut other = task::spawn(call(field.service(), &field.request()));
        let rejected = other.poll().is_ready();
        assert_eq!(field.inner.calls(), places, "a call is admitted while streams hold every permit");
        drop(streams.pop());
        if rejected {
            other = task::spawn(call(field.service(), &field.request()));
        } else {
            assert!(other.is_woken(), "a waiting call is not woken when a stream is dropped");
        }
        assert!(other.poll().is_ready(), "a dropped stream does not release its permit");
        assert_eq!(field.inner.calls(), places + 1, "a dropped stream does not release its permit");
        drop((streams, other));
        field.is_as_before().await;
    });
}

/// Counts wake-ups instead of time, because work takes no time on a paused clock.
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
        assert_eq!(field.inner.calls(), places, "the number of admitted calls is not the number of permits");
        for round in 0..10 {
            let waiting = tasks.iter().flatten().count();
            assert_eq!(woken(&mut tasks), 0, "tasks are woken although no permit is free");
            // Calls are admitted in order, so the oldest has a permit.
            let oldest = tasks.iter_mut().find(|task| task.is_some()).expect("a call has a permit");
            *oldest = None;
            let woken = woken(&mut tasks);
            if waiting > places {
                assert!((1..=WAKES).contains(&woken), "a released permit wakes {woken} of {waiting} tasks");
                assert_eq!(field.inner.calls(), places + round + 1, "the woken call is not admitted");
            }
        }
        drop(tasks);
        field.is_as_before().await;
    });
}

/// Polls the woken tasks, and returns their number.
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
