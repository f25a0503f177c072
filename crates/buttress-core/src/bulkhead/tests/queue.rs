use super::*;
use crate::bulkhead::{Acquire, Discipline};
use crate::context::CallContext;
use Criticality::{Critical, CriticalPlus, Sheddable, SheddablePlus};
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);

fn full(discipline: Discipline) -> (ManualClock, Bulkhead, Vec<BulkheadPermit>) {
    let clock = ManualClock::new();
    let bulkhead = Bulkhead::with_clock(10, clock.clone());
    bulkhead.set_discipline(discipline);
    let held = (0..10).map(|_| take(&bulkhead).unwrap()).collect();
    (clock, bulkhead, held)
}

fn within<T>(context: CallContext, call: impl FnOnce() -> T) -> T {
    let _entered = context.enter();
    call()
}

fn of(class: Criticality) -> CallContext {
    CallContext::default().with_priority(class.into())
}

fn queue_of(bulkhead: &Bulkhead, class: Criticality) -> Place {
    within(of(class), || queue(bulkhead))
}

fn take_of(bulkhead: &Bulkhead, class: Criticality) -> BulkheadPermit {
    within(of(class), || take(bulkhead).unwrap())
}

/// What became of a call in the queue: `"waits"`, `"has a place"`, or the word of its rejection.
fn fate(place: &mut Place) -> &'static str {
    match place.poll_acquire(&mut Context::from_waker(Waker::noop())) {
        Poll::Pending => "waits",
        Poll::Ready(Ok(permit)) => {
            std::mem::forget(permit); // the place stays taken
            "has a place"
        }
        Poll::Ready(Err(rejection)) => rejection.reason().word(),
    }
}

#[test]
fn last_in_first_out_serves_the_newest_call() {
    let (_, bulkhead, mut held) = full(Discipline::Lifo);
    let [mut first, mut second, mut third] = [(); 3].map(|()| queue(&bulkhead));
    held.truncate(8);
    assert_eq!([&mut first, &mut second, &mut third].map(fate), ["waits", "has a place", "has a place"]);
}

#[test]
fn adaptive_serves_in_order_while_bursts_are_absorbed() {
    let (clock, bulkhead, mut held) = full(Discipline::Adaptive);
    for _burst in 0..5 {
        let [mut first, mut second] = [(); 2].map(|()| queue(&bulkhead));
        clock.advance(100 * MS);
        held.pop();
        assert_eq!([&mut first, &mut second].map(fate), ["has a place", "waits"]);
        // Nothing waits for a moment.
        drop(second);
    }
}

#[test]
fn under_overload_adaptive_serves_the_newest_and_rejects_the_late_at_once() {
    let (clock, bulkhead, mut held) = full(Discipline::Adaptive);
    let flag = Arc::new(Flag::default());
    let mut early = queue(&bulkhead);
    assert!(early.poll_acquire(&mut Context::from_waker(&flag.clone().into())).is_pending());
    clock.advance(101 * MS);
    let [mut late, mut new] = [(); 2].map(|()| queue(&bulkhead));
    assert_eq!(flag.0.load(Ordering::SeqCst), 0, "not above the target for long enough");
    clock.advance(4 * MS);
    held.pop();
    assert_eq!(flag.0.load(Ordering::SeqCst), 1, "woken without a timer");
    assert_eq!([&mut early, &mut late, &mut new].map(fate), ["queue_delay", "waits", "has a place"]);
    assert_eq!((bulkhead.waiting(), bulkhead.in_flight(), bulkhead.rejected()), (1, 10, 1));
}

#[test]
fn under_overload_the_only_call_in_the_queue_is_served_however_late_it_is() {
    let (clock, bulkhead, mut held) = full(Discipline::Adaptive);
    let mut only = queue(&bulkhead);
    clock.advance(1000 * MS);
    held.pop();
    assert_eq!(fate(&mut only), "has a place");
}

