use super::{Deadlines, MIN_USEFUL, Mode};
use crate::{
    ending::{Ending, NoEnding},
    per_request::{By, Same},
};
use buttress_core::{Name, deadline::Terms};
use std::time::Duration;

/// A deadline as a layer. It implements [`Layer`](tower_layer::Layer) once it has an
/// [ending](crate::ending).
///
/// The [module](super) describes what is bounded, and what is handed on.
///
/// ```
/// use buttress::{DeadlineLayer, PlainExt, deadline};
/// use std::{convert::Infallible, time::Duration};
/// use tower::{ServiceBuilder, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let service = ServiceBuilder::new()
///     .layer(DeadlineLayer::new(Duration::from_secs(2)).plain())
///     .service_fn(|_: ()| std::future::pending::<Result<(), Infallible>>());
/// let error = service.oneshot(()).await.unwrap_err();
/// assert_eq!(error.rejection().unwrap().reason(), &deadline::EXCEEDED);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct DeadlineLayer<E = NoEnding, Limit = Same> {
    pub(super) deadlines: Deadlines,
    pub(super) settings: Settings,
    pub(super) limit: Limit,
    pub(super) ends: E,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    /// Of every call: what is known without its request.
    pub(super) terms: Terms,
    pub(super) through_body: bool,
}

impl DeadlineLayer {
    /// Creates a layer for clients, whose calls take at most `limit`.
    ///
    /// A call that less than 1 ms is left for is rejected without being sent
    /// ([`min_useful`](Self::min_useful)), and every one that is late
    /// ([`Mode::EnforceAll`]). [`Duration::MAX`] sets no limit: then calls have only the deadlines
    /// of their callers.
    ///
    /// ```
    /// # use buttress::DeadlineLayer;
    /// # use std::time::Duration;
    /// let outermost = DeadlineLayer::new(Duration::from_secs(2));
    /// # let _ = outermost;
    /// ```
    pub fn new(limit: Duration) -> Self {
        let limit = Some(limit);
        let terms = Terms { default: limit, max: limit, min_useful: MIN_USEFUL, ..Terms::default() };
        Self::with(terms, Mode::EnforceAll)
    }

    /// Creates a layer for servers, whose calls have the deadlines of their callers.
    ///
    /// A call that arrives without time left is rejected, but no more than 0.2 of the calls of 10 s
    /// are ([`Mode::Enforce`]). There is no other limit by default: see
    /// [`default_limit`](Self::default_limit) and [`max_limit`](Self::max_limit).
    ///
    /// ```
    /// # use buttress::DeadlineLayer;
    /// # use std::time::Duration;
    /// let layer = DeadlineLayer::server().max_limit(Duration::from_secs(30));
    /// assert_eq!(layer.handle().exceeded(), 0);
    /// ```
    pub fn server() -> Self {
        Self::with(Terms::default(), Mode::Enforce)
    }

    fn with(terms: Terms, mode: Mode) -> Self {
        let deadlines = Deadlines::new();
        deadlines.set_mode(mode);
        Self { deadlines, settings: Settings { terms, through_body: false }, limit: Same, ends: NoEnding }
    }
}

impl<E, Limit> DeadlineLayer<E, Limit> {
    /// Sets the limit of calls whose request grants no time. Default: the limit of
    /// [`new`](DeadlineLayer::new), none for [`server`](DeadlineLayer::server).
    pub fn default_limit(mut self, limit: Duration) -> Self {
        self.settings.terms.default = Some(limit);
        self
    }

    /// Sets the limit of all calls, whatever their requests grant. Default: the limit of
    /// [`new`](DeadlineLayer::new), none for [`server`](DeadlineLayer::server).
    pub fn max_limit(mut self, limit: Duration) -> Self {
        self.settings.terms.max = Some(limit);
        self
    }

    /// Reads the limit from the request, for limits that differ by method or route. `None` uses the
    /// limits of the layer; [`Duration::MAX`] is no limit. A deadline of the caller still holds.
    ///
    /// ```
    /// # use buttress::{DeadlineLayer, PlainExt};
    /// # use std::time::Duration;
    /// struct Query {
    ///     is_export: bool,
    /// }
    ///
    /// let layer = DeadlineLayer::new(Duration::from_secs(2))
    ///     .by(|query: &Query| query.is_export.then_some(Duration::from_secs(60)))
    ///     .plain();
    /// # let _ = layer;
    /// ```
    pub fn by<Req, F: Fn(&Req) -> Option<Duration>>(self, limit: F) -> DeadlineLayer<E, By<F>> {
        DeadlineLayer { deadlines: self.deadlines, settings: self.settings, limit: By(limit), ends: self.ends }
    }

    /// Sets the least time for which a call is started. Default: [`MIN_USEFUL`], which is 1 ms, for
    /// [`new`](DeadlineLayer::new), none for [`server`](DeadlineLayer::server).
    pub fn min_useful(mut self, time: Duration) -> Self {
        self.settings.terms.min_useful = time;
        self
    }

    /// Ends bodies of HTTP responses at the deadline too. Default: only gRPC responses, because a
    /// body may be a download or a stream of events, which is of use also in part.
    pub fn through_body(mut self) -> Self {
        self.settings.through_body = true;
        self
    }

    /// Sets what happens to calls without time left, also while the layer is in use: the mode
    /// belongs to the [handle](Self::handle).
    ///
    /// ```
    /// use buttress::{DeadlineLayer, deadline::Mode};
    ///
    /// let layer = DeadlineLayer::server().mode(Mode::Observe);
    /// assert_eq!(layer.handle().mode(), Mode::Observe);
    /// ```
    pub fn mode(self, mode: Mode) -> Self {
        self.deadlines.set_mode(mode);
        self
    }

    /// Sets a name, which rejections and metrics carry. Starts new counts, with the present mode.
    ///
    /// ```
    /// use buttress::DeadlineLayer;
    ///
    /// assert_eq!(DeadlineLayer::server().named("orders").handle().name(), Some("orders"));
    /// ```
    pub fn named(mut self, name: impl Into<Name>) -> Self {
        let mode = self.deadlines.mode();
        self.deadlines = Deadlines::named(name);
        self.mode(mode)
    }

    /// Uses `deadlines` to judge and count calls. Layers that share a handle share its bound on
    /// rejections.
    ///
    /// ```
    /// use buttress::{DeadlineLayer, Deadlines};
    ///
    /// let layer = DeadlineLayer::server().deadlines(Deadlines::builder().max_share(0.1).build()?);
    /// # let _ = layer;
    /// # Ok::<(), buttress::InvalidConfig>(())
    /// ```
    pub fn deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// Returns the handle, to observe the counts or to set the mode.
    pub fn handle(&self) -> &Deadlines {
        &self.deadlines
    }
}

impl<E, Limit> Ending for DeadlineLayer<E, Limit> {
    type Now = E;
    type With<Next> = DeadlineLayer<Next, Limit>;

    fn end<Next>(self, ends: Next) -> DeadlineLayer<Next, Limit> {
        DeadlineLayer { deadlines: self.deadlines, settings: self.settings, limit: self.limit, ends }
    }
}
