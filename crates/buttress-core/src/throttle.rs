//! Rejects calls before they are sent, as many as the backend would reject for overload.
//!
//! A backend that rejects a call has still received it, and with enough calls it does little else.
//! A client that sees rejections therefore stops sending a part of its calls.
//!
//! # Algorithm
//!
//! Adaptive throttling of the SRE book, chapter 21. The client counts the *requests* of the last
//! two minutes, with those that it has rejected itself, and how many of them the backend
//! *accepted*. It rejects a new call with the probability
//!
//! ```text
//! p = (requests - multiplier · accepted) / (requests + 1), between 0 and `max_share`
//! ```
//!
//! With a multiplier of 2, a client whose backend accepts at least half of its calls rejects none,
//! and one whose backend accepts none rejects up to `max_share` of its calls, and finds out with
//! the others. Which calls are rejected depends on their priority: the least important ones first,
//! at the same `p` for all calls together.
//!
//! A request is counted when it is made, and its acceptance in the same bucket of the window when
//! the head of its answer arrives. A window that is not longer than the slowest answer would see
//! requests without answers; the configuration is checked for it.
//!
//! | outcome | counts as |
//! |---|---|
//! | an answer, also one that is a failure | request, accepted |
//! | overload: 429, `RESOURCE_EXHAUSTED`, a rejection at admission | request |
//! | no answer: not connected, connection lost, timeout | nothing |
//! | cancelled, or rejected by a layer inside | nothing |
//!
//! `p` is computed at most ten times a second, by one of the calls.

mod builder;
mod permit;
#[cfg(all(test, not(loom)))]
mod tests;

pub use builder::Builder;
pub use permit::ThrottlePermit;

use crate::beat::Beat;
use crate::buckets::{self, LATE, LIVE, Ring, live, slot_of, tag_of};
use crate::context::CallContext;
use crate::cut::Cut;
use crate::draws::Draws;
use crate::label::Labels;
use crate::report::{Metric, Report, Sink};
use crate::shard::{Counter, Sharded};
use crate::sync::Ordering;
use crate::timeline::Timeline;
use crate::{Class, Clock, Idle, Policy, Priority, Reason, Refused, Rejection};
use std::fmt;

/// The client did not send the call, because the backend rejects too many for overload.
pub static THROTTLED: Reason =
    Reason::new("throttled", "not sent, the backend rejects calls for overload", Class::Exhausted);

const POLICY: &str = "throttle";
/// The shortest time between two computations of the share, in nanoseconds.
const REFRESH: u64 = 100_000_000;

/// Rejects a share of the calls while their backend is overloaded. A cheap handle; clones share the
/// counts.
///
/// The [module](self) describes the algorithm. Use one throttle for each backend.
///
/// ```
/// use buttress_core::{Failure, FailureKind, ManualClock, Outcome, Permit, Policy};
/// use buttress_core::throttle::Throttle;
/// use std::time::Duration;
///
/// let clock = ManualClock::new();
/// let throttle = Throttle::<ManualClock>::builder("search").clock(clock.clone()).seed(7).build()?;
/// let overload = Outcome::from(Failure { overload: true, ..Failure::new(FailureKind::Http(429)) });
/// let mut sent = 0;
/// for _call in 0..1_000 {
///     clock.advance(Duration::from_millis(100));
///     if let Ok(mut permit) = throttle.admit("a request") {
///         permit.settle(&overload);
///         sent += 1;
///     }
/// }
/// assert!(sent < 200, "the backend rejects all calls, so few are sent: {sent}");
/// assert_eq!(throttle.share(), 0.9);
/// # Ok::<(), buttress_core::InvalidConfig>(())
/// ```
#[derive(Clone)]
pub struct Throttle<C> {
    state: Sharded<State>,
    clock: C,
}

