//! Settings whose value depends on the request.

/// Returns the value of a setting for a request. Used by
/// [`TimeoutLayer::by`](crate::TimeoutLayer::by) and
/// [`RetryLayer::attempts_by`](crate::RetryLayer::attempts_by).
///
/// ```
/// use buttress::per_request::{PerRequest, Same};
///
/// fn attempts(setting: &impl PerRequest<String, u32>, request: &String) -> u32 {
///     setting.of(request).unwrap_or(3)
/// }
/// assert_eq!(attempts(&Same, &"a request".to_owned()), 3);
/// ```
pub trait PerRequest<Req, T> {
    /// Returns the value for `request`, or `None` to use the value of the layer.
    fn of(&self, request: &Req) -> Option<T>;
}

/// Uses the value of the layer for every request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Same;

impl<Req, T> PerRequest<Req, T> for Same {
    #[inline(always)]
    fn of(&self, _: &Req) -> Option<T> {
        None
    }
}

/// Reads the value from the request with a function.
#[derive(Clone, Copy)]
pub struct By<F>(pub(crate) F);

impl<F> std::fmt::Debug for By<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("By(..)")
    }
}

impl<Req, T, F: Fn(&Req) -> Option<T>> PerRequest<Req, T> for By<F> {
    #[inline]
    fn of(&self, request: &Req) -> Option<T> {
        (self.0)(request)
    }
}
