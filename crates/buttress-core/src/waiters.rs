use crate::sync::{AtomicU64, AtomicUsize, Mutex, Ordering, lock};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    task::Waker,
};

/// Tasks that wait until a policy may admit again, in the order in which they came. A cheap handle;
/// clones share the list.
///
/// A waiter takes a [`key`](Self::key) once, [registers](Self::register) it whenever it has to
/// wait, and then asks the policy once more: what becomes free after that question wakes it. When
/// it is done it calls [`served`](Self::served) if it got its permit, and
/// [`deregister`](Self::deregister) if it gave up. While no task waits, waking is a single load.
///
/// A policy whose places become free one by one calls [`wake_one`](Self::wake_one) for each: a
/// release with 4,000 waiters is as cheap as with one. A policy whose answer changes for all
/// callers, such as a circuit that opens or closes, calls [`wake`](Self::wake).
///
/// A waiter that was woken by `wake_one` owns that wake-up until it registers again or calls one of
/// the other two. If it gives up, the next in line is woken in its stead. A waiter that is neither
/// polled nor dropped after its wake-up, for example an idle service that a balancer keeps, holds
/// it up: only time can reveal that, so a layer also asks again after a while.
#[derive(Clone, Debug, Default)]
pub struct Waiters(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Number of registered waiters.
    count: AtomicUsize,
    line: Mutex<Line>,
    next: AtomicU64,
}

/// In the order of their keys, which is the order in which they came.
#[derive(Debug, Default)]
struct Line {
    waiting: BTreeMap<u64, Waker>,
    /// Woken by `wake_one`, and not polled since.
    woken: BTreeSet<u64>,
}

impl Waiters {
    /// A key for one waiting service, and its place in line.
    pub fn key(&self) -> u64 {
        self.0.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Registers the task of the waiting service `key`, or replaces its waker.
    pub fn register(&self, key: u64, waker: &Waker) {
        // Wakers are dropped outside the lock: the last one of a task may drop a future that
        // deregisters.
        let _replaced = {
            let mut line = lock(&self.0.line);
            line.woken.remove(&key);
            let known = line.waiting.get(&key).is_some_and(|known| known.will_wake(waker));
            let replaced = if known { None } else { line.waiting.insert(key, waker.clone()) };
            self.0.count.store(line.waiting.len(), Ordering::SeqCst);
            replaced
        };
        // Pairs with the fence in `wake_many`: either the releaser sees this waiter, or the
        // waiter's next question sees the release.
        crate::sync::fence(Ordering::SeqCst);
    }

    /// Takes the waiting service `key` off the list, because it gave up. If it had been woken, the
    /// next in line is woken.
    pub fn deregister(&self, key: u64) {
        if self.remove(key) {
            self.wake_one();
        }
    }

    /// Takes the waiting service `key` off the list, because it got its permit.
    pub fn served(&self, key: u64) {
        self.remove(key);
    }

    /// Whether it had been woken.
    fn remove(&self, key: u64) -> bool {
        let (_waker, was_woken) = {
            let mut line = lock(&self.0.line);
            let waker = line.waiting.remove(&key);
            self.0.count.store(line.waiting.len(), Ordering::SeqCst);
            (waker, line.woken.remove(&key))
        };
        was_woken
    }

    /// Wakes all: the answer of the policy has changed for every caller.
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

    /// Whether any waits, for a caller that has made the fence of [`wake_many`](Self::wake_many)
    /// itself.
    pub(crate) fn any(&self) -> bool {
        self.0.count.load(Ordering::SeqCst) != 0
    }

    /// Wakes the next in line: one place became free.
    pub fn wake_one(&self) {
        self.wake_many(1);
    }

    /// Wakes the next `places` in line.
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
