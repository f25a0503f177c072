use crate::policy::{Idle, Permit, Policy, Progress, Refused, Schedule, Scheduled};
use crate::rate_limit::{Metered, Usage};
use crate::report::{Metric, Report, Sink};
use crate::{Outcome, Rejection, Waiters};
use std::time::Duration;

/// Two policies on one call, all or nothing.
///
/// The first policy is asked first. If the second one refuses, what the first has admitted is
/// [undone](Policy::undo): a rejected call costs none of them anything. Where both refuse, the
/// rejection with the longer time to wait is returned. More than two are nested:
/// [`and`](Self::and).
///
/// With two layers, one inside the other, nothing is undone: a call that a rate limit has admitted
/// and a bulkhead inside it rejects has used its share of the rate.
///
/// A call that is undone has taken its share for a moment, in which another one may be rejected for
/// it. A circuit breaker sees it as a call that was dropped. Where a permit holds to the end of the
/// response's body and another one learns from outcomes, both do: the outcome is reported at the
/// end of the body.
///
/// ```
/// use buttress_core::{AllOf, ManualClock, Policy, rate_limit::RateLimit};
///
/// let per_second = RateLimit::<ManualClock>::per_second(10);
/// let per_hour = RateLimit::<ManualClock>::new(2, std::time::Duration::from_secs(3600));
/// let both = AllOf::new(per_second.clone(), per_hour);
/// assert!(both.admit("a request").is_ok() && both.admit("a request").is_ok());
/// let rejection = both.admit("a request").unwrap_err();
/// assert_eq!(rejection.retry_after().unwrap().as_secs(), 1800);
/// assert_eq!(per_second.available(), 8, "the rejected call cost nothing");
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct AllOf<A, B>(A, B);

impl<A, B> AllOf<A, B> {
    /// Combines two policies. `first` is asked first.
    pub const fn new(first: A, second: B) -> Self {
        Self(first, second)
    }

    /// Adds another policy, which is asked last.
    ///
    /// ```
    /// use buttress_core::{AllOf, ManualClock, Policy, bulkhead::Bulkhead, rate_limit::RateLimit};
    ///
    /// let limit = RateLimit::<ManualClock>::per_second;
    /// let all = AllOf::new(limit(100), limit(10)).and(Bulkhead::<ManualClock>::new(5));
    /// assert!(all.admit("a request").is_ok());
    /// ```
    pub const fn and<C>(self, third: C) -> AllOf<Self, C> {
        AllOf(self, third)
    }

    /// Returns the two policies.
    pub const fn policies(&self) -> (&A, &B) {
        (&self.0, &self.1)
    }
}

/// The permit of [`AllOf`]: those of both policies.
#[derive(Debug)]
pub struct Both<A, B>(A, B);

impl<A: Permit, B: Permit> Permit for Both<A, B> {
    const HOLDS_UNTIL_BODY_END: bool = A::HOLDS_UNTIL_BODY_END || B::HOLDS_UNTIL_BODY_END;
    const LEARNS: bool = A::LEARNS || B::LEARNS;

    #[inline]
    fn settle(&mut self, outcome: &Outcome) {
        self.0.settle(outcome);
        self.1.settle(outcome);
    }

    fn progress(&mut self, progress: Progress) {
        self.0.progress(progress);
        self.1.progress(progress);
    }

    fn usages(&self, visit: &mut dyn FnMut(&Usage)) {
        self.0.usages(visit);
        self.1.usages(visit);
    }
}

impl<Req: ?Sized, A: Policy<Req>, B: Policy<Req>> Policy<Req> for AllOf<A, B> {
    type Permit = Both<A::Permit, B::Permit>;

    #[inline]
    fn admit(&self, request: &Req) -> Result<Self::Permit, Rejection> {
        let first = match self.0.admit(request) {
            Ok(permit) => permit,
            Err(rejection) => return Err(longer(rejection, self.1.admit(request).map(|b| self.1.undo(request, b)))),
        };
        match self.1.admit(request) {
            Ok(second) => Ok(Both(first, second)),
            Err(rejection) => {
                self.0.undo(request, first);
                Err(rejection)
            }
        }
    }