#[test]
fn under_overload_a_new_call_finds_the_places_of_the_late_in_a_full_queue() {
    let (clock, bulkhead, _held) = full(Discipline::Adaptive);
    let [mut first, mut second] = [(); 2].map(|()| queue(&bulkhead));
    clock.advance(105 * MS);
    let Ok(Acquire::Queued(mut new)) = bulkhead.acquire_or_queue(2) else { panic!("the queue is full") };
    assert_eq!([&mut first, &mut second, &mut new].map(fate), ["queue_delay", "queue_delay", "waits"]);
}

#[test]
fn adaptive_returns_to_first_in_first_out_when_the_overload_is_over() {
    let (clock, bulkhead, mut held) = full(Discipline::Adaptive);
    let mut only = queue(&bulkhead);
    clock.advance(105 * MS);
    held.pop();
    assert_eq!(fate(&mut only), "has a place");
    clock.advance(99 * MS);
    let [mut first, mut second] = [(); 2].map(|()| queue(&bulkhead));
    held.pop();
    assert_eq!([&mut first, &mut second].map(fate), ["waits", "has a place"]);
    drop(first);
    clock.advance(MS);
    let [mut first, mut second] = [(); 2].map(|()| queue(&bulkhead));
    held.pop();
    assert_eq!([&mut first, &mut second].map(fate), ["has a place", "waits"]);
}

#[test]
fn another_discipline_holds_for_the_calls_in_the_queue() {
    let (_, bulkhead, mut held) = full(Discipline::Fifo);
    let [mut first, mut second] = [(); 2].map(|()| queue(&bulkhead));
    bulkhead.set_discipline(Discipline::Lifo);
    held.pop();
    assert_eq!([&mut first, &mut second].map(fate), ["waits", "has a place"]);
}

#[test]
fn the_more_important_class_is_served_first_and_within_a_class_by_the_discipline() {
    let (_, bulkhead, mut held) = full(Discipline::Fifo);
    let classes = [Sheddable, Critical, SheddablePlus, CriticalPlus, Critical];
    let mut places = classes.map(|class| queue_of(&bulkhead, class));
    for served in [3, 1, 4, 2, 0] {
        held.pop();
        assert_eq!(fate(&mut places[served]), "has a place", "{:?}", classes[served]);
    }
}

#[test]
fn a_full_queue_evicts_the_least_important_call_for_a_more_important_one_only() {
    let (_, bulkhead, _held) = full(Discipline::Fifo);
    let [mut first, mut second] = [(); 2].map(|()| queue_of(&bulkhead, Sheddable));
    let enter = |class| within(of(class), || bulkhead.acquire_or_queue(2));
    assert_eq!(enter(Sheddable).unwrap_err().reason(), &QUEUE_FULL);
    let flag = Arc::new(Flag::default());
    assert!(second.poll_acquire(&mut Context::from_waker(&flag.clone().into())).is_pending());
    let Ok(Acquire::Queued(mut important)) = enter(Critical) else { panic!("no place in the queue") };
    assert_eq!(flag.0.load(Ordering::SeqCst), 1, "woken at once");
    assert_eq!([&mut first, &mut second, &mut important].map(fate), ["waits", "queue_full", "waits"]);
    assert_eq!(enter(SheddablePlus).map(drop).map_err(|rejection| rejection.reason()), Ok(()));
    assert_eq!((fate(&mut first), bulkhead.waiting()), ("queue_full", 1));
    assert_eq!(bulkhead.waiting_of(Critical), 1);
}

#[test]
fn last_in_first_out_evicts_the_oldest_call_of_the_least_important_class() {
    let (_, bulkhead, _held) = full(Discipline::Lifo);
    let [mut first, mut second] = [(); 2].map(|()| queue_of(&bulkhead, Sheddable));
    let _important = within(of(Critical), || bulkhead.acquire_or_queue(2)).unwrap();
    assert_eq!([&mut first, &mut second].map(fate), ["queue_full", "waits"]);
}

#[test]
fn last_in_first_out_rejects_a_new_call_that_finds_the_queue_full_of_its_class() {
    let (_, bulkhead, _held) = full(Discipline::Lifo);
    let mut places = [(); 2].map(|()| queue_of(&bulkhead, Sheddable));
    let rejection = within(of(Sheddable), || bulkhead.acquire_or_queue(2)).unwrap_err();
    assert_eq!((rejection.reason(), places.each_mut().map(fate)), (&QUEUE_FULL, ["waits"; 2]));
}

