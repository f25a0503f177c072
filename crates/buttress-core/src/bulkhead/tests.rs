mod model;
mod queue;

use super::*;
use crate::ManualClock;
use crate::report::{Report, Value};
use crate::testing::{reported, without_waiting};
use std::sync::{Arc, atomic::AtomicUsize};
use std::task::{Context, Poll, Wake, Waker};

type Bulkhead = super::Bulkhead<ManualClock>;
type BulkheadPermit = super::BulkheadPermit<ManualClock>;
type Place = super::Place<ManualClock>;

fn take(bulkhead: &Bulkhead) -> Option<BulkheadPermit> {
    bulkhead.admit(&()).ok()
}

fn queue(bulkhead: &Bulkhead) -> Place {
    match bulkhead.acquire_or_queue(100) {
        Ok(Acquire::Queued(place)) => place,
        other => panic!("{other:?}"),
    }
}

fn sharded(limit: usize, shards: usize) -> Bulkhead {
    Bulkhead::with_shards(limit, None, shards, ManualClock::new())
}

fn poll(place: &mut Place) -> Option<BulkheadPermit> {
    match place.poll_acquire(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(permit) => Some(permit.expect("no call is rejected in the queue")),
        Poll::Pending => None,
    }
}

#[test]
fn it_is_idle_without_calls_and_without_a_queue() {
    use crate::Idle;
    let bulkhead = Bulkhead::new(1);
    assert!(bulkhead.is_idle());
    let call = bulkhead.admit(&()).unwrap();
    assert!(!bulkhead.is_idle());
    let place = bulkhead.acquire_or_queue(1).unwrap();
    drop(call);
    bulkhead.set_limit(0);
    assert!(!bulkhead.is_idle(), "a call was granted its place and was not polled since");
    drop(place);
    assert!(bulkhead.is_idle());
    let queued = bulkhead.acquire_or_queue(1).unwrap();
    assert_eq!((bulkhead.in_flight(), bulkhead.waiting(), bulkhead.is_idle()), (0, 1, false));
    drop(queued);
    assert!(bulkhead.is_idle());
}

#[test]
fn the_queue_is_served_in_order_and_new_calls_do_not_overtake_it() {
    let bulkhead = Bulkhead::new(1);
    let held = take(&bulkhead).unwrap();
    let (mut first, mut second) = (queue(&bulkhead), queue(&bulkhead));
    assert!(poll(&mut second).is_none());
    drop(held);
    assert!(take(&bulkhead).is_none(), "the free place belongs to the queue");
    assert!(poll(&mut second).is_none());
    let held = poll(&mut first).expect("first in line");
    drop(held);
    assert!(poll(&mut second).is_some());
    assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (0, 0));
}

#[test]
fn a_place_dropped_in_the_queue_or_just_after_it_was_granted_is_passed_on() {
    let bulkhead = Bulkhead::new(1);
    let held = take(&bulkhead).unwrap();
    let (first, second, mut third) = (queue(&bulkhead), queue(&bulkhead), queue(&bulkhead));
    drop(first);
    assert_eq!(bulkhead.waiting(), 2);
    drop(held);
    drop(second); // granted, not polled since
    assert!(poll(&mut third).is_some());
    assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (0, 0));
}

#[test]
fn a_full_queue_rejects_and_says_so() {
    let bulkhead = Bulkhead::named("stock", 1);
    let _held = take(&bulkhead).unwrap();
    let _queued = queue(&bulkhead);
    let reason = |max| bulkhead.acquire_or_queue(max).unwrap_err().reason();
    assert_eq!(reason(1), &QUEUE_FULL);
    assert_eq!(reason(0), &FULL);
    assert_eq!(bulkhead.rejected(), 2);
}

#[test]
fn raising_the_limit_serves_the_queue_and_lowering_it_cancels_nothing() {
    let bulkhead = Bulkhead::new(1);
    let first = take(&bulkhead).unwrap();
    let mut queued = queue(&bulkhead);
    bulkhead.set_limit(2);
    let second = poll(&mut queued).expect("there is room for two calls");
    bulkhead.set_limit(1);
    assert_eq!(bulkhead.in_flight(), 2);
    let mut queued = queue(&bulkhead);
    drop(first);
    assert!(poll(&mut queued).is_none(), "one call is in flight, and the limit is one");
    drop(second);
    assert!(poll(&mut queued).is_some());
}

