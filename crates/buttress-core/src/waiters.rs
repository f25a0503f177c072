use crate::sync::{AtomicUsize, Mutex, Ordering, lock};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    task::Waker,
};

/// A list of tasks that wait until a policy may admit again, in the order of their arrival. A cheap
/// handle; clones share the list.
///
/// # Waiters
///
/// A waiter takes a [`key`](Self::key) once, [registers](Self::register) its waker each time it has
/// to wait, and then tries the policy once more: a permit that becomes free after that try wakes
/// the next waiter. When it stops waiting, it calls [`served`](Self::served) if it got a permit,
/// and [`deregister`](Self::deregister) if not.
///
/// # Policies
///
/// A policy that frees permits one at a time calls [`wake_one`](Self::wake_one) for each, which
/// wakes one waiter, however many wait. A policy whose answer changes for all callers,
/// such as a circuit that opens or closes, calls [`wake`](Self::wake). While no task waits, waking
/// is a single load.
///
/// A waiter that `wake_one` has woken owns that wake-up until it registers again, or calls `served`
/// or `deregister`. `deregister` passes the wake-up on to the next waiter. A waiter that is neither
/// polled nor dropped after its wake-up, such as an idle service kept by a balancer, does not pass
/// it on. A layer must therefore also try again after a time limit.
///
/// # Example
///
/// ```
/// use buttress_core::{ManualClock, Policy, Reserve, bulkhead::Bulkhead};
/// use std::task::Waker;
///
/// let bulkhead = Bulkhead::<ManualClock>::new(1);
/// let permit = bulkhead.admit("a request").unwrap();
///
/// let waiters = bulkhead.waiters().unwrap();
/// let key = waiters.key();
/// waiters.register(key, Waker::noop());
/// assert!(bulkhead.try_reserve().is_err());
///
/// drop(permit); // wakes the waiter
/// let permit = bulkhead.try_reserve().unwrap();
/// waiters.served(key);
/// # drop(permit);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Waiters(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Number of registered waiters.
    count: AtomicUsize,
    line: Mutex<Line>,
    /// The lists in which this one registers its waiters, if it is of two policies. It has none of
    /// its own then.
    both: Option<[Waiters; 2]>,
}

/// The registered waiters in the order of their keys, which is the order of their arrival.
#[derive(Debug, Default)]
struct Line {
    waiting: BTreeMap<u64, Waker>,
    /// Waiters that `wake_one` has woken and that have not been polled since.
    woken: BTreeSet<u64>,
}

impl Waiters {
    /// Returns a list whose waiters are woken by either of two policies, when its answer changes.
    ///
    /// Only for lists whose waiters are all woken together: a waiter that one policy has woken for
    /// its permit would keep it from the next waiter while it waits for the other policy.
    pub(crate) fn of_both(first: Self, second: Self) -> Self {
        Self(Arc::new(Shared { both: Some([first, second]), ..Shared::default() }))
    }

    /// Returns a new key for one waiting service. The key is its place in line. It is the same in
    /// all lists, because a waiter may be in several.
    pub fn key(&self) -> u64 {
        // Drawn once for each wait, which takes a lock anyway. Not one of the model checker's,
        // which cannot be static.
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }

    /// Registers the waker of the waiting service `key`, or replaces it.
    pub fn register(&self, key: u64, waker: &Waker) {
        if let Some(both) = &self.0.both {
            return both.iter().for_each(|list| list.register(key, waker));
        }
        // Drop wakers outside the lock: the last waker of a task may drop a future that calls
        // `deregister`, which would deadlock.
        let _replaced = {
            let mut line = lock(&self.0.line);
            line.woken.remove(&key);
            let known = line.waiting.get(&key).is_some_and(|known| known.will_wake(waker));
            let replaced = if known { None } else { line.waiting.insert(key, waker.clone()) };
            self.0.count.store(line.waiting.len(), Ordering::SeqCst);
            replaced
        };
        // Pairs with the fence in `wake_many`: either the releaser sees this waiter, or the
        // waiter's next try sees the release.
        crate::sync::fence(Ordering::SeqCst);
    }

