//! Loom models of the lock-free parts. Loom runs them through the interleavings of up to three
//! threads with at most three preemptions:
//!
//! ```sh
//! RUSTFLAGS="--cfg loom" cargo test --release -p buttress-core --lib loom_models
//! ```

use crate::bulkhead::{Acquire, Discipline, Place};
use crate::circuit_breaker::{Event, State, Window};
use crate::context::CallContext;
use crate::rate_limit::RateLimit;
use crate::retry_budget::RetryBudget;
use crate::{
    Clock, Criticality, Failure, FailureKind, ManualClock, Outcome, Permit, Policy, Progress, Reserve, concurrency,
};
use loom::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use loom::thread;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

type Bulkhead = crate::bulkhead::Bulkhead<ManualClock>;
type CircuitBreaker = crate::circuit_breaker::CircuitBreaker<ManualClock>;

const FAILURE: Outcome = Outcome::Failure(Failure::new(FailureKind::Transport));

/// Runs a model.
pub(crate) fn model(check: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 50_000;
    builder.check(check);
}

/// Settles one failure on each of two threads at the same time.
fn fail_twice_at_once(breaker: &CircuitBreaker) {
    let fail = |breaker: CircuitBreaker| {
        let mut permit = breaker.admit(&()).expect("closed");
        move || permit.settle(&FAILURE)
    };
    let (a, mut b) = (fail(breaker.clone()), fail(breaker.clone()));
    let thread = thread::spawn(a);
    b();
    thread.join().unwrap();
}

#[test]
fn of_two_failures_at_once_one_completes_the_row() {
    model(|| {
        let breaker =
            CircuitBreaker::builder("loom").consecutive_failures(2).failure_rate(None).seed(1).build().unwrap();
        fail_twice_at_once(&breaker);
        assert_eq!(breaker.state(), State::Open);
    });
}

#[test]
fn of_two_failures_at_once_one_sees_the_rate() {
    for window in [Window::Time(Duration::from_secs(10)), Window::Count(2)] {
        model(move || {
            let breaker = CircuitBreaker::builder("loom")
                .consecutive_failures(None)
                .failure_rate(0.5)
                .minimum_throughput(2)
                .window(window)
                .seed(1)
                .build()
                .unwrap();
            fail_twice_at_once(&breaker);
            assert_eq!(breaker.state(), State::Open, "{window:?}");
        });
    }
}

#[test]
fn a_result_that_races_with_the_trip_does_not_reach_the_next_generation() {
    model(|| {
        let breaker =
            CircuitBreaker::builder("loom").consecutive_failures(1).minimum_throughput(9).seed(1).build().unwrap();
        let (mut late, mut tripping) = (breaker.admit(&()).unwrap(), breaker.admit(&()).unwrap());
        let thread = thread::spawn(move || late.settle(&Outcome::Success));
        tripping.settle(&FAILURE);
        thread.join().unwrap();
        let snapshot = breaker.snapshot();
        assert_eq!((snapshot.state, snapshot.counts.total(), snapshot.consecutive_failures), (State::Open, 0, 0));
    });
}

#[test]
fn one_slot_is_given_to_one_probe() {
    model(|| {
        let breaker = CircuitBreaker::builder("loom")
            .consecutive_failures(1)
            .failure_rate(None)
            .probes(1)
            .seed(1)
            .build()
            .unwrap();
        breaker.open_for(Duration::ZERO);
        let admitted = Arc::new(AtomicUsize::new(0));
        let ask = {
            let (breaker, admitted) = (breaker.clone(), admitted.clone());
            move || breaker.admit(&()).map(|permit| (admitted.fetch_add(1, Ordering::SeqCst), permit)).ok()
        };
        let thread = thread::spawn(ask.clone());
        let mine = ask();
        let theirs = thread.join().unwrap();
        assert_eq!(admitted.load(Ordering::SeqCst), 1);
        // Dropping the probe releases its slot.
        drop((mine, theirs));
        assert!(breaker.admit(&()).is_ok());
    });
}

#[test]
fn a_task_that_waits_while_a_circuit_opens_sees_it_or_is_woken() {
    model(|| {
        let breaker =
            CircuitBreaker::builder("loom").consecutive_failures(1).failure_rate(None).seed(1).build().unwrap();
        let opens = breaker.clone();
        let watchers = Policy::<()>::watchers(&breaker).unwrap();
        let thread = thread::spawn(move || opens.force_open());
        let flag = std::sync::Arc::new(Flag(AtomicUsize::new(0)));
        watchers.register(watchers.key(), &Waker::from(flag.clone()));
        let saw_it = breaker.peek().is_err();
        thread.join().unwrap();
        assert!(saw_it || flag.0.load(Ordering::SeqCst) == 1);
    });
}

