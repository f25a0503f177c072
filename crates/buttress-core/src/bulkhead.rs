//! A bound on calls in flight, with an optional queue that is bounded too.
//!
//! # How it scales
//!
//! An exact count is one word, and threads that take and release places meet on it. So a thread
//! keeps a place that it released in the *spares* of its shard and takes it from there again,
//! without touching the word. A spare counts as taken in the word, so there is never a call more
//! than the limit. A call that finds the word full takes a spare of another shard; only when there
//! is none either is the bulkhead full. While a call waits in the queue, or after the limit was
//! lowered, released places go to the word. At most half of the limit is kept as spares, and a
//! limit that is small for the number of shards keeps none.
//!
//! A call that looks for a spare while others take and release them can miss a place that moves
//! from shard to shard: close to the limit a call may be rejected although a place was free at
//! every moment.

use crate::rejection::Labels;
use crate::shard::{Counter, Sharded, Ticket, shards, thread_index};
use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering, lock};
use crate::{Admit, Clock, Name, Outcome, Permit, Policy, Reason, Refused, Rejection, Waiters};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::OnceLock,
    task::{Context, Poll, Waker},
};

mod spares;

use spares::{Found, Spares};

const POLICY: &str = "bulkhead";
/// The state word is `waiting << 32 | in_flight`, so that "there is room, and the queue is empty"
/// is one load.
const WAITING: u64 = 1 << 32;

/// A bulkhead: at most `limit` calls in flight. A cheap handle; clones share the count.
///
/// A place is held to the end of the response's stream and freed whatever happens to the call. The
/// queue is served in order, and new calls do not overtake it.
///
/// ```
/// use buttress_core::{Bulkhead, Policy};
///
/// let now = std::time::Instant::now();
/// let bulkhead = Bulkhead::new(1);
/// let place = bulkhead.reserve(&now).unwrap();
/// assert_eq!(bulkhead.reserve(&now).unwrap_err().to_string(), "bulkhead: full");
/// drop(place);
/// assert!(bulkhead.reserve(&now).is_ok());
/// ```
#[derive(Clone, Debug)]
pub struct Bulkhead(Sharded<State>);

#[derive(Debug)]
struct State {
    word: AtomicU64,
    limit: AtomicU32,
    /// Places that count as in flight in the word and are free.
    spares: Spares,
    labels: Labels,
    /// Made when a call queues for the first time: most bulkheads of a keyed policy never need it.
    queue: Mutex<Option<Box<Queue>>>,
    /// Made when a service waits for the first time.
    waiters: OnceLock<Box<Waiters>>,
    rejected: Counter,
}

/// Everything that decides about the queue, limit included, happens under its lock. Releasers that
/// see an empty queue in the state word take no lock.
#[derive(Debug, Default)]
struct Queue {
    next: u64,
    /// By number. As many as the state word says.
    waiting: BTreeMap<u64, Waker>,
    /// Waiters that were granted a place, which is counted in the state word, and have not been
    /// polled since.
    granted: BTreeSet<u64>,
}

impl Bulkhead {
    /// At most `limit` calls in flight, up to `u32::MAX`. 0 lets nothing through, until
    /// [`set_limit`](Self::set_limit).
    pub fn new(limit: usize) -> Self {
        Self::with_name(limit, None)
    }

    /// The same, with a name that rejections and metrics carry.
    pub fn named(name: impl Into<Name>, limit: usize) -> Self {
        Self::with_name(limit, Some(name.into()))
    }

    fn with_name(limit: usize, name: Option<Name>) -> Self {
        Self::with_shards(limit, name, shards())
    }

    fn with_shards(limit: usize, name: Option<Name>, shards: usize) -> Self {
        let limit = clamp(limit);
        let state = State {
            word: AtomicU64::new(0),
            limit: AtomicU32::new(limit),
            spares: Spares::new(shards, limit),
            labels: Labels::new(POLICY, name.as_ref(), shards),
            queue: Mutex::default(),
            // The model checker does not see that a `OnceLock` of the standard library orders its
            // making before its use.
            waiters: if cfg!(loom) { Box::<Waiters>::default().into() } else { OnceLock::new() },
            rejected: Counter::default(),
        };
        Self(Sharded::new(shards, state))
    }

