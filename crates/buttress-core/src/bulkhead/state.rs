use super::{
    POLICY,
    classes::Classes,
    queue::{Owed, Queue, Woken},
    spares::{Found, Spares},
};
use crate::label::Labels;
use crate::shard::{Counter, thread_index};
use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering, lock};
use crate::{Clock, Criticality, Name, Reason, Rejection, Waiters};
use std::{sync::OnceLock, time::Instant};

/// One waiting call in the state word, which is `waiting << 32 | in_flight`: one load tells whether
/// a place is free and the queue is empty.
pub(super) const WAITING: u64 = 1 << 32;

/// The state that the handles and permits of one bulkhead share.
#[derive(Debug)]
pub(super) struct State<C> {
    pub(super) word: AtomicU64,
    pub(super) limit: AtomicU32,
    /// Free places, which count as in flight in the word. None are kept here once a class has a
    /// share: the fast paths of taking and releasing a place, which do not count by class, then
    /// fail, and pay nothing for shares otherwise.
    pub(super) spares: Spares,
    /// Made when a class gets a share. Has the spares from then on.
    pub(super) classes: OnceLock<Box<Classes>>,
    pub(super) labels: Labels,
    /// Made when a call queues for the first time: most bulkheads of a keyed policy never do.
    pub(super) queue: Mutex<Option<Box<Queue>>>,
    /// Made when a service waits for the first time.
    pub(super) waiters: OnceLock<Waiters>,
    pub(super) rejected: Counter,
    /// Read only when a call queues, or while one does.
    pub(super) clock: C,
}

impl<C: Clock> State<C> {
    pub(super) fn new(limit: u32, name: Option<&Name>, shards: usize, clock: C) -> Self {
        Self {
            word: AtomicU64::new(0),
            limit: AtomicU32::new(limit),
            spares: Spares::new(shards, limit),
            classes: OnceLock::new(),
            labels: Labels::new(POLICY, name, shards),
            queue: Mutex::default(),
            // The model checker does not see that a `OnceLock` of the standard library synchronizes
            // its initialization with its readers.
            waiters: if cfg!(loom) { Waiters::default().into() } else { OnceLock::new() },
            rejected: Counter::default(),
            clock,
        }
    }

    /// Counts a call that has a place in its class. Returns the class, if there are shares.
    pub(super) fn enter(&self, class: Criticality) -> Option<Criticality> {
        self.classes.get().map(|classes| classes.enter(class))
    }

    /// Counts and returns a rejection.
    pub(super) fn reject(&self, reason: &'static Reason) -> Rejection {
        self.rejected.add(1);
        self.labels.reject(reason)
    }

    /// Returns whether the word has a free place and the queue is empty.
    pub(super) fn has_room(&self, word: u64) -> bool {
        waiting(word) == 0 && in_flight(word) < self.limit.load(Ordering::Acquire)
    }

    /// Returns whether spares may be kept and taken: no call waits in the queue, and the word is
    /// not above the limit, which may have been lowered.
    #[inline]
    pub(super) fn keeps_spares(&self, word: u64) -> bool {
        waiting(word) == 0 && in_flight(word) <= self.limit.load(Ordering::SeqCst)
    }

    /// Takes a spare of this thread's shard, for a call that is not counted by class.
    #[inline]
    pub(super) fn take_spare(&self) -> bool {
        self.keeps_spares(self.word.load(Ordering::Relaxed)) && self.spares.take(thread_index())
    }