#[test]
fn a_service_that_waits_while_a_probe_is_dropped_gets_its_slot_or_is_woken() {
    model(|| {
        let builder = CircuitBreaker::builder("loom").consecutive_failures(1).failure_rate(None).probes(1);
        let breaker = builder.seed(1).build().unwrap();
        breaker.open_for(Duration::ZERO);
        let probe = breaker.try_reserve().unwrap();
        let waiters = Reserve::waiters(&breaker).unwrap();
        let thread = thread::spawn(move || drop(probe));
        let flag = std::sync::Arc::new(Flag(AtomicUsize::new(0)));
        waiters.register(waiters.key(), &Waker::from(flag.clone()));
        let free = breaker.try_reserve().is_ok();
        thread.join().unwrap();
        assert!(free || flag.0.load(Ordering::SeqCst) > 0);
    });
}

#[test]
fn a_listener_that_is_added_during_a_reload_hears_of_the_next_call() {
    model(|| {
        let builder = CircuitBreaker::builder("loom").consecutive_failures(1).failure_rate(None).seed(1);
        let breaker = builder.clone().build().unwrap();
        let reloaded = breaker.clone();
        let thread = thread::spawn(move || reloaded.reload(&builder).unwrap());
        let calls = std::sync::Arc::new(AtomicUsize::new(0));
        let counter = calls.clone();
        breaker.on_event(move |event| {
            if let Event::Called { .. } = event {
                counter.fetch_add(1, Ordering::SeqCst);
            }
        });
        thread.join().unwrap();
        breaker.admit(&()).unwrap().settle(&Outcome::Success);
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    });
}

fn budget() -> RetryBudget<ManualClock> {
    RetryBudget::builder().percent(100.0).min_per_second(0.0).burst(1).build().unwrap()
}

#[test]
fn of_two_withdrawals_at_once_one_gets_the_last_retry() {
    model(|| {
        let budget = budget();
        let withdraw = |budget: RetryBudget<ManualClock>| {
            move || budget.try_withdraw().map(crate::retry_budget::Withdrawal::spend).is_some()
        };
        let thread = thread::spawn(withdraw(budget.clone()));
        let mine = withdraw(budget.clone())();
        assert!(mine ^ thread.join().unwrap());
        assert_eq!(budget.balance(), 0.0);
    });
}

#[test]
fn a_deposit_during_a_withdrawal_counts_once() {
    model(|| {
        let budget = budget();
        budget.try_withdraw().unwrap().spend();
        let deposits = budget.clone();
        let thread = thread::spawn(move || deposits.deposit());
        let withdrawn = budget.try_withdraw().map(crate::retry_budget::Withdrawal::spend).is_some();
        thread.join().unwrap();
        assert_eq!(budget.balance(), if withdrawn { 0.0 } else { 1.0 });
    });
}

struct Flag(AtomicUsize);

impl Wake for Flag {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Checks a model without spares, and with one spare per shard.
fn with_and_without_spares(check: impl Fn(u32) + Copy + Send + Sync + 'static) {
    for spares in [0, 1] {
        model(move || check(spares));
    }
}

#[test]
fn a_place_that_is_freed_while_a_call_queues_is_not_lost() {
    with_and_without_spares(|spares| {
        let bulkhead = Bulkhead::with_spares(1, spares);
        let held = bulkhead.admit(&()).unwrap();
        let thread = thread::spawn(move || drop(held));
        let flag = std::sync::Arc::new(Flag(AtomicUsize::new(0)));
        let waker = Waker::from(flag.clone());
        let mut permit = None;
        match bulkhead.acquire_or_queue(1).unwrap() {
            Acquire::Taken(taken) => permit = Some(taken),
            Acquire::Queued(mut place) => {
                if let Poll::Ready(Ok(taken)) = place.poll_acquire(&mut Context::from_waker(&waker)) {
                    permit = Some(taken);
                }
                thread.join().unwrap();
                if permit.is_none() {
                    assert_eq!(flag.0.load(Ordering::SeqCst), 1, "the waiter was not woken");
                    let Poll::Ready(Ok(taken)) = place.poll_acquire(&mut Context::from_waker(&waker)) else {
                        panic!("woken without a place")
                    };
                    permit = Some(taken);
                }
                drop(permit);
                assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (0, 0));
                return;
            }
        }
        thread.join().unwrap();
        assert_eq!(bulkhead.in_flight(), 1);
        drop(permit);
        assert_eq!(bulkhead.in_flight(), 0);
    });
}

