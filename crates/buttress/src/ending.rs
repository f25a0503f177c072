//! Endings: what a layer speaks.
//!
//! A layer of this family does not know by itself what a request and a response are. Its *ending*
//! does: it reads the outcome of a call, holds the permit to the end of the response's stream, and
//! decides how a rejection leaves. A layer without an ending is not a
//! [`Layer`](tower_layer::Layer), so that none can be forgotten:
//!
//! | ending | for | rejections leave as |
//! |---|---|---|
//! | [`.plain()`](PlainExt::plain) | any service that is not HTTP | [`Error`](crate::Error) |
//! | [`.end(Plain::new().respond(..))`](Plain::respond) | a server that is not HTTP | a response of yours |
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
//! Settings of the layer and the ending are independent: each can come first, and none is lost. A
//! second ending does not compile.

mod plain;

pub use plain::{AsError, Judge, Plain, PlainExt, Respond, Success};

use crate::in_flight::InFlight;
use buttress_core::{Label, Outcome, Permit, Rejection};
use std::{convert::Infallible, task::Poll, time::Duration};

/// A layer that has no ending yet.
//
// The remark stands behind the type because rustc prints this line, and no message of `Ended`,
// where a method of `ServiceBuilder` finds a layer without an ending.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoEnding; // end each layer: `.http()`, `.grpc()`, `.http_client()`, `.grpc_client()` or `.plain()`

/// Marks the endings that make a layer out of a policy. [`NoEnding`] is none.
#[diagnostic::on_unimplemented(
    message = "this layer has no ending: it does not know what it protects",
    label = "no ending",
    note = "end it with `.http()`, `.grpc()`, `.http_client()` or `.grpc_client()` (`use buttress_http::prelude::*`), or \
            with `.plain()` (`use buttress::PlainExt`) for services that are not HTTP"
)]
pub trait Ended {}

/// A layer whose ending can be chosen.
pub trait Ending: Sized {
    /// The ending that it has now.
    type Now;
    /// The layer with the ending `E`.
    type With<Next>;

    /// Gives the layer another ending.
    fn end<Next>(self, ends: Next) -> Self::With<Next>;
}

/// The half of an ending that sees the request.
#[diagnostic::on_unimplemented(
    message = "the ending `{Self}` does not speak `{Req}`",
    note = "HTTP endings take an `http::Request`; for requests of other types end the layer with `.plain()`"
)]
pub trait Begin<Req> {
    /// What the end of the call must know of its request: whether it is a HEAD, whether it speaks
    /// gRPC. It leaves a future with the result; a default stays behind.
    type Context: Default;
    /// Reads a request ahead while it waits in a queue.
    type Ahead: Ahead;

    /// Looks at a request before the policy sees it. `P` is the permit of the policy.
    fn begin<P: Permit>(&self, request: &mut Req) -> Self::Context;

    /// What has to be read of a request while it waits in a queue, so that calls that share its
    /// connection are not held up by its flow control. `None` where nothing has to.
    fn ahead(&self, _request: &mut Req) -> Option<Self::Ahead> {
        None
    }
}

/// Reads a request ahead while it waits in a queue.
pub trait Ahead {
    /// Reads what there is. Ready when more was sent than is kept for a call that waits: it has to
    /// be rejected, or it would hold up the others.
    fn poll_too_large(&mut self, cx: &mut std::task::Context<'_>) -> Poll<()>;
}

/// Reads nothing ahead.
impl Ahead for Infallible {
    fn poll_too_large(&mut self, _: &mut std::task::Context<'_>) -> Poll<()> {
        match *self {}
    }
}

/// The half of an ending that sees the result. It does not have the request in its parameters, so
/// that futures can name it.
#[diagnostic::on_unimplemented(
    message = "the ending `{Self}` does not speak `Result<{Res}, {Err}>`",
    note = "HTTP endings take an `http::Response` with an `http_body::Body`; for responses of other types end the layer with \
            `.plain()`",
    note = "an error has to be `Into<Box<dyn Error + Send + Sync>>` where rejections leave as errors"
)]
pub trait Finish<Context, Res, Err> {
    /// What the caller gets: `Res` itself, or `Res` with a permit in its body.
    type Response<P: Permit>;
    /// The layer's error.
    type Error: Send + Sync + 'static;