    /// Takes a place that [`take_spare`](Self::take_spare) has not found.
    pub(super) fn take_late(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        if let Some(classes) = self.classes.get()
            && self.keeps_spares(word)
            && classes.spares.take(thread_index())
        {
            return true;
        }
        while self.has_room(word) {
            match self.word.compare_exchange_weak(word, word + 1, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        self.keeps_spares(word) && self.find_spare(Spares::take_any)
    }

    /// Searches all shards for a spare.
    #[cold]
    pub(super) fn find_spare(&self, look: impl Fn(&Spares) -> Found) -> bool {
        self.all_spares().any(|spares| {
            let Found { found, hidden } = look(spares);
            if hidden {
                // A service that searched in that moment has skipped the shard, and may sleep
                // although the shard keeps more places.
                self.wake_many(1);
            }
            found
        })
    }

    /// Returns where spares are kept. A thread that does not know of the first share yet may keep
    /// one more outside of the classes.
    pub(super) fn all_spares(&self) -> impl Iterator<Item = &Spares> {
        self.classes.get().map(|classes| &classes.spares).into_iter().chain([&self.spares])
    }

    /// Returns all spares to the word, and serves the queue.
    pub(super) fn recall_spares(&self, queue: &mut Option<Box<Queue>>, woken: &mut Woken) {
        let spares: u32 = self.all_spares().map(Spares::drain).sum();
        self.word.fetch_sub(spares.into(), Ordering::SeqCst);
        if let Some(queue) = queue {
            self.serve(queue, woken);
        }
    }

    /// Returns how many places are free in the word.
    pub(super) fn room(&self) -> u32 {
        self.limit.load(Ordering::SeqCst).saturating_sub(in_flight(self.word.load(Ordering::SeqCst)))
    }

    /// Releases the place of a call that is counted in `class`, if it is: to the spares of this
    /// thread's shard, to the word, or to the queue.
    #[inline]
    pub(super) fn release(&self, class: impl FnOnce() -> Option<usize>) {
        let shard = thread_index();
        if self.spares.keep(shard) {
            // With shares, this is a call from before the first one, which is counted in no class.
            self.kept(&self.spares, shard);
        } else {
            self.release_late(shard, class());
        }
    }

    /// Not inlined, to keep it out of the path of bulkheads without shares.
    #[inline(never)]
    fn release_late(&self, shard: usize, class: Option<usize>) {
        if let Some(classes) = self.classes.get() {
            if let Some(class) = class {
                classes.leave(class);
            }
            if classes.spares.keep(shard) {
                return self.kept(&classes.spares, shard);
            }
        }
        self.give_back();
    }

    /// Checks whether a spare that was just kept may stay.
    #[inline]
    fn kept(&self, spares: &Spares, shard: usize) {
        // This load comes after the fence of `keep`, which pairs with the fences of calls and
        // services that register as waiting before they search the spares. Either this load sees
        // the waiting call, or that call finds the spare.
        if self.keeps_spares(self.word.load(Ordering::SeqCst)) {
            self.wake_one();
        } else if spares.take(shard) {
            self.give_back();
        }
    }

    /// Returns a place to the word, or grants it to the first call in the queue.
    fn give_back(&self) {
        let mut word = self.word.load(Ordering::Relaxed);
        while waiting(word) == 0 {
            match self.word.compare_exchange_weak(word, word - 1, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => {
                    crate::sync::fence_after_rmw();
                    return self.wake_one();
                }
                Err(now) => word = now,
            }
        }
        // Free and grant the place under one lock. A release that read the limit before taking the
        // lock could free a place while the limit is raised, and serve no waiter.
        let mut woken = Woken::default();
        let served = {
            let mut queue = lock(&self.queue);
            self.word.fetch_sub(1, Ordering::SeqCst);
            self.serve(queue.get_or_insert_default(), &mut woken)
        };
        woken.wake();
        if !served {
            crate::sync::fence(Ordering::SeqCst);
            self.wake_one();
        }
    }

    /// Wakes up to `places` services that wait for a permit.
    pub(super) fn wake_many(&self, places: u32) {
        crate::sync::fence(Ordering::SeqCst);
        if let Some(waiters) = self.waiters.get().filter(|_| places > 0) {
            waiters.wake_many(places as usize);
        }
    }

    /// Wakes the next service that waits for a permit. The caller must have issued a SeqCst fence.
    /// If the list of waiters does not exist yet for this thread, its first waiter tries to take a
    /// place after creating it, and finds this one.
    pub(super) fn wake_one(&self) {
        if let Some(waiters) = self.waiters.get().filter(|waiters| waiters.any()) {
            waiters.wake_one();
        }
    }

    /// Returns how many places each class lacks of its share.
    pub(super) fn owed(&self) -> Owed {
        self.classes.get().map(|classes| classes.owed(self.limit.load(Ordering::SeqCst))).unwrap_or_default()
    }

    /// Grants the free places to calls in the queue, and rejects those that have waited for too
    /// long. Returns whether a place was granted.
    pub(super) fn serve(&self, queue: &mut Queue, woken: &mut Woken) -> bool {
        if waiting(self.word.load(Ordering::SeqCst)) == 0 {
            return false;
        }
        let now = self.clock.now();
        queue.look(now);
        let mut served = false;
        while self.serve_next(queue, now, woken) {
            served = true;
        }
        self.shed(queue, now, woken);
        served
    }

    fn serve_next(&self, queue: &mut Queue, now: Instant, woken: &mut Woken) -> bool {
        let owed = self.owed();
        let mut word = self.word.load(Ordering::SeqCst);
        while waiting(word) > 0 && in_flight(word) < self.limit.load(Ordering::SeqCst) {
            let Some(first) = queue.first(&owed) else { return false };
            if queue.deadline(first).is_some_and(|deadline| deadline <= now) {
                queue.expire(first, now, woken);
                word = self.word.fetch_sub(WAITING, Ordering::SeqCst) - WAITING;
                continue;
            }
            match self.word.compare_exchange_weak(word, word + 1 - WAITING, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => {
                    queue.grant(first, self.enter(first.class), now, woken);
                    return true;
                }
                Err(current) => word = current,
            }
        }
        false
    }

    /// Rejects the calls that have waited for too long, if the queue is overloaded.
    pub(super) fn shed(&self, queue: &mut Queue, now: Instant, woken: &mut Woken) {
        if !queue.look(now) {
            return;
        }
        let owed = self.owed();
        while queue.shed_one(&owed, now, woken) {
            self.word.fetch_sub(WAITING, Ordering::SeqCst);
        }
        queue.look(now);
    }
}

pub(super) fn in_flight(word: u64) -> u32 {
    word as u32
}

pub(super) fn waiting(word: u64) -> u32 {
    (word >> 32) as u32
}

pub(super) fn clamp(limit: usize) -> u32 {
    u32::try_from(limit).unwrap_or(u32::MAX)
}
