use super::{ClassifyHead, Grpc, Http, HttpContext, ResponseHead, Speaks, Standard, begin, head, observe};
use crate::{
    ObservedBody, classify,
    replay::{Idempotent, KeptRequest, MapBody, Replays},
    timed::TimedBody,
};
use buttress::{
    BoxError, Error, InFlight, Outcome, Permit, Rejection,
    ending::{Begin, BodyBounds, Bound, Ended, Finish, Replay},
};
use http::{Request, Response};
use http_body::Body;
use std::{convert::Infallible, marker::PhantomData};

/// The ending for clients: rejections leave as [`buttress::Error`], in which an inner error is
/// kept.
///
/// `C` classifies heads, `R` says how requests are repeated; see [`HttpRetryExt`](crate::HttpRetryExt).
#[derive(Clone, Copy, Debug)]
pub struct Client<S, C = Standard, R = Replays> {
    pub(crate) classify: C,
    pub(crate) replays: R,
    pub(crate) speaks: PhantomData<S>,
}

/// See [`HttpExt::http_client`](super::HttpExt::http_client).
pub type HttpClient<C = Standard, R = Replays> = Client<Http, C, R>;

/// See [`HttpExt::grpc_client`](super::HttpExt::grpc_client).
pub type GrpcClient<C = Standard, R = Replays> = Client<Grpc, C, R>;

impl<S: Speaks> Client<S> {
    /// With the usual rules.
    pub fn new() -> Self {
        Self { classify: Standard, replays: S::replays(), speaks: PhantomData }
    }
}

impl<S: Speaks> Default for Client<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S, C, R> Client<S, C, R> {
    /// Reads the outcome of a response's head with a function first. What it returns is final;
    /// `None` leaves a response to the usual rules. Rejections of this family never reach it.
    pub fn classify<D: Fn(&ResponseHead<'_>) -> Option<Outcome>>(self, classify: D) -> Client<S, D, R> {
        Client { classify, replays: self.replays, speaks: PhantomData }
    }
}

impl<S, C, R> Ended for Client<S, C, R> {}

impl<S: Speaks, C, R, B> Begin<Request<B>> for Client<S, C, R> {
    type Context = HttpContext;
    type Ahead = Infallible;

    #[inline]
    fn begin<P: Permit>(&self, request: &mut Request<B>) -> HttpContext {
        begin::<S, P, B>(request)
    }
}

impl<S: Speaks, C: ClassifyHead, R, B: Body, Err: Into<BoxError>> Finish<HttpContext, Response<B>, Err>
    for Client<S, C, R>
{
    type Response<P: Permit> = Response<ObservedBody<B, P>>;
    type Error = Error;

    fn head(&self, context: &HttpContext, response: &Response<B>) -> Outcome {
        head(context.is_grpc, response, &self.classify).0
    }

    #[inline]
    fn response<P: Permit>(
        &self,
        context: HttpContext,
        response: Response<B>,
        permit: &mut InFlight<P>,
    ) -> Self::Response<P> {
        observe(context, response, permit, &self.classify)
    }

    fn reject<P: Permit>(&self, _: HttpContext, rejection: Rejection) -> Result<Self::Response<P>, Error> {
        Err(rejection.into())
    }

    fn inner(&self, error: Err) -> Error {
        Error::from_inner(error)
    }

    fn outcome(&self, error: &Error) -> Outcome {
        classify::error(error)
    }
}

impl<S: Speaks, C: ClassifyHead, R, B, Err: Into<BoxError>> Bound<HttpContext, Response<B>, Err> for Client<S, C, R>
where
    B: Body + Send + 'static,
{
    type Bounded = Response<TimedBody<B>>;

    #[inline]
    fn bound(&self, response: Response<B>, bounds: &BodyBounds) -> Response<TimedBody<B>> {
        TimedBody::around(response, bounds, None)
    }

    fn expired(&self, _: HttpContext, rejection: Rejection) -> Result<Response<TimedBody<B>>, Error> {
        Err(rejection.into())
    }
}

impl<S, C, M, I, B> Replay<Request<B>> for Client<S, C, Replays<M, I>>
where
    M: MapBody<B> + Clone,
    I: Idempotent,
    B: Body,
{
    type Attempt = Request<M::Body>;
    type Kept = KeptRequest<B, M>;

    fn first(&self, request: Request<B>) -> (Request<M::Body>, KeptRequest<B, M>) {
        self.replays.first(request)
    }

    fn only(&self, request: Request<B>) -> Request<M::Body> {
        self.replays.only(request)
    }

    fn deposits(&self, request: &Request<B>) -> bool {
        self.replays.deposits(request)
    }
}
