use super::{ATTEMPT, TOTAL};
use crate::{
    clock::TokioClock,
    deadline::{Deadline, EXCEEDED, EXPIRED, MIN_USEFUL, TOO_SHORT},
    ending::{BodyBounds, Ending, NoEnding},
    per_request::{By, Same},
};
use buttress_core::{
    Label, Name, Reason, Rejection,
    context::CallContext,
    report::{Metric, Report, Sink},
    shard::Counter,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

const POLICY: &str = "timeout";

/// A timeout as a layer. It implements [`Layer`](tower_layer::Layer) once it has an
/// [ending](crate::ending).
///
/// The [module](super) describes what is bounded.
///
/// ```
/// use buttress::{PlainExt, TimeoutLayer, timeout};
/// use std::{convert::Infallible, time::Duration};
/// use tower::{ServiceBuilder, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let service = ServiceBuilder::new()
///     .layer(TimeoutLayer::total(Duration::from_secs(2)).plain())
///     .service_fn(|_: ()| std::future::pending::<Result<(), Infallible>>());
/// let error = service.oneshot(()).await.unwrap_err();
/// assert_eq!(error.rejection().unwrap().reason(), &timeout::TOTAL);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TimeoutLayer<E = NoEnding, Limit = Same> {
    pub(super) bound: CallBound,
    pub(super) limit: Limit,
    pub(super) ends: E,
}

/// The time limit of a call, and settings that are rarely used.
#[derive(Clone, Debug)]
pub(super) struct CallBound {
    pub(super) after: Duration,
    /// In place of the reason, which would make every future of a timeout a word larger.
    limit: Bounds,
    options: Option<Arc<Options>>,
}

/// What the limit is that of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Bounds {
    Attempt,
    Total,
    /// An attempt that its call's deadline ends first.
    Deadline,
    /// An attempt that is not made, because the deadline of its call has passed.
    Expired,
    /// An attempt that is not made, because the deadline of its call leaves too little time.
    TooShort,
}

#[derive(Clone, Debug, Default)]
struct Options {
    bounds: BodyBounds,
    timed_out: Option<Arc<Counter>>,
    reserve: Duration,
    min_useful: Option<Duration>,
}

impl TimeoutLayer {
    /// Limits one attempt, until the head of its response.
    ///
    /// An attempt takes no longer than the [deadline](crate::deadline) of its call allows. If that
    /// comes first, the error says so ([`EXCEEDED`](crate::deadline::EXCEEDED)) and is not retried.
    /// If less than [`min_useful`](Self::min_useful) is left, the attempt is not made.
    ///
    /// [`Duration::MAX`] never expires. Zero admits only calls that are ready at the first poll.
    ///
    /// ```
    /// # use buttress::TimeoutLayer;
    /// # use std::time::Duration;
    /// let innermost = TimeoutLayer::attempt(Duration::from_millis(500));
    /// # let _ = innermost;
    /// ```
    pub const fn attempt(after: Duration) -> Self {
        Self::bounded(after, Bounds::Attempt)
    }

    /// Limits a call, with all its attempts and the pauses between them, until the head of its
    /// response.
    ///
    /// [`Duration::MAX`] never expires. Zero admits only calls that are ready at the first poll.
    ///
    /// ```
    /// # use buttress::TimeoutLayer;
    /// # use std::time::Duration;
    /// let outermost = TimeoutLayer::total(Duration::from_secs(2));
    /// # let _ = outermost;
    /// ```
    pub const fn total(after: Duration) -> Self {
        Self::bounded(after, Bounds::Total)
    }

    // Not `new`: the compiler would answer `TimeoutLayer::new(..)` with this function and its
    // parameters, and not with the two above.
    const fn bounded(after: Duration, limit: Bounds) -> Self {
        Self { bound: CallBound { after, limit, options: None }, limit: Same, ends: NoEnding }
    }
}

