use super::Quota;
use crate::policy::{Idle, Permit, Policy, Progress, Refused, Schedule, Scheduled};
use crate::report::{Metric, Report, Sink};
use crate::{Name, Outcome, Rejection, Waiters};
use std::time::Duration;

/// What is left of a quota.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Usage {
    /// The name of the policy, if it has one.
    pub name: Option<Name>,
    /// The quota.
    pub quota: Quota,
    /// The calls that would be admitted now.
    pub remaining: u32,
    /// The time until one more call would be admitted without a wait. `None` if the bucket is full,
    /// or the limit is 0.
    pub next: Option<Duration>,
}

/// A [`Policy`] with a quota that can be told to callers.
///
/// ```
/// use buttress_core::{ManualClock, rate_limit::{Metered, RateLimit}};
/// use std::time::Duration;
///
/// let limit = RateLimit::<ManualClock>::per_second(10);
/// limit.try_take(4).unwrap();
/// let usage = limit.usage("a request").unwrap();
/// assert_eq!((usage.remaining, usage.next), (6, Some(Duration::from_millis(100))));
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no quota to advertise",
    label = "no quota",
    note = "wrap the rate limits alone: `AllOf::new(Advertised::new(rate_limit), bulkhead)` without `.advertise()`"
)]
pub trait Metered<Req: ?Sized>: Policy<Req> {
    /// Returns what is left of the quota for calls such as `request`. `None` if that is unknown.
    fn usage(&self, request: &Req) -> Option<Usage>;
}

/// A policy whose permits tell what was left of the quota when a call was admitted, or, for a call
/// that waits, what will be left at its start if no other call comes.
///
/// HTTP servers put it into the headers of the response. It is a policy of its own, so that a limit
/// that does not tell costs no more. Its permit keeps a copy of the quota and the name.
///
/// ```
/// use buttress_core::{ManualClock, Permit, Policy, rate_limit::{Advertised, RateLimit}};
///
/// let limit = Advertised::new(RateLimit::<ManualClock>::per_second(10));
/// let permit = limit.admit("a request").unwrap();
/// permit.usages(&mut |usage| assert_eq!(usage.remaining, 9));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Advertised<Pol>(Pol);

impl<Pol> Advertised<Pol> {
    /// Wraps a policy.
    pub const fn new(policy: Pol) -> Self {
        Self(policy)
    }

    /// Returns the policy, to observe or reload it.
    pub const fn policy(&self) -> &Pol {
        &self.0
    }
}

/// The permit of an [`Advertised`] policy.
#[derive(Debug)]
pub struct AdvertisedPermit<P> {
    permit: P,
    usage: Option<Usage>,
}

impl<P: Permit> Permit for AdvertisedPermit<P> {
    const HOLDS_UNTIL_BODY_END: bool = P::HOLDS_UNTIL_BODY_END;
    const LEARNS: bool = P::LEARNS;

    fn settle(&mut self, outcome: &Outcome) {
        self.permit.settle(outcome);
    }

    fn progress(&mut self, progress: Progress) {
        self.permit.progress(progress);
    }

    fn usages(&self, visit: &mut dyn FnMut(&Usage)) {
        if let Some(usage) = &self.usage {
            visit(usage);
        }
    }
}

impl<Req: ?Sized, Pol: Metered<Req>> Policy<Req> for Advertised<Pol> {
    type Permit = AdvertisedPermit<Pol::Permit>;

    fn admit(&self, request: &Req) -> Result<Self::Permit, Rejection> {
        let permit = self.0.admit(request)?;
        Ok(AdvertisedPermit { permit, usage: self.0.usage(request) })
    }

    fn peek(&self) -> Result<(), Refused> {
        self.0.peek()
    }

    fn refuse(&self, request: &Req, refused: Refused) -> Rejection {
        self.0.refuse(request, refused)
    }

    fn confirm(&self, permit: Self::Permit, request: &Req) -> Result<Self::Permit, Rejection> {
        let permit = self.0.confirm(permit.permit, request)?;
        Ok(AdvertisedPermit { permit, usage: self.0.usage(request) })
    }

    fn undo(&self, request: &Req, permit: Self::Permit) {
        self.0.undo(request, permit.permit);
    }

    /// Tells nothing: there is no response.
    fn unready(&self) -> Option<Result<Self::Permit, Refused>> {
        Some(self.0.unready()?.map(|permit| AdvertisedPermit { permit, usage: None }))
    }

    fn watchers(&self) -> Option<Waiters> {
        self.0.watchers()
    }
}

impl<Req: ?Sized, Pol: Metered<Req> + Schedule<Req>> Schedule<Req> for Advertised<Pol> {
    fn schedule(&self, request: &Req, max_wait: Duration) -> Result<Scheduled<Self::Permit>, Rejection> {
        let Scheduled { permit, wait } = self.0.schedule(request, max_wait)?;
        let usage = self.0.usage(request).map(|mut usage| {
            // Told with the response, which comes after the wait.
            usage.next = usage.next.map(|next| next.saturating_sub(wait));
            usage
        });
        Ok(Scheduled { permit: AdvertisedPermit { permit, usage }, wait })
    }
}

impl<Pol: Idle> Idle for Advertised<Pol> {
    fn is_idle(&self) -> bool {
        self.0.is_idle()
    }
}

impl<Pol: Report> Report for Advertised<Pol> {
    fn metrics() -> Vec<Metric> {
        Pol::metrics()
    }

    fn name(&self) -> Option<&str> {
        self.0.name()
    }

    fn report(&self, sink: &mut dyn Sink) {
        self.0.report(sink);
    }
}
