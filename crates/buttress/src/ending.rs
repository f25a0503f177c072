//! Endings define the protocol of a layer.
//!
//! A layer of this crate does not depend on the types of requests and responses. Its *ending* does:
//! it reads the outcome of a call, holds the permit until the end of the response's stream, and
//! decides how a rejection is returned. A layer without an ending does not implement
//! [`Layer`](tower_layer::Layer), so that none can be forgotten:
//!
//! | ending | for | returns rejections as |
//! |---|---|---|
//! | [`.plain()`](PlainExt::plain) | any service that is not HTTP | [`Error`](crate::Error) |
//! | [`.end(Plain::new().respond(..))`](Plain::respond) | a server that is not HTTP | a custom response |
//! | `.http_client()`, `.grpc_client()` of `buttress-http` | an HTTP or gRPC client | [`Error`](crate::Error) |
//! | `.http()`, `.grpc()` of `buttress-http` | an HTTP or gRPC server | a response |
//!
//! ```
//! use buttress::{CircuitBreakerLayer, PlainExt};
//! use tower::ServiceBuilder;
//!
//! # async fn call(_: String) -> Result<String, std::io::Error> { Ok(String::new()) }
//! let service = ServiceBuilder::new().layer(CircuitBreakerLayer::new("payments").plain()).service_fn(call);
//! # let _ = service;
//! ```
//!
//! ```compile_fail
//! use buttress::CircuitBreakerLayer;
//! use tower::ServiceBuilder;
//!
//! # async fn call(_: String) -> Result<String, std::io::Error> { Ok(String::new()) }
//! let service = ServiceBuilder::new().layer(CircuitBreakerLayer::new("payments")).service_fn(call);
//! # let _ = service;
//! ```
//!
//! # Settings
//!
//! The settings and the ending of a layer can be set in any order. A second ending does not
//! compile.
//!
//! # An ending for another protocol
//!
//! ```
//! use buttress::ending::{Begin, Ended, Ending, Finish};
//! use buttress::outcome::{Failure, FailureKind, Outcome};
//! use buttress::policy::{InFlight, Permit};
//! use buttress::{BoxError, BulkheadLayer, Error, Rejection};
//! use std::convert::Infallible;
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! /// Responses are status codes. Codes from 500 on are failures; a rejection returns 503.
//! #[derive(Clone)]
//! struct StatusCodes;
//!
//! impl Ended for StatusCodes {}
//!
//! impl<Req> Begin<Req> for StatusCodes {
//!     type Context = ();
//!     type Ahead = Infallible; // reads nothing in advance
//!
//!     fn begin<P: Permit>(&self, _: &mut Req) {}
//! }
//!
//! impl<Err: Into<BoxError>> Finish<(), u16, Err> for StatusCodes {
//!     type Response<P: Permit> = u16;
//!     type Error = Error;
//!
//!     fn head(&self, _: &(), status: &u16) -> Outcome {
//!         if *status < 500 { Outcome::Success } else { Failure::new(FailureKind::Application).into() }
//!     }
//!
//!     fn response<P: Permit>(&self, context: (), status: u16, permit: &mut InFlight<P>) -> u16 {
//!         permit.settle(&Finish::<(), u16, Err>::head(self, &context, &status));
//!         status
//!     }
//!
//!     fn reject<P: Permit>(&self, _: (), _: Rejection) -> Result<u16, Error> {
//!         Ok(503)
//!     }
//!
//!     fn inner(&self, error: Err) -> Error {
//!         Error::from_inner(error)
//!     }
//!
//!     fn outcome(&self, error: &Error) -> Outcome {
//!         buttress::error::outcome(error)
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let service = ServiceBuilder::new()
//!     .layer(BulkheadLayer::new(0).end(StatusCodes))
//!     .service_fn(|_: &'static str| async { Ok::<_, BoxError>(200) });
//! assert_eq!(service.oneshot("GET /").await.unwrap(), 503);
//! # }
//! ```

mod plain;
mod share;

