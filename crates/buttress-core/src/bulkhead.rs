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
//! A bulkhead with [shares](Bulkhead::reserve) counts its calls by class, in lines of the shards
//! too. The first share moves the spares to where only its slower path finds them, so that other
//! bulkheads do not even ask whether there are shares.
//!
//! While a call waits in the queue, and while more calls are in flight than a lowered limit allows,
//! released places go to the word. At most half of the limit is kept as spares, and none of a limit
//! below 16.
//!
//! A call that searches the shards while others take and release places can miss a place that moves
//! from one shard to another. Near the limit, a call may therefore be rejected although some place
//! was free at every moment. To rule that out, a search would have to read the lines of all shards
//! twice, which would make rejections expensive just when there are many.
//!
//! # The queue
//!
//! A call waits in the order of its class, which is that of its priority in
//! [`CallContext`], and within its class by the [`Discipline`]. A free
//! place goes
//!
//! 1. to the most important class that has fewer calls in flight than its
//!    [share](Bulkhead::reserve),
//! 2. otherwise to the most important class that waits.
//!
//! New calls do not overtake the queue. A newcomer that finds the queue full evicts the call that
//! would be served last, if the class of the newcomer goes first; calls of one class never evict
//! each other, also where the newest is served first. Only as many waiting calls as a class lacks
//! of its share go first by it.
//!
//! Shares count only while the bulkhead is full: below the limit, any class takes any place, and no
//! place is kept free. They are those of the partitions of Netflix's `concurrency-limits`
//! (`AbstractPartitionedLimiter`), with one difference: there, a class below its share is admitted
//! above the limit, and here it waits for the next place that is released. The limit is exact.
//!
//! While more important calls arrive faster than places are released, less important ones get no
//! place; a share is what protects a class from that, also the least important one.

mod acquire;
mod classes;
mod occupancy;
mod overload;
mod permit;
mod place;
mod queue;
mod spares;
mod state;

pub use acquire::Acquire;
pub use overload::{INTERVAL, TARGET};
pub use permit::BulkheadPermit;
pub use place::Place;
pub use queue::Discipline;

use crate::context::CallContext;
use crate::policy::{Idle, Policy, Refused, Reserve};
use crate::shard::{Sharded, shards};
use crate::sync::{Ordering, lock};
use crate::{Class, Clock, Criticality, InvalidConfig, Name, Ratio, Reason, Rejection, Waiters};
use classes::{Classes, class_of};
use queue::Woken;
use spares::Spares;
use state::{State, clamp};
use std::fmt;

/// The bulkhead is full: as many calls are in flight as its limit allows.
pub static FULL: Reason = Reason::new("bulkhead_full", "full", Class::Exhausted);
/// The bulkhead and its queue are full. Also for a call in the queue whose place there a more
/// important call took.
pub static QUEUE_FULL: Reason = Reason::new("queue_full", "full, and so is its queue", Class::Exhausted);
/// The call waited in the queue of the bulkhead for its maximum time.
pub static QUEUE_TIMEOUT: Reason = Reason::new("queue_timeout", "full, no place became free in time", Class::Exhausted);
/// The queue was overloaded, and the call had waited for longer than [`TARGET`]. Only with
/// [`Discipline::Adaptive`].
pub static QUEUE_DELAY: Reason =
    Reason::new("queue_delay", "overloaded, the call waited for too long", Class::Exhausted);
/// No place became free before the deadline of the call.
pub static QUEUE_DEADLINE: Reason =
    Reason::new("queue_deadline", "full, no place became free before the deadline", Class::Deadline);

const POLICY: &str = "bulkhead";

/// Limits calls in flight. A cheap handle; clones share the count.
///
/// A call holds its place to the end of the response's body; dropping the permit releases it. The
/// [module](self) describes the queue.
///
/// ```
/// use buttress_core::{ManualClock, Policy, bulkhead::Bulkhead};
///
/// let bulkhead = Bulkhead::<ManualClock>::new(1);
/// let place = bulkhead.admit("a request").unwrap();
/// assert_eq!(bulkhead.admit("a request").unwrap_err().to_string(), "bulkhead: full");
/// drop(place);
/// assert!(bulkhead.admit("a request").is_ok());
/// ```
#[derive(Clone)]
pub struct Bulkhead<C>(Sharded<State<C>>);

impl<C: Clock + Default> Bulkhead<C> {
    /// Creates a bulkhead that admits up to `limit` calls in flight.
    ///
    /// A limit above `u32::MAX` is `u32::MAX`. A limit of 0 rejects every call until
    /// [`set_limit`](Self::set_limit) raises it.
    ///
    /// ```
    /// use buttress_core::{ManualClock, bulkhead::Bulkhead};
    ///
    /// assert_eq!(Bulkhead::<ManualClock>::new(25).limit(), 25);
    /// ```
    pub fn new(limit: usize) -> Self {
        Self::with_clock(limit, C::default())
    }

