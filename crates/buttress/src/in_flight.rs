use buttress_core::{Failure, FailureKind, Outcome, Permit, Progress, rate_limit::Usage};
use std::mem::ManuallyDrop;

/// A guard that settles a permit exactly once.
///
/// Dropping it reports a cancelled call to the policy. A panic that unwinds through
/// [`guard`](Self::guard) reports a failed call.
///
/// ```
/// use buttress::{Bulkhead, policy::{InFlight, Policy}};
///
/// let bulkhead = Bulkhead::new(1);
/// let permit = InFlight::new(bulkhead.admit("a request").unwrap());
/// assert_eq!(bulkhead.in_flight(), 1);
/// drop(permit); // the call was cancelled
/// assert_eq!(bulkhead.in_flight(), 0);
/// ```
#[derive(Debug)]
#[must_use = "dropping it cancels the call"]
pub struct InFlight<P: Permit>(
    /// `ManuallyDrop`, because [`Drop`] leaves `None` behind. Without the compiler's own drop code
    /// the check, which is all that most calls need, is inlined.
    ManuallyDrop<Option<P>>,
);

impl<P: Permit> InFlight<P> {
    /// Creates a guard for `permit`.
    pub fn new(permit: P) -> Self {
        Self(ManuallyDrop::new(Some(permit)))
    }

    /// Creates an empty guard, for a call that no policy admitted.
    pub fn none() -> Self {
        Self(ManuallyDrop::new(None))
    }

    /// Reports the outcome of the call and drops the permit. Does nothing if it was settled before.
    #[inline(always)]
    pub fn settle(&mut self, outcome: &Outcome) {
        if let Some(permit) = &mut *self.0 {
            permit.settle(outcome);
            *self.0 = None;
        }
    }

    /// Reports that a part of the response arrived.
    #[inline(always)]
    pub fn progress(&mut self, progress: Progress) {
        if let Some(permit) = &mut *self.0 {
            permit.progress(progress);
        }
    }

    /// Calls `visit` with each quota from which the call was admitted.
    #[inline(always)]
    pub fn usages(&self, visit: &mut dyn FnMut(&Usage)) {
        if let Some(permit) = &*self.0 {
            permit.usages(visit);
        }
    }

    /// Runs a part of the call. If it panics, the call has failed.
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
        // Reached without a panic: the drop above must not run.
        std::mem::forget(unwinding);
        result
    }

    /// Returns whether the permit was settled or moved.
    #[inline]
    pub fn is_settled(&self) -> bool {
        self.0.is_none()
    }

    /// Moves the permit out, for example from a completed future into the body of the response.
    #[inline]
    pub fn take(&mut self) -> Self {
        Self(ManuallyDrop::new(self.0.take()))
    }

    /// Returns the permit, if it is not settled.
    pub(crate) fn get(&self) -> Option<&P> {
        self.0.as_ref()
    }

    /// Returns the unsettled permit.
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

/// Not inlined, to keep it out of the path of calls that end.
#[cold]
#[inline(never)]
fn cancel<P: Permit>(permit: &mut InFlight<P>) {
    permit.settle(&Outcome::CANCELLED);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Records its calls.
    #[derive(Clone, Default)]
    struct Told(Arc<Mutex<Vec<String>>>);

    impl Permit for Told {
        fn settle(&mut self, outcome: &Outcome) {
            self.0.lock().unwrap().push(format!("{outcome:?}"));
        }

        fn progress(&mut self, progress: Progress) {
            self.0.lock().unwrap().push(format!("{progress:?}"));
        }
    }

    #[test]
    fn a_permit_is_told_of_each_part_and_settled_once() {
        let told = Told::default();
        let mut permit = InFlight::new(told.clone());
        permit.progress(Progress::Head);
        permit.progress(Progress::Frame);
        assert!(!permit.is_settled());
        permit.settle(&Outcome::Success);
        assert!(permit.is_settled());
        permit.progress(Progress::Frame);
        permit.settle(&Outcome::CANCELLED);
        drop(permit);
        assert_eq!(*told.0.lock().unwrap(), ["Head", "Frame", "Success"]);
    }

    #[test]
    fn a_permit_that_was_moved_is_settled_where_it_is_now() {
        let told = Told::default();
        let mut permit = InFlight::new(told.clone());
        let moved = permit.take();
        assert!(permit.is_settled() && !moved.is_settled());
        drop(permit);
        assert!(told.0.lock().unwrap().is_empty());
        drop(moved);
        assert_eq!(*told.0.lock().unwrap(), [format!("{:?}", Outcome::CANCELLED)]);
        assert!(InFlight::<Told>::none().is_settled());
    }
}
