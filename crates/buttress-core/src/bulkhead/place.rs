use super::{
    BulkheadPermit,
    state::{State, WAITING},
};
use crate::shard::Ticket;
use crate::sync::{Ordering, lock};
use std::task::{Context, Poll};

/// The result of [`Bulkhead::acquire_or_queue`](super::Bulkhead::acquire_or_queue).
///
/// ```
/// use buttress_core::bulkhead::{Acquire, Bulkhead};
///
/// let bulkhead = Bulkhead::new(1);
/// let first = bulkhead.acquire_or_queue(10).unwrap();
/// let second = bulkhead.acquire_or_queue(10).unwrap();
/// assert!(matches!((&first, &second), (Acquire::Taken(_), Acquire::Queued(_))));
/// ```
#[derive(Debug)]
pub enum Acquire {
    /// A place was free.
    Taken(BulkheadPermit),
    /// The call waits in the queue.
    Queued(Place),
}

/// A call's place in the queue.
///
/// Dropping it leaves the queue. If a place in the bulkhead was granted to it and not yet polled,
/// the next call in the queue gets that place.
///
/// ```
/// use buttress_core::bulkhead::{Acquire, Bulkhead};
/// use std::task::{Context, Waker};
///
/// let bulkhead = Bulkhead::new(1);
/// let Acquire::Taken(permit) = bulkhead.acquire_or_queue(10).unwrap() else { panic!() };
/// let Acquire::Queued(mut place) = bulkhead.acquire_or_queue(10).unwrap() else { panic!() };
///
/// let mut cx = Context::from_waker(Waker::noop());
/// assert!(place.poll_acquire(&mut cx).is_pending());
/// drop(permit);
/// assert!(place.poll_acquire(&mut cx).is_ready());
/// ```
#[derive(Debug)]
#[must_use]
pub struct Place {
    pub(super) ticket: Ticket<State>,
    pub(super) number: u64,
    pub(super) done: bool,
}

impl Place {
    /// Polls for the permit. Ready once a place in the bulkhead was granted to this call; must not
    /// be polled again after that. Registers the waker of `cx` if it is pending.
    ///
    /// ```
    /// # use buttress_core::bulkhead::{Acquire, Bulkhead};
    /// use std::future::poll_fn;
    ///
    /// # let bulkhead = Bulkhead::new(1);
    /// # let held = bulkhead.acquire_or_queue(10).unwrap();
    /// # let Acquire::Queued(mut place) = bulkhead.acquire_or_queue(10).unwrap() else { panic!() };
    /// # drop(held);
    /// # let mut task = std::pin::pin!(async move {
    /// let permit = poll_fn(|cx| place.poll_acquire(cx)).await;
    /// # drop(permit);
    /// # });
    /// # let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    /// # assert!(std::future::Future::poll(task.as_mut(), &mut cx).is_ready());
    /// ```
    pub fn poll_acquire(&mut self, cx: &mut Context<'_>) -> Poll<BulkheadPermit> {
        // Drop wakers outside the lock: the last waker of a task may drop a future that has a place
        // in this queue, which would deadlock.
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
