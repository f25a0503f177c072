use super::{
    ByCall, ByHead, ClassifyHead, Grpc, Http, HttpContext, RequestHead, ResponseHead, Speaks, Standard, begin, head,
    observe,
};
use crate::{
    ObservedBody, classify, deadline, fallback,
    replay::{Idempotent, KeptRequest, MapBody, Replays, RetryOverride},
    retried,
    timed::{Side, TimedBody},
};
use buttress::{
    BoxError, Error, Rejection,
    ending::{Begin, BodyBounds, Bound, Duplicate, Ended, Finish, Replay, Substitute},
    fallback::FallbackFailed,
    outcome::Outcome,
    policy::{InFlight, Name, Permit},
};
use http::{Request, Response};
use http_body::Body;
use http_body_util::Either;
use std::{convert::Infallible, marker::PhantomData, time::Duration};

/// The ending for clients.
///
/// Rejections and errors of the inner service leave as [`buttress::Error`], which keeps an inner
/// error as its source. `S` is the protocol, `C` classifies the heads of responses, and `R` holds
/// the rules for repeating requests; see [`HttpRetryExt`](crate::HttpRetryExt).
///
/// ```
/// use buttress::{CircuitBreakerLayer, Ending};
/// use buttress_http::{ending::HttpClient, prelude::*};
///
/// // The same layer as `CircuitBreakerLayer::new("payments").http_client()`.
/// let layer = CircuitBreakerLayer::new("payments").end(HttpClient::new());
/// # let _ = layer;
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Client<S, C = Standard, R = Replays> {
    pub(crate) classify: C,
    pub(crate) replays: R,
    pub(crate) speaks: PhantomData<S>,
}

/// The ending of [`HttpExt::http_client`](super::HttpExt::http_client).
pub type HttpClient<C = Standard, R = Replays> = Client<Http, C, R>;

/// The ending of [`HttpExt::grpc_client`](super::HttpExt::grpc_client).
pub type GrpcClient<C = Standard, R = Replays> = Client<Grpc, C, R>;

impl<S: Speaks> Client<S> {
    /// Makes an ending with the usual rules.
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
    /// Classifies the heads of responses with `classify` before the usual rules.
    ///
    /// An outcome that it returns is final; `None` leaves the response to the usual rules. It is
    /// not called for rejections by Buttress layers inside this one.
    ///
    /// ```
    /// use buttress::{CircuitBreakerLayer, Ending, outcome::{Failure, FailureKind}};
    /// use buttress_http::ending::HttpClient;
    ///
    /// // For this backend, 404 means that a replica has not loaded its data.
    /// let ending = HttpClient::new().classify(|head| {
    ///     (head.status == 404).then(|| Failure::new(FailureKind::Application).into())
    /// });
    /// let layer = CircuitBreakerLayer::new("search").end(ending);
    /// # let _ = layer;
    /// ```
    pub fn classify<F: Fn(&ResponseHead<'_>) -> Option<Outcome>>(self, classify: F) -> Client<S, ByHead<F>, R> {
        Client { classify: ByHead(classify), replays: self.replays, speaks: PhantomData }
    }

