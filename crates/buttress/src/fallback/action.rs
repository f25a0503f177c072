use crate::{
    BoxError,
    ending::{Finish, Kept, Replay},
    ready_call::ReadyCall,
    shell::opaque_debug,
};
use buttress_core::{Failure, Outcome, Sent};
use pin_project::pin_project;
use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
};
use tower_service::Service;

/// Keeps what a fallback needs of a request: the first half of its action.
///
/// Implemented by the actions of [`FallbackLayer`](crate::FallbackLayer).
pub trait Keep<Req, E> {
    /// The request of the inner service.
    type Request;
    /// The part of the request that the fallback needs.
    type Kept;

    /// Splits a request into that of the inner service and what the fallback needs.
    fn keep(&self, ends: &E, request: Req) -> (Self::Request, Self::Kept);
}

/// Answers in place of a failed call: the second half of an action.
///
/// The type of the request is not among the parameters, so that futures can name the trait.
pub trait Act<Stored, E, Cx> {
    /// Whether the action takes no time, so that it needs no bounds.
    const IS_IMMEDIATE: bool = false;

    /// The response of the fallback.
    type Response;
    /// The error of the fallback.
    type Error: Into<BoxError>;
    /// The future of the fallback.
    type Future: Future<Output = Result<Self::Response, Self::Error>>;

    /// Starts the fallback. `None` if it must not or cannot get this request.
    fn act(&self, kept: Stored, outcome: &Outcome) -> Option<Self::Future>;

    /// Returns whether the response is an answer to the caller. Otherwise the fallback has failed.
    fn is_answer(&self, _ends: &E, _context: &Cx, _response: &Self::Response) -> bool {
        true
    }
}

/// Returns a copy of a value. Made by [`FallbackLayer::to`](crate::FallbackLayer::to).
#[derive(Clone, Copy, Debug)]
pub struct Value<T>(pub(super) T);

impl<T, Req, E> Keep<Req, E> for Value<T> {
    type Request = Req;
    type Kept = ();

    #[inline(always)]
    fn keep(&self, _: &E, request: Req) -> (Req, ()) {
        (request, ())
    }
}

impl<T: Clone, E, Cx> Act<(), E, Cx> for Value<T> {
    const IS_IMMEDIATE: bool = true;

    type Response = T;
    type Error = Infallible;
    type Future = Ready<Result<T, Infallible>>;

    fn act(&self, (): (), _: &Outcome) -> Option<Self::Future> {
        Some(ready(Ok(self.0.clone())))
    }
}

/// Calls a function of the outcome. Made by [`FallbackLayer::with`](crate::FallbackLayer::with).
#[derive(Clone, Copy)]
pub struct With<F>(pub(super) F);

impl<F, Req, E> Keep<Req, E> for With<F> {
    type Request = Req;
    type Kept = ();

    #[inline(always)]
    fn keep(&self, _: &E, request: Req) -> (Req, ()) {
        (request, ())
    }
}

impl<F, Fut, Res, Err, E, Cx> Act<(), E, Cx> for With<F>
where
    F: Fn(Outcome) -> Fut,
    Fut: Future<Output = Result<Res, Err>>,
    Err: Into<BoxError>,
{
    type Response = Res;
    type Error = Err;
    type Future = Fut;

    fn act(&self, (): (), outcome: &Outcome) -> Option<Fut> {
        Some((self.0)(*outcome))
    }
}

/// Calls a function of a note of the request and the outcome. Made by
/// [`FallbackLayer::with_note`](crate::FallbackLayer::with_note).
#[derive(Clone, Copy)]
pub struct Noted<N, F> {
    pub(super) note: N,
    pub(super) act: F,
}

impl<N, F, Note, Req, E> Keep<Req, E> for Noted<N, F>
where
    N: Fn(&Req) -> Note,
{
    type Request = Req;
    type Kept = Note;

    #[inline]
    fn keep(&self, _: &E, request: Req) -> (Req, Note) {
        let note = (self.note)(&request);
        (request, note)
    }
}

impl<N, F, Note, Fut, Res, Err, E, Cx> Act<Note, E, Cx> for Noted<N, F>
where
    F: Fn(Note, Outcome) -> Fut,
    Fut: Future<Output = Result<Res, Err>>,
    Err: Into<BoxError>,
{
    type Response = Res;
    type Error = Err;
    type Future = Fut;

    fn act(&self, note: Note, outcome: &Outcome) -> Option<Fut> {
        Some((self.act)(note, *outcome))
    }
}

/// Calls another service. Made by [`FallbackLayer::service`](crate::FallbackLayer::service).
pub struct Alternate<S> {
    /// Locked only while it is cloned for a fallback, so that it need not be `Sync`.
    service: Mutex<S>,
    is_read_only: bool,
}

impl<S> Alternate<S> {
    pub(super) fn new(service: S) -> Self {
        Self { service: Mutex::new(service), is_read_only: false }
    }

    pub(super) fn read_only(&self) -> Self
    where
        S: Clone,
    {
        Self { service: Mutex::new(self.fresh()), is_read_only: true }
    }

    fn fresh(&self) -> S
    where
        S: Clone,
    {
        self.service.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

// Closures and services have no `Debug`.
opaque_debug!(With<F>);
opaque_debug!(Noted<N, F>);
opaque_debug!(Alternate<S>);

impl<S, Req, E: Replay<Req>> Keep<Req, E> for Alternate<S> {
    type Request = E::Attempt;
    type Kept = E::Kept;

    #[inline]
    fn keep(&self, ends: &E, request: Req) -> (E::Attempt, E::Kept) {
        ends.first(request)
    }
}

impl<S, Stored, E, Cx> Act<Stored, E, Cx> for Alternate<S>
where
    Stored: Kept,
    S: Service<Stored::Attempt, Error: Into<BoxError>> + Clone,
    E: Finish<Cx, S::Response, S::Error>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = AlternateFuture<S, Stored::Attempt, S::Future>;

    fn act(&self, mut kept: Stored, outcome: &Outcome) -> Option<Self::Future> {
        let may_be_processed = matches!(outcome, Outcome::Failure(Failure { sent: Sent::MaybeProcessed, .. }));
        if may_be_processed && !self.is_read_only && !kept.is_idempotent() {
            return None;
        }
        let request = kept.again(2)?;
        Some(AlternateFuture { call: ReadyCall::new(self.fresh(), request) })
    }

    fn is_answer(&self, ends: &E, context: &Cx, response: &S::Response) -> bool {
        matches!(Finish::<Cx, S::Response, S::Error>::head(ends, context, response), Outcome::Success)
    }
}

/// The future of an [`Alternate`].
#[pin_project]
pub struct AlternateFuture<S, Req, F> {
    #[pin]
    call: ReadyCall<S, Req, F>,
}

opaque_debug!(AlternateFuture<S, Req, F>);

impl<S: Service<Req>, Req> Future for AlternateFuture<S, Req, S::Future> {
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().call.poll(cx)
    }
}