impl<E, Limit> TimeoutLayer<E, Limit> {
    /// Reads the limit from the request, for limits that differ by method or route. `None` uses the
    /// limit of the layer.
    ///
    /// ```
    /// # use buttress::{PlainExt, TimeoutLayer};
    /// # use std::time::Duration;
    /// struct Query {
    ///     is_export: bool,
    /// }
    ///
    /// let layer = TimeoutLayer::total(Duration::from_secs(2))
    ///     .by(|query: &Query| query.is_export.then_some(Duration::from_secs(60)))
    ///     .plain();
    /// # let _ = layer;
    /// ```
    pub fn by<Req, F: Fn(&Req) -> Option<Duration>>(self, limit: F) -> TimeoutLayer<E, By<F>> {
        TimeoutLayer { bound: self.bound, limit: By(limit), ends: self.ends }
    }

    /// Sets a name, which rejections and metrics carry, and counts calls that time out.
    ///
    /// ```
    /// use buttress::TimeoutLayer;
    /// use std::time::Duration;
    ///
    /// let layer = TimeoutLayer::total(Duration::from_secs(2)).named("payments");
    /// assert_eq!(layer.stats().unwrap().timed_out(), 0);
    /// ```
    pub fn named(self, name: impl Into<Name>) -> Self {
        let label = Label::named(POLICY, name.into());
        self.with(|options| {
            options.bounds.label = Some(label);
            options.timed_out = Some(Arc::default());
        })
    }

    /// Sets the time that an [attempt](TimeoutLayer::attempt) leaves of the deadline of its call,
    /// such as half a round trip, in which the error travels back. Default: zero.
    ///
    /// ```
    /// # use buttress::TimeoutLayer;
    /// # use std::time::Duration;
    /// let layer = TimeoutLayer::attempt(Duration::from_millis(500)).reserve(Duration::from_millis(5));
    /// # let _ = layer;
    /// ```
    pub fn reserve(self, reserve: Duration) -> Self {
        self.with(|options| options.reserve = reserve)
    }

    /// Sets the least time for which an [attempt](TimeoutLayer::attempt) is made, if the deadline
    /// of its call leaves no more. Default:
    /// [`deadline::MIN_USEFUL`](crate::deadline::MIN_USEFUL), which is 1 ms.
    pub fn min_useful(self, time: Duration) -> Self {
        self.with(|options| options.min_useful = Some(time))
    }

    /// Sets the maximum time between two frames of a response's body, while the body is polled.
    ///
    /// For HTTP endings. Default: no limit, because a stream of events may pause for long.
    pub fn body_idle(self, idle: Duration) -> Self {
        self.with(|options| options.bounds.idle = Some(idle))
    }

    /// Sets the maximum time from the head of a response to the end of its body.
    ///
    /// For HTTP endings. Default: no limit.
    pub fn body_total(self, total: Duration) -> Self {
        self.with(|options| options.bounds.total = Some(total))
    }

    /// Sets the maximum time in which the reader does not poll the body of a response.
    ///
    /// For HTTP endings. Default: 30 s for servers, no limit for clients. [`Duration::MAX`] never
    /// expires.
    pub fn reader_stall(self, stalled: Duration) -> Self {
        self.with(|options| options.bounds.stalled = Some(stalled))
    }

    /// Returns the counters of a [named](Self::named) timeout, which all services of the layer
    /// share. `None` without a name.
    pub fn stats(&self) -> Option<TimeoutStats> {
        let Options { bounds, timed_out, .. } = &**self.bound.options.as_ref()?;
        Some(TimeoutStats { label: bounds.label.clone()?, timed_out: timed_out.clone()? })
    }

    fn with(self, change: impl FnOnce(&mut Options)) -> Self {
        let Self { bound: CallBound { after, limit: bounds, options }, limit, ends } = self;
        let mut options = options.map(Arc::unwrap_or_clone).unwrap_or_default();
        change(&mut options);
        Self { bound: CallBound { after, limit: bounds, options: Some(Arc::new(options)) }, limit, ends }
    }
}

/// Counters of a [named](TimeoutLayer::named) timeout, from when it got its name.
#[derive(Clone, Debug)]
pub struct TimeoutStats {
    label: Label,
    timed_out: Arc<Counter>,
}

