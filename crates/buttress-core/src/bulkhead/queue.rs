use super::{
    BulkheadPermit,
    state::{State, WAITING},
};
use crate::shard::Ticket;
use crate::sync::{Ordering, lock};
use std::{
    collections::{BTreeMap, BTreeSet},
    task::{Context, Poll, Waker},
};

/// Everything that decides about the queue, limit included, happens under its lock. Releasers that
/// see an empty queue in the state word take no lock.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) next: u64,
    /// By number. As many as the state word says.
    pub(super) waiting: BTreeMap<u64, Waker>,
    /// Waiters that were granted a place, which is counted in the state word, and have not been
    /// polled since.
    pub(super) granted: BTreeSet<u64>,
}

/// What [`Bulkhead::acquire_or_queue`](super::Bulkhead::acquire_or_queue) got.
#[derive(Debug)]
pub enum Acquire {
    /// There was room.
    Taken(BulkheadPermit),
    /// There was none yet.
    Queued(Place),
}

/// A place in the queue. Dropping it gives it up, also when it was just granted: the next in line
/// gets it.
#[derive(Debug)]
#[must_use]
pub struct Place {
    pub(super) ticket: Ticket<State>,
    pub(super) number: u64,
    pub(super) done: bool,
}

impl Place {
    /// Ready once this place was granted. Not to be polled again after that.
    pub fn poll_acquire(&mut self, cx: &mut Context<'_>) -> Poll<BulkheadPermit> {
        // Wakers are dropped outside the lock: the last one of a task may drop a future with a
        // place of its own.
        let _replaced = {
            let mut guard = lock(&self.ticket.queue);
            let queue = guard.get_or_insert_default();
            if queue.granted.remove(&self.number) {
                drop(guard);
                self.done = true;
                return Poll::Ready(BulkheadPermit { ticket: self.ticket.again() });
            }
            queue
                .waiting
                .get_mut(&self.number)
                .filter(|known| !known.will_wake(cx.waker()))
                .map(|known| std::mem::replace(known, cx.waker().clone()))
        };
        Poll::Pending
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let (_waker, was_granted) = {
            let mut guard = lock(&self.ticket.queue);
            let queue = guard.get_or_insert_default();
            let waker = queue.waiting.remove(&self.number);
            if waker.is_some() {
                self.ticket.word.fetch_sub(WAITING, Ordering::SeqCst);
            }
            (waker, queue.granted.remove(&self.number))
        };
        if was_granted {
            self.ticket.release();
        }
    }
}
