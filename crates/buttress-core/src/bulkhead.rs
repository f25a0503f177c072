//! A limit on calls in flight, with an optional bounded queue.
//!
//! A call in flight holds a *place*. A call without a place is rejected, or waits in the queue.
//!
//! # Algorithm
//!
//! One atomic word contains the exact numbers of calls in flight and in the queue. Threads that
//! take and release places would contend for it, so a thread keeps a place that it has released as
//! a *spare* of its shard and takes it from there again, without touching the word. A spare counts
//! as taken in the word, so calls in flight never exceed the limit. A call that finds the word full
//! takes a spare of any shard, and is rejected or queued only if there is none.
//!
//! While a call waits in the queue, and while more calls are in flight than a lowered limit allows,
//! released places go to the word. At most half of the limit is kept as spares. A limit below twice
//! the number of shards keeps none.
//!
//! A call that searches the shards while others take and release places can miss a place that moves
//! from one shard to another. Near the limit, a call may therefore be rejected although some place
//! was free at every moment.

mod place;
mod queue;
mod spares;
mod state;

pub use place::{Acquire, Place};

use crate::policy::{Idle, Permit, Policy, Refused, Reserve};
use crate::report::{Metric, Report, Sink};
use crate::shard::{Sharded, Ticket, shards};
use crate::sync::{Ordering, lock};
use crate::{Class, Name, Outcome, Reason, Rejection, Waiters};
use spares::Spares;
use state::{State, WAITING, clamp, in_flight, waiting};
use std::task::Waker;

/// The bulkhead is full: as many calls are in flight as its limit allows.
pub static FULL: Reason = Reason::new("bulkhead_full", "full", Class::Exhausted);
/// The bulkhead and its queue are full.
pub static QUEUE_FULL: Reason = Reason::new("queue_full", "full, and so is its queue", Class::Exhausted);
/// The call waited in the queue of the bulkhead for its maximum time.
pub static QUEUE_TIMEOUT: Reason = Reason::new("queue_timeout", "full, no place became free in time", Class::Exhausted);

const POLICY: &str = "bulkhead";

/// Limits calls in flight. A cheap handle; clones share the count.
///
/// A call holds its place to the end of the response's body; dropping the permit releases it. The
/// queue is first in, first out, and new calls do not overtake it.
///
/// ```
/// use buttress_core::{Policy, bulkhead::Bulkhead};
///
/// let bulkhead = Bulkhead::new(1);
/// let place = bulkhead.admit("a request").unwrap();
/// assert_eq!(bulkhead.admit("a request").unwrap_err().to_string(), "bulkhead: full");
/// drop(place);
/// assert!(bulkhead.admit("a request").is_ok());
/// ```
#[derive(Clone, Debug)]
pub struct Bulkhead(Sharded<State>);

impl Bulkhead {
    /// Creates a bulkhead that admits up to `limit` calls in flight.
    ///
    /// A limit above `u32::MAX` is `u32::MAX`. A limit of 0 rejects every call until
    /// [`set_limit`](Self::set_limit) raises it.
    ///
    /// ```
    /// use buttress_core::bulkhead::Bulkhead;
    ///
    /// assert_eq!(Bulkhead::new(25).limit(), 25);
    /// ```
    pub fn new(limit: usize) -> Self {
        Self::with_name(limit, None)
    }

    /// Creates a bulkhead with a name, which rejections and metrics contain.
    ///
    /// ```
    /// use buttress_core::{Policy, bulkhead::Bulkhead};
    ///
    /// let rejection = Bulkhead::named("stock", 0).admit("a request").unwrap_err();
    /// assert_eq!(rejection.to_string(), "bulkhead `stock`: full");
    /// ```
    pub fn named(name: impl Into<Name>, limit: usize) -> Self {
        Self::with_name(limit, Some(name.into()))
    }

    fn with_name(limit: usize, name: Option<Name>) -> Self {
        Self::with_shards(limit, name, shards())
    }

    fn with_shards(limit: usize, name: Option<Name>, shards: usize) -> Self {
        let state = State::new(clamp(limit), name.as_ref(), shards);
        Self(Sharded::new(shards, state))
    }

    /// Creates a bulkhead with one shard that keeps up to `spares` places, because the model
    /// checker's threads all belong to one shard.
    #[cfg(loom)]
    pub(crate) fn with_spares(limit: usize, spares: u32) -> Self {
        let bulkhead = Self::with_shards(limit, None, if spares > 0 { 2 } else { 1 });
        bulkhead.0.spares.keep_at_most(spares);
        bulkhead
    }