#[test]
fn a_call_that_finds_a_place_takes_no_lock_while_none_waits() {
    let with_shares = sharded(20, 4);
    with_shares.reserve(Criticality::CriticalPlus, 0.2).unwrap();
    for bulkhead in [sharded(8, 1), sharded(20, 4), with_shares] {
        let _held = lock(&bulkhead.0.queue);
        let caller = bulkhead.clone();
        without_waiting(move || drop(caller.admit(&()).unwrap()));
        let caller = bulkhead.clone();
        without_waiting(move || drop(caller.acquire_or_queue(1).unwrap()));
        assert_eq!(bulkhead.in_flight(), 0);
    }
}

#[test]
fn a_compact_bulkhead_takes_at_most_512_bytes() {
    // The other half is for its one ticket, a label and the reference counts.
    assert!(size_of::<State<std::time::Instant>>() <= 256, "{}", size_of::<State<std::time::Instant>>());
}

#[test]
fn it_reports_its_calls_its_queue_its_limit_and_its_rejections() {
    let bulkhead = Bulkhead::named("stock", 2);
    let _held = (take(&bulkhead), take(&bulkhead));
    let _queued = (queue(&bulkhead), queue(&bulkhead), queue(&bulkhead));
    (0..4).for_each(|_| assert!(take(&bulkhead).is_none()));
    let without_labels = |name, value| (name, ["", ""], value);
    let expected = [
        without_labels("resilience.bulkhead.in_flight", Value::Gauge(2.0)),
        without_labels("resilience.bulkhead.waiting", Value::Gauge(3.0)),
        without_labels("resilience.bulkhead.limit", Value::Gauge(2.0)),
        without_labels("resilience.bulkhead.rejected", Value::Counter(4)),
        without_labels("resilience.bulkhead.queue_delay", Value::Gauge(0.0)),
    ];
    assert_eq!(reported(&bulkhead), expected);
    assert_eq!((Report::name(&bulkhead), Report::name(&Bulkhead::new(1))), (Some("stock"), None));
}

#[test]
fn with_shares_it_reports_the_calls_of_each_class() {
    let bulkhead = Bulkhead::new(1);
    bulkhead.reserve(Criticality::Sheddable, 0.5).unwrap();
    let _held = take(&bulkhead);
    let _queued = queue(&bulkhead);
    let of = |name| {
        let values = reported(&bulkhead).into_iter().filter(move |(reported, ..)| *reported == name);
        values.map(|(_, [class, _], value)| (class, value)).collect::<Vec<_>>()
    };
    let expected = [("critical_plus", 0.0), ("critical", 1.0), ("sheddable_plus", 0.0), ("sheddable", 0.0)];
    let expected = expected.map(|(class, calls)| (class, Value::Gauge(calls)));
    assert_eq!(of("resilience.bulkhead.class_in_flight"), expected);
    assert_eq!(of("resilience.bulkhead.class_waiting"), expected);
}

#[test]
fn a_service_that_waits_for_a_place_is_no_rejection() {
    let bulkhead = Bulkhead::new(1);
    let held = bulkhead.try_reserve().unwrap();
    assert_eq!(bulkhead.try_reserve().unwrap_err(), Refused { retry_after: None });
    assert_eq!(bulkhead.rejected(), 0);
    drop(held);
    assert!(bulkhead.try_reserve().is_ok());
}

#[test]
fn zero_lets_nothing_through_until_it_is_raised() {
    let bulkhead = Bulkhead::new(0);
    assert!(take(&bulkhead).is_none());
    bulkhead.set_limit(usize::MAX);
    assert!(take(&bulkhead).is_some());
}

/// Runs 8 threads that take and release places of a bulkhead of 20 places, and `also` on another.
fn take_and_release_on_threads(also: fn(&Bulkhead)) {
    let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    // Few spares per shard, so that threads often take those of other shards.
    let bulkhead = sharded(20, 4);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut held = Vec::new();
                for round in 0..4000 {
                    if let Some(permit) = take(&bulkhead) {
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        held.push(permit);
                    }
                    if round % 3 == 0 || held.len() > 4 {
                        inside.fetch_sub(held.len(), Ordering::SeqCst);
                        held.clear();
                    }
                }
                inside.fetch_sub(held.len(), Ordering::SeqCst);
            });
        }
        scope.spawn(|| also(&bulkhead));
    });
    assert!(most.into_inner() <= 20);
    assert_eq!((bulkhead.in_flight(), bulkhead.in_flight_of(Criticality::Critical).unwrap_or(0)), (0, 0));
    let all: Vec<_> = (0..20).map(|_| take(&bulkhead).expect("all places are free")).collect();
    assert!(take(&bulkhead).is_none() && bulkhead.peek().is_err());
    drop(all);
}