    /// What the head of a response says of the call so far.
    fn head(&self, context: &Context, response: &Res) -> Outcome;

    /// Passes a response on, and settles its permit or sees to it that it will be settled.
    fn response<P: Permit>(&self, context: Context, response: Res, permit: &mut InFlight<P>) -> Self::Response<P>;

    /// The result of a call that was rejected.
    ///
    /// # Errors
    /// The rejection, where rejections leave as errors.
    fn reject<P: Permit>(&self, context: Context, rejection: Rejection) -> Result<Self::Response<P>, Self::Error>;

    /// Passes an error of the inner service on.
    fn inner(&self, error: Err) -> Self::Error;

    /// What an error that was passed on says of the call.
    fn outcome(&self, error: &Self::Error) -> Outcome;
}

/// Repeats the requests of a protocol; asked for by retry.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot repeat `{Req}`",
    note = "retry is for clients: end it with `.http_client()`, `.grpc_client()` or `.plain()`",
    note = "a request of `.plain()` has to be `Clone`; a body that `buttress_http` does not know is converted by \
            `.map_request_body(..)`"
)]
pub trait Replay<Req> {
    /// What the inner service is called with.
    type Attempt;
    /// What is kept of a request to repeat it.
    type Kept: Kept<Attempt = Self::Attempt>;

    /// Splits a request into its first attempt and what is kept of it.
    fn first(&self, request: Req) -> (Self::Attempt, Self::Kept);

    /// The one attempt of a request that is not to be repeated: nothing has to be kept of it.
    fn only(&self, request: Req) -> Self::Attempt;

    /// Whether the request adds to the budget. A retry of a caller further up does not, or budgets
    /// would multiply over the tiers.
    fn deposits(&self, _request: &Req) -> bool {
        true
    }
}

/// What is kept of a request to repeat it.
pub trait Kept {
    /// What the inner service is called with.
    type Attempt;

    /// Attempt number `attempt`, where 1 was the first; `None` when it cannot be replayed any more.
    fn again(&mut self, attempt: u32) -> Option<Self::Attempt>;

    /// Whether doing it twice is the same as doing it once.
    fn is_idempotent(&self) -> bool;

    /// Whether the request has content of which the attempt that just ended took nothing: where the
    /// transport gave that attempt up by itself, it cannot have been processed.
    fn is_untouched(&self) -> bool {
        false
    }
}

/// Bounds the response after its head; asked for by timeouts.
#[diagnostic::on_unimplemented(
    message = "the ending `{Self}` cannot bound `Result<{Res}, {Err}>`",
    note = "HTTP endings take an `http::Response` with an `http_body::Body` that is `Send + 'static`; for responses of other \
            types end the layer with `.plain()`"
)]
pub trait Bound<Context, Res, Err>: Finish<Context, Res, Err> {
    /// The response with its bounds.
    type Bounded;

    /// Puts the bounds around a response.
    fn bound(&self, response: Res, bounds: &BodyBounds) -> Self::Bounded;

    /// The result of a call whose time is over.
    ///
    /// # Errors
    /// The rejection, where rejections leave as errors.
    fn expired(&self, context: Context, rejection: Rejection) -> Result<Self::Bounded, Self::Error>;
}

/// Bounds on the body of a response. Each is off where it is `None`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct BodyBounds {
    /// The longest time without a frame while the body is asked for one.
    pub idle: Option<Duration>,
    /// The longest time from the head of the response to the end of its body.
    pub total: Option<Duration>,
    /// The longest time in which the body is not asked for a frame: a reader that has stopped.
    /// `None` leaves it to the ending: 30 seconds for servers, no bound for clients.
    pub stalled: Option<Duration>,
    /// The name that the rejections of these bounds carry.
    pub label: Option<Label>,
}
