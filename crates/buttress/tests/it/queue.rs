//! Tests of the bulkhead with a queue.

use crate::{Handle, MS, SECOND, layer, no_request, pass, refusal, request};
use buttress::bulkhead::{Discipline, QUEUE_DEADLINE, QUEUE_DELAY, QUEUE_FULL, QUEUE_TIMEOUT, QueuedLayer};
use buttress::policy::{CallContext, Clock, Criticality, Priority, TokioClock};
use buttress::{Bulkhead, BulkheadLayer, PlainExt, context};
use tokio_test::{assert_pending, assert_ready_ok, task::spawn};
use tower_test::mock::{Mock, Spawn};

type Queued = buttress::bulkhead::Queued<Mock<&'static str, &'static str>, buttress::ending::Plain>;

fn one_place(max_queue: usize) -> (Bulkhead, Spawn<Queued>, Handle) {
    one_place_with(max_queue, |layer| layer)
}

fn one_place_with(max_queue: usize, set: impl Fn(QueuedLayer) -> QueuedLayer) -> (Bulkhead, Spawn<Queued>, Handle) {
    let bulkhead = Bulkhead::new(1);
    let queued = BulkheadLayer::from(bulkhead.clone()).queue(max_queue, SECOND);
    let (service, handle) = layer(set(queued).plain());
    (bulkhead, service, handle)
}

/// Calls the service while a call with this context is served.
fn call_in(
    context: CallContext,
    service: &mut Spawn<Queued>,
    name: &'static str,
) -> tokio_test::task::Spawn<<Queued as tower_service::Service<&'static str>>::Future> {
    let _entered = context.enter();
    spawn(service.call(name))
}

fn of(class: Criticality) -> CallContext {
    CallContext::default().with_priority(Priority::new(class))
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
    assert_eq!(refusal(&mut second), &QUEUE_TIMEOUT);
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
    assert_eq!(refusal(&mut spawn(service.call("third"))), &QUEUE_FULL);
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

#[tokio::test(start_paused = true)]
async fn a_call_waits_no_longer_than_its_deadline() {
    let (bulkhead, mut service, _handle) = one_place(3);
    let _first = spawn(service.call("first"));
    let soon = CallContext::default().with_deadline(TokioClock.now() + 30 * MS);
    let mut second = call_in(soon, &mut service, "second");
    assert_pending!(second.poll());
    pass(29 * MS).await;
    assert_pending!(second.poll());
    pass(2 * MS).await;
    assert!(second.is_woken());
    assert_eq!(refusal(&mut second), &QUEUE_DEADLINE);
    let mut third = call_in(soon, &mut service, "third");
    assert_eq!(refusal(&mut third), &QUEUE_DEADLINE);
    assert_eq!((bulkhead.waiting(), bulkhead.rejected()), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_after_the_maximum_wait_changes_nothing() {
    let (_bulkhead, mut service, _handle) = one_place(3);
    let _first = spawn(service.call("first"));
    let late = CallContext::default().with_deadline(TokioClock.now() + 2 * SECOND);
    let mut second = call_in(late, &mut service, "second");
    assert_pending!(second.poll());
    pass(SECOND + MS).await;
    assert_eq!(refusal(&mut second), &QUEUE_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_call_with_a_passed_deadline_is_skipped_when_a_place_is_released() {
    let (_bulkhead, mut service, mut handle) = one_place(3);
    let first = spawn(service.call("first"));
    let soon = CallContext::default().with_deadline(TokioClock.now() + 30 * MS);
    let mut second = call_in(soon, &mut service, "second");
    let mut third = spawn(service.call("third"));
    assert_pending!(third.poll());
    // The second was never polled: no timer runs for it.
    pass(31 * MS).await;
    drop(first);
    assert!(third.is_woken());
    assert_pending!(third.poll());
    assert_eq!(request(&mut handle).0, "third");
    assert_eq!(refusal(&mut second), &QUEUE_DEADLINE);
}

#[tokio::test(start_paused = true)]
async fn under_overload_a_late_call_is_woken_and_rejected_without_its_timer() {
    let (bulkhead, mut service, mut handle) = one_place_with(9, |layer| layer.discipline(Discipline::Adaptive));
    let first = spawn(service.call("first"));
    let mut late = spawn(service.call("late"));
    assert_pending!(late.poll());
    pass(102 * MS).await;
    let mut older = spawn(service.call("older"));
    assert_pending!(older.poll());
    let mut newer = spawn(service.call("newer"));
    assert_pending!(newer.poll());
    pass(4 * MS).await;
    assert!(!late.is_woken());
    drop(first);
    assert!(late.is_woken() && newer.is_woken() && !older.is_woken());
    assert_eq!(refusal(&mut late), &QUEUE_DELAY);
    assert_pending!(newer.poll());
    assert_eq!(request(&mut handle).0, "newer");
    assert_eq!((bulkhead.waiting(), bulkhead.rejected()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_more_important_call_goes_first_and_evicts_from_a_full_queue() {
    let (bulkhead, mut service, mut handle) = one_place(2);
    let first = spawn(service.call("first"));
    let [mut read, mut report] = ["read", "report"].map(|name| {
        let mut call = call_in(of(Criticality::Sheddable), &mut service, name);
        assert_pending!(call.poll());
        call
    });
    let mut order = call_in(of(Criticality::CriticalPlus), &mut service, "order");
    assert_pending!(order.poll());
    assert!(report.is_woken() && !read.is_woken());
    assert_eq!(refusal(&mut report), &QUEUE_FULL);
    let another = call_in(of(Criticality::Sheddable), &mut service, "another read");
    assert_eq!(refusal(&mut { another }), &QUEUE_FULL);
    drop(first);
    assert_pending!(order.poll());
    assert_eq!(request(&mut handle).0, "order");
    assert_pending!(read.poll());
    assert_eq!((bulkhead.waiting(), bulkhead.waiting_of(Criticality::Sheddable)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn the_class_is_that_of_the_call_that_is_being_served() {
    let with_shares = |layer: QueuedLayer| layer.reserve(Criticality::Sheddable, 0.5).unwrap();
    let (bulkhead, service, mut handle) = one_place_with(2, with_shares);
    let serves = async {
        let mut service = service.into_inner();
        tower_service::Service::call(&mut service, "read").await
    };
    let mut call = spawn(context::with(of(Criticality::Sheddable), serves));
    assert_pending!(call.poll());
    assert_eq!(bulkhead.in_flight_of(Criticality::Sheddable), Some(1));
    request(&mut handle).1.send_response("done");
    assert_ready_ok!(call.poll());
    assert_eq!(bulkhead.in_flight_of(Criticality::Sheddable), Some(0));
}