    /// With one shard that keeps so many spares: the model checker's threads are all of one shard.
    #[cfg(loom)]
    pub(crate) fn with_spares(limit: usize, spares: u32) -> Self {
        let bulkhead = Self::with_shards(limit, None, if spares > 0 { 2 } else { 1 });
        bulkhead.0.spares.keep_at_most(spares);
        bulkhead
    }

    /// The name, if it has one.
    pub fn name(&self) -> Option<&str> {
        self.0.labels.name().map(|name| &**name)
    }

    /// Calls in flight now. More than [`limit`](Self::limit) only after the limit was lowered.
    pub fn in_flight(&self) -> usize {
        // First the spares: one that is given back in between is then counted twice and not missed.
        let spares = self.0.spares.count();
        in_flight(self.0.word.load(Ordering::SeqCst)).saturating_sub(spares) as usize
    }

    /// Calls in the queue now.
    pub fn waiting(&self) -> usize {
        waiting(self.0.word.load(Ordering::Acquire)) as usize
    }

    /// How many calls may be in flight.
    pub fn limit(&self) -> usize {
        self.0.limit.load(Ordering::Acquire) as usize
    }

    /// How many calls were refused so far.
    pub fn rejected(&self) -> u64 {
        self.0.rejected.sum()
    }

    /// Changes the limit. Raising it serves the queue at once; lowering it cancels nothing.
    pub fn set_limit(&self, limit: usize) {
        let state = &*self.0;
        let (served, room) = {
            let mut queue = lock(&state.queue);
            let limit = clamp(limit);
            state.limit.store(limit, Ordering::SeqCst);
            // A releaser that keeps a spare after this looks at the limit afterwards.
            state.spares.resize(limit);
            let spares = state.spares.drain();
            state.word.fetch_sub(spares.into(), Ordering::SeqCst);
            let served: Vec<Waker> = std::iter::from_fn(|| state.serve_next(&mut queue)).collect();
            (served, state.room())
        };
        served.into_iter().for_each(Waker::wake);
        state.wake_many(room);
    }

    /// Takes a place, or queues for one.
    ///
    /// # Errors
    /// [`Reason::QueueFull`] when `max_queue` calls are in the queue; [`Reason::BulkheadFull`] when
    /// `max_queue` is 0.
    pub fn acquire_or_queue(&self, max_queue: usize) -> Result<Acquire, Rejection> {
        let state = &*self.0;
        if state.try_take() {
            return Ok(Acquire::Taken(self.permit()));
        }
        let mut queue = lock(&state.queue);
        loop {
            let word = state.word.load(Ordering::SeqCst);
            let next = if waiting(word) == 0 && in_flight(word) < state.limit.load(Ordering::SeqCst) {
                word + 1
            } else if (waiting(word) as usize) < max_queue.min(u32::MAX as usize) {
                word + WAITING
            } else {
                return Err(self.reject(if max_queue == 0 { Reason::BulkheadFull } else { Reason::QueueFull }));
            };
            if state.word.compare_exchange_weak(word, next, Ordering::SeqCst, Ordering::SeqCst).is_err() {
                continue;
            }
            if next == word + 1 {
                return Ok(Acquire::Taken(self.permit()));
            }
            let line = queue.get_or_insert_default();
            let number = line.next;
            line.next += 1;
            line.waiting.insert(number, Waker::noop().clone());
            // A releaser that did not see this call has kept a spare before.
            crate::sync::fence(Ordering::SeqCst);
            let spares = state.spares.drain();
            state.word.fetch_sub(spares.into(), Ordering::SeqCst);
            let served: Vec<Waker> = std::iter::from_fn(|| state.serve_next(&mut queue)).collect();
            let room = state.room();
            drop(queue);
            served.into_iter().for_each(Waker::wake);
            // A service that looked while this call was the one in the queue has found no place.
            state.wake_many(room);
            return Ok(Acquire::Queued(Place { ticket: self.0.ticket(), number, done: false }));
        }
    }

    /// Counts a rejection and returns it: for a layer whose call waited in the queue for as long as
    /// it may.
    pub fn reject(&self, reason: Reason) -> Rejection {
        self.0.rejected.add(1);
        self.0.labels.reject(reason)
    }

    #[inline]
    fn permit(&self) -> BulkheadPermit {
        BulkheadPermit { ticket: self.0.ticket() }
    }
}

impl Policy for Bulkhead {
    type Permit = BulkheadPermit;

