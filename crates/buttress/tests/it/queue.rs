//! Tests of the bulkhead with a queue.

use crate::{Handle, MS, SECOND, layer, no_request, pass, refusal, request};
use buttress::{Bulkhead, BulkheadLayer, PlainExt};
use tokio_test::{assert_pending, assert_ready_ok, task::spawn};
use tower_test::mock::{Mock, Spawn};

type Queued = buttress::bulkhead::Queued<Mock<&'static str, &'static str>, buttress::ending::Plain>;

fn one_place(max_queue: usize) -> (Bulkhead, Spawn<Queued>, Handle) {
    let bulkhead = Bulkhead::new(1);
    let (service, handle) = layer(BulkheadLayer::from(bulkhead.clone()).queue(max_queue, SECOND).plain());
    (bulkhead, service, handle)
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_are_served_in_order() {
    let (bulkhead, mut service, mut handle) = one_place(3);
    let mut calls = ["a", "b", "c"].map(|name| {
        assert_ready_ok!(service.poll_ready());
        spawn(service.call(name))
    });
    // Polled in the reverse order of arrival.
    for call in calls.iter_mut().rev() {
        assert_pending!(call.poll());
    }
    assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (1, 2));
    for (place, name) in ["a", "b", "c"].into_iter().enumerate() {
        assert_pending!(calls[place].poll());
        let (reached, answer) = request(&mut handle);
        assert_eq!(reached, name);
        no_request(&mut handle);
        answer.send_response("done");
        assert_ready_ok!(calls[place].poll());
        assert!(calls.get(place + 1).is_none_or(|next| next.is_woken()), "the next waiter is not woken");
    }
    assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_does_not_overtake() {
    let (_bulkhead, mut service, mut handle) = one_place(3);
    let first = spawn(service.call("first"));
    let mut second = spawn(service.call("second"));
    assert_pending!(second.poll());
    drop(first);
    // The second was granted the place and has not been polled since.
    let mut newcomer = spawn(service.call("newcomer"));
    assert_pending!(newcomer.poll());
    no_request(&mut handle);
    assert_pending!(second.poll());
    assert_eq!(request(&mut handle).0, "second");
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_is_refused() {
    let (bulkhead, mut service, mut handle) = one_place(3);
    let mut first = spawn(service.call("first"));
    assert_pending!(first.poll());
    let mut second = spawn(service.call("second"));
    assert_pending!(second.poll());
    pass(SECOND - MS).await;
    assert_pending!(second.poll());
    pass(2 * MS).await;
    assert!(second.is_woken());
    assert_eq!(refusal(&mut second), &buttress::bulkhead::QUEUE_TIMEOUT);
    assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (1, 0));
    assert_eq!(request(&mut handle).0, "first");
}

#[tokio::test(start_paused = true)]
async fn a_place_that_comes_with_the_last_moment_is_taken() {
    let (_bulkhead, mut service, mut handle) = one_place(3);
    let first = spawn(service.call("first"));
    let mut second = spawn(service.call("second"));
    assert_pending!(second.poll());
    pass(2 * SECOND).await;
    drop(first);
    assert_pending!(second.poll());
    assert_eq!(request(&mut handle).0, "second");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_at_once() {
    let (bulkhead, mut service, _handle) = one_place(1);
    let _first = spawn(service.call("first"));
    let _second = spawn(service.call("second"));
    assert_eq!(refusal(&mut spawn(service.call("third"))), &buttress::bulkhead::QUEUE_FULL);
    assert_eq!(bulkhead.rejected(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_the_queue_passes_nothing_on_but_the_turn() {
    let (bulkhead, mut service, mut handle) = one_place(3);
    let first = spawn(service.call("first"));
    let mut waiting = ["a", "b", "c"].map(|name| spawn(service.call(name)));
    for call in &mut waiting {
        assert_pending!(call.poll());
    }
    let [a, b, mut c] = waiting;
    drop(b);
    assert_eq!(bulkhead.waiting(), 2);
    drop(first);
    assert!(a.is_woken() && !c.is_woken());
    // `a` was granted the place and is dropped before it is polled: the next waiter gets it.
    drop(a);
    assert!(c.is_woken());
    assert_pending!(c.poll());
    assert_eq!(request(&mut handle).0, "c");
    drop(c);
    assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn raising_the_limit_serves_the_queue() {
    let (bulkhead, mut service, mut handle) = one_place(3);
    let _first = spawn(service.call("first"));
    let mut second = spawn(service.call("second"));
    assert_pending!(second.poll());
    bulkhead.set_limit(2);
    assert!(second.is_woken());
    assert_pending!(second.poll());
    assert_eq!(request(&mut handle).0, "second");
}

#[tokio::test(start_paused = true)]
async fn a_queued_call_asks_nothing_of_the_inner_service() {
    let (_bulkhead, mut service, mut handle) = one_place(3);
    let first = spawn(service.call("first"));
    let mut second = spawn(service.call("second"));
    handle.send_error("asked");
    assert_pending!(second.poll());
    drop(first);
    let error = tokio_test::assert_ready_err!(second.poll());
    assert_eq!(error.to_string(), "asked");
}
