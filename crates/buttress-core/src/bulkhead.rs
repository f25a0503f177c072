//! A bound on calls in flight, with an optional queue that is bounded too.

use crate::rejection::Labels;
use crate::shard::{Counter, Sharded, Ticket, shards};
use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering, lock};
use crate::{Admit, Clock, Name, Outcome, Permit, Policy, Reason, Refused, Rejection, Waiters};
use std::{
    collections::{BTreeMap, BTreeSet},
    task::{Context, Poll, Waker},
};

const POLICY: &str = "bulkhead";
/// The state word is `waiting << 32 | in_flight`, so that "is there room, and does nobody wait" is one comparison.
const WAITING: u64 = 1 << 32;

/// A bulkhead: at most `limit` calls in flight. A cheap handle; clones share the count.
///
/// A place is held to the end of the response's stream and freed whatever happens to the call. Those who queue are
/// served in order, and nobody overtakes them.
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
    name: Option<Name>,
    labels: Labels,
    queue: Mutex<Queue>,
    waiters: Waiters,
    rejected: Counter,
}

/// Those who stand in line, by number, and those who were called but have not noticed yet: their place is taken already.
#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: BTreeMap<u64, Waker>,
    called: BTreeSet<u64>,
}

impl Bulkhead {
    /// At most `limit` calls in flight, up to `u32::MAX`. 0 lets nothing through, until [`set_limit`](Self::set_limit).
    pub fn new(limit: usize) -> Self {
        Self::with_name(limit, None)
    }

    /// The same, with a name that rejections and metrics carry.
    pub fn named(name: impl Into<Name>, limit: usize) -> Self {
        Self::with_name(limit, Some(name.into()))
    }

    fn with_name(limit: usize, name: Option<Name>) -> Self {
        let state = State {
            word: AtomicU64::new(0),
            limit: AtomicU32::new(clamp(limit)),
            labels: Labels::new(POLICY, name.as_ref(), shards()),
            name,
            queue: Mutex::default(),
            waiters: Waiters::default(),
            rejected: Counter::default(),
        };
        Self(Sharded::new(shards(), state))
    }

    /// The name, if it has one.
    pub fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }

    /// Calls in flight now. More than [`limit`](Self::limit) only after the limit was lowered.
    pub fn in_flight(&self) -> usize {
        in_flight(self.0.word.load(Ordering::Acquire)) as usize
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
        let woken = {
            let mut queue = lock(&state.queue);
            state.limit.store(clamp(limit), Ordering::SeqCst);
            state.serve(&mut queue)
        };
        woken.into_iter().for_each(Waker::wake);
        state.waiters.wake();
    }

    /// Takes a place, or stands in line for one.
    ///
    /// # Errors
    /// [`Reason::QueueFull`] when `max_queue` calls stand in line already; [`Reason::BulkheadFull`] when `max_queue` is 0.
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
            let number = queue.next;
            queue.next += 1;
            queue.waiting.insert(number, Waker::noop().clone());
            return Ok(Acquire::Queued(Place { ticket: self.0.ticket(), number, done: false }));
        }
    }

    /// The rejection of a call that gave up its place in the queue after `max_wait`.
    pub fn reject(&self, reason: Reason) -> Rejection {
        self.0.rejected.add(1);
        self.0.labels.reject(reason)
    }

    fn permit(&self) -> BulkheadPermit {
        BulkheadPermit { ticket: self.0.ticket() }
    }
}

impl Policy for Bulkhead {
    type Permit = BulkheadPermit;

    fn reserve(&self, _: &impl Clock) -> Result<BulkheadPermit, Rejection> {
        if self.0.try_take() { Ok(self.permit()) } else { Err(self.reject(Reason::BulkheadFull)) }
    }

    fn peek(&self, _: &impl Clock) -> Result<(), Refused> {
        if self.0.has_room(self.0.word.load(Ordering::SeqCst)) { Ok(()) } else { Err(Refused { retry_after: None }) }
    }