impl TimeoutStats {
    /// Returns the number of calls that timed out before the head of their response.
    pub fn timed_out(&self) -> u64 {
        self.timed_out.sum()
    }
}

const TIMED_OUT: Metric =
    Metric::counter("resilience.timeout.timed_out", "calls", "Calls that timed out before their response began");

impl Report for TimeoutStats {
    fn metrics() -> Vec<Metric> {
        vec![TIMED_OUT]
    }

    fn name(&self) -> Option<&str> {
        self.label.name()
    }

    fn report(&self, sink: &mut dyn Sink) {
        sink.counter(&TIMED_OUT, self.timed_out());
    }
}

/// What the deadline of a call leaves for an attempt.
pub(super) enum Within {
    /// Its own limit.
    Own { left: Duration },
    /// Less, until `end`.
    Deadline { left: Duration, own: Duration, end: Instant },
    /// Too little, for this reason.
    Nothing(Bounds),
}

/// Bounds of a layer that sets none on the body.
const NO_BOUNDS: &BodyBounds = &BodyBounds { idle: None, total: None, stalled: None, deadline: None, label: None };

impl CallBound {
    pub(super) fn of_body(&self) -> &BodyBounds {
        self.options.as_ref().map_or(NO_BOUNDS, |options| &options.bounds)
    }

    #[inline]
    pub(super) fn clone_with(&self, after: Duration) -> Self {
        Self { after, ..self.clone() }
    }

    #[inline]
    pub(super) fn clone_as(&self, after: Duration, limit: Bounds) -> Self {
        Self { after, limit, ..self.clone() }
    }

    /// Returns the deadline of the current call, if the limit is that of an attempt.
    #[inline]
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.limit == Bounds::Attempt { CallContext::current().deadline } else { None }
    }

    /// Compares the limit of an attempt with what the deadline of its call leaves.
    #[inline]
    pub(super) fn within(&self, after: Duration, deadline: Instant) -> Within {
        let left = Deadline(deadline).left_on(&TokioClock);
        let options = self.options.as_deref();
        let reserve = options.map_or(Duration::ZERO, |options| options.reserve);
        let own = left.saturating_sub(reserve);
        if own >= after {
            return Within::Own { left };
        }
        if own < options.and_then(|options| options.min_useful).unwrap_or(MIN_USEFUL) {
            return Within::Nothing(if left.is_zero() { Bounds::Expired } else { Bounds::TooShort });
        }
        Within::Deadline { left, own, end: deadline.checked_sub(reserve).unwrap_or(deadline) }
    }

    fn label(&self) -> Label {
        self.options.as_ref().and_then(|options| options.bounds.label.clone()).unwrap_or(Label::new(POLICY))
    }

    /// Returns the rejection of a call whose time is over, or was from its start.
    #[cold]
    pub(super) fn expire(&self) -> Rejection {
        let reason = match self.limit {
            Bounds::Attempt => &ATTEMPT,
            Bounds::Total => &TOTAL,
            Bounds::Deadline => &EXCEEDED,
            Bounds::Expired => return self.refuse(&EXPIRED),
            Bounds::TooShort => return self.refuse(&TOO_SHORT),
        };
        if let Some(timed_out) = self.options.as_ref().and_then(|options| options.timed_out.as_ref()) {
            timed_out.add(1);
        }
        let rejection = Rejection::timed_out(self.label(), reason, self.after);
        crate::events::timed_out(&rejection);
        rejection
    }

    fn refuse(&self, reason: &'static Reason) -> Rejection {
        let rejection = Rejection::labelled(self.label(), reason);
        crate::events::rejected(&rejection);
        rejection
    }
}

impl<E, Limit> Ending for TimeoutLayer<E, Limit> {
    type Now = E;
    type With<Next> = TimeoutLayer<Next, Limit>;

    fn end<Next>(self, ends: Next) -> TimeoutLayer<Next, Limit> {
        TimeoutLayer { bound: self.bound, limit: self.limit, ends }
    }
}
