use super::{Metered, RateLimit, RatePermit, Usage};
use crate::policy::{Idle, Policy, Refused, Schedule, Scheduled};
use crate::report::{Metric, Report, Sink};
use crate::{Clock, Rejection};
use std::{fmt, time::Duration};

/// A [`RateLimit`] whose calls differ in cost. Made by [`RateLimit::costed`].
///
/// The type can be named with a function pointer: `Costed<C, fn(&Request) -> u32>`.
#[derive(Clone)]
pub struct Costed<C, F> {
    limit: RateLimit<C>,
    cost: F,
}

impl<C, F> Costed<C, F> {
    pub(super) fn new(limit: RateLimit<C>, cost: F) -> Self {
        Self { limit, cost }
    }

    /// Returns the limit, to observe or reload it.
    ///
    /// ```
    /// use buttress_core::{ManualClock, rate_limit::RateLimit};
    ///
    /// let limit = RateLimit::<ManualClock>::per_second(10).costed(|bytes: &u32| bytes / 1024);
    /// limit.limit().set_limit(20);
    /// ```
    pub fn limit(&self) -> &RateLimit<C> {
        &self.limit
    }
}

impl<Req: ?Sized, C: Clock, F: Fn(&Req) -> u32> Policy<Req> for Costed<C, F> {
    type Permit = RatePermit;

    #[inline]
    fn admit(&self, request: &Req) -> Result<RatePermit, Rejection> {
        self.limit.try_take((self.cost)(request))
    }

    // `peek` admits: a call without cost is never refused.

    fn undo(&self, _: &Req, permit: RatePermit) {
        self.limit.give_back(permit);
    }

    /// Takes nothing: no call starts.
    fn unready(&self) -> Option<Result<RatePermit, Refused>> {
        Some(Ok(RatePermit::FREE))
    }
}

impl<Req: ?Sized, C: Clock, F: Fn(&Req) -> u32> Schedule<Req> for Costed<C, F> {
    fn schedule(&self, request: &Req, max_wait: Duration) -> Result<Scheduled<RatePermit>, Rejection> {
        self.limit.reserve((self.cost)(request), max_wait)
    }
}

impl<Req: ?Sized, C: Clock, F: Fn(&Req) -> u32> Metered<Req> for Costed<C, F> {
    fn usage(&self, request: &Req) -> Option<Usage> {
        self.limit.usage(request)
    }
}

impl<C: Clock, F> Idle for Costed<C, F> {
    fn is_idle(&self) -> bool {
        self.limit.is_idle()
    }
}

impl<C: Clock, F> Report for Costed<C, F> {
    fn metrics() -> Vec<Metric> {
        RateLimit::<C>::metrics()
    }

    fn name(&self) -> Option<&str> {
        self.limit.name()
    }

    fn report(&self, sink: &mut dyn Sink) {
        self.limit.report(sink);
    }
}

impl<C: fmt::Debug, F> fmt::Debug for Costed<C, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Costed").field("limit", &self.limit).finish_non_exhaustive()
    }
}