#[test]
fn a_waiter_that_asks_again_after_registering_is_not_forgotten() {
    with_and_without_spares(|spares| {
        let bulkhead = Bulkhead::with_spares(1, spares);
        let held = bulkhead.admit(&()).unwrap();
        let thread = thread::spawn(move || drop(held));
        let flag = std::sync::Arc::new(Flag(AtomicUsize::new(0)));
        let waiters = bulkhead.waiters().unwrap();
        waiters.register(waiters.key(), &Waker::from(flag.clone()));
        let free = bulkhead.peek().is_ok();
        thread.join().unwrap();
        assert!(free || flag.0.load(Ordering::SeqCst) == 1);
    });
}

#[test]
fn a_spare_that_is_taken_while_the_limit_is_lowered_is_not_one_too_many() {
    with_and_without_spares(|spares| {
        let bulkhead = Bulkhead::with_spares(2, spares);
        let (first, second) = (bulkhead.admit(&()).unwrap(), bulkhead.admit(&()).unwrap());
        let changed = bulkhead.clone();
        let thread = thread::spawn(move || changed.set_limit(1));
        drop(first);
        thread.join().unwrap();
        assert!(bulkhead.admit(&()).is_err(), "one call is in flight, and the limit is one");
        drop(second);
        assert_eq!(bulkhead.in_flight(), 0);
        assert!(bulkhead.admit(&()).is_ok());
    });
}

#[test]
fn three_threads_never_hold_more_than_the_limit() {
    with_and_without_spares(|spares| {
        let (bulkhead, inside) = (Bulkhead::with_spares(1, spares), Arc::new(AtomicUsize::new(0)));
        let enter = {
            let (bulkhead, inside) = (bulkhead.clone(), inside.clone());
            move || {
                if let Ok(permit) = bulkhead.admit(&()) {
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(permit);
                }
            }
        };
        let threads = [thread::spawn(enter.clone()), thread::spawn(enter.clone())];
        enter();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(bulkhead.in_flight(), 0);
    });
}

/// Releases a place while the limit is raised. `limit` places are taken, a call queues, the limit
/// is lowered by one and raised again, and a place is then free for the call in the queue.
fn release_while_the_limit_is_raised(limit: usize) {
    with_and_without_spares(move |spares| {
        let bulkhead = Bulkhead::with_spares(limit, spares);
        let mut held: Vec<_> = (0..limit).map(|_| bulkhead.admit(&()).unwrap()).collect();
        let Ok(Acquire::Queued(mut place)) = bulkhead.acquire_or_queue(1) else { panic!("no queue") };
        bulkhead.set_limit(limit - 1);
        let released = held.pop();
        let thread = thread::spawn(move || drop(released));
        bulkhead.set_limit(limit);
        thread.join().unwrap();
        let ready = place.poll_acquire(&mut Context::from_waker(Waker::noop())).is_ready();
        assert!(ready, "in flight {}, waiting {}", bulkhead.in_flight(), bulkhead.waiting());
    });
}

#[test]
fn a_limit_raised_from_zero_during_a_release_serves_the_queue() {
    release_while_the_limit_is_raised(1);
}

#[test]
fn a_limit_raised_from_one_during_a_release_serves_the_queue() {
    release_while_the_limit_is_raised(2);
}

#[test]
fn a_limit_raised_during_a_release_wakes_a_waiter() {
    with_and_without_spares(|spares| {
        let bulkhead = Bulkhead::with_spares(1, spares);
        let held = bulkhead.admit(&()).unwrap();
        bulkhead.set_limit(0);
        let thread = thread::spawn(move || drop(held));
        let flag = std::sync::Arc::new(Flag(AtomicUsize::new(0)));
        let waiters = bulkhead.waiters().unwrap();
        waiters.register(waiters.key(), &Waker::from(flag.clone()));
        let free = bulkhead.peek().is_ok();
        bulkhead.set_limit(1);
        thread.join().unwrap();
        assert!(free || flag.0.load(Ordering::SeqCst) > 0);
    });
}

