use super::{
    Bulkhead, BulkheadPermit, FULL, Place, QUEUE_DEADLINE, QUEUE_FULL,
    classes::class_of,
    queue::{Number, Woken},
    state::{WAITING, in_flight, waiting},
};
use crate::context::CallContext;
use crate::sync::{Ordering, fence, lock};
use crate::{Clock, Reason, Rejection};

/// The result of [`Bulkhead::acquire_or_queue`].
///
/// ```
/// use buttress_core::{ManualClock, bulkhead::{Acquire, Bulkhead}};
///
/// let bulkhead = Bulkhead::<ManualClock>::new(1);
/// let first = bulkhead.acquire_or_queue(10).unwrap();
/// let second = bulkhead.acquire_or_queue(10).unwrap();
/// assert!(matches!((&first, &second), (Acquire::Taken(_), Acquire::Queued(_))));
/// ```
#[derive(Debug)]
pub enum Acquire<C: Clock> {
    /// A place was free.
    Taken(BulkheadPermit<C>),
    /// The call waits in the queue.
    Queued(Place<C>),
}

impl<C: Clock> Bulkhead<C> {
    /// Takes a place, or queues for one.
    ///
    /// The priority and the deadline of the call are those of [`CallContext::current`]. A call that
    /// finds the queue full takes the place in it of the call that would be served last, if its own
    /// class goes first.
    ///
    /// # Errors
    /// [`FULL`] if `max_queue` is 0 and no place is free; [`QUEUE_FULL`] if `max_queue` calls are
    /// in the queue and none is of a class behind; [`QUEUE_DEADLINE`] if no place is free and the
    /// deadline of the call has passed.
    ///
    /// # Example
    ///
    /// ```
    /// use buttress_core::{ManualClock, Policy, bulkhead::{Acquire, Bulkhead, QUEUE_FULL}};
    ///
    /// let bulkhead = Bulkhead::<ManualClock>::new(1);
    /// let place = bulkhead.admit("a request").unwrap();
    /// let queued = bulkhead.acquire_or_queue(1).unwrap();
    /// assert!(matches!(queued, Acquire::Queued(_)));
    /// assert_eq!(bulkhead.acquire_or_queue(1).unwrap_err().reason(), &QUEUE_FULL);
    /// # drop((place, queued));
    /// ```
    #[inline]
    pub fn acquire_or_queue(&self, max_queue: usize) -> Result<Acquire<C>, Rejection> {
        match self.take_spare() {
            Some(permit) => Ok(Acquire::Taken(permit)),
            None => self.acquire_late(max_queue),
        }
    }

    /// Not inlined, to keep it out of the path of calls that find a place.
    #[inline(never)]
    fn acquire_late(&self, max_queue: usize) -> Result<Acquire<C>, Rejection> {
        if let Some(permit) = self.take_late() {
            return Ok(Acquire::Taken(permit));
        }
        if max_queue == 0 {
            return Err(self.reject(&FULL));
        }
        let mut woken = Woken::default();
        let acquired = match self.enter_queue(max_queue.min(u32::MAX as usize), &mut woken) {
            Ok(None) => Ok(Acquire::Taken(self.permit())),
            Ok(Some(waiter)) => Ok(Acquire::Queued(Place { ticket: self.0.ticket(), waiter, done: false })),
            Err(reason) => Err(self.reject(reason)),
        };
        woken.wake();
        if let Ok(Acquire::Queued(_)) = acquired {
            // A service that tried while this call was alone in the queue found no place. If this
            // call was served and places are left, no release wakes that service.
            self.0.wake_many(self.0.room());
        }
        acquired
    }

    /// Takes a place of the word, in which case it returns `None`, or enters the queue.
    fn enter_queue(&self, max_queue: usize, woken: &mut Woken) -> Result<Option<Number>, &'static Reason> {
        let state = &*self.0;
        let mut queue = lock(&state.queue);
        let context = CallContext::current();
        let class = class_of(&context);
        let now = state.clock.now();
        state.shed(queue.get_or_insert_default(), now, woken);
        loop {
            let word = state.word.load(Ordering::SeqCst);
            let next = if waiting(word) == 0 && in_flight(word) < state.limit.load(Ordering::SeqCst) {
                word + 1
            } else if context.deadline.is_some_and(|deadline| deadline <= now) {
                return Err(&QUEUE_DEADLINE);
            } else if (waiting(word) as usize) < max_queue {
                word + WAITING
            } else {
                break;
            };
            if state.word.compare_exchange_weak(word, next, Ordering::SeqCst, Ordering::SeqCst).is_err() {
                continue;
            }
            if next == word + 1 {
                return Ok(None);
            }
            let waiter = queue.get_or_insert_default().push(class, now, context.deadline);
            // A thread that released a place without seeing this call has kept a spare, which the
            // recall below finds.
            fence(Ordering::SeqCst);
            state.recall_spares(&mut queue, woken);
            return Ok(Some(waiter));
        }
        // The queue is not empty: released places are granted under its lock, and spares of before
        // were recalled when the first call queued. The state word stays as it is, with one waiter
        // for another.
        let queue = queue.get_or_insert_default();
        if !queue.evict(class, &state.owed(), now, woken) {
            return Err(&QUEUE_FULL);
        }
        let waiter = queue.push(class, now, context.deadline);
        queue.look(now);
        Ok(Some(waiter))
    }
}