    fn waiters(&self) -> Option<&Waiters> {
        Some(&self.0.waiters)
    }
}

impl<Req: ?Sized> Admit<Req> for Bulkhead {}

impl State {
    fn has_room(&self, word: u64) -> bool {
        waiting(word) == 0 && in_flight(word) < self.limit.load(Ordering::Acquire)
    }

    fn try_take(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        while self.has_room(word) {
            match self.word.compare_exchange_weak(word, word + 1, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    fn release(&self) {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if waiting(word) == 0 || in_flight(word) > self.limit.load(Ordering::SeqCst) {
                match self.word.compare_exchange_weak(word, word - 1, Ordering::SeqCst, Ordering::Relaxed) {
                    Ok(_) => return self.waiters.wake(),
                    Err(now) => word = now,
                }
            } else if let Some(waker) = self.hand_over() {
                return waker.wake();
            } else {
                word = self.word.load(Ordering::Relaxed);
            }
        }
    }

    /// Gives the releaser's place to the first in line: the count of calls in flight stays as it is.
    fn hand_over(&self) -> Option<Waker> {
        let mut queue = lock(&self.queue);
        if in_flight(self.word.load(Ordering::SeqCst)) > self.limit.load(Ordering::SeqCst) {
            return None;
        }
        let (number, waker) = queue.waiting.pop_first()?;
        queue.called.insert(number);
        self.word.fetch_sub(WAITING, Ordering::SeqCst);
        Some(waker)
    }

    /// Calls in as many as there is room for, after the limit was raised.
    fn serve(&self, queue: &mut Queue) -> Vec<Waker> {
        let mut woken = Vec::new();
        while !queue.waiting.is_empty() {
            let word = self.word.load(Ordering::SeqCst);
            if in_flight(word) >= self.limit.load(Ordering::SeqCst) {
                break;
            }
            if self.word.compare_exchange(word, word + 1 - WAITING, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                let Some((number, waker)) = queue.waiting.pop_first() else { break };
                queue.called.insert(number);
                woken.push(waker);
            }
        }
        woken
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

/// A place in the queue. Dropped, it is given up, also when it had just been called.
#[derive(Debug)]
#[must_use]
pub struct Place {
    ticket: Ticket<State>,
    number: u64,
    done: bool,
}

impl Place {
    /// Ready once this place's turn has come. Poll it only until then.
    pub fn poll_acquire(&mut self, cx: &mut Context<'_>) -> Poll<BulkheadPermit> {
        let mut queue = lock(&self.ticket.queue);
        if queue.called.remove(&self.number) {
            self.done = true;
            drop(queue);
            return Poll::Ready(BulkheadPermit { ticket: self.ticket.again() });
        }
        if let Some(waker) = queue.waiting.get_mut(&self.number) {
            waker.clone_from(cx.waker());
        }
        Poll::Pending
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let was_called = {
            let mut queue = lock(&self.ticket.queue);
            if queue.waiting.remove(&self.number).is_some() {
                self.ticket.word.fetch_sub(WAITING, Ordering::SeqCst);
            }
            queue.called.remove(&self.number)
        };
        if was_called {
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
    fn the_queue_is_served_in_order_and_nobody_overtakes() {
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
    fn a_place_dropped_in_the_queue_or_just_after_its_call_is_passed_on() {
        let bulkhead = Bulkhead::new(1);
        let held = take(&bulkhead).unwrap();
        let (first, second, mut third) = (queue(&bulkhead), queue(&bulkhead), queue(&bulkhead));
        drop(first);
        assert_eq!(bulkhead.waiting(), 2);
        drop(held);
        drop(second); // it had been called, and had not noticed
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
    fn zero_lets_nothing_through_until_it_is_raised() {
        let bulkhead = Bulkhead::new(0);
        assert!(take(&bulkhead).is_none());
        bulkhead.set_limit(usize::MAX);
        assert!(take(&bulkhead).is_some());
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
}
