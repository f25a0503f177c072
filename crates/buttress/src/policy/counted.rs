use buttress_core::{
    Idle, Name, Policy, Reason, Refused, Rejection, Reserve, Schedule, Scheduled, Waiters,
    rate_limit::{Metered, Usage},
    report::{Metric, Report, Sink, Value},
    shard::Counter,
};
use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

/// The number of reasons that are counted. A policy has a handful; those after the eighth are not
/// counted.
const REASONS: usize = 8;

const REJECTED: Metric =
    Metric::counter("resilience.policy.rejected", "calls", "Calls that a policy of your own rejected")
        .labels(&["reason"]);

/// A policy whose rejections are counted by reason, for a policy that has no [`Report`] of its own.
/// A cheap handle; clones share the counts.
///
/// ```
/// use buttress::policy::{Class, Counted, GateLayer, Policy, Reason, Rejection};
///
/// static CLOSED: Reason = Reason::new("closed", "closed on Sundays", Class::Unavailable);
///
/// #[derive(Clone)]
/// struct Shop;
///
/// impl<Req: ?Sized> Policy<Req> for Shop {
///     type Permit = ();
///
///     fn admit(&self, _: &Req) -> Result<(), Rejection> {
///         Err(Rejection::new("shop", &CLOSED))
///     }
/// }
///
/// let shop = Counted::new("corner shop", Shop);
/// let layer = GateLayer::with_policy(shop.clone());
/// assert!(shop.admit("a customer").is_err());
/// assert_eq!(shop.rejected(&CLOSED), 1);
/// // With the feature `metrics`: exporter.add(layer.handle());
/// # let _ = layer;
/// ```
#[derive(Clone)]
pub struct Counted<Pol> {
    policy: Pol,
    counts: Arc<Counts>,
}

struct Counts {
    name: Name,
    /// Filled from the front.
    by_reason: [OnceLock<(&'static Reason, Counter)>; REASONS],
}

impl<Pol> Counted<Pol> {
    /// Counts the rejections of `policy`, under `name`.
    pub fn new(name: impl Into<Name>, policy: Pol) -> Self {
        let counts = Counts { name: name.into(), by_reason: Default::default() };
        Self { policy, counts: Arc::new(counts) }
    }

    /// The policy.
    pub fn policy(&self) -> &Pol {
        &self.policy
    }

    /// The number of calls that were rejected for `reason` so far.
    pub fn rejected(&self, reason: &Reason) -> u64 {
        let counts = self.counts.by_reason.iter().filter_map(OnceLock::get);
        counts.filter(|(known, _)| known.word() == reason.word()).map(|(_, count)| count.sum()).sum()
    }

    #[cold]
    fn count(&self, rejection: Rejection) -> Rejection {
        let reason = rejection.reason();
        for slot in &self.counts.by_reason {
            let (known, count) = slot.get_or_init(|| (reason, Counter::default()));
            if known.word() == reason.word() {
                count.add(1);
                break;
            }
        }
        rejection
    }
}

impl<Req: ?Sized, Pol: Policy<Req>> Policy<Req> for Counted<Pol> {
    type Permit = Pol::Permit;

    #[inline]
    fn admit(&self, request: &Req) -> Result<Pol::Permit, Rejection> {
        self.policy.admit(request).map_err(|rejection| self.count(rejection))
    }

    #[inline]
    fn peek(&self) -> Result<(), Refused> {
        self.policy.peek()
    }

    fn refuse(&self, request: &Req, refused: Refused) -> Rejection {
        self.count(self.policy.refuse(request, refused))
    }

    fn confirm(&self, permit: Pol::Permit, request: &Req) -> Result<Pol::Permit, Rejection> {
        self.policy.confirm(permit, request).map_err(|rejection| self.count(rejection))
    }

    fn undo(&self, request: &Req, permit: Pol::Permit) {
        self.policy.undo(request, permit);
    }

    fn unready(&self) -> Option<Result<Pol::Permit, Refused>> {
        self.policy.unready()
    }

    fn watchers(&self) -> Option<Waiters> {
        self.policy.watchers()
    }
}

impl<Req: ?Sized, Pol: Schedule<Req>> Schedule<Req> for Counted<Pol> {
    fn schedule(&self, request: &Req, max_wait: Duration) -> Result<Scheduled<Pol::Permit>, Rejection> {
        self.policy.schedule(request, max_wait).map_err(|rejection| self.count(rejection))
    }
}

impl<Req: ?Sized, Pol: Metered<Req>> Metered<Req> for Counted<Pol> {
    fn usage(&self, request: &Req) -> Option<Usage> {
        self.policy.usage(request)
    }
}

impl<Pol: Reserve> Reserve for Counted<Pol> {
    type Permit = Pol::Permit;

    fn try_reserve(&self) -> Result<Pol::Permit, Refused> {
        self.policy.try_reserve()
    }

    fn holds(&self, permit: &Pol::Permit) -> bool {
        self.policy.holds(permit)
    }

    fn waiters(&self) -> Option<Waiters> {
        self.policy.waiters()
    }
}

impl<Pol: Idle> Idle for Counted<Pol> {
    fn is_idle(&self) -> bool {
        self.policy.is_idle()
    }
}

impl<Pol> Report for Counted<Pol> {
    fn metrics() -> Vec<Metric> {
        vec![REJECTED]
    }

    fn name(&self) -> Option<&str> {
        Some(&self.counts.name)
    }

    fn report(&self, sink: &mut dyn Sink) {
        for (reason, count) in self.counts.by_reason.iter().filter_map(OnceLock::get) {
            sink.value(&REJECTED, [reason.word(), ""], Value::Counter(count.sum()));
        }
    }
}

impl<Pol: fmt::Debug> fmt::Debug for Counted<Pol> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counted").field("policy", &self.policy).field("name", &self.counts.name).finish_non_exhaustive()
    }
}