#[test]
fn a_share_that_changes_while_calls_wait_counts_for_the_next_place() {
    let bulkhead = Bulkhead::new(10);
    bulkhead.reserve(Sheddable, 0.2).unwrap();
    let mut held: Vec<_> = (0..10).map(|_| take_of(&bulkhead, Critical)).collect();
    let mut read = queue_of(&bulkhead, Sheddable);
    let mut orders = [(); 2].map(|()| queue_of(&bulkhead, Critical));
    bulkhead.reserve(Sheddable, 0.0).unwrap();
    held.pop();
    assert_eq!((fate(&mut read), fate(&mut orders[0])), ("waits", "has a place"));
    bulkhead.reserve(Sheddable, 0.1).unwrap();
    held.pop();
    assert_eq!((fate(&mut read), fate(&mut orders[1])), ("has a place", "waits"));
    assert_eq!((bulkhead.waiting(), bulkhead.in_flight_of(Critical)), (1, Some(9)));
}

#[test]
fn a_class_below_its_share_gets_the_next_place_and_no_more_than_its_share() {
    let bulkhead = Bulkhead::new(10);
    bulkhead.reserve(Sheddable, 0.2).unwrap();
    let mut held: Vec<_> = (0..10).map(|_| take_of(&bulkhead, Critical)).collect();
    let mut reads = [(); 3].map(|()| queue_of(&bulkhead, Sheddable));
    let mut orders = [(); 2].map(|()| queue_of(&bulkhead, CriticalPlus));
    held.truncate(6);
    assert_eq!(reads.each_mut().map(fate), ["has a place", "has a place", "waits"]);
    assert_eq!(orders.each_mut().map(fate), ["has a place", "has a place"]);
    assert_eq!((bulkhead.in_flight_of(Sheddable), bulkhead.in_flight_of(Critical)), (Some(2), Some(6)));
}

#[test]
fn below_the_limit_a_class_takes_more_than_its_share_and_those_of_others() {
    let bulkhead = Bulkhead::new(10);
    bulkhead.reserve(CriticalPlus, 0.5).unwrap();
    bulkhead.reserve(Sheddable, 0.1).unwrap();
    let held: Vec<_> = (0..10).map(|_| take_of(&bulkhead, Sheddable)).collect();
    assert_eq!((held.len(), bulkhead.in_flight_of(Sheddable)), (10, Some(10)));
    assert!(within(of(CriticalPlus), || take(&bulkhead)).is_none(), "the limit is exact");
}

#[test]
fn a_crowd_below_its_share_evicts_no_more_calls_than_it_lacks_places() {
    let bulkhead = Bulkhead::new(10);
    bulkhead.reserve(Sheddable, 0.1).unwrap();
    let _held: Vec<_> = (0..10).map(|_| take_of(&bulkhead, Critical)).collect();
    let mut orders = [(); 3].map(|()| queue_of(&bulkhead, CriticalPlus));
    let enter = || within(of(Sheddable), || bulkhead.acquire_or_queue(3));
    let _first = enter().expect("one place of its share is lacking");
    assert_eq!(enter().unwrap_err().reason(), &QUEUE_FULL);
    assert_eq!(orders.each_mut().map(fate), ["waits", "waits", "queue_full"]);
}

#[test]
fn calls_from_before_the_first_share_are_not_counted_in_a_class() {
    let bulkhead = Bulkhead::new(2);
    let before = [(); 2].map(|()| take(&bulkhead).unwrap());
    let mut granted_before = queue(&bulkhead);
    let mut granted_after = queue(&bulkhead);
    let [first, second] = before;
    drop(first);
    bulkhead.reserve(Critical, 0.5).unwrap();
    drop(second);
    let permits = [&mut granted_before, &mut granted_after].map(|place| poll(place).unwrap());
    assert_eq!(bulkhead.in_flight_of(Critical), Some(1));
    drop(permits);
    assert_eq!((bulkhead.in_flight_of(Critical), bulkhead.in_flight()), (Some(0), 0));
}