    #[inline]
    fn reserve(&self, _: &impl Clock) -> Result<BulkheadPermit, Rejection> {
        if self.0.try_take() { Ok(self.permit()) } else { Err(self.reject(Reason::BulkheadFull)) }
    }

    fn try_reserve(&self, _: &impl Clock) -> Result<BulkheadPermit, Refused> {
        if self.0.try_take() { Ok(self.permit()) } else { Err(Refused { retry_after: None }) }
    }

    fn refuse(&self, _: Refused, _: &impl Clock) -> Rejection {
        self.reject(Reason::BulkheadFull)
    }

    #[inline]
    fn peek(&self, _: &impl Clock) -> Result<(), Refused> {
        let word = self.0.word.load(Ordering::SeqCst);
        let free = self.0.has_room(word) || (self.0.keeps_spares(word) && self.0.find_spare(Spares::any));
        if free { Ok(()) } else { Err(Refused { retry_after: None }) }
    }

    fn waiters(&self) -> Option<&Waiters> {
        Some(self.0.waiters.get_or_init(Box::default))
    }

    /// None: its waiters are woken one by one, for a place each.
    fn watchers(&self) -> Option<&Waiters> {
        None
    }
}

impl<Req: ?Sized> Admit<Req> for Bulkhead {}

impl State {
    fn has_room(&self, word: u64) -> bool {
        waiting(word) == 0 && in_flight(word) < self.limit.load(Ordering::Acquire)
    }

    /// Whether spares may be kept and taken: no call waits in the queue, and the limit was not
    /// lowered below what is taken.
    #[inline]
    fn keeps_spares(&self, word: u64) -> bool {
        waiting(word) == 0 && in_flight(word) <= self.limit.load(Ordering::SeqCst)
    }

    #[inline]
    fn try_take(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        (self.keeps_spares(word) && self.spares.take(thread_index())) || self.take_otherwise()
    }

