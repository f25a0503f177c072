//! Answers in place of a call that failed or was rejected.
//!
//! ```
//! use buttress::{FallbackLayer, PlainExt};
//! use std::io;
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let layer = FallbackLayer::to(vec!["a bestseller"]).named("bestsellers");
//! let stats = layer.stats();
//! let recommendations = ServiceBuilder::new()
//!     .layer(layer.plain())
//!     .service_fn(async |_customer: u32| Err::<Vec<&str>, _>(io::Error::other("down")));
//! assert_eq!(recommendations.oneshot(7).await.unwrap(), ["a bestseller"]);
//! assert_eq!(stats.used(), 1);
//! # }
//! ```
//!
//! A fallback can be computed, from the outcome and from a note of the request, and has bounds of
//! its own:
//!
//! ```
//! use buttress::{FallbackLayer, PlainExt, outcome::Outcome};
//! use std::{io, time::Duration};
//!
//! # async fn cached_price(_article: u32) -> Result<u64, io::Error> { Ok(100) }
//! let layer = FallbackLayer::with_note(
//!     |request: &(u32, String)| request.0, // kept; the rest of the request is not
//!     |article, _: Outcome| cached_price(article),
//! )
//! .named("cached-price")
//! .when(Outcome::is_failure) // not for what the layers inside rejected
//! .concurrency(50)
//! .timeout(Duration::from_millis(100))
//! .plain();
//! # let _ = layer;
//! ```
//!
//! # The action
//!
//! | action | keeps of the request |
//! |---|---|
//! | [`FallbackLayer::to`] returns a copy of a value | nothing |
//! | [`FallbackLayer::with`] calls a function of the [outcome](crate::outcome::Outcome) | nothing |
//! | [`FallbackLayer::with_note`] calls a function of a note of the request and the outcome | the note |
//! | [`FallbackLayer::service`] calls another service with the request | what [retry](crate::retry) keeps: with HTTP the head and up to 64 KiB of the body |
//!
//! # When it is used
//!
//! By default after a failure, and after a rejection by a layer inside: an open circuit, a full
//! bulkhead, a timeout. Not after a success, which with HTTP includes statuses such as 404, and not
//! after an outcome that a classifier ignores. [`when`](FallbackLayer::when) decides otherwise, but
//! a success is never replaced. With HTTP the head of the response decides; a body that breaks
//! later is too late for a fallback.
//!
//! # Its bounds
//!
//! At most 10 fallbacks of a layer run at a time (the limit of Hystrix), and each of them until the
//! deadline of the call that is being served ([`CallContext`](crate::policy::CallContext)), or for
//! its [timeout](FallbackLayer::timeout) if that is shorter. A value of [`FallbackLayer::to`] takes
//! no time and has no bounds.
//!
//! A fallback that fails, or that its bounds reject, changes nothing for the caller: the original
//! response or error is returned. With endings that return [`Error`](crate::Error), the original
//! error is the source of a [`FallbackFailed`], which has the error of the fallback too. A failed
//! response is kept for that until the fallback has ended, with what it holds: its place in a
//! bulkhead, its connection.
//!
//! # How it shows
//!
//! The endings of `buttress-http` mark the response of a fallback with the header `x-fallback`,
//! whose value is the [name](FallbackLayer::named) of the layer, and with the extension [`Used`].
//! Caches should not store such a response, and metrics can tell it from the real one. Layers
//! outside see a success; the layers inside, such as a circuit breaker, have recorded the failure,
//! and a fallback never counts as a success there.
//!
//! # When to use it
//!
//! Where a poorer answer is better than none: without recommendations, with yesterday's price. Not
//! where the caller has to know that its request was not carried out, such as a payment. A fallback
//! should not need what has just failed, and should be used often enough, in tests or by
//! `ChaosLayer`, that it works when it is needed.
//!
//! # Where it belongs
//!
//! Outermost. Inside a retry the fallback answers the first failed attempt, and the retry never
//! repeats anything. Inside a circuit breaker it hides the failures, and the circuit never opens.
//! Inside a total timeout it is dropped by the timeout for which it should answer.
//!
//! # Differences
//!
//! * Polly's fallback has a predicate and an action, and no bounds. Hystrix has a limit of 10.
//! * resilience4j has fallback methods for each annotation, so that a stack of annotations may
//!   have several. Here the layer outside decides alone.
//! * `tower-resilience` (0.14.0) clones each request. Here only
//!   [`service`](FallbackLayer::service) keeps requests, and only a request that no application has
//!   processed, or one that may be processed twice, goes to the other service.

