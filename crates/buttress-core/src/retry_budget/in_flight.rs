use super::bucket::MILLI;
use crate::shard::{Sharded, Ticket, shards};
use crate::sync::{AtomicU64, Ordering};
use std::fmt;

/// Limits retries in flight to a share of the calls in flight.
#[derive(Debug)]
pub(super) struct InFlight {
    /// Its tickets are the calls in flight: they are counted per shard of threads.
    calls: Sharded<()>,
    retries: AtomicU64,
    /// In thousandths.
    share: u64,
    min: u64,
}

impl InFlight {
    pub(super) fn new(share: f64, min: u32) -> Self {
        let share = (share * MILLI as f64).round() as u64;
        Self { calls: Sharded::new(shards(), ()), retries: AtomicU64::new(0), share, min: min.into() }
    }

    #[inline]
    pub(super) fn call(&self) -> CallInFlight {
        CallInFlight { _ticket: self.calls.ticket() }
    }

    pub(super) fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Returns how many retries may be in flight.
    fn allowed(&self) -> u64 {
        (self.calls.tickets_out() as u64 * self.share / MILLI).max(self.min)
    }

    /// Takes a place for a retry, if there is one.
    ///
    /// The count is checked and changed in one step: two threads cannot take the last place. Calls
    /// that end meanwhile lower what is allowed; retries that are in flight then stay.
    pub(super) fn try_take(&self) -> bool {
        let allowed = self.allowed();
        let next = |retries| (retries < allowed).then_some(retries + 1);
        self.retries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }

    pub(super) fn give_back(&self) {
        self.retries.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A guard of a call in flight. Made by
/// [`RetryBudget::call_in_flight`](super::RetryBudget::call_in_flight).
#[must_use = "the call is in flight until the guard is dropped"]
pub struct CallInFlight {
    _ticket: Ticket<()>,
}

impl fmt::Debug for CallInFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallInFlight").finish_non_exhaustive()
    }
}
