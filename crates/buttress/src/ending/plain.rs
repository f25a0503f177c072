use super::{Begin, BodyBounds, Bound, Duplicate, Ended, Ending, Finish, Kept, NoEnding, Replay, Substitute};
use crate::{BoxError, Error, error, fallback::FallbackFailed, in_flight::InFlight, shell::opaque_debug};
use buttress_core::{Failure, FailureKind, Name, Outcome, Permit, Rejection};
use std::convert::Infallible;

/// The ending for services that are not HTTP: a response is a success, an error is a failure, and a
/// rejection by an inner layer of this crate is no evidence. Set by [`PlainExt::plain`].
///
/// A retry or a hedge with this ending clones requests and treats all of them as idempotent,
/// because it cannot know otherwise. Do not retry or hedge requests that are not.
///
/// ```
/// use buttress::{CircuitBreakerLayer, PlainExt, circuit_breaker::State};
/// use std::io;
/// use tower::{ServiceBuilder, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let layer = CircuitBreakerLayer::new("payments");
/// let breaker = layer.handle().clone();
/// let service = ServiceBuilder::new()
///     .layer(layer.plain())
///     .service_fn(|_: ()| async { Err::<(), _>(io::Error::other("down")) });
/// for _call in 0..5 {
///     service.clone().oneshot(()).await.unwrap_err();
/// }
/// assert_eq!(breaker.state(), State::Open);
/// # }
/// ```
#[derive(Clone, Copy, Default)]
pub struct Plain<Outcomes = Success, Rejections = AsError> {
    judge: Outcomes,
    reject: Rejections,
}

/// Ends a layer for services that are not HTTP. Only for layers without an ending, so that no
/// ending is replaced by mistake.
pub trait PlainExt: Ending<Now = NoEnding> {
    /// Sets the ending [`Plain`].
    ///
    /// ```
    /// use buttress::{PlainExt, TimeoutLayer};
    /// use std::time::Duration;
    ///
    /// let layer = TimeoutLayer::attempt(Duration::from_secs(1)).plain();
    /// # let _ = layer;
    /// ```
    fn plain(self) -> Self::With<Plain> {
        self.end(Plain::new())
    }
}

impl<L: Ending<Now = NoEnding>> PlainExt for L {}

/// Counts every response as a success. Used by [`Plain`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Success;

/// Returns rejections as [`Error`], which also wraps inner errors. Used by [`Plain`].
#[derive(Clone, Copy, Debug, Default)]
pub struct AsError;

/// Returns rejections as a response that a function makes. Made by [`Plain::respond`].
#[derive(Clone, Copy)]
pub struct Respond<F>(F);

// Closures have no `Debug`.
opaque_debug!(Plain<Outcomes, Rejections>);
opaque_debug!(Respond<F>);

/// Reads the outcome of a result. Implemented by [`Success`], and by functions of a result.
///
/// ```
/// use buttress::{ending::Judge, outcome::{Failure, FailureKind, Outcome}};
///
/// fn classify(result: Result<&u16, &String>) -> Outcome {
///     match result {
///         Ok(200..=499) => Outcome::Success,
///         _ => Failure::new(FailureKind::Application).into(),
///     }
/// }
/// assert_eq!(classify.response(&200), Outcome::Success);
/// assert!(classify.error(&"no connection".to_owned()).failure().is_some());
/// ```
pub trait Judge<Res, E> {
    /// Whether [`error`](Self::error) also reads the outcome of a rejection of this crate, so that
    /// it need not be looked for before.
    #[doc(hidden)]
    const READS_REJECTIONS: bool = false;

    /// Returns the outcome of a response.
    fn response(&self, response: &Res) -> Outcome;
    /// Returns the outcome of an error that is not a rejection of this crate.
    fn error(&self, error: &E) -> Outcome;
}

impl<Res, E: 'static> Judge<Res, E> for Success {
    const READS_REJECTIONS: bool = true;

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
    /// Creates an ending by which responses are successes, and rejections are returned as
    /// [`Error`].
    pub const fn new() -> Self {
        Self { judge: Success, reject: AsError }
    }
}

impl<Outcomes, Rejections> Plain<Outcomes, Rejections> {
    /// Reads outcomes with a function, for services whose results mean something else. It does not
    /// get the rejections of this crate.
    ///
    /// A closure needs the type of its parameter: `|result: Result<&MyResponse, &Error>| ..`. The
    /// error is the layer's [`Error`](crate::Error); downcast `Error::Inner` to get the inner
    /// service's. After [`respond`](Self::respond) the error is the inner service's.
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

