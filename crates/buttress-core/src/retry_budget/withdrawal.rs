use super::{State, in_flight::InFlight};
use std::{fmt, sync::Arc};

/// A guard of one retry that was withdrawn from a budget.
///
/// Dropping it without [`spend`](Self::spend) returns the retry to the budget.
///
/// ```
/// use buttress_core::{ManualClock, retry_budget::RetryBudget};
///
/// let budget = RetryBudget::<ManualClock>::builder().burst(1).build()?;
/// drop(budget.try_withdraw().unwrap()); // the call was dropped during its pause
/// assert_eq!(budget.balance(), 1.0);
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Debug)]
#[must_use = "a withdrawal that is dropped unspent returns the retry"]
pub struct Withdrawal {
    place: RetryInFlight,
}

impl Withdrawal {
    pub(super) fn new(place: RetryInFlight) -> Self {
        Self { place }
    }

    /// Spends the retry. Call it when the retry is sent.
    ///
    /// The guard that it returns keeps the place of the retry in a budget
    /// [in flight](super::Builder::in_flight): drop it when the attempt has ended. Other budgets
    /// need no guard.
    ///
    /// ```
    /// use buttress_core::{ManualClock, retry_budget::RetryBudget};
    ///
    /// let budget = RetryBudget::<ManualClock>::builder().burst(1).build()?;
    /// budget.try_withdraw().unwrap().spend();
    /// assert_eq!(budget.balance(), 0.0);
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn spend(mut self) -> RetryInFlight {
        RetryInFlight(self.place.0.take())
    }
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        if let Some(bucket) = self.place.0.as_ref().and_then(|state| state.bucket.as_ref()) {
            bucket.give_back();
        }
    }
}

/// A guard of a retry in flight, which holds its place in a budget
/// [in flight](super::Builder::in_flight). Made by [`Withdrawal::spend`].
///
/// ```
/// use buttress_core::{ManualClock, retry_budget::RetryBudget};
///
/// let budget = RetryBudget::<ManualClock>::builder().in_flight(0.0, 1).build()?;
/// let attempt = budget.try_withdraw().unwrap().spend();
/// assert!(budget.try_withdraw().is_none());
/// drop(attempt);
/// assert!(budget.try_withdraw().is_some());
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
pub struct RetryInFlight(Option<Arc<State>>);

impl RetryInFlight {
    /// Takes a place. `None` if there is none.
    pub(super) fn take(state: &Arc<State>) -> Option<Self> {
        state.in_flight().is_none_or(InFlight::try_take).then(|| Self(Some(state.clone())))
    }
}

impl Drop for RetryInFlight {
    fn drop(&mut self) {
        if let Some(in_flight) = self.0.as_ref().and_then(|state| state.in_flight()) {
            in_flight.give_back();
        }
    }
}

impl fmt::Debug for RetryInFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryInFlight").finish_non_exhaustive()
    }
}
