//! What a result means: the step from a service's answer to an [`Outcome`].

use crate::{InFlight, error, exit::ExitError};
use buttress_core::{Failure, FailureKind, Outcome, Permit};
use std::task::Poll;

/// Reads the outcome of a result that is all there, or of the head of one that is still coming.
pub trait Classify<Res, E> {
    /// The outcome, as far as it can be known now.
    fn classify(&self, result: Result<&Res, &E>) -> Outcome;
}

/// Turns a finished call into an outcome and settles its permit. May keep the permit inside the response until the body has ended.
pub trait Observe<Res, E> {
    /// What the caller gets: `Res` itself, or `Res` with a permit inside.
    type Response<P: Permit>;

    /// Passes a response on, and settles its permit or sees to it that it will be settled.
    fn response<P: Permit>(&self, response: Res, permit: &mut InFlight<P>) -> Self::Response<P>;

    /// Settles the permit of a call that failed.
    fn error<P: Permit>(&self, error: &E, permit: &mut InFlight<P>);
}

/// The end of a call: settles its permit, and lets its result out through `exit`.
///
/// Failures go out by a way of their own: where the two meet again, a response that fits into a register is moved in as many
/// pieces as an error.
#[inline(always)]
pub(crate) fn finish<Res, E, P, O, X>(
    result: Poll<Result<Res, E>>,
    permit: &mut InFlight<P>,
    observe: &O,
    exit: &X,
) -> Poll<Result<O::Response<P>, X::Error>>
where
    P: Permit,
    X: ExitError<E>,
    O: Observe<Res, X::Error>,
{
    match result {
        Poll::Ready(Ok(response)) => Poll::Ready(Ok(observe.response(response, permit))),
        Poll::Ready(Err(error)) => fail(error, permit, observe, exit),
        Poll::Pending => Poll::Pending,
    }
}

#[cold]
#[inline(never)]
fn fail<Res, E, P, O, X>(
    error: E,
    permit: &mut InFlight<P>,
    observe: &O,
    exit: &X,
) -> Poll<Result<O::Response<P>, X::Error>>
where
    P: Permit,
    X: ExitError<E>,
    O: Observe<Res, X::Error>,
{
    let error = exit.inner(error);
    observe.error(&error, permit);
    Poll::Ready(Err(error))
}

/// For services that are not HTTP: a response is a success, an error is a failure, and a rejection of one of our own layers
/// underneath is no evidence.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl<Res, E: 'static> Classify<Res, E> for Plain {
    fn classify(&self, result: Result<&Res, &E>) -> Outcome {
        match result {
            Ok(_) => Outcome::Success,
            Err(error) => {
                error::as_chain(error).map_or_else(|| Failure::new(FailureKind::Application).into(), error::outcome)
            }
        }
    }
}

/// An observer out of a function, for results that mean something else than [`Plain`] thinks. Our own rejections never reach it.
///
/// ```
/// use buttress::{BulkheadLayer, Failure, FailureKind, Outcome, observe};
///
/// let observer = observe::classify(|result: Result<&u16, &buttress::Error>| match result {
///     Ok(200..=499) => Outcome::Success,
///     _ => Failure::new(FailureKind::Application).into(),
/// });
/// let layer = buttress::CircuitBreakerLayer::new("legacy").observe(observer);
/// # let _ = layer;
/// ```
pub fn classify<F>(classify: F) -> ClassifyFn<F> {
    ClassifyFn(classify)
}

/// See [`classify`].
#[derive(Clone, Copy, Debug)]
pub struct ClassifyFn<F>(F);

impl<F, Res, E: 'static> Classify<Res, E> for ClassifyFn<F>
where
    F: Fn(Result<&Res, &E>) -> Outcome,
{
    fn classify(&self, result: Result<&Res, &E>) -> Outcome {
        match result.err().and_then(error::as_chain).and_then(error::find_rejection) {
            Some(rejection) => rejection.outcome(),
            None => (self.0)(result),
        }
    }
}

macro_rules! settles_at_once {
    ($(#[$why:meta])* impl[$($generics:tt)*] $observer:ty) => {
        $(#[$why])*
        impl<Res, E: 'static, $($generics)*> Observe<Res, E> for $observer
        where
            Self: Classify<Res, E>,
        {
            type Response<P: Permit> = Res;

            #[inline(always)]
            fn response<P: Permit>(&self, response: Res, permit: &mut InFlight<P>) -> Res {
                permit.settle(&self.classify(Ok(&response)));
                response
            }

            fn error<P: Permit>(&self, error: &E, permit: &mut InFlight<P>) {
                permit.settle(&self.classify(Err(error)));
            }
        }
    };
}

settles_at_once!(impl[] Plain);
settles_at_once!(impl[F] ClassifyFn<F>);
