use super::{
    BulkheadPermit,
    queue::Number,
    state::{State, WAITING},
};
use crate::shard::Ticket;
use crate::sync::{Ordering, lock};
use crate::{Clock, Criticality, Rejection};
use std::{
    task::{Context, Poll},
    time::Instant,
};

/// A call's place in the queue.
///
/// Dropping it leaves the queue. If a place in the bulkhead was granted to it and not yet polled,
/// the next call in the queue gets that place.
///
/// ```
/// use buttress_core::{ManualClock, bulkhead::{Acquire, Bulkhead}};
/// use std::task::{Context, Waker};
///
/// let bulkhead = Bulkhead::<ManualClock>::new(1);
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
pub struct Place<C: Clock> {
    pub(super) ticket: Ticket<State<C>>,
    pub(super) waiter: Number,
    pub(super) done: bool,
}

impl<C: Clock> Place<C> {
    /// Polls for the permit. Ready once a place in the bulkhead was granted to this call, or the
    /// call was rejected; must not be polled again after that. Registers the waker of `cx` if it is
    /// pending.
    ///
    /// ```
    /// # use buttress_core::{ManualClock, bulkhead::{Acquire, Bulkhead}};
    /// use std::future::poll_fn;
    ///
    /// # let bulkhead = Bulkhead::<ManualClock>::new(1);
    /// # let held = bulkhead.acquire_or_queue(10).unwrap();
    /// # let Acquire::Queued(mut place) = bulkhead.acquire_or_queue(10).unwrap() else { panic!() };
    /// # drop(held);
    /// # let mut task = std::pin::pin!(async move {
    /// let permit = poll_fn(|cx| place.poll_acquire(cx)).await?;
    /// # drop(permit);
    /// # Ok::<_, buttress_core::Rejection>(())
    /// # });
    /// # let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    /// # assert!(std::future::Future::poll(task.as_mut(), &mut cx).is_ready());
    /// ```
    ///
    /// # Errors
    /// [`QUEUE_FULL`] if a more important call took the place in the queue; [`QUEUE_DELAY`] if the
    /// queue is overloaded and the call has waited for longer than [`TARGET`];
    /// [`QUEUE_DEADLINE`] if its turn came after its deadline.
    ///
    /// [`QUEUE_DEADLINE`]: super::QUEUE_DEADLINE
    /// [`QUEUE_DELAY`]: super::QUEUE_DELAY
    /// [`QUEUE_FULL`]: super::QUEUE_FULL
    /// [`TARGET`]: super::TARGET
    pub fn poll_acquire(&mut self, cx: &mut Context<'_>) -> Poll<Result<BulkheadPermit<C>, Rejection>> {
        // Drop wakers outside the lock: the last waker of a task may drop a future that has a place
        // in this queue, which would deadlock.
        let _replaced = {
            let mut guard = lock(&self.ticket.queue);
            let queue = guard.get_or_insert_default();
            if let Some(decision) = queue.decision(self.waiter) {
                drop(guard);
                self.done = true;
                let ticket = |counted: Option<Criticality>| match counted {
                    None => self.ticket.again(),
                    Some(class) => self.ticket.again_in(class as usize),
                };
                let permit = decision.map(|counted| BulkheadPermit { ticket: ticket(counted) });
                return Poll::Ready(permit.map_err(|reason| self.ticket.reject(reason)));
            }
            queue.set_waker(self.waiter, cx.waker())
        };
        Poll::Pending
    }

    /// Returns the deadline that the call had when it queued, while it waits. The caller must give
    /// up at that time: the queue has no timer.
    ///
    /// ```
    /// use buttress_core::{Clock, ManualClock, bulkhead::{Acquire, Bulkhead}, context::CallContext};
    /// use std::time::Duration;
    ///
    /// let deadline = ManualClock::new().now() + Duration::from_secs(60);
    /// let _entered = CallContext::default().with_deadline(deadline).enter();
    /// let bulkhead = Bulkhead::<ManualClock>::new(0);
    /// let Ok(Acquire::Queued(place)) = bulkhead.acquire_or_queue(10) else { panic!() };
    /// assert_eq!(place.deadline(), Some(deadline));
    /// ```
    pub fn deadline(&self) -> Option<Instant> {
        lock(&self.ticket.queue).as_ref().and_then(|queue| queue.deadline(self.waiter))
    }

    /// Returns the class of the call.
    ///
    /// ```
    /// use buttress_core::{Criticality, ManualClock, bulkhead::{Acquire, Bulkhead}};
    ///
    /// let bulkhead = Bulkhead::<ManualClock>::new(0);
    /// let Ok(Acquire::Queued(place)) = bulkhead.acquire_or_queue(10) else { panic!() };
    /// assert_eq!(place.class(), Criticality::Critical);
    /// ```
    pub fn class(&self) -> Criticality {
        self.waiter.class
    }
}

impl<C: Clock> Drop for Place<C> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let (_waker, decision) = {
            let mut guard = lock(&self.ticket.queue);
            let queue = guard.get_or_insert_default();
            let now = self.ticket.clock.now();
            queue.look(now);
            let waker = queue.leave(self.waiter, now);
            if waker.is_some() {
                self.ticket.word.fetch_sub(WAITING, Ordering::SeqCst);
            }
            queue.look(now);
            (waker, queue.decision(self.waiter))
        };
        if let Some(Ok(counted)) = decision {
            self.ticket.release(|| counted.map(|class| class as usize));
        }
    }
}