#[test]
fn threads_that_keep_spares_never_exceed_the_limit_and_leave_none_taken() {
    take_and_release_on_threads(|_| {});
}

#[test]
fn a_share_that_is_set_while_threads_call_loses_no_place_and_adds_none() {
    take_and_release_on_threads(|bulkhead| bulkhead.reserve(Criticality::Critical, 0.5).unwrap());
}

#[test]
fn spares_from_before_the_first_share_are_free() {
    let bulkhead = sharded(20, 4);
    drop((0..20).map(|_| take(&bulkhead).unwrap()).collect::<Vec<_>>());
    bulkhead.reserve(Criticality::Critical, 0.5).unwrap();
    let held: Vec<_> = (0..20).map(|_| take(&bulkhead).unwrap()).collect();
    assert!(take(&bulkhead).is_none());
    assert_eq!(bulkhead.in_flight_of(Criticality::Critical), Some(20));
    drop(held);
    drop((0..20).map(|_| take(&bulkhead).unwrap()).collect::<Vec<_>>());
    bulkhead.set_limit(0);
    assert_eq!((bulkhead.in_flight(), bulkhead.in_flight_of(Criticality::Critical)), (0, Some(0)));
    assert!(take(&bulkhead).is_none());
}

#[test]
fn a_lowered_limit_takes_the_spares_back() {
    let bulkhead = sharded(100, 4);
    drop((0..100).map(|_| take(&bulkhead).unwrap()).collect::<Vec<_>>());
    assert_eq!(bulkhead.in_flight(), 0);
    bulkhead.set_limit(2);
    let held = (take(&bulkhead), take(&bulkhead));
    assert!(held.0.is_some() && held.1.is_some() && take(&bulkhead).is_none());
    assert_eq!(bulkhead.in_flight(), 2);
}

#[test]
fn a_queued_call_gets_a_place_that_was_kept_as_a_spare() {
    let bulkhead = sharded(8, 4);
    let mut held: Vec<_> = (0..8).map(|_| take(&bulkhead).unwrap()).collect();
    let mut waits = queue(&bulkhead);
    held.pop();
    assert!(poll(&mut waits).is_some());
    assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (7, 0));
}

#[test]
fn threads_never_exceed_the_limit() {
    let (bulkhead, inside, most) = (Bulkhead::new(3), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    if let Some(permit) = take(&bulkhead) {
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(permit);
                    }
                }
            });
        }
    });
    assert!(most.into_inner() <= 3);
    assert_eq!(bulkhead.in_flight(), 0);
}

#[derive(Default)]
struct Flag(AtomicUsize);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_release_wakes_the_next_waiter_and_a_raised_limit_as_many_as_there_is_room_for() {
    let bulkhead = Bulkhead::new(1);
    let held = take(&bulkhead).unwrap();
    let waiters = bulkhead.waiters().unwrap();
    let flags = [(); 5].map(|()| Arc::new(Flag::default()));
    for flag in &flags {
        waiters.register(waiters.key(), &flag.clone().into());
    }
    let woken = || flags.iter().filter(|flag| flag.0.load(Ordering::SeqCst) > 0).count();
    drop(held);
    assert_eq!(woken(), 1);
    let _held = take(&bulkhead).unwrap();
    bulkhead.set_limit(3);
    assert_eq!(woken(), 3);
    bulkhead.set_limit(2);
    assert_eq!(woken(), 4, "there is room for one more than is in flight");
}

#[test]
fn a_place_in_the_queue_goes_before_a_waiter() {
    let bulkhead = Bulkhead::new(1);
    let held = take(&bulkhead).unwrap();
    let (waiters, flag) = (bulkhead.waiters().unwrap(), Arc::new(Flag::default()));
    waiters.register(waiters.key(), &flag.clone().into());
    let mut queued = queue(&bulkhead);
    drop(held);
    assert_eq!(flag.0.load(Ordering::SeqCst), 0);
    drop(poll(&mut queued).unwrap());
    assert_eq!(flag.0.load(Ordering::SeqCst), 1);
}
