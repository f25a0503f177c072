//! Admission: may this call start, and what did it teach us.

use crate::sync::{AtomicUsize, Mutex, Ordering, lock};
use crate::{Clock, Outcome, Rejection};
use std::{task::Waker, time::Duration};

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

    /// Whether a call would be refused now. Takes nothing, counts nothing, promises nothing; `poll_ready` asks it.
    fn peek(&self, clock: &impl Clock) -> Result<(), Refused>;

    /// Who waits for a permit. A policy without a list is asked again when [`Refused::retry_after`] has passed.
    fn waiters(&self) -> Option<&Waiters> {
        None
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

    /// Tells the policy what became of the call.
    ///
    /// Called once at the most, after which the permit is only dropped.
    fn settle(&mut self, outcome: &Outcome, clock: &impl Clock);

    /// Reports a sign of life of an unsettled call: a part of its response arrived. Does nothing by default.
    ///
    /// A circuit breaker renews a probe's lease by it, and takes the time of a call to the head of its response.
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
    fn settle(&mut self, _: &Outcome, _: &impl Clock) {}
}

/// Tasks that wait until a policy may admit again.
///
/// A waiter first [registers](Self::register) and then asks the policy once more: whatever becomes free after that
/// question wakes it. While nobody waits, [`wake`](Self::wake) is a single load.
#[derive(Debug, Default)]
pub struct Waiters {
    count: AtomicUsize,
    wakers: Mutex<Vec<(u64, Waker)>>,
    next: crate::sync::AtomicU64,
}

impl Waiters {
    /// A key for one waiting service.
    pub fn key(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Registers the task of the waiting service `key`, or replaces its waker.
    pub fn register(&self, key: u64, waker: &Waker) {
        let mut wakers = lock(&self.wakers);
        match wakers.iter_mut().find(|(known, _)| *known == key) {
            Some((_, known)) => known.clone_from(waker),
            None => wakers.push((key, waker.clone())),
        }
        self.count.store(wakers.len(), Ordering::SeqCst);
        // Pairs with the fence in `wake`: either the releaser sees this waiter, or the waiter's next question sees the release.
        crate::sync::fence(Ordering::SeqCst);
    }

    /// Takes the waiting service `key` off the list.
    pub fn deregister(&self, key: u64) {
        let mut wakers = lock(&self.wakers);
        wakers.retain(|(known, _)| *known != key);
        self.count.store(wakers.len(), Ordering::SeqCst);
    }

    /// Wakes everybody: something may have become free.
    pub fn wake(&self) {
        crate::sync::fence(Ordering::SeqCst);
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let woken = {
            let mut wakers = lock(&self.wakers);
            self.count.store(0, Ordering::SeqCst);
            std::mem::take(&mut *wakers)
        };
        woken.into_iter().for_each(|(_, waker)| waker.wake());
    }
}