#[test]
fn a_woken_waiter_that_is_dropped_wakes_the_next() {
    with_and_without_spares(|spares| {
        let bulkhead = Bulkhead::with_spares(1, spares);
        let held = bulkhead.admit(&()).unwrap();
        let flags = [(); 2].map(|()| std::sync::Arc::new(Flag(AtomicUsize::new(0))));
        let waiters = bulkhead.waiters().unwrap();
        let keys = flags.clone().map(|flag| {
            let key = waiters.key();
            waiters.register(key, &Waker::from(flag));
            key
        });
        let thread = thread::spawn(move || drop(held));
        // The first waiter deregisters, before or after it is woken.
        waiters.deregister(keys[0]);
        thread.join().unwrap();
        assert_eq!(flags[1].0.load(Ordering::SeqCst), 1, "a place is free, and the next waiter was not woken");
        waiters.served(keys[1]);
    });
}

#[test]
fn a_waiter_that_registers_while_a_woken_one_gives_up_is_not_forgotten() {
    with_and_without_spares(|spares| {
        let bulkhead = Bulkhead::with_spares(1, spares);
        let held = bulkhead.admit(&()).unwrap();
        let waiters = bulkhead.waiters().unwrap();
        let (first, second) = (waiters.key(), waiters.key());
        waiters.register(first, Waker::noop());
        drop(held);
        let gives_up = bulkhead.clone();
        let thread = thread::spawn(move || gives_up.waiters().unwrap().deregister(first));
        let flag = std::sync::Arc::new(Flag(AtomicUsize::new(0)));
        waiters.register(second, &Waker::from(flag.clone()));
        let free = bulkhead.peek().is_ok();
        thread.join().unwrap();
        assert!(free || flag.0.load(Ordering::SeqCst) == 1);
    });
}

/// Releases two places as spares while `other` takes one and a service waits. One place is left, so
/// the service must find it or be woken.
fn a_waiter_does_not_sleep_beside_a_free_place(other: fn(&Bulkhead) -> Box<dyn Send>) {
    model(move || {
        let bulkhead = Bulkhead::with_spares(2, 2);
        drop((bulkhead.admit(&()).unwrap(), bulkhead.admit(&()).unwrap()));
        let held = (bulkhead.admit(&()).unwrap(), bulkhead.admit(&()).unwrap());
        let flag = std::sync::Arc::new(Flag(AtomicUsize::new(0)));
        let waits = {
            let (bulkhead, waker) = (bulkhead.clone(), Waker::from(flag.clone()));
            move || {
                let waiters = bulkhead.waiters().unwrap();
                waiters.register(waiters.key(), &waker);
                bulkhead.peek().is_ok()
            }
        };
        let threads = (thread::spawn(move || drop(held)), thread::spawn(waits));
        let mine = other(&bulkhead);
        threads.0.join().unwrap();
        let saw_it = threads.1.join().unwrap();
        assert!(saw_it || flag.0.load(Ordering::SeqCst) > 0, "in flight {}", bulkhead.in_flight());
        drop(mine);
    });
}

#[test]
fn a_waiter_sees_what_a_call_that_queues_leaves_free() {
    a_waiter_does_not_sleep_beside_a_free_place(|bulkhead| Box::new(bulkhead.acquire_or_queue(1)));
}

#[test]
fn a_waiter_sees_what_a_call_that_searches_the_shards_leaves_free() {
    a_waiter_does_not_sleep_beside_a_free_place(|bulkhead| Box::new(bulkhead.admit(&())));
}

/// Queues for a class. The context of a call belongs to all threads of the model checker: no other
/// one may read it meanwhile.
fn queue(bulkhead: &Bulkhead, class: Criticality, max_queue: usize) -> Option<Place<ManualClock>> {
    let _entered = CallContext::default().with_priority(class.into()).enter();
    match bulkhead.acquire_or_queue(max_queue) {
        Ok(Acquire::Queued(place)) => Some(place),
        Ok(Acquire::Taken(_)) => panic!("overtook the queue"),
        Err(_) => None,
    }
}

/// Returns whether a call in the queue was granted a place, which stays taken.
fn is_granted(place: &mut Place<ManualClock>) -> bool {
    match place.poll_acquire(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(permit)) => {
            std::mem::forget(permit);
            true
        }
        Poll::Ready(Err(_)) | Poll::Pending => false,
    }
}

