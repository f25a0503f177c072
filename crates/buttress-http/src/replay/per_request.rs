use http::Extensions;

/// Settings of a retry layer for one request: an extension of the request. They win over those of
/// the layer.
///
/// ```
/// use buttress_http::prelude::*;
/// use http::Request;
///
/// // A search is a POST that changes nothing. This one is not worth a third attempt.
/// let search = Request::post("/search").extension(RetryOverride::new().idempotent(true).attempts(2)).body(())?;
/// # let _ = search;
/// # Ok::<(), http::Error>(())
/// ```
///
/// tonic's requests have the same extensions:
///
/// ```
/// # #[cfg(feature = "tonic")] {
/// use buttress_http::prelude::*;
///
/// let mut request = tonic::Request::new(());
/// request.extensions_mut().insert(RetryOverride::new().attempts(1));
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct RetryOverride {
    /// The number of attempts, including the first. 0 means 1. `None` uses that of the layer.
    pub attempts: Option<u32>,
    /// Whether processing the request twice has the same effect as once. `None` uses the rule of
    /// the layer.
    pub idempotent: Option<bool>,
}

impl RetryOverride {
    /// Makes an override that changes nothing.
    pub const fn new() -> Self {
        Self { attempts: None, idempotent: None }
    }

    /// Sets the number of attempts, including the first.
    pub const fn attempts(self, attempts: u32) -> Self {
        Self { attempts: Some(attempts), ..self }
    }

    /// Sets whether processing the request twice has the same effect as once.
    pub const fn idempotent(self, idempotent: bool) -> Self {
        Self { idempotent: Some(idempotent), ..self }
    }

    #[inline]
    pub(crate) fn of(extensions: &Extensions) -> Option<Self> {
        extensions.get().copied()
    }
}
