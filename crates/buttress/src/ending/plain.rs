use super::{Begin, BodyBounds, Bound, Ended, Ending, Finish, Kept, NoEnding, Replay};
use crate::{BoxError, Error, error, in_flight::InFlight};
use buttress_core::{Failure, FailureKind, Outcome, Permit, Rejection};
use std::convert::Infallible;

/// The ending for services that are not HTTP: a response is a success, an error is a failure, and a
/// rejection of a layer of this family underneath is no evidence. See [`PlainExt::plain`].
///
/// A retry with this ending clones its requests and takes them to be idempotent, because nothing is
/// known of them: put no retry around what is not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain<Outcomes = Success, Rejections = AsError> {
    judge: Outcomes,
    reject: Rejections,
}

/// Ends a layer for services that are not HTTP. Only for a layer that has no ending yet, so that
/// nothing set is lost.
pub trait PlainExt: Ending<Now = NoEnding> {
    /// Ends the layer with [`Plain`].
    fn plain(self) -> Self::With<Plain> {
        self.end(Plain::new())
    }
}

impl<L: Ending<Now = NoEnding>> PlainExt for L {}

/// Every response is a success. See [`Plain`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Success;

/// Rejections leave as [`Error`], in which an inner error is kept. See [`Plain`].
#[derive(Clone, Copy, Debug, Default)]
pub struct AsError;

/// Rejections leave as a response that a function makes. See [`Plain::respond`].
#[derive(Clone, Copy, Debug)]
pub struct Respond<F>(F);

/// Reads the outcome of a result. Implemented by [`Success`] and by functions of a result.
pub trait Judge<Res, E> {
    /// The outcome of a response.
    fn response(&self, response: &Res) -> Outcome;
    /// The outcome of an error that is no rejection of this family.
    fn error(&self, error: &E) -> Outcome;
}

impl<Res, E: 'static> Judge<Res, E> for Success {
    #[inline(always)]
    fn response(&self, _: &Res) -> Outcome {
        Outcome::Success
    }

    fn error(&self, error: &E) -> Outcome {
        error::as_chain(error).map_or_else(|| Failure::new(FailureKind::Application).into(), error::outcome)
    }
}

impl<F: Fn(Result<&Res, &E>) -> Outcome, Res, E> Judge<Res, E> for F {
    fn response(&self, response: &Res) -> Outcome {
        self(Ok(response))
    }

    fn error(&self, error: &E) -> Outcome {
        self(Err(error))
    }
}

impl Plain {
    /// A response is a success, and rejections leave as [`Error`].
    pub const fn new() -> Self {
        Self { judge: Success, reject: AsError }
    }
}

impl<Outcomes, Rejections> Plain<Outcomes, Rejections> {
    /// Reads outcomes with a function, for results that mean something else. Rejections of this
    /// family never reach it.
    ///
    /// A closure needs the type of its parameter: `|result: Result<&MyResponse, &Error>| ..`. The
    /// error is [`Error`](crate::Error) by then; `Error::Inner` has yours, to be downcast. After
    /// [`respond`](Self::respond) it is the inner service's own.
    ///
    /// ```
    /// use buttress::outcome::{Failure, FailureKind, Outcome};
    /// use buttress::{CircuitBreakerLayer, Ending, Error, ending::Plain};
    ///
    /// let ending = Plain::new().classify(|result: Result<&u16, &Error>| match result {
    ///     Ok(200..=499) => Outcome::Success,
    ///     _ => Failure::new(FailureKind::Application).into(),
    /// });
    /// let layer = CircuitBreakerLayer::new("legacy").end(ending);
    /// # let _ = layer;
    /// ```
    pub fn classify<F>(self, classify: F) -> Plain<F, Rejections> {
        Plain { judge: classify, reject: self.reject }
    }

