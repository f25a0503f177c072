use super::Deadline;
use crate::ending::Plain;
use std::time::{Duration, Instant};

/// The time that a request grants its call.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Asked {
    /// A time from now on, as on the wire.
    pub time: Option<Duration>,
    /// A moment, as in an extension of the request.
    pub until: Option<Instant>,
}

impl Asked {
    /// Creates what a request asks.
    ///
    /// ```
    /// use buttress::deadline::Asked;
    /// use std::time::Duration;
    ///
    /// assert_eq!(Asked::new(Some(Duration::from_secs(1)), None).time, Some(Duration::from_secs(1)));
    /// ```
    pub const fn new(time: Option<Duration>, until: Option<Instant>) -> Self {
        Self { time, until }
    }
}

/// Reads the deadline of a call from its request, and writes it there for the next service.
/// Required by [`DeadlineLayer`](crate::DeadlineLayer).
///
/// ```
/// use buttress::{deadline::{Asked, CarryDeadline}, ending::Plain};
///
/// assert_eq!(Plain::new().asked(&"a request"), Asked::default());
/// ```
#[diagnostic::on_unimplemented(
    message = "the ending `{Self}` cannot carry the deadline of `{Req}`",
    note = "HTTP endings take an `http::Request`; for requests of other types end the layer with `.plain()`"
)]
pub trait CarryDeadline<Req> {
    /// Returns the time that the request grants.
    fn asked(&self, request: &Req) -> Asked;

    /// Leaves the deadline in the request for the inner service. `left` is the time until then.
    fn hand_on(&self, request: &mut Req, deadline: Deadline, left: Duration);
}

/// Carries nothing: a request that is not HTTP has no headers.
impl<Outcomes, Rejections, Req> CarryDeadline<Req> for Plain<Outcomes, Rejections> {
    #[inline(always)]
    fn asked(&self, _: &Req) -> Asked {
        Asked::default()
    }

    #[inline(always)]
    fn hand_on(&self, _: &mut Req, _: Deadline, _: Duration) {}
}
