use super::{ATTEMPT, TOTAL, service::Timeout};
use crate::{
    ending::{BodyBounds, Ended, Ending, NoEnding},
    per_request::{By, Same},
};
use buttress_core::{
    Label, Name, Reason, Rejection,
    report::{Metric, Report, Sink},
    shard::Counter,
};
use std::{sync::Arc, time::Duration};
use tower_layer::Layer;

const POLICY: &str = "timeout";

/// A timeout as a layer, once it has an [ending](crate::ending). See the [module](self).
#[derive(Clone, Debug)]
pub struct TimeoutLayer<E = NoEnding, Limit = Same> {
    pub(super) bound: CallBound,
    pub(super) limit: Limit,
    pub(super) ends: E,
}

/// The bound on a call, and what is seldom set.
#[derive(Clone, Debug)]
pub(super) struct CallBound {
    pub(super) after: Duration,
    reason: &'static Reason,
    options: Option<Arc<Options>>,
}

#[derive(Clone, Debug, Default)]
struct Options {
    bounds: BodyBounds,
    timed_out: Option<Arc<Counter>>,
}

impl TimeoutLayer {
    /// For one attempt, until its response begins. [`Duration::MAX`] never runs out; zero only lets through what is ready at once.
    pub const fn attempt(after: Duration) -> Self {
        Self::new(after, &ATTEMPT)
    }

    /// For a whole call with all its attempts and the pauses between them, until its response begins.
    pub const fn total(after: Duration) -> Self {
        Self::new(after, &TOTAL)
    }

    const fn new(after: Duration, reason: &'static Reason) -> Self {
        Self { bound: CallBound { after, reason, options: None }, limit: Same, ends: NoEnding }
    }
}

impl<E, Limit> TimeoutLayer<E, Limit> {
    /// Reads the bound from the request, for bounds per method or route. `None` leaves it to the
    /// layer.
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

    /// Gives it a name, which its rejections carry, and counts the calls that time out: see
    /// [`stats`](Self::stats).
    pub fn named(self, name: impl Into<Name>) -> Self {
        let label = Label::named(POLICY, name.into());
        self.with(|options| {
            options.bounds.label = Some(label);
            options.timed_out = Some(Arc::default());
        })
    }

    /// The longest time between two frames of the body of a response, while it is asked for one.
    /// For HTTP endings. None by default: a stream of events may be silent for long.
    pub fn body_idle(self, idle: Duration) -> Self {
        self.with(|options| options.bounds.idle = Some(idle))
    }

    /// The longest time from the head of a response to the end of its body. For HTTP endings. None
    /// by default.
    pub fn body_total(self, total: Duration) -> Self {
        self.with(|options| options.bounds.total = Some(total))
    }

    /// The longest time in which the body of a response is not asked for more, because its reader
    /// has stopped. For HTTP endings. Default: 30 seconds for servers, none for clients.
    /// [`Duration::MAX`] never runs out.
    pub fn reader_stall(self, stalled: Duration) -> Self {
        self.with(|options| options.bounds.stalled = Some(stalled))
    }

    /// The counters of a [named](Self::named) timeout. Shared by all services of this layer.
    pub fn stats(&self) -> Option<TimeoutStats> {
        let Options { bounds, timed_out } = &**self.bound.options.as_ref()?;
        Some(TimeoutStats { label: bounds.label.clone()?, timed_out: timed_out.clone()? })
    }

    fn with(self, change: impl FnOnce(&mut Options)) -> Self {
        let Self { bound: CallBound { after, reason, options }, limit, ends } = self;
        let mut options = options.map(Arc::unwrap_or_clone).unwrap_or_default();
        change(&mut options);
        Self { bound: CallBound { after, reason, options: Some(Arc::new(options)) }, limit, ends }
    }
}

/// Counters of a [`TimeoutLayer`], since it got its name.
#[derive(Clone, Debug)]
pub struct TimeoutStats {
    label: Label,
    timed_out: Arc<Counter>,
}

impl TimeoutStats {
    /// Calls that timed out before their response began.
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

/// The bounds on the body of a layer that sets none.
const NO_BOUNDS: &BodyBounds = &BodyBounds { idle: None, total: None, stalled: None, label: None };

impl CallBound {
    pub(super) fn of_body(&self) -> &BodyBounds {
        self.options.as_ref().map_or(NO_BOUNDS, |options| &options.bounds)
    }

    #[cold]
    pub(super) fn expire(&self) -> Rejection {
        let label =
            self.options.as_ref().and_then(|options| options.bounds.label.clone()).unwrap_or(Label::new(POLICY));
        if let Some(timed_out) = self.options.as_ref().and_then(|options| options.timed_out.as_ref()) {
            timed_out.add(1);
        }
        let rejection = Rejection::timed_out(label, self.reason, self.after);
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

impl<S, E: Ended + Clone, Limit: Clone> Layer<S> for TimeoutLayer<E, Limit> {
    type Service = Timeout<S, E, Limit>;

    fn layer(&self, inner: S) -> Self::Service {
        Timeout::new(inner, self.clone())
    }
}
