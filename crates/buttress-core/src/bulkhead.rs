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

mod queue;
mod spares;
mod state;

pub use queue::{Acquire, Place};

use crate::policy::{Idle, Permit, Policy, Refused, Reserve};
use crate::report::{Metric, Report, Sink};
use crate::shard::{Sharded, Ticket, shards};
use crate::sync::{Ordering, lock};
use crate::{Class, Name, Outcome, Reason, Rejection, Waiters};
use spares::Spares;
use state::{State, WAITING, clamp, in_flight, waiting};
use std::task::Waker;

/// As many calls as allowed are in flight.
pub static FULL: Reason = Reason::new("bulkhead_full", "full", Class::Exhausted);
/// The bulkhead is full, and so is its queue.
pub static QUEUE_FULL: Reason = Reason::new("queue_full", "full, and so is its queue", Class::Exhausted);
/// The call waited in the queue of a bulkhead for as long as it may.
pub static QUEUE_TIMEOUT: Reason = Reason::new("queue_timeout", "full, no place became free in time", Class::Exhausted);

const POLICY: &str = "bulkhead";

/// A bulkhead: at most `limit` calls in flight. A cheap handle; clones share the count.
///
/// A place is held to the end of the response's stream and freed whatever happens to the call. The
/// queue is served in order, and new calls do not overtake it.
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
        let state = State::new(clamp(limit), name.as_ref(), shards);
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
    /// [`QUEUE_FULL`] when `max_queue` calls are in the queue; [`FULL`] when
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
    pub fn reject(&self, reason: &'static Reason) -> Rejection {
        self.0.rejected.add(1);
        self.0.labels.reject(reason)
    }

    /// Returns whether every call would be refused now. Takes nothing, counts nothing and promises
    /// nothing.
    ///
    /// # Errors
    /// When every call would be refused.
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
    /// No call is in flight, and none in the queue.
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

/// A place in a bulkhead, held by a call in flight. Given back on drop.
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