    /// Removes the waiting service `key`, which no longer wants a permit. If it had been woken,
    /// wakes the next one.
    pub fn deregister(&self, key: u64) {
        if let Some(both) = &self.0.both {
            return both.iter().for_each(|list| list.deregister(key));
        }
        if self.remove(key) {
            self.wake_one();
        }
    }

    /// Removes the waiting service `key`, which has got its permit.
    pub fn served(&self, key: u64) {
        if let Some(both) = &self.0.both {
            return both.iter().for_each(|list| list.served(key));
        }
        self.remove(key);
    }

    /// Removes a waiter and returns whether it had been woken.
    fn remove(&self, key: u64) -> bool {
        let (_waker, was_woken) = {
            let mut line = lock(&self.0.line);
            let waker = line.waiting.remove(&key);
            self.0.count.store(line.waiting.len(), Ordering::SeqCst);
            (waker, line.woken.remove(&key))
        };
        was_woken
    }

    /// Wakes all waiters, because the answer of the policy has changed for every caller.
    pub fn wake(&self) {
        crate::sync::fence(Ordering::SeqCst);
        if self.0.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let woken = {
            let mut line = lock(&self.0.line);
            self.0.count.store(0, Ordering::SeqCst);
            std::mem::take(&mut line.waiting)
        };
        woken.into_values().for_each(Waker::wake);
    }

    /// Returns whether any task waits. The caller must have issued the fence of
    /// [`wake_many`](Self::wake_many).
    pub(crate) fn any(&self) -> bool {
        self.0.count.load(Ordering::SeqCst) != 0
    }

    /// Wakes the next waiter, because one permit became free.
    pub fn wake_one(&self) {
        self.wake_many(1);
    }