    /// Returns the name, if it has one.
    ///
    /// ```
    /// # use buttress_core::bulkhead::Bulkhead;
    /// assert_eq!(Bulkhead::named("stock", 8).name(), Some("stock"));
    /// ```
    pub fn name(&self) -> Option<&str> {
        self.0.labels.name().map(|name| &**name)
    }

    /// Returns the number of calls in flight. It exceeds [`limit`](Self::limit) only after the
    /// limit was lowered.
    ///
    /// ```
    /// use buttress_core::{Policy, bulkhead::Bulkhead};
    ///
    /// let bulkhead = Bulkhead::new(8);
    /// let _place = bulkhead.admit("a request").unwrap();
    /// assert_eq!(bulkhead.in_flight(), 1);
    /// ```
    pub fn in_flight(&self) -> usize {
        // Count the spares first. A spare that is returned to the word between the two reads would
        // otherwise be counted as a call in flight.
        let spares = self.0.spares.count();
        in_flight(self.0.word.load(Ordering::SeqCst)).saturating_sub(spares) as usize
    }

    /// Returns the number of calls in the queue.
    ///
    /// ```
    /// # use buttress_core::bulkhead::Bulkhead;
    /// assert_eq!(Bulkhead::new(8).waiting(), 0);
    /// ```
    pub fn waiting(&self) -> usize {
        waiting(self.0.word.load(Ordering::Acquire)) as usize
    }

    /// Returns how many calls may be in flight.
    ///
    /// ```
    /// # use buttress_core::bulkhead::Bulkhead;
    /// assert_eq!(Bulkhead::new(8).limit(), 8);
    /// ```
    pub fn limit(&self) -> usize {
        self.0.limit.load(Ordering::Acquire) as usize
    }

    /// Returns the number of calls rejected since the bulkhead was created.
    ///
    /// ```
    /// use buttress_core::{Policy, bulkhead::Bulkhead};
    ///
    /// let bulkhead = Bulkhead::new(0);
    /// let _ = bulkhead.admit("a request");
    /// assert_eq!(bulkhead.rejected(), 1);
    /// ```
    pub fn rejected(&self) -> u64 {
        self.0.rejected.sum()
    }

    /// Changes the limit. Raising it admits calls from the queue at once. Lowering it does not
    /// cancel calls in flight.
    ///
    /// ```
    /// use buttress_core::{Policy, bulkhead::Bulkhead};
    ///
    /// let bulkhead = Bulkhead::new(2);
    /// let places = [bulkhead.admit("a request").unwrap(), bulkhead.admit("another").unwrap()];
    /// bulkhead.set_limit(1);
    /// assert_eq!((bulkhead.limit(), bulkhead.in_flight()), (1, 2));
    /// # drop(places);
    /// ```
    pub fn set_limit(&self, limit: usize) {
        let state = &*self.0;
        let (served, room) = {
            let mut queue = lock(&state.queue);
            let limit = clamp(limit);
            state.limit.store(limit, Ordering::SeqCst);
            // Must come after the limit is stored: a thread that keeps a spare after this drain
            // checks the limit afterwards, and returns the spare if the limit is exceeded.
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
    /// [`QUEUE_FULL`] if `max_queue` calls are in the queue; [`FULL`] if `max_queue` is 0 and no
    /// place is free.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::{Policy, bulkhead::{Acquire, Bulkhead, QUEUE_FULL}};
    ///
    /// let bulkhead = Bulkhead::new(1);
    /// let place = bulkhead.admit("a request").unwrap();
    /// let queued = bulkhead.acquire_or_queue(1).unwrap();
    /// assert!(matches!(queued, Acquire::Queued(_)));
    /// assert_eq!(bulkhead.acquire_or_queue(1).unwrap_err().reason(), &QUEUE_FULL);
    /// # drop((place, queued));
    /// ```
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
                return Err(self.reject(if max_queue == 0 { &FULL } else { &QUEUE_FULL }));
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
            // A thread that released a place without seeing this call has kept a spare, which the
            // drain below finds.
            crate::sync::fence(Ordering::SeqCst);
            let spares = state.spares.drain();
            state.word.fetch_sub(spares.into(), Ordering::SeqCst);
            let served: Vec<Waker> = std::iter::from_fn(|| state.serve_next(&mut queue)).collect();
            let room = state.room();
            drop(queue);
            served.into_iter().for_each(Waker::wake);
            // A service that tried while this call was alone in the queue found no place. If this
            // call was served and places are left, no release wakes that service.
            state.wake_many(room);
            return Ok(Acquire::Queued(Place { ticket: self.0.ticket(), number, done: false }));
        }
    }