pub use plain::{AsError, Judge, Plain, PlainExt, Respond, Success};
pub use share::{Share, ShareLimits, SharedError};

#[cfg(feature = "chaos")]
use crate::chaos::{Drawn, Injection};
use crate::{BoxError, in_flight::InFlight};
use buttress_core::{Label, Name, Outcome, Permit, Rejection};
use std::{
    convert::Infallible,
    task::Poll,
    time::{Duration, Instant},
};

/// Marks a layer that has no ending yet.
//
// The remark is behind the type because rustc prints this line, and no message of `Ended`, when a
// method of `ServiceBuilder` gets a layer without an ending.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoEnding; // end each layer: `.http()`, `.grpc()`, `.http_client()`, `.grpc_client()` or `.plain()`

/// Marks endings with which a layer implements [`Layer`](tower_layer::Layer). [`NoEnding`] does not
/// implement it.
///
/// The [module](self) shows an ending for another protocol.
#[diagnostic::on_unimplemented(
    message = "this layer has no ending, so that its protocol is unknown",
    label = "no ending",
    note = "end it with `.http()`, `.grpc()`, `.http_client()` or `.grpc_client()` (`use buttress_http::prelude::*`), or \
            with `.plain()` (`use buttress::PlainExt`) for services that are not HTTP"
)]
pub trait Ended {}

/// Sets the ending of a layer.
///
/// ```
/// use buttress::{CircuitBreakerLayer, Ending, ending::Plain};
///
/// let layer = CircuitBreakerLayer::new("payments").end(Plain::new());
/// # let _ = layer;
/// ```
pub trait Ending: Sized {
    /// The current ending.
    type Now;
    /// The layer with the ending `E`.
    type With<Next>;

    /// Returns the layer with another ending.
    fn end<Next>(self, ends: Next) -> Self::With<Next>;
}

/// Reads the request: the first half of an ending.
#[diagnostic::on_unimplemented(
    message = "the ending `{Self}` does not support requests of type `{Req}`",
    note = "HTTP endings take an `http::Request`; for requests of other types end the layer with `.plain()`"
)]
pub trait Begin<Req> {
    /// What [`Finish`] needs to know about the request, such as whether it is a HEAD request or
    /// gRPC. Taken from the future with the result, which leaves the default.
    type Context: Default;
    /// Reads a request in advance while it waits in a queue.
    type Ahead: Ahead;

    /// Reads the request before the policy. `P` is the permit of the policy.
    fn begin<P: Permit>(&self, request: &mut Req) -> Self::Context;

    /// Returns a reader for a request that waits in a queue. `None`, the default, reads nothing.
    ///
    /// An unread HTTP/2 body uses up the flow control window of its connection, and blocks other
    /// calls on it.
    fn ahead(&self, _request: &mut Req) -> Option<Self::Ahead> {
        None
    }

    /// Tells the inner service in the request how much time is left for the call, if the request
    /// has a deadline that was longer. Called for each attempt, of which the time before is spent.
    /// Does nothing by default.
    fn time_left(&self, _request: &mut Req, _left: Duration) {}
}

/// Reads a request in advance while it waits in a queue.
pub trait Ahead {
    /// Reads the available data. Returns `Ready` when more was sent than is buffered for a waiting
    /// call. The call must then be rejected, or it would block other calls on its connection.
    fn poll_too_large(&mut self, cx: &mut std::task::Context<'_>) -> Poll<()>;
}

/// Reads nothing in advance.
impl Ahead for Infallible {
    fn poll_too_large(&mut self, _: &mut std::task::Context<'_>) -> Poll<()> {
        match *self {}
    }
}

/// Reads the result of a call: the second half of an ending.
///
/// The type of the request is not among the parameters, so that futures can name the trait.
///
/// The [module](self) has an example of an implementation.
#[diagnostic::on_unimplemented(
    message = "the ending `{Self}` does not support `Result<{Res}, {Err}>`",
    note = "HTTP endings take an `http::Response` with an `http_body::Body`; for responses of other types end the layer with \
            `.plain()`",
    note = "an error must be `Into<Box<dyn Error + Send + Sync>>` where rejections are returned as errors"
)]
pub trait Finish<Context, Res, Err> {
    /// The response to the caller: `Res`, or `Res` with a permit in its body.
    type Response<P: Permit>;
    /// The error of the layer.
    type Error: Send + Sync + 'static;

