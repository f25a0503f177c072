use crate::ending::Plain;
use buttress_core::{Priority, context::CallContext};

/// Reads the context of a call from its request, and writes it there for the next service. Required
/// by [`ContextLayer`](crate::ContextLayer).
///
/// ```
/// use buttress::{context::{Carry, Known}, ending::Plain, policy::Criticality};
///
/// let mut known = Known::default();
/// known.priority = Some(Criticality::Sheddable.into());
/// let context = Plain::new().carry(&mut "a request", &known);
/// assert_eq!(context.priority, known.priority);
/// ```
#[diagnostic::on_unimplemented(
    message = "the ending `{Self}` cannot carry the context of `{Req}`",
    note = "HTTP endings take an `http::Request`; for requests of other types end the layer with `.plain()`"
)]
pub trait Carry<Req> {
    /// Returns the context of the call, and leaves it in the request for the inner service.
    fn carry(&self, request: &mut Req, known: &Known) -> CallContext;
}

/// Keeps what is left of a response in the context of its call. Required by
/// [`ContextLayer`](crate::ContextLayer).
///
/// ```
/// use buttress::{context::Stay, ending::Plain, policy::CallContext};
///
/// assert_eq!(Plain::new().stay(CallContext::default(), "a response"), "a response");
/// ```
#[diagnostic::on_unimplemented(
    message = "the ending `{Self}` cannot keep `{Res}` in the context of its call",
    note = "HTTP endings take an `http::Response`; for responses of other types end the layer with `.plain()`"
)]
pub trait Stay<Res> {
    /// The response to the caller: `Res`, or `Res` with a body that is polled in the context.
    type Response;

    /// Whether the ending tells the caller that calls made for this one were
    /// [repeated](buttress_core::context::Retried). Servers do. Other endings leave it to the call
    /// around theirs. Default false.
    const TELLS_RETRIED: bool = false;

    /// Tells the caller that a call made for this one has failed after `retries` retries. Does
    /// nothing if the response is no failure. Called before [`stay`](Self::stay), only with
    /// [`TELLS_RETRIED`](Self::TELLS_RETRIED).
    fn tell_retried(&self, _response: &mut Res, _retries: u32) {}

    /// Converts a response, so that what is left of it is produced in the context.
    fn stay(&self, context: CallContext, response: Res) -> Self::Response;
}

/// What a [`ContextLayer`](crate::ContextLayer) knows of a call before it reads the request.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Known {
    /// The priority that [`priority_by`](crate::ContextLayer::priority_by) chose. On a server it
    /// wins over everything that the request says. A client leaves a header that its request has,
    /// and takes the priority from there.
    pub priority: Option<Priority>,
    /// Whether a server takes the priority that the caller sent.
    pub trusts_priority: bool,
}

impl Known {
    /// Returns the current context with the priority that is known, or else with `request`'s.
    ///
    /// ```
    /// use buttress::{context::Known, policy::Criticality};
    ///
    /// let priority = Criticality::Sheddable.into();
    /// assert_eq!(Known::default().context(Some(priority)).priority, Some(priority));
    /// ```
    pub fn context(&self, request: Option<Priority>) -> CallContext {
        let current = CallContext::current();
        self.priority.or(request).map_or(current, |priority| current.with_priority(priority))
    }
}

/// Carries nothing: a request that is not HTTP has no headers.
impl<Outcomes, Rejections, Req> Carry<Req> for Plain<Outcomes, Rejections> {
    #[inline]
    fn carry(&self, _: &mut Req, known: &Known) -> CallContext {
        known.context(None)
    }
}

/// Converts nothing: a response that is not HTTP has no body.
impl<Outcomes, Rejections, Res> Stay<Res> for Plain<Outcomes, Rejections> {
    type Response = Res;

    #[inline]
    fn stay(&self, _: CallContext, response: Res) -> Res {
        response
    }
}