    /// Counts and returns a rejection, for a layer whose call waited in the queue for its maximum
    /// time.
    ///
    /// ```
    /// use buttress_core::bulkhead::{Bulkhead, QUEUE_TIMEOUT};
    ///
    /// let bulkhead = Bulkhead::named("stock", 8);
    /// let rejection = bulkhead.reject(&QUEUE_TIMEOUT);
    /// assert_eq!((rejection.name(), bulkhead.rejected()), (Some("stock"), 1));
    /// ```
    pub fn reject(&self, reason: &'static Reason) -> Rejection {
        self.0.rejected.add(1);
        self.0.labels.reject(reason)
    }

    /// Checks whether every call would be refused now. Changes nothing, and guarantees nothing
    /// about the next call.
    ///
    /// # Errors
    /// If every call would be refused.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::bulkhead::Bulkhead;
    ///
    /// assert!(Bulkhead::new(1).peek().is_ok());
    /// assert!(Bulkhead::new(0).peek().is_err());
    /// ```
    #[inline]
    pub fn peek(&self) -> Result<(), Refused> {
        let word = self.0.word.load(Ordering::SeqCst);
        let free = self.0.has_room(word) || (self.0.keeps_spares(word) && self.0.find_spare(Spares::any));
        if free { Ok(()) } else { Err(Refused { retry_after: None }) }
    }

    #[inline]
    fn permit(&self) -> BulkheadPermit {
        BulkheadPermit { ticket: self.0.ticket() }
    }
}

impl<Req: ?Sized> Policy<Req> for Bulkhead {
    type Permit = BulkheadPermit;

    #[inline]
    fn admit(&self, _: &Req) -> Result<BulkheadPermit, Rejection> {
        if self.0.try_take() { Ok(self.permit()) } else { Err(self.reject(&FULL)) }
    }

    #[inline]
    fn peek(&self) -> Result<(), Refused> {
        self.peek()
    }

    fn refuse(&self, _: &Req, _: Refused) -> Rejection {
        self.reject(&FULL)
    }
}

impl Reserve for Bulkhead {
    type Permit = BulkheadPermit;

    fn try_reserve(&self) -> Result<BulkheadPermit, Refused> {
        if self.0.try_take() { Ok(self.permit()) } else { Err(Refused { retry_after: None }) }
    }

    fn waiters(&self) -> Option<Waiters> {
        Some(self.0.waiters.get_or_init(Waiters::default).clone())
    }
}

impl Idle for Bulkhead {
    /// Returns whether no call is in flight and none is in the queue.
    fn is_idle(&self) -> bool {
        self.in_flight() == 0 && self.waiting() == 0
    }
}

const IN_FLIGHT: Metric = Metric::gauge("resilience.bulkhead.in_flight", "calls", "Calls that hold a permit");
const IN_QUEUE: Metric = Metric::gauge("resilience.bulkhead.waiting", "calls", "Calls in the queue");
const LIMIT: Metric = Metric::gauge("resilience.bulkhead.limit", "calls", "Calls that may be in flight");
const REJECTED: Metric = Metric::counter("resilience.bulkhead.rejected", "calls", "Calls that the bulkhead rejected");

impl Report for Bulkhead {
    fn metrics() -> Vec<Metric> {
        vec![IN_FLIGHT, IN_QUEUE, LIMIT, REJECTED]
    }

    fn name(&self) -> Option<&str> {
        self.name()
    }

    fn report(&self, sink: &mut dyn Sink) {
        sink.gauge(&IN_FLIGHT, self.in_flight() as f64);
        sink.gauge(&IN_QUEUE, self.waiting() as f64);
        sink.gauge(&LIMIT, self.limit() as f64);
        sink.counter(&REJECTED, self.rejected());
    }
}

/// A place in a bulkhead, held by a call in flight. Dropping it releases the place.
///
/// ```
/// use buttress_core::{Policy, bulkhead::{Bulkhead, BulkheadPermit}};
///
/// let bulkhead = Bulkhead::new(1);
/// let permit: BulkheadPermit = bulkhead.admit("a request").unwrap();
/// drop(permit);
/// assert_eq!(bulkhead.in_flight(), 0);
/// ```
#[derive(Debug)]
#[must_use]
pub struct BulkheadPermit {
    ticket: Ticket<State>,
}

impl Permit for BulkheadPermit {
    const HOLDS_UNTIL_BODY_END: bool = true;
    const LEARNS: bool = false;

    fn settle(&mut self, _: &Outcome) {}
}

impl Drop for BulkheadPermit {
    fn drop(&mut self) {
        self.ticket.release();
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