    /// From the word, or a spare of another shard.
    fn take_otherwise(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        while self.has_room(word) {
            match self.word.compare_exchange_weak(word, word + 1, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        self.keeps_spares(word) && self.find_spare(Spares::take_any)
    }

    /// Looks for a spare of any shard.
    #[cold]
    fn find_spare(&self, look: impl FnOnce(&Spares) -> Found) -> bool {
        let Found { found, hidden } = look(&self.spares);
        if hidden {
            // A service that looked meanwhile has not seen the shard.
            self.wake_many(1);
        }
        found
    }

    /// How many places are free.
    fn room(&self) -> u32 {
        self.limit.load(Ordering::SeqCst).saturating_sub(in_flight(self.word.load(Ordering::SeqCst)))
    }

    #[inline]
    fn release(&self) {
        let shard = thread_index();
        if !self.spares.keep(shard) {
            return self.give_back();
        }
        // After the fence of `keep`, which pairs with the fences of those that count themselves as
        // waiting before they look at the spares.
        if self.keeps_spares(self.word.load(Ordering::SeqCst)) {
            self.wake_one();
        } else if self.spares.take(shard) {
            self.give_back();
        }
    }

    /// To the word, or to the first in the queue.
    fn give_back(&self) {
        let mut word = self.word.load(Ordering::Relaxed);
        while waiting(word) == 0 {
            match self.word.compare_exchange_weak(word, word - 1, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => {
                    crate::sync::fence(Ordering::SeqCst);
                    return self.wake_one();
                }
                Err(now) => word = now,
            }
        }
        // Freed and granted again under one lock. If the release looked at the limit before taking
        // the lock, it could free a place that a limit raised in between had already declared
        // taken, and serve no waiter.
        let served = {
            let mut queue = lock(&self.queue);
            self.word.fetch_sub(1, Ordering::SeqCst);
            self.serve_next(&mut queue)
        };
        match served {
            Some(waker) => waker.wake(),
            None => {
                crate::sync::fence(Ordering::SeqCst);
                self.wake_one();
            }
        }
    }

    /// Wakes as many of the services that wait as there are places.
    fn wake_many(&self, places: u32) {
        crate::sync::fence(Ordering::SeqCst);
        if let Some(waiters) = self.waiters.get().filter(|_| places > 0) {
            waiters.wake_many(places as usize);
        }
    }

    /// Wakes the next service that waits, after a fence: a waiter whose list this call does not see
    /// yet looks for a place after it has made the list.
    fn wake_one(&self) {
        if let Some(waiters) = self.waiters.get().filter(|waiters| waiters.any()) {
            waiters.wake_one();
        }
    }

    /// Grants a place to the first in the queue, if there is room.
    fn serve_next(&self, queue: &mut Option<Box<Queue>>) -> Option<Waker> {
        let queue = queue.as_mut()?;
        let mut word = self.word.load(Ordering::SeqCst);
        while waiting(word) > 0 && in_flight(word) < self.limit.load(Ordering::SeqCst) {
            match self.word.compare_exchange_weak(word, word + 1 - WAITING, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => {
                    let (number, waker) = queue.waiting.pop_first()?;
                    queue.granted.insert(number);
                    return Some(waker);
                }
                Err(now) => word = now,
            }
        }
        None
    }
}

/// A place in a bulkhead, held by a call in flight. Given back on drop.
#[derive(Debug)]
#[must_use]
pub struct BulkheadPermit {
    ticket: Ticket<State>,
}

impl Permit for BulkheadPermit {
    const HELD_TO_END: bool = true;
    const LEARNS: bool = false;

    fn settle(&mut self, _: &Outcome, _: &impl Clock) {}
}

impl Drop for BulkheadPermit {
    fn drop(&mut self) {
        self.ticket.release();
    }
}

/// What [`Bulkhead::acquire_or_queue`] got.
#[derive(Debug)]
pub enum Acquire {
    /// There was room.
    Taken(BulkheadPermit),
    /// There was none yet.
    Queued(Place),
}

/// A place in the queue. Dropping it gives it up, also when it was just granted: the next in line
/// gets it.
#[derive(Debug)]
#[must_use]
pub struct Place {
    ticket: Ticket<State>,
    number: u64,
    done: bool,
}

impl Place {
    /// Ready once this place was granted. Not to be polled again after that.
    pub fn poll_acquire(&mut self, cx: &mut Context<'_>) -> Poll<BulkheadPermit> {
        // Wakers are dropped outside the lock: the last one of a task may drop a future with a
        // place of its own.
        let _replaced = {
            let mut guard = lock(&self.ticket.queue);
            let queue = guard.get_or_insert_default();
            if queue.granted.remove(&self.number) {
                drop(guard);
                self.done = true;
                return Poll::Ready(BulkheadPermit { ticket: self.ticket.again() });
            }
            queue
                .waiting
                .get_mut(&self.number)
                .filter(|known| !known.will_wake(cx.waker()))
                .map(|known| std::mem::replace(known, cx.waker().clone()))
        };
        Poll::Pending
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let (_waker, was_granted) = {
            let mut guard = lock(&self.ticket.queue);
            let queue = guard.get_or_insert_default();
            let waker = queue.waiting.remove(&self.number);
            if waker.is_some() {
                self.ticket.word.fetch_sub(WAITING, Ordering::SeqCst);
            }
            (waker, queue.granted.remove(&self.number))
        };
        if was_granted {
            self.ticket.release();
        }
    }
}

fn in_flight(word: u64) -> u32 {
    word as u32
}

fn waiting(word: u64) -> u32 {
    (word >> 32) as u32
}

fn clamp(limit: usize) -> u32 {
    u32::try_from(limit).unwrap_or(u32::MAX)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn take(bulkhead: &Bulkhead) -> Option<BulkheadPermit> {
        bulkhead.reserve(&crate::testing::start()).ok()
    }

    fn queue(bulkhead: &Bulkhead) -> Place {
        match bulkhead.acquire_or_queue(100) {
            Ok(Acquire::Queued(place)) => place,
            other => panic!("{other:?}"),
        }
    }

    fn poll(place: &mut Place) -> Option<BulkheadPermit> {
        match place.poll_acquire(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(permit) => Some(permit),
            Poll::Pending => None,
        }
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
        drop(second); // granted, and not polled since
        assert!(poll(&mut third).is_some());
        assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (0, 0));
    }

    #[test]
    fn a_full_queue_rejects_and_says_so() {
        let bulkhead = Bulkhead::named("stock", 1);
        let _held = take(&bulkhead).unwrap();
        let _queued = queue(&bulkhead);
        let reason = |max| bulkhead.acquire_or_queue(max).unwrap_err().reason();
        assert_eq!(reason(1), Reason::QueueFull);
        assert_eq!(reason(0), Reason::BulkheadFull);
        assert_eq!(bulkhead.rejected(), 2);
    }

    #[test]
    fn raising_the_limit_serves_the_queue_and_lowering_it_cancels_nothing() {
        let bulkhead = Bulkhead::new(1);
        let first = take(&bulkhead).unwrap();
        let mut queued = queue(&bulkhead);
        bulkhead.set_limit(2);
        let second = poll(&mut queued).expect("room for two now");
        bulkhead.set_limit(1);
        assert_eq!(bulkhead.in_flight(), 2);
        let mut queued = queue(&bulkhead);
        drop(first);
        assert!(poll(&mut queued).is_none(), "one is in flight, and one is the limit");
        drop(second);
        assert!(poll(&mut queued).is_some());
    }

    #[test]
    fn a_compact_bulkhead_takes_at_most_512_bytes() {
        // The rest is for its one ticket, a label, and reference counts.
        assert!(size_of::<State>() <= 256, "{}", size_of::<State>());
    }

    #[test]
    fn a_service_that_waits_for_a_place_is_no_rejection() {
        let (bulkhead, now) = (Bulkhead::new(1), crate::testing::start());
        let held = bulkhead.try_reserve(&now).unwrap();
        assert_eq!(bulkhead.try_reserve(&now).unwrap_err(), Refused { retry_after: None });
        assert_eq!(bulkhead.rejected(), 0);
        drop(held);
        assert!(bulkhead.try_reserve(&now).is_ok());
    }

    #[test]
    fn zero_lets_nothing_through_until_it_is_raised() {
        let bulkhead = Bulkhead::new(0);
        assert!(take(&bulkhead).is_none());
        bulkhead.set_limit(usize::MAX);
        assert!(take(&bulkhead).is_some());
    }

    #[test]
    fn threads_that_keep_spares_never_exceed_the_limit_and_leave_none_taken() {
        use std::sync::atomic::AtomicUsize;
        let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        // Few for each shard, so that spares run out and are taken from other shards all the time.
        let bulkhead = Bulkhead::with_shards(10, None, 4);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut held = Vec::new();
                    for round in 0..4000 {
                        if let Some(permit) = take(&bulkhead) {
                            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            held.push(permit);
                        }
                        if round % 3 == 0 || held.len() > 2 {
                            inside.fetch_sub(held.len(), Ordering::SeqCst);
                            held.clear();
                        }
                    }
                    inside.fetch_sub(held.len(), Ordering::SeqCst);
                });
            }
        });
        assert!(most.into_inner() <= 10);
        assert_eq!(bulkhead.in_flight(), 0);
        let all: Vec<_> = (0..10).map(|_| take(&bulkhead).expect("all places are free")).collect();
        assert!(take(&bulkhead).is_none() && bulkhead.peek(&crate::testing::start()).is_err());
        drop(all);
    }

    #[test]
    fn a_lowered_limit_takes_the_spares_back() {
        let bulkhead = Bulkhead::with_shards(100, None, 4);
        drop((0..100).map(|_| take(&bulkhead).unwrap()).collect::<Vec<_>>());
        assert_eq!(bulkhead.in_flight(), 0);
        bulkhead.set_limit(2);
        let held = (take(&bulkhead), take(&bulkhead));
        assert!(held.0.is_some() && held.1.is_some() && take(&bulkhead).is_none());
        assert_eq!(bulkhead.in_flight(), 2);
    }

    #[test]
    fn a_queued_call_gets_a_place_that_was_kept_as_a_spare() {
        let bulkhead = Bulkhead::with_shards(8, None, 4);
        let mut held: Vec<_> = (0..8).map(|_| take(&bulkhead).unwrap()).collect();
        let mut waits = queue(&bulkhead);
        held.pop();
        assert!(poll(&mut waits).is_some());
        assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (7, 0));
    }

    #[test]
    fn threads_never_exceed_the_limit() {
        use std::sync::atomic::AtomicUsize;
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
    struct Flag(std::sync::atomic::AtomicUsize);

    impl std::task::Wake for Flag {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_release_wakes_the_next_waiter_and_a_raised_limit_as_many_as_there_is_room_for() {
        let bulkhead = Bulkhead::new(1);
        let held = take(&bulkhead).unwrap();
        let waiters = bulkhead.waiters().unwrap();
        let flags = [(); 5].map(|()| std::sync::Arc::new(Flag::default()));
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
        let (waiters, flag) = (bulkhead.waiters().unwrap(), std::sync::Arc::new(Flag::default()));
        waiters.register(waiters.key(), &flag.clone().into());
        let mut queued = queue(&bulkhead);
        drop(held);
        assert_eq!(flag.0.load(Ordering::SeqCst), 0);
        drop(poll(&mut queued).unwrap());
        assert_eq!(flag.0.load(Ordering::SeqCst), 1);
    }

    /// What a bulkhead does, in the plainest way there is.
    #[derive(Debug, Default)]
    struct Model {
        limit: usize,
        in_flight: usize,
        queue: Vec<usize>,
        granted: Vec<usize>,
    }

    impl Model {
        fn take(&mut self) -> bool {
            let room = self.queue.is_empty() && self.in_flight < self.limit;
            self.in_flight += usize::from(room);
            room
        }

        fn release(&mut self) {
            self.in_flight -= 1;
            self.grant();
        }

        fn grant(&mut self) {
            while !self.queue.is_empty() && self.in_flight < self.limit {
                self.in_flight += 1;
                self.granted.push(self.queue.remove(0));
            }
        }

        fn forget(&mut self, id: usize) {
            if self.granted.contains(&id) {
                self.granted.retain(|granted| *granted != id);
                self.release();
            }
            self.queue.retain(|queued| *queued != id);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take,
        Queue(usize),
        Poll(usize),
        GiveUp(usize),
        Finish(usize),
        SetLimit(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Take),
            (0usize..5).prop_map(Step::Queue),
            (0usize..8).prop_map(Step::Poll),
            (0usize..8).prop_map(Step::GiveUp),
            (0usize..8).prop_map(Step::Finish),
            (0usize..5).prop_map(Step::SetLimit),
        ]
    }

    proptest! {
        #[test]
        fn it_does_what_the_model_does(limit in 0usize..4, steps in prop::collection::vec(step(), 1..80)) {
            let bulkhead = Bulkhead::new(limit);
            let mut model = Model { limit, ..Model::default() };
            let (mut permits, mut places, mut next) = (Vec::new(), Vec::<(usize, Place)>::new(), 0);
            for step in steps {
                match step {
                    Step::Take => {
                        let taken = take(&bulkhead);
                        prop_assert_eq!(taken.is_some(), model.take());
                        permits.extend(taken);
                    }
                    Step::Queue(max) => match bulkhead.acquire_or_queue(max) {
                        Ok(Acquire::Taken(permit)) => {
                            prop_assert!(model.take());
                            permits.push(permit);
                        }
                        Ok(Acquire::Queued(place)) => {
                            prop_assert!(!model.take() && model.queue.len() < max);
                            model.queue.push(next);
                            places.push((next, place));
                            next += 1;
                        }
                        Err(rejection) => {
                            prop_assert!(!model.take() && model.queue.len() >= max);
                            prop_assert_eq!(rejection.reason() == Reason::BulkheadFull, max == 0);
                        }
                    },
                    Step::Poll(n) if n < places.len() => {
                        let (id, place) = &mut places[n];
                        let permit = poll(place);
                        prop_assert_eq!(permit.is_some(), model.granted.contains(id));
                        if permit.is_some() {
                            model.granted.retain(|granted| granted != id);
                            permits.extend(permit);
                            drop(places.remove(n));
                        }
                    }
                    Step::GiveUp(n) if n < places.len() => {
                        let (id, place) = places.remove(n);
                        drop(place);
                        model.forget(id);
                    }
                    Step::Finish(n) if n < permits.len() => {
                        drop(permits.remove(n));
                        model.release();
                    }
                    Step::SetLimit(limit) => {
                        bulkhead.set_limit(limit);
                        model.limit = limit;
                        model.grant();
                    }
                    Step::Poll(_) | Step::GiveUp(_) | Step::Finish(_) => {}
                }
                let seen = (bulkhead.limit(), bulkhead.in_flight(), bulkhead.waiting());
                prop_assert_eq!(seen, (model.limit, model.in_flight, model.queue.len()));
            }
            drop((permits, places));
            prop_assert_eq!((bulkhead.in_flight(), bulkhead.waiting()), (0, 0));
        }
    }
}
