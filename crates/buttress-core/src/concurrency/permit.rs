use super::{
    LimitAlgorithm,
    control::Shared,
    samples::{Samples, Timing},
};
use crate::bulkhead::BulkheadPermit;
use crate::shard::Ticket;
use crate::sync::Ordering;
use crate::{Clock, FailureKind, Ignored, Outcome, Permit, Progress};
use std::fmt;

/// A place under an adaptive limit, held by a call in flight. Dropping it releases the place, and
/// counts nothing if it was not settled.
///
/// ```
/// use buttress_core::concurrency::{AdaptiveLimit, AdaptiveLimitPermit, Gradient2};
/// use buttress_core::{ManualClock, Outcome, Permit, Policy};
///
/// let limit = AdaptiveLimit::<_, ManualClock>::new("orders");
/// let mut permit: AdaptiveLimitPermit<Gradient2, ManualClock> = limit.admit("a request").unwrap();
/// permit.settle(&Outcome::Success);
/// assert_eq!(limit.in_flight(), 1, "held to the end of the body");
/// drop(permit);
/// assert_eq!(limit.in_flight(), 0);
/// ```
#[must_use = "dropping a permit releases its place"]
pub struct AdaptiveLimitPermit<A, C: Clock> {
    shared: Ticket<Shared<A, C>>,
    /// The start of the call in nanoseconds, of which the last bit tells whether it was sampled; or
    /// one of the constants below.
    started: u64,
    clock: C,
    _place: BulkheadPermit<C>,
}

/// The call is not timed, or is settled.
const UNTIMED: u64 = 0;
/// The permit was reserved and its call has not begun.
const RESERVED: u64 = 1;
/// The head of the response has arrived, and its latency was counted.
const STREAMING: u64 = 2;
/// The smallest start.
const FIRST: u64 = 4;
/// The last bit of a start.
const SAMPLED: u64 = 1;

impl<A: LimitAlgorithm, C: Clock> AdaptiveLimitPermit<A, C> {
    #[inline]
    pub(super) fn reserved(shared: Ticket<Shared<A, C>>, place: BulkheadPermit<C>, clock: C) -> Self {
        Self { shared, started: RESERVED, clock, _place: place }
    }

    /// Begins the call.
    #[inline]
    pub(super) fn begin(&mut self) {
        let timing = self.shared.samples.begin(self.shared.shard());
        if timing != Timing::Untimed {
            let now = self.shared.nanos(self.clock.now());
            self.shared.samples.mark(self.shared.shard(), now);
            self.started = now | u64::from(timing == Timing::Sampled);
        } else {
            self.started = UNTIMED;
        }
    }
}

impl<A: LimitAlgorithm, C: Clock> Permit for AdaptiveLimitPermit<A, C> {
    const HOLDS_UNTIL_BODY_END: bool = true;

    #[inline]
    fn settle(&mut self, outcome: &Outcome) {
        let started = self.started;
        match outcome {
            Outcome::Success if started < FIRST => {}
            Outcome::Success => answered(&self.shared, started, &self.clock),
            _ => failed(&self.shared, started, outcome, &self.clock),
        }
        if started != STREAMING {
            self.started = UNTIMED;
        }
    }

    #[inline]
    fn progress(&mut self, _: Progress) {
        let started = self.started;
        if started == STREAMING || started == RESERVED {
            return;
        }
        self.shared.samples.begin_stream(self.shared.shard());
        self.started = STREAMING;
        if started != UNTIMED {
            answered(&self.shared, started, &self.clock);
        }
    }
}

impl<A, C: Clock> Drop for AdaptiveLimitPermit<A, C> {
    #[inline]
    fn drop(&mut self) {
        if self.started == STREAMING {
            self.shared.samples.end_stream(self.shared.shard());
        }
    }
}

#[inline(never)]
fn answered<A: LimitAlgorithm, C: Clock>(shared: &Ticket<Shared<A, C>>, started: u64, clock: &C) {
    let (now, weight) = (shared.nanos(clock.now()), Timing::weight(started & SAMPLED != 0));
    let samples: &Samples = &shared.samples;
    samples.answer(shared.shard(), started & !SAMPLED, now, weight, || shared.waiting());
    shared.end_window(now);
}

/// Settles a call that failed or was cancelled. After the head of its response, only a backend that
/// says so is overloaded.
#[cold]
#[inline(never)]
fn failed<A: LimitAlgorithm, C: Clock>(shared: &Ticket<Shared<A, C>>, started: u64, outcome: &Outcome, clock: &C) {
    let weight = match outcome {
        // The call has not begun: its service failed to become ready.
        _ if started == RESERVED => return,
        Outcome::Failure(failure) if failure.overload => 1,
        Outcome::Failure(failure) if failure.kind == FailureKind::Timeout && started != STREAMING => 1,
        Outcome::Ignored(Ignored::Cancelled) if started >= FIRST => Timing::weight(started & SAMPLED != 0),
        _ => return,
    };
    let now = shared.nanos(clock.now());
    let is_cancelled = !outcome.is_failure();
    if is_cancelled && now.saturating_sub(started) <= shared.median.load(Ordering::Relaxed) {
        return;
    }
    shared.samples.drop_call(shared.shard(), now, weight);
    shared.end_window(now);
}

impl<A, C: Clock> fmt::Debug for AdaptiveLimitPermit<A, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdaptiveLimitPermit").field("name", &self.shared.labels.name()).finish_non_exhaustive()
    }
}