    /// Classifies as [`classify`](Self::classify) does, with a note of the request.
    ///
    /// `note` is called with the head of each request; its result is kept and passed to `classify`,
    /// which can so decide by method or route.
    ///
    /// ```
    /// use buttress::{CircuitBreakerLayer, Ending, outcome::Outcome};
    /// use buttress_http::ending::HttpClient;
    /// use http::{Method, StatusCode};
    ///
    /// // A DELETE that loses against a concurrent one is not a failure.
    /// let ending = HttpClient::new().classify_by(
    ///     |request| *request.method == Method::DELETE,
    ///     |is_delete, head| (*is_delete && head.status == StatusCode::CONFLICT).then_some(Outcome::Success),
    /// );
    /// let layer = CircuitBreakerLayer::new("files").end(ending);
    /// # let _ = layer;
    /// ```
    pub fn classify_by<N, G, F>(self, note: G, classify: F) -> Client<S, ByCall<G, F>, R>
    where
        N: Default,
        G: Fn(RequestHead<'_>) -> N,
        F: Fn(&N, &ResponseHead<'_>) -> Option<Outcome>,
    {
        Client { classify: ByCall { note, classify }, replays: self.replays, speaks: PhantomData }
    }
}

impl<S, C, R> Client<S, C, R> {
    pub(crate) fn map_replays<T>(self, map: impl FnOnce(R) -> T) -> Client<S, C, T> {
        Client { classify: self.classify, replays: map(self.replays), speaks: PhantomData }
    }
}

impl<S, C, R> Ended for Client<S, C, R> {}

impl<S: Speaks, C: ClassifyHead, R, B> Begin<Request<B>> for Client<S, C, R> {
    type Context = HttpContext<C::Note>;
    type Ahead = Infallible;

    #[inline]
    fn begin<P: Permit>(&self, request: &mut Request<B>) -> HttpContext<C::Note> {
        begin::<S, P, B, C>(request, &self.classify)
    }

    fn time_left(&self, request: &mut Request<B>, left: Duration) {
        deadline::shorten(request.headers_mut(), left);
    }
}

impl<S: Speaks, C: ClassifyHead, R, B: Body, Err: Into<BoxError>> Finish<HttpContext<C::Note>, Response<B>, Err>
    for Client<S, C, R>
{
    type Response<P: Permit> = Response<ObservedBody<B, P>>;
    type Error = Error;

    fn head(&self, context: &HttpContext<C::Note>, response: &Response<B>) -> Outcome {
        head(context, response, &self.classify).0
    }

    #[inline]
    fn response<P: Permit>(
        &self,
        context: HttpContext<C::Note>,
        response: Response<B>,
        permit: &mut InFlight<P>,
    ) -> Self::Response<P> {
        observe(context, response, permit, &self.classify)
    }

    fn reject<P: Permit>(&self, _: HttpContext<C::Note>, rejection: Rejection) -> Result<Self::Response<P>, Error> {
        Err(rejection.into())
    }

    fn mark_retried(&self, response: &mut Response<B>, retries: u32) {
        retried::mark(response.headers_mut(), retries);
    }

    fn inner(&self, error: Err) -> Error {
        Error::from_inner(error)
    }

    fn outcome(&self, error: &Error) -> Outcome {
        classify::error(error)
    }
}

impl<S: Speaks, C: ClassifyHead, R, B, Err: Into<BoxError>> Bound<HttpContext<C::Note>, Response<B>, Err>
    for Client<S, C, R>
where
    B: Body + Send + 'static,
{
    type Bounded = Response<TimedBody<B>>;

    #[inline]
    fn bound(&self, response: Response<B>, bounds: &BodyBounds) -> Response<TimedBody<B>> {
        TimedBody::around::<S>(response, bounds, None, Side::Client)
    }

    fn expired(&self, _: HttpContext<C::Note>, rejection: Rejection) -> Result<Response<TimedBody<B>>, Error> {
        Err(rejection.into())
    }
}

impl<S: Speaks, C: ClassifyHead, R, B, T, Err: Into<BoxError>>
    Substitute<HttpContext<C::Note>, Response<B>, Err, Response<T>> for Client<S, C, R>
where
    B: Body,
    T: Body<Data = B::Data>,
{
    type Substituted = Response<Either<B, T>>;

    #[inline]
    fn original(&self, response: Response<B>) -> Response<Either<B, T>> {
        response.map(Either::Left)
    }

    fn substitute(&self, response: Response<T>, name: Option<&Name>) -> Response<Either<B, T>> {
        fallback::mark(response, name)
    }

    fn failed(&self, original: Error, fallback: BoxError) -> Error {
        FallbackFailed::around(original, fallback)
    }
}

impl<S, C, M, I, B> Replay<Request<B>> for Client<S, C, Replays<M, I>>
where
    M: MapBody<B> + Clone,
    I: Idempotent,
    B: Body + 'static,
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
        !retried::is_repeated(request.headers())
    }

    #[inline]
    fn attempts(&self, request: &Request<B>) -> Option<u32> {
        RetryOverride::of(request.extensions())?.attempts
    }
}

impl<S, C, M, I, B> Duplicate<Request<B>> for Client<S, C, Replays<M, I>>
where
    M: MapBody<B> + Clone,
    I: Idempotent,
    B: Body + 'static,
{
    fn first_of_several(&self, request: Request<B>) -> (Request<M::Body>, Option<KeptRequest<B, M>>) {
        self.replays.first_of_several(request)
    }
}