    #[inline]
    fn peek(&self) -> Result<(), Refused> {
        match (self.0.peek(), self.1.peek()) {
            (Ok(()), Ok(())) => Ok(()),
            (Err(refused), Ok(())) | (Ok(()), Err(refused)) => Err(refused),
            (Err(a), Err(b)) => {
                let retry_after = a.retry_after.zip(b.retry_after).map(|(a, b)| a.max(b));
                Err(Refused { retry_after })
            }
        }
    }

    fn undo(&self, request: &Req, Both(first, second): Self::Permit) {
        self.1.undo(request, second);
        self.0.undo(request, first);
    }

    /// A permit of one policy alone is dropped, which counts nothing: no call has begun.
    fn unready(&self) -> Option<Result<Self::Permit, Refused>> {
        match (self.0.unready()?, self.1.unready()?) {
            (Ok(first), Ok(second)) => Some(Ok(Both(first, second))),
            (Err(refused), _) | (_, Err(refused)) => Some(Err(refused)),
        }
    }

    /// A task that waits for the inner service is woken when either policy begins to refuse.
    fn watchers(&self) -> Option<Waiters> {
        match (self.0.watchers(), self.1.watchers()) {
            (Some(first), Some(second)) => Some(Waiters::of_both(first, second)),
            (first, second) => first.or(second),
        }
    }
}

/// The call starts after the longer one of the two waits. It takes its share of the other policy
/// when it is made: calls that one policy delays together may start closer to each other than the
/// other's rate, and are never more than that has admitted.
impl<Req: ?Sized, A: Schedule<Req>, B: Schedule<Req>> Schedule<Req> for AllOf<A, B> {
    fn schedule(&self, request: &Req, max_wait: Duration) -> Result<Scheduled<Self::Permit>, Rejection> {
        let first = match self.0.schedule(request, max_wait) {
            Ok(first) => first,
            Err(rejection) => {
                let second = self.1.schedule(request, max_wait);
                return Err(longer(rejection, second.map(|second| self.1.undo(request, second.permit))));
            }
        };
        match self.1.schedule(request, max_wait) {
            Ok(second) => {
                Ok(Scheduled { permit: Both(first.permit, second.permit), wait: first.wait.max(second.wait) })
            }
            Err(rejection) => {
                self.0.undo(request, first.permit);
                let after = rejection.retry_after().map(|after| after.max(first.wait));
                Err(rejection.after(after))
            }
        }
    }
}

/// Returns the rejection after which to wait longer. One without a time may mean that waiting does
/// not help, so it counts as the longest.
#[cold]
fn longer(first: Rejection, second: Result<(), Rejection>) -> Rejection {
    let wait = |rejection: &Rejection| rejection.retry_after().unwrap_or(Duration::MAX);
    match second {
        Err(second) if wait(&second) > wait(&first) => second,
        _ => first,
    }
}

impl<Req: ?Sized, A: Metered<Req>, B: Metered<Req>> Metered<Req> for AllOf<A, B> {
    /// The usage of the policy that admits fewer calls now. [`Advertised`] around each of the two
    /// tells both.
    ///
    /// [`Advertised`]: crate::rate_limit::Advertised
    fn usage(&self, request: &Req) -> Option<Usage> {
        match (self.0.usage(request), self.1.usage(request)) {
            (Some(a), Some(b)) => Some(if b.remaining < a.remaining { b } else { a }),
            (a, b) => a.or(b),
        }
    }
}

impl<A: Idle, B: Idle> Idle for AllOf<A, B> {
    fn is_idle(&self) -> bool {
        self.0.is_idle() && self.1.is_idle()
    }
}

/// Reports the metrics of both, with the name of the first. Two policies of one kind are summed:
/// give each its own name, and register each of them instead.
impl<A: Report, B: Report> Report for AllOf<A, B> {
    fn metrics() -> Vec<Metric> {
        let mut all = [A::metrics(), B::metrics()].concat();
        all.sort_unstable();
        all.dedup();
        all
    }

    fn name(&self) -> Option<&str> {
        self.0.name().or_else(|| self.1.name())
    }

    fn report(&self, sink: &mut dyn Sink) {
        self.0.report(sink);
        self.1.report(sink);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
