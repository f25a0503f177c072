//! Shared state whose reference counts are sharded, so that threads do not contend for one cache
//! line.
//!
//! A handle to shared state is cloned for every call, because axum, tonic and retries clone their
//! services, and an admitted call must own the state until it is settled. With one shared [`Arc`],
//! each clone and each call of every thread changes the same reference count. That cache line then
//! limits throughput: two threads can complete fewer calls than one (the row
//! `floor/arc_clone_and_drop` of `cargo xtask bench`). Handles and calls are therefore counted per
//! shard, and a thread uses the counts of its own shard:
//!
//! * A handle is an `Arc` of a *home*, of which each shard has one. A clone made on a thread of the
//!   same shard counts in that home; a clone made on another thread is a handle of that thread's
//!   home. The *origin* is the home that [`Sharded::new`] creates. It belongs to no shard, so that
//!   threads read it and do not write to it, and it owns the other homes.
//! * A call takes the *ticket* of its thread's shard.

mod counter;

pub use counter::Counter;

use std::{
    cell::Cell,
    fmt,
    ops::Deref,
    sync::{Arc, OnceLock, Weak},
};

/// A handle to shared state with sharded reference counts. Clones share the state.
pub struct Sharded<T>(Handle<T>);

enum Handle<T> {
    /// The handle of a state with a single shard.
    One(Arc<Shared<T>>),
    Many(Arc<Home<T>>),
}

struct Shared<T> {
    value: Arc<T>,
    tickets: Arc<[Arc<Slot<T>>]>,
}

/// The data that handles of one shard share. On cache lines of its own: its reference count is
/// written by the threads of its shard.
#[repr(align(128))]
struct Home<T> {
    shared: Shared<T>,
    /// The index of its shard; [`ORIGIN`] for an origin.
    shard: usize,
    /// The home that owns this one; empty for an origin. Once all handles of the origin are
    /// dropped, this home is an origin itself.
    origin: Weak<Self>,
    /// The homes of the shards, owned by the origin. They refer to it weakly, so that dropping the
    /// last handle frees all of them.
    homes: OnceLock<Homes<T>>,
}

/// The shard index of an origin.
const ORIGIN: usize = usize::MAX;

type Homes<T> = Box<[OnceLock<Arc<Home<T>>>]>;

/// A ticket's data. The alignment puts the counts of its `Arc`, which every call writes, on a cache
/// line of their own, and the data on the next one. Padding without alignment does not suffice: the
/// counts of the first slot then share a line with the end of whatever was allocated before it,
/// which is often the state itself, and that is read by every call of every thread.
#[repr(align(64))]
struct Slot<T> {
    value: Arc<T>,
    shard: usize,
    /// See [`Ticket::lane`].
    lane: Option<usize>,
    /// Made when the first ticket of a lane is taken.
    lanes: OnceLock<Lanes<T>>,
}

/// Number of lanes of a shard.
const LANES: usize = 4;

type Lanes<T> = Box<[Arc<Slot<T>>; LANES]>;

impl<T> Sharded<T> {
    /// Creates a handle to `value` with `shards` shards, rounded up to a power of two. See
    /// [`shards`] for the number.
    pub fn new(shards: usize, value: T) -> Self {
        let value = Arc::new(value);
        let tickets: Arc<[_]> =
            (0..shards.next_power_of_two()).map(|shard| Arc::new(Slot::new(value.clone(), shard, None))).collect();
        let is_one = tickets.len() == 1;
        let shared = Shared { value, tickets };
        Self(if is_one { Handle::One(Arc::new(shared)) } else { Handle::Many(Home::new(shared, ORIGIN, Weak::new())) })
    }

    /// Takes a ticket of the current thread's shard.
    #[inline]
    pub fn ticket(&self) -> Ticket<T> {
        let tickets = &self.shared().tickets;
        Ticket(tickets[shard_of_thread(tickets)].clone())
    }

