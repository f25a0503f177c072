//! Shared state that threads reach without meeting on one cache line.
//!
//! A handle to shared state is cloned for every call, because services are (axum, retry and tonic
//! do it), and an admitted call has to own the state until it settles. With one shared [`Arc`],
//! every clone and every call of every thread increments and decrements the same reference count,
//! and that line is all there is to scaling: two threads get 0.4 times the work of one done. So
//! both are counted per shard, and a thread uses the counts of the shard it belongs to:
//!
//! * a handle is an `Arc` of a *home*. Each shard has one. Cloned on a thread of its shard, a
//!   handle counts there; cloned on another, it becomes a handle of that thread's home. The home
//!   that a value was put into is the origin. It is no shard's, so that threads read it and do not
//!   write to it, and it keeps the others;
//! * a call takes the *ticket* of its thread's shard.

mod counter;

pub use counter::Counter;

use std::{
    cell::Cell,
    fmt,
    ops::Deref,
    sync::{Arc, OnceLock, Weak},
};

/// State behind one home and one ticket per shard. Clones share it.
pub struct Sharded<T>(Handle<T>);

enum Handle<T> {
    /// A single shard, which has one home.
    One(Arc<Shared<T>>),
    Many(Arc<Home<T>>),
}

struct Shared<T> {
    value: Arc<T>,
    tickets: Arc<[Arc<Slot<T>>]>,
}

/// What handles of one shard share, on lines of its own: what threads write here, others read.
#[repr(align(128))]
struct Home<T> {
    shared: Shared<T>,
    /// [`ORIGIN`] where it is no shard's.
    shard: usize,
    /// The home that keeps this one; none for an origin. Without it, because all its handles are
    /// gone, this home is an origin itself.
    origin: Weak<Self>,
    /// The homes of other shards, for an origin. They do not keep it, so that the last handle frees
    /// all.
    homes: OnceLock<Homes<T>>,
}

/// In place of the shard of an origin.
const ORIGIN: usize = usize::MAX;

type Homes<T> = Box<[OnceLock<Arc<Home<T>>>]>;

/// As large as two lines of 64 bytes, with the counts of the `Arc` around it: adjacent-line
/// prefetch makes neighbours of them. The size keeps two counts apart as well as an alignment does,
/// at half of the memory.
struct Slot<T> {
    value: Arc<T>,
    shard: usize,
    _apart: [u64; 12],
}

impl<T> Sharded<T> {
    /// Puts `value` behind `shards` tickets, or the next power of two of them; see [`shards`].
    pub fn new(shards: usize, value: T) -> Self {
        let value = Arc::new(value);
        let tickets: Arc<[_]> = (0..shards.next_power_of_two())
            .map(|shard| Arc::new(Slot { value: value.clone(), shard, _apart: [0; 12] }))
            .collect();
        let is_one = tickets.len() == 1;
        let shared = Shared { value, tickets };
        Self(if is_one { Handle::One(Arc::new(shared)) } else { Handle::Many(Home::new(shared, ORIGIN, Weak::new())) })
    }

    /// The ticket of the current thread's shard.
    #[inline]
    pub fn ticket(&self) -> Ticket<T> {
        let tickets = &self.shared().tickets;
        Ticket(tickets[shard_of_thread(tickets)].clone())
    }

    /// How many tickets are out: a sum over the shards, exact while none is taken or returned.
    pub fn tickets_out(&self) -> usize {
        self.shared().tickets.iter().map(|ticket| Arc::strong_count(ticket) - 1).sum()
    }

    #[inline]
    fn shared(&self) -> &Shared<T> {
        match &self.0 {
            Handle::One(shared) => shared,
            Handle::Many(home) => &home.shared,
        }
    }
}

/// The shard of the current thread. There is a power of two of them.
#[inline]
fn shard_of_thread<T>(tickets: &[T]) -> usize {
    thread_index() & (tickets.len() - 1)
}

impl<T> Home<T> {
    fn new(shared: Shared<T>, shard: usize, origin: Weak<Self>) -> Arc<Self> {
        Arc::new(Self { shared, shard, origin, homes: OnceLock::new() })
    }

    /// The home of another shard.
    #[inline(never)]
    fn of_shard(self: &Arc<Self>, shard: usize) -> Arc<Self> {
        // A home asks its origin, so that each shard has one home and no line of descendants.
        let origin = self.origin.upgrade();
        let origin = origin.as_ref().unwrap_or(self);
        if shard == origin.shard {
            return origin.clone();
        }
        let homes = origin.homes.get_or_init(|| self.shared.tickets.iter().map(|_| OnceLock::new()).collect());
        homes[shard].get_or_init(|| Self::new(self.shared.clone(), shard, Arc::downgrade(origin))).clone()
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), tickets: self.tickets.clone() }
    }
}

impl<T> Clone for Sharded<T> {
    #[inline]
    fn clone(&self) -> Self {
        Self(match &self.0 {
            Handle::One(shared) => Handle::One(shared.clone()),
            Handle::Many(home) => {
                let shard = shard_of_thread(&home.shared.tickets);
                Handle::Many(if shard == home.shard { home.clone() } else { home.of_shard(shard) })
            }
        })
    }
}

