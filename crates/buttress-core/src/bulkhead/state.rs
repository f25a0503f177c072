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

/// The state word is `waiting << 32 | in_flight`, so that "there is room, and the queue is empty"
/// is one load.
pub(super) const WAITING: u64 = 1 << 32;

/// What the handles and permits of one bulkhead share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) word: AtomicU64,
    pub(super) limit: AtomicU32,
    /// Places that count as in flight in the word and are free.
    pub(super) spares: Spares,
    pub(super) labels: Labels,
    /// Made when a call queues for the first time: most bulkheads of a keyed policy never need it.
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
            // The model checker does not see that a `OnceLock` of the standard library orders its
            // making before its use.
            waiters: if cfg!(loom) { Waiters::default().into() } else { OnceLock::new() },
            rejected: Counter::default(),
        }
    }

    pub(super) fn has_room(&self, word: u64) -> bool {
        waiting(word) == 0 && in_flight(word) < self.limit.load(Ordering::Acquire)
    }

    /// Whether spares may be kept and taken: no call waits in the queue, and the limit was not
    /// lowered below what is taken.
    #[inline]
    pub(super) fn keeps_spares(&self, word: u64) -> bool {
        waiting(word) == 0 && in_flight(word) <= self.limit.load(Ordering::SeqCst)
    }

    #[inline]
    pub(super) fn try_take(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        (self.keeps_spares(word) && self.spares.take(thread_index())) || self.take_otherwise()
    }

    /// From the word, or a spare of another shard.
    pub(super) fn take_otherwise(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        while self.has_room(word) {
            match self.word.compare_exchange_weak(word, word + 1, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        self.keeps_spares(word) && self.find_spare(Spares::take_any)
    }

    /// Looks for a spare of any shard.
    #[cold]
    pub(super) fn find_spare(&self, look: impl FnOnce(&Spares) -> Found) -> bool {
        let Found { found, hidden } = look(&self.spares);
        if hidden {
            // A service that looked meanwhile has not seen the shard.
            self.wake_many(1);
        }
        found
    }

    /// How many places are free.
    pub(super) fn room(&self) -> u32 {
        self.limit.load(Ordering::SeqCst).saturating_sub(in_flight(self.word.load(Ordering::SeqCst)))
    }

    #[inline]
    pub(super) fn release(&self) {
        let shard = thread_index();
        if !self.spares.keep(shard) {
            return self.give_back();
        }
        // After the fence of `keep`, which pairs with the fences of those that count themselves as
        // waiting before they look at the spares.
        if self.keeps_spares(self.word.load(Ordering::SeqCst)) {
            self.wake_one();
        } else if self.spares.take(shard) {
            self.give_back();
        }
    }

    /// To the word, or to the first in the queue.
    pub(super) fn give_back(&self) {
        let mut word = self.word.load(Ordering::Relaxed);
        while waiting(word) == 0 {
            match self.word.compare_exchange_weak(word, word - 1, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => {
                    crate::sync::fence(Ordering::SeqCst);
                    return self.wake_one();
                }
                Err(now) => word = now,
            }
        }
        // Freed and granted again under one lock. If the release looked at the limit before taking
        // the lock, it could free a place that a limit raised in between had already declared
        // taken, and serve no waiter.
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

    /// Wakes as many of the services that wait as there are places.
    pub(super) fn wake_many(&self, places: u32) {
        crate::sync::fence(Ordering::SeqCst);
        if let Some(waiters) = self.waiters.get().filter(|_| places > 0) {
            waiters.wake_many(places as usize);
        }
    }

    /// Wakes the next service that waits, after a fence: a waiter whose list this call does not see
    /// yet looks for a place after it has made the list.
    pub(super) fn wake_one(&self) {
        if let Some(waiters) = self.waiters.get().filter(|waiters| waiters.any()) {
            waiters.wake_one();
        }
    }

    /// Grants a place to the first in the queue, if there is room.
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
