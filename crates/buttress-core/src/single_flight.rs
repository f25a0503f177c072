//! Single flight: concurrent calls with an equal key share one call.
//!
//! The first caller of a key makes the call; those that come while it is under way *join* it, and
//! all get its result. Nothing is kept afterwards: the next caller makes a new call.
//!
//! # The algorithm
//!
//! The shared call is a future that belongs to no caller. Each caller has a [`Participant`], and
//! polls the future through it: the one that is polled first after the future was woken does the
//! work, and the others find it done or find it locked. No task is spawned, and no work is lost
//! when the first caller leaves. When the last one leaves, the future is dropped.
//!
//! * **Wake-ups.** A wake-up of the future wakes every participant. One of them would be enough if
//!   a task that was woken always polled again, but a caller may hold a future without polling it,
//!   and the others must not wait for it.
//! * **A lock that is taken.** A participant that finds the future locked sets a mark before. The
//!   one that polled looks at the mark after it has let go of the lock, and wakes all again: the
//!   wake-up of the first could have come too late for the poll that was under way.
//! * **Results.** A future ends with [`Landed::Shared`] for all, or with [`Landed::Own`] for the
//!   caller that has made the call alone, such as a stream. The others then make calls of their
//!   own.
//! * **Panics.** A panic unwinds through the caller whose poll ran into it. The others are told.
//! * **Priorities.** A call that is more important than the one under way does not join it: that
//!   one may be rejected where this one would not. It makes a call, which later callers join.
//!
//! ```
//! use buttress_core::context::CallContext;
//! use buttress_core::single_flight::{Arrival, Entered, Flights, Landed};
//! use std::task::{Context, Poll, Waker};
//!
//! let flights = Flights::new();
//! let enter = || flights.enter::<_, &str, ()>("key", CallContext::default(), 100);
//! let Entered::First(mut first) = enter() else { panic!() };
//! let Entered::Joined(mut second) = enter() else { panic!() };
//!
//! first.start(async { Landed::Shared("result") });
//! let mut cx = Context::from_waker(Waker::noop());
//! assert_eq!(second.poll(&mut cx), Poll::Ready(Arrival::Shared("result")));
//! assert_eq!(first.poll(&mut cx), Poll::Ready(Arrival::Shared("result")));
//! ```

mod flight;
#[cfg(all(test, loom))]
mod loom_models;
#[cfg(all(test, not(loom)))]
mod tests;

pub use flight::{Arrival, Landed, Participant};

use crate::{
    context::CallContext,
    shard::{Sharded, Ticket, shards},
    sync::{Mutex, lock},
};
use flight::{Flight, Join};
use std::{
    any::{Any, TypeId},
    collections::{HashMap, hash_map::RandomState},
    fmt,
    hash::{BuildHasher, BuildHasherDefault, Hash, Hasher},
    sync::Arc,
};

/// The calls under way, by key. A cheap handle; clones share the calls.
///
/// Calls of different types of keys and results do not meet, also if their keys are equal.
#[derive(Clone)]
pub struct Flights(Sharded<Table>);

/// The result of [`Flights::enter`].
#[derive(Debug)]
#[must_use]
pub enum Entered<K: Send + Sync + 'static, T: Send + 'static, O: Send + 'static> {
    /// No call with this key was under way: the caller has to [start](Participant::start) it.
    First(Participant<K, T, O>),
    /// The caller joined a call.
    Joined(Participant<K, T, O>),
    /// As many callers wait for the call as may.
    Full,
    /// The caller has to make a call that is not shared: another key has the same hash.
    Alone,
}

/// The map of the calls under way, in shards so that threads seldom wait for a lock.
///
/// It is keyed by hashes and not by keys, so that a key is hashed once, and a joining call neither
/// clones nor allocates. Hashes are secret (SipHash): keys come from outside.
pub(super) struct Table {
    hasher: RandomState,
    shards: Box<[Shard]>,
}

/// On cache lines of its own: each call writes to its lock.
#[derive(Default)]
#[repr(align(128))]
struct Shard(Mutex<HashMap<u64, Arc<dyn Any + Send + Sync>, BuildHasherDefault<Hashed>>>);

/// Returns the `u64` that it gets: the keys of the map are hashes.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a u64 is written by `write_u64`");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl Flights {
    /// Creates a table without calls.
    pub fn new() -> Self {
        let shards = shards();
        let table = Table {
            hasher: RandomState::new(),
            shards: (0..shards.next_power_of_two()).map(|_| Shard::default()).collect(),
        };
        Self(Sharded::new(shards, table))
    }

    /// Joins the call with this key, or begins one.
    ///
    /// `context` is that of the caller; the call under way must be at least as important. At most
    /// `max_waiters` callers join one call.
    pub fn enter<K, T, O>(&self, key: K, context: CallContext, max_waiters: usize) -> Entered<K, T, O>
    where
        K: Eq + Hash + Send + Sync + 'static,
        T: Clone + Send + 'static,
        O: Send + 'static,
    {
        let table = self.0.ticket();
        let hash = table.hasher.hash_one((&key, TypeId::of::<Flight<K, T, O>>()));
        let mut map = lock(&table.shard_of(hash).0);
        if let Some(known) = map.get(&hash) {
            // The key first: a clone of another key's call would be dropped under the lock.
            let same = known.downcast_ref::<Flight<K, T, O>>().is_some_and(|flight| flight.has(&key));
            let Some(flight) = same.then(|| known.clone().downcast::<Flight<K, T, O>>().ok()).flatten() else {
                return Entered::Alone;
            };
            match flight.join(context.priority.unwrap_or_default(), max_waiters) {
                Join::Joined => return Entered::Joined(Participant::joined(flight)),
                Join::Full => return Entered::Full,
                // It has ended, or is less important.
                Join::Passed => {}
            }
        }
        let flight = Arc::new(Flight::new(key, hash, context, self.0.ticket()));
        let replaced = map.insert(hash, flight.clone());
        // A result is dropped outside of the lock.
        drop(map);
        drop(replaced);
        Entered::First(Participant::first(flight))
    }

    /// Returns the number of keys with a call under way.
    ///
    /// ```
    /// use buttress_core::single_flight::Flights;
    ///
    /// assert_eq!(Flights::new().len(), 0);
    /// ```
    pub fn len(&self) -> usize {
        self.0.ticket().shards.iter().map(|shard| lock(&shard.0).len()).sum()
    }

    /// Returns whether no call is under way.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Default for Flights {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").field("len", &self.len()).finish()
    }
}

impl Table {
    fn shard_of(&self, hash: u64) -> &Shard {
        // The upper bits: the map uses the lower ones and the uppermost seven.
        &self.shards[(hash >> 32) as usize & (self.shards.len() - 1)]
    }

    /// Removes a call, unless another one with its hash has taken its place.
    fn remove<T>(&self, hash: u64, flight: &Arc<T>) {
        let mut map = lock(&self.shard_of(hash).0);
        if map.get(&hash).is_some_and(|known| std::ptr::addr_eq(Arc::as_ptr(known), Arc::as_ptr(flight))) {
            let removed = map.remove(&hash);
            drop(map);
            drop(removed);
        }
    }
}

/// What a call holds of the table.
type Home = Ticket<Table>;