    /// Returns the outcome as far as the head of the response shows it.
    ///
    /// ```
    /// use buttress::{Error, ending::{Finish, Plain}, outcome::Outcome};
    ///
    /// let plain = Plain::new();
    /// let outcome = Finish::<(), &str, Error>::head(&plain, &(), &"a response");
    /// assert_eq!(outcome, Outcome::Success);
    /// ```
    fn head(&self, context: &Context, response: &Res) -> Outcome;

    /// Converts a response, and settles its permit or moves it into the response's body.
    fn response<P: Permit>(&self, context: Context, response: Res, permit: &mut InFlight<P>) -> Self::Response<P>;

    /// Returns the result of a rejected call.
    ///
    /// ```
    /// use buttress::{Error, Rejection, bulkhead, ending::{Finish, Plain}};
    ///
    /// let plain = Plain::new().respond(|_: Rejection| "try later");
    /// let full = Rejection::new("bulkhead", &bulkhead::FULL);
    /// let response = Finish::<(), &str, Error>::reject::<()>(&plain, (), full);
    /// assert_eq!(response.unwrap(), "try later");
    /// ```
    ///
    /// # Errors
    /// The rejection, for endings that return rejections as errors.
    fn reject<P: Permit>(&self, context: Context, rejection: Rejection) -> Result<Self::Response<P>, Self::Error>;

    /// Marks a failed response as one that this service has repeated, so that its caller does not
    /// repeat it again. `retries` is the number of retries; 0 if the budget denied the first one.
    ///
    /// Called by [`RetryLayer`](crate::RetryLayer). The default does nothing, for protocols that
    /// cannot carry the mark.
    fn mark_retried(&self, _response: &mut Res, _retries: u32) {}

    /// Converts an error of the inner service.
    fn inner(&self, error: Err) -> Self::Error;

    /// Returns the outcome that a converted error means.
    ///
    /// ```
    /// use buttress::{Error, Rejection, bulkhead, ending::{Finish, Plain}, outcome::{Ignored, Outcome}};
    ///
    /// let full = Error::from(Rejection::new("bulkhead", &bulkhead::FULL));
    /// let outcome = Finish::<(), (), Error>::outcome(&Plain::new(), &full);
    /// assert_eq!(outcome, Outcome::Ignored(Ignored::LocalReject));
    /// ```
    fn outcome(&self, error: &Self::Error) -> Outcome;
}

/// Repeats requests. Required by [`RetryLayer`](crate::RetryLayer).
///
/// ```
/// use buttress::ending::{Kept, Plain, Replay};
///
/// let (attempt, mut kept) = Plain::new().first("a request");
/// assert_eq!(attempt, "a request");
/// assert_eq!(kept.again(2), Some("a request"));
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot repeat `{Req}`",
    note = "retry is for clients: end it with `.http_client()`, `.grpc_client()` or `.plain()`",
    note = "a request of `.plain()` must be `Clone`; convert a body that `buttress_http` does not support with \
            `.map_request_body(..)`"
)]
pub trait Replay<Req> {
    /// The request of the inner service.
    type Attempt;
    /// The part of a request that is needed to repeat it.
    type Kept: Kept<Attempt = Self::Attempt>;

    /// Splits a request into its first attempt and what is needed to repeat it.
    fn first(&self, request: Req) -> (Self::Attempt, Self::Kept);