    /// Returns rejections as a response, for servers. The error type stays that of the inner
    /// service.
    ///
    /// ```
    /// use buttress::{BulkheadLayer, Ending, Rejection, ending::Plain};
    /// use std::convert::Infallible;
    /// use tower::{ServiceBuilder, ServiceExt};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let ending = Plain::new().respond(|rejection: Rejection| format!("try later: {rejection}"));
    /// let service = ServiceBuilder::new()
    ///     .layer(BulkheadLayer::new(0).end(ending))
    ///     .service_fn(|name: &'static str| async move { Ok::<_, Infallible>(name.to_owned()) });
    /// assert_eq!(service.oneshot("hello").await.unwrap(), "try later: bulkhead: full");
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

/// Returns the outcome of a rejection in the error, which `find` looks for, or else of the error.
fn outcome<Res, E, J: Judge<Res, E>>(judge: &J, error: &E, find: impl Fn(&E) -> Option<&Rejection>) -> Outcome {
    let rejection = if J::READS_REJECTIONS { None } else { find(error) };
    rejection.map_or_else(|| judge.error(error), Rejection::outcome)
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
        outcome(&self.judge, error, Error::rejection)
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
        outcome(&self.judge, error, |error| error::as_chain(error).and_then(error::find_rejection))
    }
}

/// Bounds nothing: a response that is not HTTP has no body.
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

/// Marks nothing: a response that is not HTTP has no headers.
impl<Outcomes, Res, Err> Substitute<(), Res, Err, Res> for Plain<Outcomes, AsError>
where
    Self: Finish<(), Res, Err, Error = Error>,
{
    type Substituted = Res;

    #[inline(always)]
    fn original(&self, response: Res) -> Res {
        response
    }

    fn substitute(&self, response: Res, _: Option<&Name>) -> Res {
        response
    }

    fn failed(&self, original: Error, fallback: BoxError) -> Error {
        FallbackFailed::around(original, fallback)
    }
}

/// Marks nothing: a response that is not HTTP has no headers.
impl<Outcomes, Res, Err, F> Substitute<(), Res, Err, Res> for Plain<Outcomes, Respond<F>>
where
    Self: Finish<(), Res, Err>,
{
    type Substituted = Res;

    #[inline(always)]
    fn original(&self, response: Res) -> Res {
        response
    }

    fn substitute(&self, response: Res, _: Option<&Name>) -> Res {
        response
    }
}

#[cfg(feature = "chaos")]
mod chaos {
    use super::{AsError, Finish, Plain, Respond};
    use crate::{
        Error,
        chaos::{Drawn, Fault, INJECTED, Injected, Injection},
        ending::Inject,
    };
    use buttress_core::Rejection;

    /// Without the faults of bodies: a response that is not HTTP has none.
    impl<Outcomes, Res, Err> Inject<(), Res, Err> for Plain<Outcomes, AsError>
    where
        Self: Finish<(), Res, Err, Error = Error>,
    {
        type Injected = Res;

        #[inline(always)]
        fn untouched(&self, response: Res) -> Res {
            response
        }

        fn fail(&self, (): (), _: &Drawn) -> Result<Res, Error> {
            Err(Error::from_inner(Injected::new(Fault::Error)))
        }

        fn break_body(&self, response: Res, _: Injection) -> Res {
            response
        }
    }

    /// Without the faults of bodies: a response that is not HTTP has none.
    impl<Outcomes, Res, Err, F> Inject<(), Res, Err> for Plain<Outcomes, Respond<F>>
    where
        Self: for<'a> Finish<(), Res, Err, Response<()> = Res>,
    {
        type Injected = Res;

        #[inline(always)]
        fn untouched(&self, response: Res) -> Res {
            response
        }

        fn fail(&self, (): (), _: &Drawn) -> Result<Res, Self::Error> {
            self.reject::<()>((), Rejection::new("chaos", &INJECTED))
        }

        fn break_body(&self, response: Res, _: Injection) -> Res {
            response
        }
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

impl<Outcomes, Req: Clone> Duplicate<Req> for Plain<Outcomes, AsError> {
    fn first_of_several(&self, request: Req) -> (Req, Option<Cloned<Req>>) {
        let (attempt, kept) = self.first(request);
        (attempt, Some(kept))
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