    /// Takes a ticket of the current thread's shard, in a lane below 4.
    #[inline]
    pub fn ticket_in(&self, lane: usize) -> Ticket<T> {
        let tickets = &self.shared().tickets;
        tickets[shard_of_thread(tickets)].in_lane(lane)
    }

    /// Returns how many tickets are held outside of lanes: a sum over the shards, exact while none
    /// is taken or dropped.
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

impl<T> Slot<T> {
    fn new(value: Arc<T>, shard: usize, lane: Option<usize>) -> Self {
        Self { value, shard, lane, lanes: OnceLock::new() }
    }

    /// Takes a ticket of a lane of a slot that is in no lane itself.
    #[inline]
    fn in_lane(&self, lane: usize) -> Ticket<T> {
        let new = |lane| Arc::new(Self::new(self.value.clone(), self.shard, Some(lane)));
        let lanes = self.lanes.get_or_init(|| Box::new(std::array::from_fn(new)));
        Ticket(lanes[lane % LANES].clone())
    }
}

/// Returns the shard of the current thread. The length of `tickets` is a power of two.
#[inline]
fn shard_of_thread<T>(tickets: &[T]) -> usize {
    thread_index() & (tickets.len() - 1)
}

impl<T> Home<T> {
    fn new(shared: Shared<T>, shard: usize, origin: Weak<Self>) -> Arc<Self> {
        Arc::new(Self { shared, shard, origin, homes: OnceLock::new() })
    }

    /// Returns the home of another shard.
    #[inline(never)]
    fn of_shard(self: &Arc<Self>, shard: usize) -> Arc<Self> {
        // Only the origin owns homes. Otherwise a shard would get a home for each path of clones.
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

/// A guard that owns the state, counted in the cache line of its shard.
pub struct Ticket<T>(Arc<Slot<T>>);

impl<T> Ticket<T> {
    /// Returns the shard that this ticket was taken from. It does not change if the call moves to
    /// another thread.
    pub fn shard(&self) -> usize {
        self.0.shard
    }

    /// Returns the lane that this ticket was taken in. A lane is a mark that costs the ticket no
    /// space: what is carried with each call makes it slower to move.
    #[inline]
    pub fn lane(&self) -> Option<usize> {
        self.0.lane
    }

    /// Takes another ticket of the same shard, in a lane below 4. This ticket must be in none.
    pub fn again_in(&self, lane: usize) -> Self {
        self.0.in_lane(lane)
    }

    /// Takes another ticket of the same shard.
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
    /// The number of shards of policies that the current thread creates; 0 for the default.
    static FORCED: Cell<usize> = const { Cell::new(0) };
}

/// Runs `make`, in which every new policy has a single shard.
///
/// For policies of which there are many, such as those of a keyed policy: they take less memory,
/// and threads that call the same one contend for its cache line.
pub fn compact<T>(make: impl FnOnce() -> T) -> T {
    with_shards(1, make)
}

/// Runs `make`, in which every new policy has `count` shards, rounded up to a power of two, between
/// 1 and 64.
///
/// The number of shards depends on the number of cores. This shows on a small machine what a policy
/// costs on a large one.
pub fn with_shards<T>(count: usize, make: impl FnOnce() -> T) -> T {
    struct Restore(usize);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    let _restore = Restore(FORCED.replace(count.clamp(1, MAX_SHARDS).next_power_of_two()));
    make()
}

/// Bit sets of shards have 64 bits.
const MAX_SHARDS: usize = 64;

/// Returns the number of shards for a new policy: the one set by [`with_shards`] or [`compact`],
/// otherwise four per core, rounded up to a power of two, between 4 and 64.
///
/// With one shard per core, threads would often share one by chance.
pub fn shards() -> usize {
    if cfg!(loom) {
        return 1;
    }
    if FORCED.get() != 0 {
        return FORCED.get();
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores * 4).next_power_of_two().clamp(4, MAX_SHARDS)
}

/// Returns a small number for the current thread. Threads that call this for the first time one
/// after the other get consecutive numbers, and so different shards.
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
            Handle::One(_) => panic!("a single shard has no home"),
        }
    }

