use super::{
    POLICY,
    queue::Queue,
    spares::{Found, Spares},
};
use crate::label::Labels;
use crate::shard::{Counter, thread_index};
use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering, lock};
use crate::{Name, Waiters};
use std::{sync::OnceLock, task::Waker};

/// One waiting call in the state word, which is `waiting << 32 | in_flight`: one load tells whether
/// a place is free and the queue is empty.
pub(super) const WAITING: u64 = 1 << 32;

/// The state that the handles and permits of one bulkhead share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) word: AtomicU64,
    pub(super) limit: AtomicU32,
    /// Free places, which count as in flight in the word.
    pub(super) spares: Spares,
    pub(super) labels: Labels,
    /// Made when a call queues for the first time: most bulkheads of a keyed policy never do.
    pub(super) queue: Mutex<Option<Box<Queue>>>,
    /// Made when a service waits for the first time.
    pub(super) waiters: OnceLock<Waiters>,
    pub(super) rejected: Counter,
}

impl State {
    pub(super) fn new(limit: u32, name: Option<&Name>, shards: usize) -> Self {
        Self {
            word: AtomicU64::new(0),
            limit: AtomicU32::new(limit),
            spares: Spares::new(shards, limit),
            labels: Labels::new(POLICY, name, shards),
            queue: Mutex::default(),
            // The model checker does not see that a `OnceLock` of the standard library synchronizes
            // its initialization with its readers.
            waiters: if cfg!(loom) { Waiters::default().into() } else { OnceLock::new() },
            rejected: Counter::default(),
        }
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

    /// Takes a place: a spare of this thread's shard first.
    #[inline]
    pub(super) fn try_take(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        (self.keeps_spares(word) && self.spares.take(thread_index())) || self.take_from_word_or_any_shard()
    }

    fn take_from_word_or_any_shard(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
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
    pub(super) fn find_spare(&self, look: impl FnOnce(&Spares) -> Found) -> bool {
        let Found { found, hidden } = look(&self.spares);
        if hidden {
            // A service that searched in that moment has skipped the shard, and may sleep although
            // the shard keeps more places.
            self.wake_many(1);
        }
        found
    }

    /// Returns how many places are free in the word.
    pub(super) fn room(&self) -> u32 {
        self.limit.load(Ordering::SeqCst).saturating_sub(in_flight(self.word.load(Ordering::SeqCst)))
    }

    /// Releases a place: to the spares of this thread's shard, to the word, or to the queue.
    #[inline]
    pub(super) fn release(&self) {
        let shard = thread_index();
        if !self.spares.keep(shard) {
            return self.give_back();
        }
        // This load comes after the fence of `keep`, which pairs with the fences of calls and
        // services that register as waiting before they search the spares. Either this load sees
        // the waiting call, or that call finds the spare.
        if self.keeps_spares(self.word.load(Ordering::SeqCst)) {
            self.wake_one();
        } else if self.spares.take(shard) {
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
        let served = {
            let mut queue = lock(&self.queue);
            self.word.fetch_sub(1, Ordering::SeqCst);
            self.serve_next(&mut queue)
        };
        match served {
            Some(waker) => waker.wake(),
            None => {
                crate::sync::fence(Ordering::SeqCst);
                self.wake_one();
            }
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

    /// Grants a place to the first call in the queue, if one is free. Returns its waker.
    pub(super) fn serve_next(&self, queue: &mut Option<Box<Queue>>) -> Option<Waker> {
        let queue = queue.as_mut()?;
        let mut word = self.word.load(Ordering::SeqCst);
        while waiting(word) > 0 && in_flight(word) < self.limit.load(Ordering::SeqCst) {
            match self.word.compare_exchange_weak(word, word + 1 - WAITING, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => {
                    let (number, waker) = queue.waiting.pop_first()?;
                    queue.granted.insert(number);
                    return Some(waker);
                }
                Err(now) => word = now,
            }
        }
        None
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