    /// Lets rejections leave as a response, for servers. The error type stays that of the inner
    /// service.
    ///
    /// ```
    /// use buttress::{BulkheadLayer, Ending, Rejection, ending::Plain};
    /// use std::convert::Infallible;
    /// use tower::{ServiceBuilder, ServiceExt};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let ending = Plain::new().respond(|rejection: Rejection| format!("sorry: {rejection}"));
    /// let service = ServiceBuilder::new()
    ///     .layer(BulkheadLayer::new(0).end(ending))
    ///     .service_fn(|name: &'static str| async move { Ok::<_, Infallible>(name.to_owned()) });
    /// assert_eq!(service.oneshot("hello").await.unwrap(), "sorry: bulkhead: full");
    /// # }
    /// ```
    pub fn respond<F>(self, respond: F) -> Plain<Outcomes, Respond<F>> {
        Plain { judge: self.judge, reject: Respond(respond) }
    }
}

impl<Outcomes, Rejections> Ended for Plain<Outcomes, Rejections> {}

impl<Outcomes, Rejections, Req> Begin<Req> for Plain<Outcomes, Rejections> {
    type Context = ();
    type Ahead = Infallible;

    #[inline(always)]
    fn begin<P: Permit>(&self, _: &mut Req) {}
}

fn rejected<E: 'static>(error: &E) -> Option<Outcome> {
    error::as_chain(error).and_then(error::find_rejection).map(Rejection::outcome)
}

impl<Outcomes: Judge<Res, Error>, Res, Err: Into<BoxError>> Finish<(), Res, Err> for Plain<Outcomes, AsError> {
    type Response<P: Permit> = Res;
    type Error = Error;

    #[inline(always)]
    fn head(&self, (): &(), response: &Res) -> Outcome {
        self.judge.response(response)
    }

    #[inline(always)]
    fn response<P: Permit>(&self, (): (), response: Res, permit: &mut InFlight<P>) -> Res {
        permit.settle(&self.judge.response(&response));
        response
    }

    fn reject<P: Permit>(&self, (): (), rejection: Rejection) -> Result<Res, Error> {
        Err(rejection.into())
    }

    fn inner(&self, error: Err) -> Error {
        Error::from_inner(error)
    }

    fn outcome(&self, error: &Error) -> Outcome {
        error.rejection().map_or_else(|| self.judge.error(error), Rejection::outcome)
    }
}

impl<Outcomes, Res, Err: Send + Sync + 'static, F> Finish<(), Res, Err> for Plain<Outcomes, Respond<F>>
where
    Outcomes: Judge<Res, Err>,
    F: Fn(Rejection) -> Res,
{
    type Response<P: Permit> = Res;
    type Error = Err;

    #[inline(always)]
    fn head(&self, (): &(), response: &Res) -> Outcome {
        self.judge.response(response)
    }

    #[inline(always)]
    fn response<P: Permit>(&self, (): (), response: Res, permit: &mut InFlight<P>) -> Res {
        permit.settle(&self.judge.response(&response));
        response
    }

    fn reject<P: Permit>(&self, (): (), rejection: Rejection) -> Result<Res, Err> {
        Ok((self.reject.0)(rejection))
    }

    fn inner(&self, error: Err) -> Err {
        error
    }

    fn outcome(&self, error: &Err) -> Outcome {
        rejected(error).unwrap_or_else(|| self.judge.error(error))
    }
}

/// What is not HTTP has no body to bound.
impl<Outcomes, Rejections, Res, Err> Bound<(), Res, Err> for Plain<Outcomes, Rejections>
where
    Self: for<'a> Finish<(), Res, Err, Response<()> = Res>,
{
    type Bounded = Res;

    #[inline(always)]
    fn bound(&self, response: Res, _: &BodyBounds) -> Res {
        response
    }

    fn expired(&self, context: (), rejection: Rejection) -> Result<Res, Self::Error> {
        self.reject::<()>(context, rejection)
    }
}

/// A request that is repeated by cloning it.
#[derive(Clone, Copy, Debug)]
pub struct Cloned<Req>(Req);

impl<Outcomes, Req: Clone> Replay<Req> for Plain<Outcomes, AsError> {
    type Attempt = Req;
    type Kept = Cloned<Req>;

    fn first(&self, request: Req) -> (Req, Cloned<Req>) {
        let kept = Cloned(request.clone());
        (request, kept)
    }

    fn only(&self, request: Req) -> Req {
        request
    }
}

impl<Req: Clone> Kept for Cloned<Req> {
    type Attempt = Req;

    fn again(&mut self, _: u32) -> Option<Req> {
        Some(self.0.clone())
    }

    fn is_idempotent(&self) -> bool {
        true
    }
}
