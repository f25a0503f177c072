use super::state::State;
use crate::policy::Permit;
use crate::shard::Ticket;
use crate::{Clock, Outcome};

/// A place in a bulkhead, held by a call in flight. Dropping it releases the place.
///
/// ```
/// use buttress_core::{ManualClock, Policy, bulkhead::{Bulkhead, BulkheadPermit}};
///
/// let bulkhead = Bulkhead::<ManualClock>::new(1);
/// let permit: BulkheadPermit<ManualClock> = bulkhead.admit("a request").unwrap();
/// drop(permit);
/// assert_eq!(bulkhead.in_flight(), 0);
/// ```
#[derive(Debug)]
#[must_use]
pub struct BulkheadPermit<C: Clock> {
    /// Its lane is the class in which the call is counted, if there are shares.
    pub(super) ticket: Ticket<State<C>>,
}

impl<C: Clock> Permit for BulkheadPermit<C> {
    const HOLDS_UNTIL_BODY_END: bool = true;
    const LEARNS: bool = false;

    fn settle(&mut self, _: &Outcome) {}
}

impl<C: Clock> Drop for BulkheadPermit<C> {
    fn drop(&mut self) {
        self.ticket.release(|| self.ticket.lane());
    }
}
