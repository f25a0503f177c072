//! Admission: may this call start, and what did it teach us.

use crate::sync::{AtomicUsize, Mutex, Ordering, lock};
use crate::{Clock, Outcome, Reason, Rejection};
use std::{
    collections::{BTreeMap, BTreeSet},
    task::Waker,
    time::Duration,
};

/// A protective policy: a cheap handle to shared state that hands out [`Permit`]s.
///
/// The state lives behind the handle, never in a Tower service: axum makes services anew for every connection.
pub trait Policy {
    /// What an admitted call owns while it is in flight.
    type Permit: Permit;

    /// Whether a permit can be taken without knowing the request. Only then can a layer exert backpressure.
    const RESERVES: bool = true;

    /// Takes a permit without knowing the request.
    fn reserve(&self, clock: &impl Clock) -> Result<Self::Permit, Rejection>;

    /// The same for a service that waits for its turn: where there is no permit, no call was
    /// rejected, so that nothing is counted and no listener hears of it.
    fn try_reserve(&self, clock: &impl Clock) -> Result<Self::Permit, Refused> {
        self.reserve(clock).map_err(|rejection| Refused { retry_after: rejection.retry_after() })
    }

    /// The rejection of a call that [`peek`](Self::peek) said would be refused. By default the
    /// policy is asked again.
    fn refuse(&self, _refused: Refused, clock: &impl Clock) -> Rejection {
        match self.reserve(clock) {
            Err(rejection) => rejection,
            // It admits again, and dropping the permit gives it back: the call was not prepared for
            // that.
            Ok(_permit) => Rejection::new("policy", Reason::NotReady),
        }
    }

    /// Whether a permit that was [reserved](Self::try_reserve) is still good for a call. One of a
    /// circuit that has opened since is not.
    fn holds(&self, _permit: &Self::Permit, _clock: &impl Clock) -> bool {
        true
    }

    /// Whether a call would be refused now. Takes nothing, counts nothing, promises nothing; `poll_ready` asks it.
    fn peek(&self, clock: &impl Clock) -> Result<(), Refused>;

    /// Who waits for a permit. A policy without a list is asked again when [`Refused::retry_after`] has passed.
    fn waiters(&self) -> Option<&Waiters> {
        None
    }

    /// Who is woken when the policy begins to refuse. Those that wait for a permit, by default: a
    /// policy whose answer changes for all callers [wakes](Waiters::wake) them all. One that wakes
    /// them [one by one](Waiters::wake_one) must have none, or a wake-up would go to one that takes
    /// no permit.
    fn watchers(&self) -> Option<&Waiters> {
        self.waiters()
    }
}

/// What [`Policy::peek`] saw: a call would be refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refused {
    /// When it is worth asking again; `None` where only a wake-up can tell.
    pub retry_after: Option<Duration>,
}

/// A [`Policy`] that decides about requests of type `Req`. Most do not look at the request: for them, the two provided methods do.
pub trait Admit<Req: ?Sized>: Policy {
    /// Decides whether a call may start.
    #[inline(always)]
    fn admit(&self, _request: &Req, clock: &impl Clock) -> Result<Self::Permit, Rejection> {
        self.reserve(clock)
    }

    /// Decides again, now that the request is known, about a permit that was reserved in `poll_ready`.
    fn confirm(&self, permit: Self::Permit, _request: &Req, _clock: &impl Clock) -> Result<Self::Permit, Rejection> {
        Ok(permit)
    }
}

/// Owned by a call while it is in flight, up to the end of its response's stream.
///
/// Settled once; dropped unsettled, the call was cancelled, and whatever it held is given back. It is settled in place,
/// because moving it costs more than settling it.
#[must_use = "a permit that is dropped at once lets the next call in"]
pub trait Permit: Send + 'static {
    /// Whether the permit stands for a place that is taken until the response's stream has ended, also when the outcome is known before.
    const HELD_TO_END: bool = false;

    /// Whether the policy looks at the outcomes of calls. Where it does not, an observer need not
    /// find out.
    const LEARNS: bool = true;

    /// Tells the policy what became of the call.
    ///
    /// Called once at the most, after which the permit is only dropped.
    fn settle(&mut self, outcome: &Outcome, clock: &impl Clock);

    /// Reports a sign of life of an unsettled call: a part of its response arrived. Does nothing by
    /// default.
    ///
    /// A circuit breaker renews a probe's lease by it, and takes the time of a call to the head of
    /// its response.
    fn progress(&mut self, _progress: Progress, _clock: &impl Clock) {}
}

/// The part of a response that arrived.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Progress {
    /// The head of the response, which says that all is well so far.
    Head,
    /// A frame of the response's body.
    Frame,
}

/// A permit that nobody has to give back.
impl Permit for () {
    const LEARNS: bool = false;

    fn settle(&mut self, _: &Outcome, _: &impl Clock) {}
}

/// Tasks that wait until a policy may admit again, first come first woken.
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
#[derive(Debug, Default)]
pub struct Waiters {
    /// How many are registered.
    count: AtomicUsize,
    line: Mutex<Line>,
    next: crate::sync::AtomicU64,
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
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Registers the task of the waiting service `key`, or replaces its waker.
    pub fn register(&self, key: u64, waker: &Waker) {
        // Wakers are dropped outside the lock: the last one of a task may drop a future that
        // deregisters.
        let _replaced = {
            let mut line = lock(&self.line);
            line.woken.remove(&key);
            let known = line.waiting.get(&key).is_some_and(|known| known.will_wake(waker));
            let replaced = if known { None } else { line.waiting.insert(key, waker.clone()) };
            self.count.store(line.waiting.len(), Ordering::SeqCst);
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
            let mut line = lock(&self.line);
            let waker = line.waiting.remove(&key);
            self.count.store(line.waiting.len(), Ordering::SeqCst);
            (waker, line.woken.remove(&key))
        };
        was_woken
    }

    /// Wakes all: the answer of the policy has changed for every caller.
    pub fn wake(&self) {
        crate::sync::fence(Ordering::SeqCst);
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let woken = {
            let mut line = lock(&self.line);
            self.count.store(0, Ordering::SeqCst);
            std::mem::take(&mut line.waiting)
        };
        woken.into_values().for_each(Waker::wake);
    }

    /// Whether any waits, for a caller that has made the fence of [`wake_many`](Self::wake_many)
    /// itself.
    pub(crate) fn any(&self) -> bool {
        self.count.load(Ordering::SeqCst) != 0
    }

    /// Wakes the next in line: one place became free.
    pub fn wake_one(&self) {
        self.wake_many(1);
    }

    /// Wakes the next `places` in line.
    pub fn wake_many(&self, places: usize) {
        crate::sync::fence(Ordering::SeqCst);
        for _ in 0..places {
            if self.count.load(Ordering::SeqCst) == 0 {
                return;
            }
            let next = {
                let mut line = lock(&self.line);
                let next = line.waiting.pop_first();
                self.count.store(line.waiting.len(), Ordering::SeqCst);
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
    use std::sync::{Arc, atomic::AtomicUsize as Count};
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
        struct OnDrop(Arc<Waiters>);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                self.0.deregister(7);
            }
        }
        impl Wake for OnDrop {
            fn wake(self: Arc<Self>) {}
        }
        let waiters = Arc::new(Waiters::default());
        let waker = || Arc::new(OnDrop(waiters.clone())).into();
        waiters.register(0, &waker());
        waiters.register(0, &waker());
        waiters.deregister(0);
        waiters.register(1, &waker());
        waiters.wake_one();
    }
}