#[test]
fn a_place_dropped_just_after_it_was_granted_leaves_its_class_too() {
    let bulkhead = Bulkhead::new(1);
    bulkhead.reserve(Critical, 0.5).unwrap();
    let held = take(&bulkhead);
    let place = queue_of(&bulkhead, Sheddable);
    drop(held);
    assert_eq!(bulkhead.in_flight_of(Sheddable), Some(1));
    drop(place);
    assert_eq!(Criticality::ALL.map(|class| bulkhead.in_flight_of(class)), [Some(0); 4]);
}

#[test]
fn shares_outside_zero_to_one_and_sums_above_one_are_refused() {
    let bulkhead = Bulkhead::new(10);
    for share in [-0.1, 1.1, f64::NAN] {
        let error = bulkhead.reserve(Critical, share).unwrap_err();
        assert_eq!(error.to_string(), "invalid configuration: `reserve` must be between 0 and 1");
    }
    assert_eq!(bulkhead.in_flight_of(Critical), None);
    bulkhead.reserve(Critical, 0.5).unwrap();
    let error = bulkhead.reserve(Sheddable, 0.6).unwrap_err().to_string();
    assert_eq!(error, "invalid configuration: `reserve` must not add up to more than 1 over all classes");
}

#[test]
fn a_call_whose_deadline_has_passed_is_skipped_and_not_queued() {
    let (clock, bulkhead, mut held) = full(Discipline::Fifo);
    let in_10_ms = CallContext::default().with_deadline(clock.now() + 10 * MS);
    let mut first = within(in_10_ms, || queue(&bulkhead));
    let mut second = queue(&bulkhead);
    clock.advance(10 * MS);
    assert_eq!(within(in_10_ms, || bulkhead.acquire_or_queue(9)).unwrap_err().reason(), &QUEUE_DEADLINE);
    assert_eq!(bulkhead.waiting(), 2);
    held.pop();
    assert_eq!([&mut first, &mut second].map(fate), ["queue_deadline", "has a place"]);
    held.pop();
    assert!(within(in_10_ms, || bulkhead.acquire_or_queue(9)).is_ok(), "a free place needs no time");
}

#[test]
fn if_all_deadlines_have_passed_the_place_is_free() {
    let (clock, bulkhead, mut held) = full(Discipline::Lifo);
    let in_10_ms = CallContext::default().with_deadline(clock.now() + 10 * MS);
    let mut places = [(); 3].map(|()| within(in_10_ms, || queue(&bulkhead)));
    let (waiters, flag) = (bulkhead.waiters().unwrap(), Arc::new(Flag::default()));
    waiters.register(waiters.key(), &flag.clone().into());
    clock.advance(10 * MS);
    held.pop();
    assert_eq!(places.each_mut().map(fate), ["queue_deadline"; 3]);
    assert_eq!((bulkhead.in_flight(), bulkhead.waiting(), flag.0.load(Ordering::SeqCst)), (9, 0, 1));
    assert!(take(&bulkhead).is_some());
}

#[test]
fn the_queue_delay_is_the_age_of_the_oldest_call_or_the_last_wait() {
    let (clock, bulkhead, mut held) = full(Discipline::Lifo);
    assert_eq!(bulkhead.queue_delay(), Duration::ZERO);
    let mut first = queue(&bulkhead);
    clock.advance(20 * MS);
    let mut second = queue(&bulkhead);
    assert_eq!(bulkhead.queue_delay(), 20 * MS);
    clock.advance(10 * MS);
    held.pop();
    assert_eq!(fate(&mut second), "has a place");
    assert_eq!(bulkhead.queue_delay(), 30 * MS);
    held.pop();
    assert_eq!(fate(&mut first), "has a place");
    clock.advance(INTERVAL);
    assert_eq!(bulkhead.queue_delay(), 30 * MS, "of the last call that left");
    clock.advance(MS);
    assert_eq!(bulkhead.queue_delay(), Duration::ZERO);
}
