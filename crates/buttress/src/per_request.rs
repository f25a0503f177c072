//! Settings that differ by request.

/// A setting of a layer that may differ by request. See
/// [`TimeoutLayer::by`](crate::TimeoutLayer::by) and
/// [`RetryLayer::attempts_by`](crate::RetryLayer::attempts_by).
pub trait PerRequest<Req, T> {
    /// The value for `request`; `None` for that of the layer.
    fn of(&self, request: &Req) -> Option<T>;
}

/// The same value for every request: that of the layer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Same;

impl<Req, T> PerRequest<Req, T> for Same {
    #[inline(always)]
    fn of(&self, _: &Req) -> Option<T> {
        None
    }
}

/// A value that a function reads from the request.
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
