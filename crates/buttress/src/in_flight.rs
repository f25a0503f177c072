use buttress_core::{Failure, FailureKind, Outcome, Permit, Progress};
use std::mem::ManuallyDrop;

/// A permit on its way. Whatever happens to the call it is settled once: dropping it tells the
/// policy that the call was cancelled, and unwinding through it that the call failed.
#[derive(Debug)]
#[must_use = "dropping it cancels the call"]
pub struct InFlight<P: Permit>(
    /// [`Drop`] leaves nothing in it. That the compiler adds nothing of its own to that keeps the
    /// test, which is all that most calls need, in line.
    ManuallyDrop<Option<P>>,
);

impl<P: Permit> InFlight<P> {
    /// Takes charge of a permit.
    pub fn new(permit: P) -> Self {
        Self(ManuallyDrop::new(Some(permit)))
    }

    /// No permit, for a call that no policy admitted.
    pub fn none() -> Self {
        Self(ManuallyDrop::new(None))
    }

    /// Tells the policy the outcome of the call.
    #[inline(always)]
    pub fn settle(&mut self, outcome: &Outcome) {
        if let Some(permit) = &mut *self.0 {
            permit.settle(outcome);
            *self.0 = None;
        }
    }

    /// Tells the policy that a part of the response arrived.
    #[inline(always)]
    pub fn progress(&mut self, progress: Progress) {
        if let Some(permit) = &mut *self.0 {
            permit.progress(progress);
        }
    }

    /// Runs a part of the call. A panic that unwinds out of it is a failure of the call.
    #[inline(always)]
    pub fn guard<T>(&mut self, part: impl FnOnce() -> T) -> T {
        struct Unwinding<'a, P: Permit>(&'a mut InFlight<P>);
        impl<P: Permit> Drop for Unwinding<'_, P> {
            #[cold]
            fn drop(&mut self) {
                self.0.settle(&Failure::new(FailureKind::Application).into());
            }
        }
        let unwinding = Unwinding(self);
        let result = part();
        // Only a panic drops it.
        std::mem::forget(unwinding);
        result
    }

    /// Whether it was settled, or moved on.
    #[inline]
    pub fn is_settled(&self) -> bool {
        self.0.is_none()
    }

    /// Moves the permit on, out of a future that is done into a body that is not.
    #[inline]
    pub fn take(&mut self) -> Self {
        Self(ManuallyDrop::new(self.0.take()))
    }

    /// The permit, as long as it is unsettled.
    pub(crate) fn get(&self) -> Option<&P> {
        self.0.as_ref()
    }

    /// Gives the permit away, unsettled.
    pub(crate) fn into_permit(mut self) -> Option<P> {
        self.0.take()
    }
}

impl<P: Permit> Drop for InFlight<P> {
    #[inline(always)]
    fn drop(&mut self) {
        if !self.is_settled() {
            cancel(self);
        }
    }
}

/// Out of the way of the calls that end.
#[cold]
#[inline(never)]
fn cancel<P: Permit>(permit: &mut InFlight<P>) {
    permit.settle(&Outcome::CANCELLED);
}