    /// Clones of a handle, each made on a thread of its own.
    fn elsewhere(sharded: &Sharded<Arc<()>>, threads: usize) -> Vec<Sharded<Arc<()>>> {
        let clone = |_| {
            let sharded = sharded.clone();
            std::thread::spawn(move || {
                let moved = Sharded::clone(&sharded);
                assert_eq!(home(&moved).shard, thread_index() & 3, "a clone uses the home of its thread's shard");
                drop(sharded);
                moved
            })
        };
        (0..threads).map(|n| clone(n).join().unwrap()).collect()
    }

    #[test]
    fn a_ticket_of_a_lane_tells_its_lane_and_its_shard() {
        let sharded = Sharded::new(4, "value");
        let (plain, laned) = (sharded.ticket(), sharded.ticket_in(2));
        assert_eq!((plain.lane(), laned.lane(), plain.again_in(3).lane()), (None, Some(2), Some(3)));
        assert_eq!((*laned, laned.shard()), ("value", plain.shard()));
        assert_eq!(laned.again().lane(), Some(2));
        assert_eq!((size_of::<Slot<u8>>(), align_of::<Slot<u8>>()), (64, 64), "128 bytes with the counts of its `Arc`");
    }

    #[test]
    fn each_shard_has_one_home_and_the_last_handle_frees_all() {
        let value = Arc::new(());
        let sharded = Sharded::new(4, value.clone());
        let handles = elsewhere(&sharded, 8);
        let again: Vec<_> = handles.iter().flat_map(|handle| elsewhere(handle, 4)).collect();
        for handle in handles.iter().chain(&again) {
            // Other tests draw thread numbers too, so the first eight need not cover all shards.
            let mut all = handles.iter().chain([&sharded]).chain(&again);
            let known = all.find(|known| home(known).shard == home(handle).shard).expect("handle itself");
            assert!(Arc::ptr_eq(home(known), home(handle)), "a second home of shard {}", home(handle).shard);
        }
        assert!(
            handles.iter().any(|handle| home(handle).shard != home(&handles[0]).shard),
            "eight threads should use several shards"
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
    fn threads_that_start_one_after_the_other_use_different_shards() {
        let sharded = Sharded::new(4, ());
        let thread = || {
            let sharded = sharded.clone();
            let drawn = move || (thread_index(), sharded.ticket().shard());
            let thread = std::thread::spawn(move || {
                let first = drawn();
                assert_eq!(first, drawn(), "a thread keeps its number");
                first
            });
            thread.join().unwrap()
        };
        // Other tests draw numbers too, so not every pair of threads gets consecutive ones.
        let pair = (0..1000).map(|_| (thread(), thread())).find(|((a, _), (b, _))| *b == a + 1);
        let ((_, a), (_, b)) = pair.expect("no two threads got consecutive numbers");
        assert_eq!(b, (a + 1) % 4);
    }

    #[test]
    fn policies_that_are_made_compact_have_one_shard_and_others_keep_theirs() {
        let usual = shards();
        assert_eq!(compact(|| (shards(), compact(shards), shards())), (1, 1, 1));
        let panicked = std::panic::catch_unwind(|| compact(|| panic!("while making a policy")));
        assert!(panicked.is_err());
        assert_eq!(shards(), usual);
    }

    #[test]
    fn a_forced_number_of_shards_is_rounded_and_bounded() {
        let forced = [0, 1, 3, 16, 64, 1000].map(|count| with_shards(count, shards));
        assert_eq!(forced, [1, 1, 4, 16, 64, 64]);
        assert_eq!(with_shards(16, || (compact(shards), shards())), (1, 16));
    }
}