mod action;
mod layer;
mod service;

pub use action::{Act, Alternate, AlternateFuture, Keep, Noted, Value, With};
pub use layer::{FallbackLayer, FallbackStats};
pub use service::Fallback;

use crate::BoxError;
use buttress_core::{Class, Name, Reason, TimeoutKind};

/// As many fallbacks as [`FallbackLayer::concurrency`] allows are running.
pub static FULL: Reason = Reason::new("fallback_full", "full", Class::Exhausted);
/// The deadline of the call had passed before its fallback began.
pub static TOO_LATE: Reason = Reason::new("fallback_too_late", "the deadline has passed", Class::Deadline);
/// The fallback took longer than [`FallbackLayer::timeout`], or the deadline of the call, allows.
pub static TIMEOUT: Reason = Reason::timeout("fallback_timeout", "the fallback took too long", TimeoutKind::Total);

/// The future of a [`Fallback`].
pub mod future {
    pub use super::service::ResponseFuture;
}

/// The error of a call whose fallback failed too.
///
/// Its [source](std::error::Error::source) is the original error, so that everything that reads a
/// chain of errors, such as a classifier or the conversion into a gRPC status, sees what happened
/// to the call and not what happened to its fallback.
///
/// ```
/// use buttress::{Error, FallbackLayer, PlainExt, fallback::FallbackFailed};
/// use std::{error::Error as _, io};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let layer = FallbackLayer::with(async |_| Err::<(), _>(io::Error::other("no cache"))).plain();
/// let service = layer.layer(service_fn(async |_: ()| Err::<(), _>(io::Error::other("down"))));
/// let error = service.oneshot(()).await.unwrap_err();
/// assert_eq!(error.to_string(), "down; and its fallback: no cache");
///
/// let failed = error.source().and_then(|source| source.downcast_ref::<FallbackFailed>()).unwrap();
/// assert_eq!(failed.original().to_string(), "down");
/// assert_eq!(failed.fallback().to_string(), "no cache");
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{original}; and its fallback: {fallback}")]
pub struct FallbackFailed {
    #[source]
    original: BoxError,
    fallback: BoxError,
}

impl FallbackFailed {
    /// Adds the error of a fallback to the error of the call. For endings.
    ///
    /// ```
    /// use buttress::{Error, Rejection, bulkhead, fallback::FallbackFailed};
    ///
    /// let full = Error::from(Rejection::new("bulkhead", &bulkhead::FULL));
    /// let error = FallbackFailed::around(full, "no cache".into());
    /// assert_eq!(error.rejection().map(Rejection::reason), Some(&bulkhead::FULL));
    /// ```
    pub fn around(original: crate::Error, fallback: BoxError) -> crate::Error {
        let original = match original {
            crate::Error::Rejected(rejection) => rejection.into(),
            crate::Error::Inner(inner) => inner,
        };
        crate::Error::Inner(Box::new(Self { original, fallback }))
    }

    /// Returns the error of the call.
    pub fn original(&self) -> &(dyn std::error::Error + 'static) {
        &*self.original
    }

    /// Returns the error of the fallback, or the rejection by its bounds.
    pub fn fallback(&self) -> &(dyn std::error::Error + 'static) {
        &*self.fallback
    }
}

/// Marks the response of a fallback. The endings of `buttress-http` put it into the extensions of
/// the response.
///
/// ```
/// use buttress::fallback::Used;
///
/// assert_eq!(Used::new(Some("bestsellers".into())).name(), Some("bestsellers"));
/// ```
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Used {
    name: Option<Name>,
}

impl Used {
    /// Creates the mark of the fallback `name`. For endings.
    pub fn new(name: Option<Name>) -> Self {
        Self { name }
    }

    /// Returns the [name](FallbackLayer::named) of the fallback.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}
