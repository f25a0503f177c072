use crate::TokioClock;
use buttress_core::{Outcome, Permit};

/// A permit on its way. Whatever happens to the call it is settled once: dropping it tells the policy that the call was cancelled.
#[derive(Debug)]
#[must_use = "dropping it cancels the call"]
pub struct InFlight<P: Permit>(Option<P>);

impl<P: Permit> InFlight<P> {
    /// Takes charge of a permit.
    pub fn new(permit: P) -> Self {
        Self(Some(permit))
    }

    /// Tells the policy what became of the call.
    #[inline]
    pub fn settle(mut self, outcome: &Outcome) {
        if let Some(permit) = self.0.take() {
            permit.settle(outcome, &TokioClock);
        }
    }

    /// Gives the permit away, unsettled.
    pub(crate) fn into_permit(mut self) -> Option<P> {
        self.0.take()
    }
}

impl<P: Permit> Drop for InFlight<P> {
    #[inline]
    fn drop(&mut self) {
        if let Some(permit) = self.0.take() {
            permit.settle(&Outcome::CANCELLED, &TokioClock);
        }
    }
}