#[test]
fn a_place_that_is_freed_while_a_call_is_evicted_goes_to_one_of_both() {
    with_and_without_spares(|spares| {
        let bulkhead = Bulkhead::with_spares(1, spares);
        let held = bulkhead.admit(&()).unwrap();
        let mut read = queue(&bulkhead, Criticality::Sheddable, 1).expect("the queue is empty");
        let thread = thread::spawn(move || drop(held));
        let mut order =
            queue(&bulkhead, Criticality::CriticalPlus, 1).expect("it evicts or finds a place in the queue");
        thread.join().unwrap();
        assert!(is_granted(&mut read) ^ is_granted(&mut order));
        assert_eq!(bulkhead.in_flight(), 1);
        drop((read, order));
        assert_eq!(bulkhead.waiting(), 0);
    });
}

#[test]
fn a_place_that_is_freed_while_the_late_are_rejected_goes_to_one_of_those_who_are_left() {
    with_and_without_spares(|spares| {
        let bulkhead = Bulkhead::with_spares(1, spares);
        bulkhead.set_discipline(Discipline::Adaptive);
        let held = bulkhead.admit(&()).unwrap();
        let [mut late, mut newer] = [(); 2].map(|()| queue(&bulkhead, Criticality::Critical, 9).unwrap());
        bulkhead.clock().advance(Duration::from_millis(200));
        let thread = thread::spawn(move || drop(held));
        let mut newest = queue(&bulkhead, Criticality::Critical, 9).unwrap();
        thread.join().unwrap();
        assert!(!is_granted(&mut late) && (is_granted(&mut newer) ^ is_granted(&mut newest)));
        assert_eq!(bulkhead.in_flight(), 1);
        drop((late, newer, newest));
        assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (1, 0));
    });
}

#[test]
fn a_place_that_is_freed_while_the_next_call_gives_up_goes_to_another_class() {
    with_and_without_spares(|spares| {
        let bulkhead = Bulkhead::with_spares(1, spares);
        bulkhead.reserve(Criticality::Sheddable, 0.5).unwrap();
        let held = bulkhead.admit(&()).unwrap();
        let [read, mut order] =
            [Criticality::Sheddable, Criticality::Critical].map(|class| queue(&bulkhead, class, 9).unwrap());
        let thread = thread::spawn(move || drop(held));
        drop(read);
        thread.join().unwrap();
        assert!(is_granted(&mut order));
        let counts = Criticality::ALL.map(|class| bulkhead.in_flight_of(class).unwrap());
        assert_eq!((counts, bulkhead.in_flight(), bulkhead.waiting()), ([0, 1, 0, 0], 1, 0));
    });
}

#[test]
fn with_shares_threads_never_hold_more_than_the_limit_and_leave_no_class_counted() {
    with_and_without_spares(|spares| {
        let (bulkhead, inside) = (Bulkhead::with_spares(1, spares), Arc::new(AtomicUsize::new(0)));
        bulkhead.reserve(Criticality::Critical, 0.5).unwrap();
        let enter = {
            let (bulkhead, inside) = (bulkhead.clone(), inside.clone());
            move || {
                if let Ok(permit) = bulkhead.admit(&()) {
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(permit);
                }
            }
        };
        let thread = thread::spawn(enter.clone());
        let mut queued = bulkhead.acquire_or_queue(1).unwrap();
        if let Acquire::Queued(place) = &mut queued {
            thread.join().unwrap();
            assert!(is_granted(place));
            assert_eq!(bulkhead.in_flight_of(Criticality::Critical), Some(1));
            return;
        }
        inside.fetch_add(1, Ordering::SeqCst);
        inside.fetch_sub(1, Ordering::SeqCst);
        drop(queued);
        thread.join().unwrap();
        assert_eq!((bulkhead.in_flight(), bulkhead.in_flight_of(Criticality::Critical)), (0, Some(0)));
    });
}

fn rate_limit(burst: u32) -> RateLimit<ManualClock> {
    RateLimit::per_second(1).burst(burst)
}

#[test]
fn of_two_calls_at_once_a_rate_limit_admits_its_burst() {
    model(|| {
        let limit = rate_limit(1);
        let other = limit.clone();
        let thread = thread::spawn(move || other.try_take(1).is_ok());
        let mine = limit.try_take(1).is_ok();
        assert!(mine != thread.join().unwrap());
    });
}

#[test]
fn what_is_given_back_while_another_call_is_admitted_is_neither_lost_nor_doubled() {
    model(|| {
        let limit = rate_limit(2);
        let undone = limit.try_take(1).unwrap();
        let other = limit.clone();
        let thread = thread::spawn(move || other.give_back(undone));
        let mine = [limit.try_take(1), limit.try_take(1)].iter().flatten().count();
        assert!(thread.join().unwrap(), "no call waits");
        assert_eq!(limit.available() as usize, 2 - mine);
    });
}