    /// Returns the only attempt of a request that is not repeated.
    ///
    /// ```
    /// use buttress::ending::{Plain, Replay};
    ///
    /// struct NotClone(u32);
    /// # impl Clone for NotClone { fn clone(&self) -> Self { panic!("cloned") } }
    ///
    /// // A request with one attempt is not cloned:
    /// assert_eq!(Plain::new().only(NotClone(7)).0, 7);
    /// ```
    fn only(&self, request: Req) -> Self::Attempt;

    /// Returns whether the request adds to the retry budget. A retry by a caller does not:
    /// otherwise the budgets of several tiers would multiply.
    fn deposits(&self, _request: &Req) -> bool {
        true
    }

    /// Returns the number of attempts that the request itself asks for, including the first. It
    /// wins over that of the layer and over [`attempts_by`](crate::RetryLayer::attempts_by).
    fn attempts(&self, _request: &Req) -> Option<u32> {
        None
    }
}

/// Sends a request several times at once. Required by [`HedgeLayer`](crate::HedgeLayer).
///
/// ```
/// use buttress::ending::{Duplicate, Kept, Plain};
///
/// let (attempt, kept) = Plain::new().first_of_several("a request");
/// assert_eq!(attempt, "a request");
/// assert_eq!(kept.unwrap().again(2), Some("a request"));
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot send `{Req}` several times at once",
    note = "hedging is for clients: end it with `.http_client()`, `.grpc_client()` or `.plain()`",
    note = "a request of `.plain()` must be `Clone`; convert a body that `buttress_http` does not support with \
            `.map_request_body(..)`"
)]
pub trait Duplicate<Req>: Replay<Req> {
    /// Splits a request into its first attempt and what is needed to send others at the same time:
    /// a further attempt leaves the earlier ones as they are. `None` instead of the second part if
    /// the request must not be processed twice, or is too large to be sent twice.
    fn first_of_several(&self, request: Req) -> (Self::Attempt, Option<Self::Kept>);
}

/// The part of a request that is needed to repeat it.
///
/// ```
/// use buttress::ending::Kept;
///
/// /// Repeats a read from the next replica.
/// struct Read {
///     key: &'static str,
/// }
///
/// impl Kept for Read {
///     type Attempt = (&'static str, u32);
///
///     fn again(&mut self, attempt: u32) -> Option<(&'static str, u32)> {
///         Some((self.key, (attempt - 1) % 3))
///     }
///
///     fn is_idempotent(&self) -> bool {
///         true
///     }
/// }
///
/// assert_eq!(Read { key: "a" }.again(2), Some(("a", 1)));
/// ```
pub trait Kept {
    /// The request of the inner service.
    type Attempt;

    /// Returns attempt number `attempt`, where the first was 1. `None` if the request cannot be
    /// replayed any more.
    fn again(&mut self, attempt: u32) -> Option<Self::Attempt>;

    /// Updates an attempt that was made by [`again`](Self::again), at the moment at which it is
    /// sent, such as a header that says how much time is left. Does nothing by default.
    fn refresh(&self, _attempt: &mut Self::Attempt) {}

    /// Returns whether processing the request twice has the same effect as once (RFC 9110, section
    /// 9.2.2).
    fn is_idempotent(&self) -> bool;

    /// Returns whether the request has content of which the last attempt took nothing. If the
    /// transport then ended that attempt by itself, the request was not processed.
    fn is_untouched(&self) -> bool {
        false
    }
}

/// Limits the time of a response's body. Required by [`TimeoutLayer`](crate::TimeoutLayer).
#[diagnostic::on_unimplemented(
    message = "the ending `{Self}` cannot limit the time of `Result<{Res}, {Err}>`",
    note = "HTTP endings take an `http::Response` with an `http_body::Body` that is `Send + 'static`; for responses of other \
            types end the layer with `.plain()`"
)]
pub trait Bound<Context, Res, Err>: Finish<Context, Res, Err> {
    /// The response with its bounds.
    type Bounded;

    /// Applies the bounds to a response.
    fn bound(&self, response: Res, bounds: &BodyBounds) -> Self::Bounded;