impl<T> Deref for Sharded<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.shared().value
    }
}

impl<T: fmt::Debug> fmt::Debug for Sharded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Owns the state behind it, counted on its shard's own cache line.
pub struct Ticket<T>(Arc<Slot<T>>);

impl<T> Ticket<T> {
    /// The shard this ticket was taken from. It stays the same when the call moves to another
    /// thread.
    pub fn shard(&self) -> usize {
        self.0.shard
    }

    /// Another ticket of the same shard.
    pub fn again(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for Ticket<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T: fmt::Debug> fmt::Debug for Ticket<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ticket").field(&self.0.shard).finish()
    }
}

thread_local! {
    /// Whether policies that the current thread makes are compact.
    static COMPACT: Cell<bool> = const { Cell::new(false) };
}

/// Runs `make`, in which every new policy gets a single shard: for policies of which there are
/// many, such as those of a keyed policy. They take less memory, and threads that share one of them
/// meet on a cache line.
pub fn compact<T>(make: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            COMPACT.set(self.0);
        }
    }
    let _restore = Restore(COMPACT.replace(true));
    make()
}

/// How many shards to make: four for each core, so that few threads share one, as a power of two
/// between 4 and 64; one inside [`compact`].
pub fn shards() -> usize {
    if cfg!(loom) || COMPACT.get() {
        return 1;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores * 4).next_power_of_two().clamp(4, 64)
}

/// A small number for the current thread. Threads that start one after the other get neighbouring
/// numbers, hence different shards.
#[inline]
pub fn thread_index() -> usize {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    const UNSET: usize = usize::MAX;
    thread_local! { static INDEX: Cell<usize> = const { Cell::new(UNSET) } }
    #[cold]
    #[inline(never)]
    fn draw() -> usize {
        let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % UNSET;
        INDEX.set(next);
        next
    }
    match INDEX.get() {
        UNSET => draw(),
        known => known,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn home<T>(sharded: &Sharded<T>) -> &Arc<Home<T>> {
        match &sharded.0 {
            Handle::Many(home) => home,
            Handle::One(_) => panic!("it has one shard"),
        }
    }

    /// Clones of a handle, each made on a thread of its own.
    fn elsewhere(sharded: &Sharded<Arc<()>>, threads: usize) -> Vec<Sharded<Arc<()>>> {
        let clone = |_| {
            let sharded = sharded.clone();
            std::thread::spawn(move || {
                let moved = Sharded::clone(&sharded);
                assert_eq!(home(&moved).shard, thread_index() & 3, "it is at home on this thread's shard");
                drop(sharded);
                moved
            })
        };
        (0..threads).map(|n| clone(n).join().unwrap()).collect()
    }

    #[test]
    fn each_shard_has_one_home_and_the_last_handle_frees_all() {
        let value = Arc::new(());
        let sharded = Sharded::new(4, value.clone());
        let handles = elsewhere(&sharded, 8);
        let again: Vec<_> = handles.iter().flat_map(|handle| elsewhere(handle, 4)).collect();
        for handle in handles.iter().chain(&again) {
            // Other tests draw numbers too, so that not every shard is among the first eight.
            let mut all = handles.iter().chain([&sharded]).chain(&again);
            let known = all.find(|known| home(known).shard == home(handle).shard).expect("itself at the least");
            assert!(Arc::ptr_eq(home(known), home(handle)), "a second home of shard {}", home(handle).shard);
        }
        assert!(
            handles.iter().any(|handle| home(handle).shard != home(&handles[0]).shard),
            "eight threads use several shards"
        );
        drop((sharded, handles, again));
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn a_handle_whose_origin_is_gone_goes_on() {
        let value = Arc::new(());
        let sharded = Sharded::new(4, value.clone());
        let handles = elsewhere(&sharded, 8);
        drop(sharded);
        let again: Vec<_> = handles.iter().flat_map(|handle| elsewhere(handle, 4)).collect();
        assert!(again.iter().all(|handle| Arc::ptr_eq(handle, &value)));
        drop((handles, again));
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn a_ticket_outlives_every_handle() {
        let sharded = Sharded::new(4, String::from("state"));
        let ticket = sharded.ticket();
        drop(sharded);
        assert_eq!(&**ticket, "state");
    }

    #[test]
    fn threads_that_start_together_use_different_shards() {
        let sharded = Sharded::new(shards(), ());
        let shard = |sharded: &Sharded<()>| {
            let sharded = sharded.clone();
            std::thread::spawn(move || sharded.ticket().shard())
        };
        let (a, b) = (shard(&sharded), shard(&sharded));
        // Other tests' threads draw numbers too, so only the usual case can be asserted: two draws
        // of a run of at most `shards()`.
        let (a, b) = (a.join().unwrap(), b.join().unwrap());
        assert!(a < shards() && b < shards());
    }

    #[test]
    fn policies_that_are_made_compact_have_one_shard_and_others_keep_theirs() {
        let usual = shards();
        assert_eq!(compact(|| (shards(), compact(shards), shards())), (1, 1, 1));
        let panicked = std::panic::catch_unwind(|| compact(|| panic!("while making a policy")));
        assert!(panicked.is_err());
        assert_eq!(shards(), usual);
    }
}