#[test]
fn a_reservation_that_is_given_back_while_another_is_made_never_moves_its_start() {
    model(|| {
        let limit = rate_limit(1);
        limit.try_take(1).unwrap();
        let mine = limit.reserve(1, Duration::from_secs(9)).unwrap();
        let other = limit.clone();
        let thread = thread::spawn(move || other.reserve(1, Duration::from_secs(9)).unwrap().wait);
        let returned = limit.give_back(mine.permit);
        let theirs = thread.join().unwrap();
        assert_eq!(theirs.as_secs(), if returned { 1 } else { 2 });
        assert_eq!(limit.reserve(1, Duration::MAX).unwrap().wait, theirs + Duration::from_secs(1));
    });
}

#[test]
fn a_call_during_a_reload_is_charged_by_one_of_the_two_quotas() {
    model(|| {
        let limit = rate_limit(4);
        let other = limit.clone();
        let thread = thread::spawn(move || other.set_limit(2));
        assert!(limit.try_take(1).is_ok());
        thread.join().unwrap();
        assert_eq!(limit.available(), 3, "available calls stay available");
        assert_eq!(limit.retry_after(4), Some(Duration::from_millis(500)), "and the new rate counts");
    });
}

#[test]
fn two_calls_after_a_reload_convert_the_bucket_once() {
    model(|| {
        let limit = rate_limit(4);
        limit.set_limit(2);
        let other = limit.clone();
        let thread = thread::spawn(move || other.try_take(1).is_ok());
        assert!(limit.try_take(1).is_ok());
        assert!(thread.join().unwrap());
        assert_eq!(limit.available(), 2);
    });
}

/// A limiter whose windows end with every answer, and the calls that its algorithm has seen.
fn counting_limit() -> (concurrency::AdaptiveLimit<Counting, ManualClock>, ManualClock, std::sync::Arc<Counted>) {
    let (clock, counted) = (ManualClock::new(), std::sync::Arc::<Counted>::default());
    let builder = concurrency::AdaptiveLimit::<_, ManualClock>::builder("loom").clock(clock.clone()).min_samples(1);
    let limit = builder.algorithm(Counting(counted.clone())).limits(1..=9).initial(2).build().unwrap();
    // The first answer begins the first window.
    limit.admit(&()).unwrap().settle(&Outcome::Success);
    clock.advance(Duration::from_millis(250));
    (limit, clock, counted)
}

/// Plain atomics: changed under the lock of the limiter only.
#[derive(Debug, Default)]
struct Counted {
    updates: std::sync::atomic::AtomicU64,
    answered: std::sync::atomic::AtomicU64,
}

#[derive(Debug)]
struct Counting(std::sync::Arc<Counted>);

impl concurrency::LimitAlgorithm for Counting {
    fn update(&mut self, window: &concurrency::Window) -> usize {
        self.0.updates.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        self.0.answered.fetch_add(window.answered, std::sync::atomic::Ordering::SeqCst);
        window.limit + 1
    }
}

#[test]
fn of_two_calls_that_end_a_window_one_updates_the_limit_and_no_answer_is_lost() {
    model(|| {
        let (limit, clock, counted) = counting_limit();
        let calls = [limit.admit(&()).unwrap(), limit.admit(&()).unwrap()];
        let [mut a, mut b] = calls;
        let thread = thread::spawn(move || a.settle(&Outcome::Success));
        b.settle(&Outcome::Success);
        thread.join().unwrap();
        assert_eq!(counted.updates.load(std::sync::atomic::Ordering::SeqCst), 1);
        assert_eq!(limit.limit(), 3);
        drop(b);
        clock.advance(Duration::from_millis(250));
        limit.admit(&()).unwrap().settle(&Outcome::Success);
        assert_eq!(counted.answered.load(std::sync::atomic::Ordering::SeqCst), 4, "each answer is in one window");
    });
}

#[test]
fn streams_that_begin_and_end_on_threads_leave_no_place_behind() {
    model(|| {
        let (limit, _, _) = counting_limit();
        let (mut a, mut b) = (limit.admit(&()).unwrap(), limit.admit(&()).unwrap());
        let thread = thread::spawn(move || {
            a.progress(Progress::Head);
            drop(a);
        });
        b.progress(Progress::Head);
        thread.join().unwrap();
        assert_eq!((limit.in_flight(), limit.snapshot().streaming), (1, 1));
        drop(b);
        assert_eq!((limit.in_flight(), limit.snapshot().streaming), (0, 0));
    });
}
