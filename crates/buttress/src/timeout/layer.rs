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
    is_total: bool,
    options: Option<Arc<Options>>,
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
        Self::bounded(after, false)
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
        Self::bounded(after, true)
    }

    // Not `new`: the compiler would answer `TimeoutLayer::new(..)` with this function and its
    // parameters, and not with the two above.
    const fn bounded(after: Duration, is_total: bool) -> Self {
        Self { bound: CallBound { after, is_total, options: None }, limit: Same, ends: NoEnding }
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

    /// Sets the least time for which an [attempt](TimeoutLayer::attempt) is made, if the deadline of
    /// its call leaves no more. Default:
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
        let Self { bound: CallBound { after, is_total, options }, limit, ends } = self;
        let mut options = options.map(Arc::unwrap_or_clone).unwrap_or_default();
        change(&mut options);
        Self { bound: CallBound { after, is_total, options: Some(Arc::new(options)) }, limit, ends }
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
pub(super) struct Left {
    /// Until the deadline.
    pub(super) left: Duration,
    /// The end of the attempt and the time until then, if the deadline comes before the attempt's
    /// own limit.
    pub(super) is_first: Option<(Instant, Duration)>,
    /// Why the attempt is not made.
    pub(super) reason: Option<&'static Reason>,
}

/// Bounds of a layer that sets none on the body.
const NO_BOUNDS: &BodyBounds = &BodyBounds { idle: None, total: None, stalled: None, deadline: None, label: None };

impl CallBound {
    pub(super) fn of_body(&self) -> &BodyBounds {
        self.options.as_ref().map_or(NO_BOUNDS, |options| &options.bounds)
    }

    /// Returns what the deadline of the current call leaves for an attempt, if that is less than
    /// the attempt's own limit. Does not read the clock for a call without a deadline.
    #[inline]
    pub(super) fn deadline(&self) -> Option<Left> {
        let deadline = if self.is_total { None } else { CallContext::current().deadline };
        deadline.map(|deadline| self.left(deadline))
    }

    fn left(&self, deadline: Instant) -> Left {
        let left = Deadline(deadline).left_on(&TokioClock);
        let (reserve, min_useful) =
            self.options.as_ref().map_or((Duration::ZERO, None), |options| (options.reserve, options.min_useful));
        let own = left.saturating_sub(reserve);
        let end = deadline.checked_sub(reserve).unwrap_or(deadline);
        let is_first = own < self.after;
        let too_short = is_first && own < min_useful.unwrap_or(MIN_USEFUL);
        Left {
            left,
            is_first: is_first.then_some((end, own)),
            reason: too_short.then_some(if left.is_zero() { &EXPIRED } else { &TOO_SHORT }),
        }
    }

    fn label(&self) -> Label {
        self.options.as_ref().and_then(|options| options.bounds.label.clone()).unwrap_or(Label::new(POLICY))
    }

    /// Returns the rejection of an attempt that is not made.
    #[cold]
    pub(super) fn refuse(&self, reason: &'static Reason) -> Rejection {
        let rejection = Rejection::labelled(self.label(), reason);
        crate::events::rejected(&rejection);
        rejection
    }

    /// Counts the call as timed out: by its deadline, which left it `deadline`, or by its own limit.
    #[cold]
    pub(super) fn expire(&self, deadline: Option<Duration>) -> Rejection {
        if let Some(timed_out) = self.options.as_ref().and_then(|options| options.timed_out.as_ref()) {
            timed_out.add(1);
        }
        let (reason, limit) = match deadline {
            Some(left) => (&EXCEEDED, left),
            None if self.is_total => (&TOTAL, self.after),
            None => (&ATTEMPT, self.after),
        };
        let rejection = Rejection::timed_out(self.label(), reason, limit);
        crate::events::timed_out(&rejection);
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