    /// Wakes the next `places` waiters.
    pub fn wake_many(&self, places: usize) {
        crate::sync::fence(Ordering::SeqCst);
        for _ in 0..places {
            if self.0.count.load(Ordering::SeqCst) == 0 {
                return;
            }
            let next = {
                let mut line = lock(&self.0.line);
                let next = line.waiting.pop_first();
                self.0.count.store(line.waiting.len(), Ordering::SeqCst);
                next.map(|(key, waker)| (line.woken.insert(key), waker))
            };
            if let Some((_, waker)) = next {
                waker.wake();
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize as Count;
    use std::task::Wake;

    #[derive(Default)]
    struct Flag(Count);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    struct Waiter(u64, Arc<Flag>);

    impl Waiter {
        fn new(waiters: &Waiters) -> Self {
            let waiter = Self(waiters.key(), Arc::default());
            waiter.register(waiters);
            waiter
        }

        fn register(&self, waiters: &Waiters) {
            waiters.register(self.0, &self.1.clone().into());
        }

        fn wakes(&self) -> usize {
            self.1.0.load(Ordering::SeqCst)
        }
    }

    fn wakes<const N: usize>(waiting: &[Waiter; N]) -> [usize; N] {
        std::array::from_fn(|n| waiting[n].wakes())
    }

    #[test]
    fn one_place_wakes_the_next_in_line_and_a_change_of_state_wakes_all() {
        let waiters = Waiters::default();
        let line = [(); 4].map(|()| Waiter::new(&waiters));
        waiters.wake_one();
        assert_eq!(wakes(&line), [1, 0, 0, 0]);
        waiters.wake_many(2);
        assert_eq!(wakes(&line), [1, 1, 1, 0]);
        line[1].register(&waiters);
        waiters.wake();
        assert_eq!(wakes(&line), [1, 2, 1, 1]);
        waiters.wake();
        assert_eq!(wakes(&line), [1, 2, 1, 1], "none is registered any more");
    }

    #[test]
    fn a_waiter_that_lost_its_place_to_another_caller_keeps_its_place_in_line() {
        let waiters = Waiters::default();
        let line = [(); 3].map(|()| Waiter::new(&waiters));
        waiters.wake_one();
        line[0].register(&waiters);
        waiters.wake_one();
        assert_eq!(wakes(&line), [2, 0, 0]);
    }

    #[test]
    fn a_woken_waiter_that_gives_up_passes_the_wake_up_on() {
        let waiters = Waiters::default();
        let line = [(); 3].map(|()| Waiter::new(&waiters));
        waiters.wake_one();
        waiters.deregister(line[0].0);
        assert_eq!(wakes(&line), [1, 1, 0]);
        waiters.served(line[1].0);
        assert_eq!(wakes(&line), [1, 1, 0], "the place is taken");
        waiters.deregister(line[2].0);
        waiters.wake();
        assert_eq!(wakes(&line), [1, 1, 0]);
    }

    #[test]
    fn waiters_that_are_gone_leave_nothing_behind() {
        let waiters = Waiters::default();
        let left = || {
            let line = lock(&waiters.0.line);
            (waiters.0.count.load(Ordering::SeqCst), line.waiting.len(), line.woken.len(), waiters.any())
        };
        for leave in [Waiters::deregister, Waiters::served] {
            for woken in 0..=2 {
                let line = [(); 2].map(|()| Waiter::new(&waiters));
                assert_eq!(left(), (2, 2, 0, true));
                waiters.wake_many(woken);
                line.iter().for_each(|waiter| leave(&waiters, waiter.0));
                assert_eq!(left(), (0, 0, 0, false), "{woken} were woken");
            }
        }
        let _all = [(); 3].map(|()| Waiter::new(&waiters));
        waiters.wake();
        assert_eq!(left(), (0, 0, 0, false));
    }

    #[test]
    fn a_waiter_in_two_lists_is_woken_by_either_and_leaves_both() {
        let lists = [(); 3].map(|()| Waiters::default());
        let both = Waiters::of_both(lists[0].clone(), Waiters::of_both(lists[1].clone(), lists[2].clone()));
        let other = Waiter::new(&lists[2]);
        let waiter = Waiter::new(&both);
        for (woken, list) in lists.iter().enumerate() {
            list.wake();
            assert_eq!(waiter.wakes(), woken + 1);
            waiter.register(&both);
        }
        assert_eq!(other.wakes(), 1);
        for leave in [Waiters::deregister, Waiters::served] {
            waiter.register(&both);
            assert!(lists.iter().all(Waiters::any));
            leave(&both, waiter.0);
            assert!(!lists.iter().any(Waiters::any));
        }
    }

    #[test]
    fn a_waiter_that_is_woken_holds_no_waker() {
        let waiters = Waiters::default();
        let line = [(); 3].map(|()| Waiter::new(&waiters));
        let held = || line.each_ref().map(|waiter| Arc::strong_count(&waiter.1) - 1);
        line[0].register(&waiters);
        assert_eq!(held(), [1, 1, 1], "a waker that is registered again replaces itself");
        waiters.wake_one();
        assert_eq!(held(), [0, 1, 1]);
        waiters.served(line[1].0);
        assert_eq!(held(), [0, 0, 1]);
        waiters.wake();
        assert_eq!(held(), [0, 0, 0]);
    }

    #[test]
    fn the_last_waker_of_a_task_may_deregister_when_it_is_dropped() {
        struct OnDrop(Waiters);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                self.0.deregister(7);
            }
        }
        impl Wake for OnDrop {
            fn wake(self: Arc<Self>) {}
        }
        let waiters = Waiters::default();
        let waker = || Arc::new(OnDrop(waiters.clone())).into();
        waiters.register(0, &waker());
        waiters.register(0, &waker());
        waiters.deregister(0);
        waiters.register(1, &waker());
        waiters.wake_one();
    }
}