#[derive(Debug)]
struct State {
    labels: Labels,
    time: Timeline,
    /// Nanoseconds of a bucket.
    width: u64,
    multiplier: f64,
    max_share: f64,
    min_requests: u64,
    beat: Beat,
    cut: Cut,
    draws: Draws,
    lanes: Box<[Lane]>,
    rejected: Counter,
}

/// The counts of one shard, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane {
    requests: Ring,
    accepted: Ring,
}

/// The counts of a window.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Counts {
    /// Calls that were made, with those that the throttle rejected.
    pub requests: u64,
    /// Calls that the backend accepted.
    pub accepted: u64,
}

impl<C: Clock + Default> Throttle<C> {
    /// Creates a throttle with the defaults of [`builder`](Self::builder).
    ///
    /// ```
    /// use buttress_core::{ManualClock, throttle::Throttle};
    ///
    /// assert_eq!(Throttle::<ManualClock>::new("search").share(), 0.0);
    /// ```
    pub fn new(name: impl Into<crate::Name>) -> Self {
        Builder::new(name.into()).into_throttle()
    }

    /// Returns a builder with a window of 2 minutes, a multiplier of 2, and a share of at most 0.9.
    ///
    /// ```
    /// use buttress_core::{ManualClock, throttle::Throttle};
    ///
    /// let throttle = Throttle::<ManualClock>::builder("search").multiplier(1.5).build()?;
    /// # Ok::<(), buttress_core::InvalidConfig>(())
    /// ```
    pub fn builder(name: impl Into<crate::Name>) -> Builder<C> {
        Builder::new(name.into())
    }
}

impl<C: Clock> Throttle<C> {
    /// Returns the name.
    pub fn name(&self) -> &str {
        self.state.labels.name().map_or("", |name| name)
    }

    /// Returns the share of the calls that is rejected now, between 0 and 1.
    ///
    /// ```
    /// use buttress_core::{ManualClock, throttle::Throttle};
    ///
    /// assert_eq!(Throttle::<ManualClock>::new("search").share(), 0.0);
    /// ```
    pub fn share(&self) -> f64 {
        self.state.share(self.counts())
    }

    /// Returns the counts of the window.
    ///
    /// ```
    /// use buttress_core::{ManualClock, Outcome, Permit, Policy, throttle::Throttle};
    ///
    /// let throttle = Throttle::<ManualClock>::new("search");
    /// throttle.admit("a request").unwrap().settle(&Outcome::Success);
    /// let counts = throttle.counts();
    /// assert_eq!((counts.requests, counts.accepted), (1, 1));
    /// ```
    pub fn counts(&self) -> Counts {
        self.state.counts(self.state.tag(self.state.now(&self.clock)))
    }

    /// Returns the priority of which a share is rejected; less important calls are all rejected.
    /// `None` while none are.
    ///
    /// ```
    /// use buttress_core::{ManualClock, throttle::Throttle};
    ///
    /// assert_eq!(Throttle::<ManualClock>::new("search").threshold(), None);
    /// ```
    pub fn threshold(&self) -> Option<Priority> {
        self.state.cut.threshold()
    }

    /// Returns the number of calls rejected since the throttle was created.
    pub fn rejected(&self) -> u64 {
        self.state.rejected.sum()
    }
}

impl State {
    /// A bucket is at least 100 ms long, so a few milliseconds do not matter.
    #[inline]
    fn now(&self, clock: &impl Clock) -> u64 {
        self.time.coarse_nanos(clock)
    }

    /// Returns the tag of the bucket at `now`. The first one is live in no slot that was never
    /// written.
    #[inline]
    fn tag(&self, now: u64) -> u32 {
        ((now / self.width) as u32).wrapping_add(LIVE)
    }

    /// Counts a request, whose tag is that of now.
    #[inline]
    fn count_request(&self, lane: &Lane, tag: u32) {
        let is_set_back = |ahead: i32| (ahead as u64).saturating_mul(self.width) > LATE;
        buckets::count(&lane.requests[slot_of(tag)], tag, is_set_back);
    }