    /// Creates a bulkhead with a name, which rejections and metrics contain.
    ///
    /// ```
    /// use buttress_core::{ManualClock, Policy, bulkhead::Bulkhead};
    ///
    /// let rejection = Bulkhead::<ManualClock>::named("stock", 0).admit("a request").unwrap_err();
    /// assert_eq!(rejection.to_string(), "bulkhead `stock`: full");
    /// ```
    pub fn named(name: impl Into<Name>, limit: usize) -> Self {
        Self::with_shards(limit, Some(name.into()), shards(), C::default())
    }

    /// Creates a bulkhead with one shard that keeps up to `spares` places, because the model
    /// checker's threads all belong to one shard.
    #[cfg(loom)]
    pub(crate) fn with_spares(limit: usize, spares: u32) -> Self {
        let bulkhead = Self::with_shards(limit, None, if spares > 0 { 2 } else { 1 }, C::default());
        bulkhead.0.spares.keep_at_most(spares);
        bulkhead
    }
}

impl<C: Clock> Bulkhead<C> {
    /// Creates a bulkhead with a clock, which it reads while a call is in the queue.
    ///
    /// ```
    /// use buttress_core::{Clock, ManualClock, bulkhead::Bulkhead};
    ///
    /// let clock = ManualClock::new();
    /// let bulkhead = Bulkhead::with_clock(10, clock.clone());
    /// assert_eq!(bulkhead.clock().now(), clock.now());
    /// ```
    pub fn with_clock(limit: usize, clock: C) -> Self {
        Self::with_shards(limit, None, shards(), clock)
    }

    fn with_shards(limit: usize, name: Option<Name>, shards: usize, clock: C) -> Self {
        let state = State::new(clamp(limit), name.as_ref(), shards, clock);
        Self(Sharded::new(shards, state))
    }

    /// Returns the clock.
    pub fn clock(&self) -> &C {
        &self.0.clock
    }

    /// Changes the order in which calls of one class leave the queue, also for those in it. All
    /// clones of the handle share it.
    ///
    /// ```
    /// use buttress_core::{ManualClock, bulkhead::{Bulkhead, Discipline}};
    ///
    /// let bulkhead = Bulkhead::<ManualClock>::new(8);
    /// bulkhead.set_discipline(Discipline::Lifo);
    /// assert_eq!(bulkhead.discipline(), Discipline::Lifo);
    /// ```
    pub fn set_discipline(&self, discipline: Discipline) {
        lock(&self.0.queue).get_or_insert_default().set_discipline(discipline);
    }

    /// Guarantees a class a share of the limit while calls queue: a released place goes to a class
    /// that has fewer calls in flight than its share before it goes to any other. The
    /// [module](self) has the rules.
    ///
    /// `share` is between 0 and 1, and 0 takes the share back. The number of places is rounded up.
    /// A share has no effect on calls that are not queued. Once a class has a share, the calls in
    /// flight are counted by class from then on, which takes two more atomic operations a call.
    ///
    /// # Errors
    /// If `share` is not between 0 and 1, or if the shares of all classes add up to more than 1.
    /// Nothing is changed then.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::{Criticality, ManualClock, bulkhead::Bulkhead};
    ///
    /// let bulkhead = Bulkhead::<ManualClock>::new(10);
    /// bulkhead.reserve(Criticality::CriticalPlus, 0.2)?;
    /// bulkhead.reserve(Criticality::Sheddable, 0.1)?;
    /// let error = bulkhead.reserve(Criticality::Critical, 0.8).unwrap_err();
    /// assert_eq!(error.field(), "reserve");
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn reserve(&self, class: Criticality, share: f64) -> Result<(), InvalidConfig> {
        let share = Ratio::new(share).ok_or(InvalidConfig::new("reserve", "must be between 0 and 1"))?;
        let (state, mut woken) = (&*self.0, Woken::default());
        // The lock makes the sum of the shares exact, and keeps the limit as it is.
        let set = {
            let mut queue = lock(&state.queue);
            let classes = state.classes.get_or_init(|| Box::new(Classes::new(state.spares.hand_over())));
            state.recall_spares(&mut queue, &mut woken);
            classes.set_share(class, share)
        };
        woken.wake();
        state.wake_many(state.room());
        set
    }