    /// Returns the result of a call that timed out.
    ///
    /// # Errors
    /// The rejection, for endings that return rejections as errors.
    fn expired(&self, context: Context, rejection: Rejection) -> Result<Self::Bounded, Self::Error>;
}

/// Returns another response in place of a failed one. Required by
/// [`FallbackLayer`](crate::FallbackLayer).
///
/// ```
/// use buttress::{Error, ending::{Plain, Substitute}};
///
/// let plain = Plain::new();
/// let response = Substitute::<(), &str, Error, &str>::substitute(&plain, "a fallback", None);
/// assert_eq!(response, "a fallback");
/// ```
#[diagnostic::on_unimplemented(
    message = "the ending `{Self}` cannot return `{Alt}` in place of `Result<{Res}, {Err}>`",
    note = "with `.plain()` a fallback returns the type of the response; with HTTP endings it returns an `http::Response` whose \
            body has the same type of data"
)]
pub trait Substitute<Context, Res, Err, Alt>: Finish<Context, Res, Err> {
    /// The response to the caller: of the inner service, or of the fallback.
    type Substituted;

    /// Converts the response of the inner service.
    fn original(&self, response: Res) -> Self::Substituted;

    /// Converts and marks the response of the fallback `name`.
    fn substitute(&self, response: Alt, name: Option<&Name>) -> Self::Substituted;

    /// Returns the error of a call whose fallback failed too. The default is the original error.
    fn failed(&self, original: Self::Error, _fallback: BoxError) -> Self::Error {
        original
    }
}

/// Injects faults. Required by [`ChaosLayer`](crate::chaos::ChaosLayer).
#[cfg(feature = "chaos")]
#[diagnostic::on_unimplemented(
    message = "the ending `{Self}` cannot inject faults into `Result<{Res}, {Err}>`",
    note = "HTTP endings take an `http::Response` whose body has data that can be made from `Bytes`; for responses of other \
            types end the layer with `.plain()`"
)]
pub trait Inject<Context, Res, Err>: Finish<Context, Res, Err> {
    /// The response with its faults.
    type Injected;

    /// Converts a response without faults.
    fn untouched(&self, response: Res) -> Self::Injected;

    /// Returns the result of a call that fails.
    ///
    /// # Errors
    /// The injected error, for endings that return failures as errors.
    fn fail(&self, context: Context, drawn: &Drawn) -> Result<Self::Injected, Self::Error>;

    /// Injects the drawn faults into the body of a response.
    fn break_body(&self, response: Res, injection: Injection) -> Self::Injected;
}

/// Time limits on the body of a response. `None` sets no limit.
///
/// ```
/// use buttress::ending::BodyBounds;
/// use std::time::Duration;
///
/// let bounds = BodyBounds { idle: Some(Duration::from_secs(10)), ..BodyBounds::default() };
/// assert_eq!(bounds.total, None);
/// ```
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct BodyBounds {
    /// Maximum time without a frame while the body is polled.
    pub idle: Option<Duration>,
    /// Maximum time from the head of the response to the end of its body.
    pub total: Option<Duration>,
    /// Maximum time in which the reader does not poll the body. `None` uses the default of the
    /// ending: 30 s for servers, no limit for clients.
    pub stalled: Option<Duration>,
    /// The deadline of the call.
    pub deadline: Option<BodyDeadline>,
    /// Policy name that the rejections of these bounds carry.
    pub label: Option<Label>,
}

/// The deadline of a call, as a bound on the body of its response.
///
/// ```
/// use buttress::{ending::BodyDeadline, policy::{Clock, TokioClock}};
/// use std::time::Duration;
///
/// let had = Duration::from_secs(2);
/// let deadline = BodyDeadline { at: TokioClock.now() + had, had, through_http: false };
/// assert!(!deadline.through_http);
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BodyDeadline {
    /// The deadline.
    pub at: Instant,
    /// The time that was left when the call started, for the rejection.
    pub had: Duration,
    /// Whether bodies of HTTP responses end as well as those of gRPC.
    pub through_http: bool,
}