    /// Counts an acceptance in the bucket of its request, if that is still there.
    #[inline]
    fn count_accepted(&self, lane: &Lane, tag: u32) {
        let slot = slot_of(tag);
        // After a clock was set back, the acceptances may still have a later bucket.
        let is_set_back = |_| tag_of(lane.requests[slot].load(Ordering::Relaxed)) == tag;
        buckets::count(&lane.accepted[slot], tag, is_set_back);
    }

    /// Sums the window: acceptances first, so that one that is counted meanwhile makes the share
    /// too high by one call and never too low.
    fn counts(&self, tag: u32) -> Counts {
        let accepted = self.lanes.iter().map(|lane| live(&lane.accepted, tag)).sum();
        let requests = self.lanes.iter().map(|lane| live(&lane.requests, tag)).sum();
        Counts { requests, accepted }
    }

    fn share(&self, Counts { requests, accepted }: Counts) -> f64 {
        if requests < self.min_requests {
            return 0.0;
        }
        let (requests, accepted) = (requests as f64, accepted as f64);
        ((requests - self.multiplier * accepted) / (requests + 1.0)).clamp(0.0, self.max_share)
    }

    #[cold]
    fn refresh(&self, tag: u32, intervals: u64) {
        self.cut.set(self.share(self.counts(tag)), intervals);
    }
}

impl<C: Clock, Req: ?Sized> Policy<Req> for Throttle<C> {
    type Permit = ThrottlePermit;

    #[inline]
    fn admit(&self, _: &Req) -> Result<ThrottlePermit, Rejection> {
        let state = &*self.state;
        let now = state.now(&self.clock);
        let (tag, ticket) = (state.tag(now), self.state.ticket());
        state.count_request(&state.lanes[ticket.shard()], tag);
        let rank = CallContext::current().priority.unwrap_or_default().rank();
        state.cut.arrive(rank);
        if let Some(intervals) = state.beat.ended(now) {
            state.refresh(tag, intervals);
        }
        if state.cut.rejects(rank, &state.draws) {
            state.rejected.add(1);
            return Err(state.labels.reject(&THROTTLED));
        }
        Ok(ThrottlePermit::new(ticket, tag))
    }

    /// Counts a request, which the permit takes back if there was no answer.
    fn unready(&self) -> Option<Result<ThrottlePermit, Refused>> {
        let (tag, ticket) = (self.state.tag(self.state.now(&self.clock)), self.state.ticket());
        self.state.count_request(&self.state.lanes[ticket.shard()], tag);
        Some(Ok(ThrottlePermit::new(ticket, tag)))
    }

    /// Takes the request back: it was not sent, which says nothing about the backend.
    fn undo(&self, _: &Req, mut permit: ThrottlePermit) {
        permit.take_back();
    }
}

impl<C: Clock> fmt::Debug for Throttle<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Throttle")
            .field("name", &self.name())
            .field("share", &self.share())
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

impl<C: Clock> Idle for Throttle<C> {
    fn is_idle(&self) -> bool {
        self.state.tickets_out() == 0 && self.counts() == Counts::default()
    }
}

const REJECTED: Metric =
    Metric::counter("resilience.throttle.rejected", "calls", "Calls that were not sent to an overloaded backend");
const SHARE: Metric = Metric::gauge("resilience.throttle.share", "1", "Share of the calls that is rejected");
const ACCEPTED: Metric =
    Metric::rate("resilience.throttle.accepted", "Calls that the backend accepted, among those of the window");

impl<C: Clock> Report for Throttle<C> {
    fn metrics() -> Vec<Metric> {
        vec![ACCEPTED, REJECTED, SHARE]
    }

    fn name(&self) -> Option<&str> {
        Some(self.name())
    }

    fn report(&self, sink: &mut dyn Sink) {
        let counts = self.counts();
        sink.rate(&ACCEPTED, counts.accepted, counts.requests);
        sink.counter(&REJECTED, self.rejected());
        sink.gauge(&SHARE, self.state.share(counts));
    }
}