    /// Changes the limit. Raising it admits calls from the queue at once. Lowering it does not
    /// cancel calls in flight.
    ///
    /// ```
    /// use buttress_core::{ManualClock, Policy, bulkhead::Bulkhead};
    ///
    /// let bulkhead = Bulkhead::<ManualClock>::new(2);
    /// let places = [bulkhead.admit("a request").unwrap(), bulkhead.admit("another").unwrap()];
    /// bulkhead.set_limit(1);
    /// assert_eq!((bulkhead.limit(), bulkhead.in_flight()), (1, 2));
    /// # drop(places);
    /// ```
    pub fn set_limit(&self, limit: usize) {
        let state = &*self.0;
        let mut woken = Woken::default();
        let room = {
            let mut queue = lock(&state.queue);
            let limit = clamp(limit);
            state.limit.store(limit, Ordering::SeqCst);
            // Must come after the limit is stored: a thread that keeps a spare after this drain
            // checks the limit afterwards, and returns the spare if the limit is exceeded.
            state.classes.get().map_or(&state.spares, |classes| &classes.spares).resize(limit);
            state.recall_spares(&mut queue, &mut woken);
            state.room()
        };
        woken.wake();
        state.wake_many(room);
    }

    /// Counts and returns a rejection, for a layer whose call waited in the queue for its maximum
    /// time.
    ///
    /// ```
    /// use buttress_core::{ManualClock, bulkhead::{Bulkhead, QUEUE_TIMEOUT}};
    ///
    /// let bulkhead = Bulkhead::<ManualClock>::named("stock", 8);
    /// let rejection = bulkhead.reject(&QUEUE_TIMEOUT);
    /// assert_eq!((rejection.name(), bulkhead.rejected()), (Some("stock"), 1));
    /// ```
    pub fn reject(&self, reason: &'static Reason) -> Rejection {
        self.0.reject(reason)
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
    /// use buttress_core::{ManualClock, bulkhead::Bulkhead};
    ///
    /// assert!(Bulkhead::<ManualClock>::new(1).peek().is_ok());
    /// assert!(Bulkhead::<ManualClock>::new(0).peek().is_err());
    /// ```
    #[inline]
    pub fn peek(&self) -> Result<(), Refused> {
        let word = self.0.word.load(Ordering::SeqCst);
        let free = self.0.has_room(word) || (self.0.keeps_spares(word) && self.0.find_spare(Spares::any));
        if free { Ok(()) } else { Err(Refused { retry_after: None }) }
    }

    /// Takes a spare of this thread's shard. It fails if there are shares.
    #[inline]
    fn take_spare(&self) -> Option<BulkheadPermit<C>> {
        if self.0.take_spare() { Some(BulkheadPermit { ticket: self.0.ticket() }) } else { None }
    }

    /// Kept out of the path of calls that find a spare, and marked cold for the same reason.
    #[cold]
    #[inline(never)]
    fn admit_late(&self) -> Result<BulkheadPermit<C>, Rejection> {
        self.take_late().ok_or_else(|| self.reject(&FULL))
    }

    /// Not inlined, to keep it out of the path of calls that find a spare.
    #[inline(never)]
    fn take_late(&self) -> Option<BulkheadPermit<C>> {
        self.0.take_late().then(|| self.permit())
    }

    /// Counts the call that is being served, which has a place, in its class, if there are shares.
    fn permit(&self) -> BulkheadPermit<C> {
        let ticket = match self.0.classes.get() {
            None => self.0.ticket(),
            Some(classes) => self.0.ticket_in(classes.enter(class_of(&CallContext::current())) as usize),
        };
        BulkheadPermit { ticket }
    }
}

impl<C: Clock, Req: ?Sized> Policy<Req> for Bulkhead<C> {
    type Permit = BulkheadPermit<C>;

    #[inline]
    fn admit(&self, _: &Req) -> Result<BulkheadPermit<C>, Rejection> {
        if self.0.take_spare() { Ok(BulkheadPermit { ticket: self.0.ticket() }) } else { self.admit_late() }
    }

    #[inline]
    fn peek(&self) -> Result<(), Refused> {
        self.peek()
    }

    fn refuse(&self, _: &Req, _: Refused) -> Rejection {
        self.reject(&FULL)
    }

    fn unready(&self) -> Option<Result<BulkheadPermit<C>, Refused>> {
        Some(self.try_reserve())
    }
}

impl<C: Clock> Reserve for Bulkhead<C> {
    type Permit = BulkheadPermit<C>;

    fn try_reserve(&self) -> Result<BulkheadPermit<C>, Refused> {
        self.take_spare().or_else(|| self.take_late()).ok_or(Refused { retry_after: None })
    }

    fn waiters(&self) -> Option<Waiters> {
        Some(self.0.waiters.get_or_init(Waiters::default).clone())
    }
}

impl<C: Clock> fmt::Debug for Bulkhead<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bulkhead")
            .field("name", &self.name())
            .field("limit", &self.limit())
            .field("in_flight", &self.in_flight())
            .field("waiting", &self.waiting())
            .finish_non_exhaustive()
    }
}

impl<C: Clock> Idle for Bulkhead<C> {
    /// Returns whether no call is in flight and none is in the queue.
    fn is_idle(&self) -> bool {
        self.in_flight() == 0 && self.waiting() == 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
