use super::{
    ByCall, ByHead, ClassifyHead, Grpc, Http, HttpContext, RequestHead, ResponseHead, Speaks, Standard, begin,
    error_outcome, head, observe,
};
use crate::{
    ObservedBody,
    answer::{self, AnswerBody},
    fallback, quota,
    timed::{Side, TimedBody},
};
use buttress::{
    Rejection,
    ending::{Begin, BodyBounds, Bound, Ended, Finish, Substitute},
    outcome::Outcome,
    policy::{InFlight, Name, Permit},
};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Either;
use std::{marker::PhantomData, time::Duration};

/// Default time that a response body waits for a reader that does not poll it: 30 s. Without a
/// bound, a client that stops reading holds the permit of its call without end.
const READER_STALL: Duration = Duration::from_secs(30);

/// The ending for servers.
///
/// Rejections leave as responses, and the error type is that of the inner service. `S` is the
/// protocol, `C` classifies the heads of responses, and `R` makes the responses of rejections.
///
/// ```
/// use buttress::{BulkheadLayer, Ending};
/// use buttress_http::ending::HttpServer;
///
/// // The same layer as `BulkheadLayer::new(64).http()`.
/// let layer = BulkheadLayer::new(64).end(HttpServer::new());
/// # let _ = layer;
/// ```
#[derive(Clone, Copy, Default)]
pub struct Server<S, C = Standard, R = Standard> {
    classify: C,
    respond: R,
    speaks: PhantomData<S>,
}

/// The ending of [`HttpExt::http`](super::HttpExt::http).
pub type HttpServer<C = Standard, R = Standard> = Server<Http, C, R>;

/// The ending of [`HttpExt::grpc`](super::HttpExt::grpc).
pub type GrpcServer<C = Standard, R = Standard> = Server<Grpc, C, R>;

impl<S: Speaks> Server<S> {
    /// Makes an ending with the usual rules and responses.
    pub const fn new() -> Self {
        Self { classify: Standard, respond: Standard, speaks: PhantomData }
    }
}

impl<S, C, R> Server<S, C, R> {
    /// Classifies the heads of responses with `classify` before the usual rules.
    ///
    /// An outcome that it returns is final; `None` leaves the response to the usual rules. It is
    /// not called for rejections by Buttress layers inside this one.
    ///
    /// ```
    /// use buttress::{CircuitBreakerLayer, Ending, outcome::Outcome};
    /// use buttress_http::ending::HttpServer;
    /// use http::StatusCode;
    ///
    /// // 507 says that the quota of one user is used up, not that the service fails.
    /// let ending = HttpServer::new()
    ///     .classify(|head| (head.status == StatusCode::INSUFFICIENT_STORAGE).then_some(Outcome::Success));
    /// let layer = CircuitBreakerLayer::new("files").end(ending);
    /// # let _ = layer;
    /// ```
    pub fn classify<F: Fn(&ResponseHead<'_>) -> Option<Outcome>>(self, classify: F) -> Server<S, ByHead<F>, R> {
        Server { classify: ByHead(classify), respond: self.respond, speaks: PhantomData }
    }

    /// Classifies as [`classify`](Self::classify) does, with a note of the request.
    ///
    /// `note` is called with the head of each request; its result is kept and passed to `classify`,
    /// which can so decide by method or route.
    ///
    /// ```
    /// use buttress::{CircuitBreakerLayer, Ending, outcome::Outcome};
    /// use buttress_http::ending::HttpServer;
    /// use http::{Method, StatusCode};
    ///
    /// // A DELETE that loses against a concurrent one is not a failure.
    /// let ending = HttpServer::new().classify_by(
    ///     |request| *request.method == Method::DELETE,
    ///     |is_delete, head| (*is_delete && head.status == StatusCode::CONFLICT).then_some(Outcome::Success),
    /// );
    /// let layer = CircuitBreakerLayer::new("files").end(ending);
    /// # let _ = layer;
    /// ```
    pub fn classify_by<N, G, F>(self, note: G, classify: F) -> Server<S, ByCall<G, F>, R>
    where
        N: Default,
        G: Fn(RequestHead<'_>) -> N,
        F: Fn(&N, &ResponseHead<'_>) -> Option<Outcome>,
    {
        Server { classify: ByCall { note, classify }, respond: self.respond, speaks: PhantomData }
    }

    /// Makes the responses of rejections with `respond`.
    ///
    /// `respond` gets the usual response, without a body, and the rejection. The response that it
    /// returns may have any content. Rejections of gRPC calls keep the usual response.
    ///
    /// ```
    /// use buttress::{BulkheadLayer, Ending, Rejection};
    /// use buttress_http::ending::HttpServer;
    /// use http::{Response, header};
    ///
    /// let ending = HttpServer::new().respond(|response: Response<()>, rejection: &Rejection| {
    ///     let problem = format!(r#"{{"title":"{}","status":{}}}"#, rejection.reason(), response.status().as_u16());
    ///     let mut response = response.map(|()| problem);
    ///     response.headers_mut().insert(header::CONTENT_TYPE, "application/problem+json".parse().unwrap());
    ///     response
    /// });
    /// let layer = BulkheadLayer::new(64).end(ending);
    /// # let _ = layer;
    /// ```
    pub fn respond<F, T>(self, respond: F) -> Server<S, C, F>
    where
        F: Fn(Response<()>, &Rejection) -> Response<T>,
        T: Into<Bytes>,
    {
        Server { classify: self.classify, respond, speaks: PhantomData }
    }

    fn answer<B: Body, N>(&self, context: &HttpContext<N>, rejection: Rejection) -> Response<AnswerBody<B>>
    where
        R: Respond<B>,
    {
        let usual = if context.is_grpc { answer::grpc } else { answer::http };
        let response = usual(rejection.clone(), ());
        let response =
            if context.is_grpc { response.map(|()| None) } else { self.respond.respond(response, &rejection) };
        response.map(AnswerBody::own)
    }
}

/// Makes the response of a rejected HTTP call.
///
/// Not used for gRPC calls, whose rejections are in the headers. Implemented by [`Standard`], for
/// any body, and by functions, for bodies whose data can be made from [`Bytes`].
pub trait Respond<B: Body> {
    /// Returns the response with its content. `response` is the usual one, without content.
    fn respond(&self, response: Response<()>, rejection: &Rejection) -> Response<Option<B::Data>>;
}

impl<B: Body> Respond<B> for Standard {
    fn respond(&self, response: Response<()>, _: &Rejection) -> Response<Option<B::Data>> {
        response.map(|()| None)
    }
}

impl<F, T, B> Respond<B> for F
where
    F: Fn(Response<()>, &Rejection) -> Response<T>,
    T: Into<Bytes>,
    B: Body<Data: From<Bytes>>,
{
    fn respond(&self, response: Response<()>, rejection: &Rejection) -> Response<Option<B::Data>> {
        self(response, rejection).map(|content| Some(content.into().into()))
    }
}

impl<S, C, R> Ended for Server<S, C, R> {}

impl<S: Speaks, C: ClassifyHead, R, B: Send + 'static> Begin<Request<B>> for Server<S, C, R> {
    type Context = HttpContext<C::Note>;
    #[cfg(any(feature = "axum", feature = "tonic"))]
    type Ahead = crate::ReadAhead;
    #[cfg(not(any(feature = "axum", feature = "tonic")))]
    type Ahead = std::convert::Infallible;

    #[inline]
    fn begin<P: Permit>(&self, request: &mut Request<B>) -> HttpContext<C::Note> {
        let context = begin::<S, P, B, C>(request, &self.classify);
        #[cfg(any(feature = "axum", feature = "tonic"))]
        if P::LEARNS {
            return HttpContext { upload: crate::upload::Upload::watch(request), ..context };
        }
        context
    }

    #[cfg(any(feature = "axum", feature = "tonic"))]
    fn ahead(&self, request: &mut Request<B>) -> Option<crate::ReadAhead> {
        crate::ReadAhead::of(request)
    }
}

impl<S: Speaks, C: ClassifyHead, R: Respond<B>, B: Body, Err: Send + Sync + 'static>
    Finish<HttpContext<C::Note>, Response<B>, Err> for Server<S, C, R>
{
    type Response<P: Permit> = Response<ObservedBody<B, P>>;
    type Error = Err;

    fn head(&self, context: &HttpContext<C::Note>, response: &Response<B>) -> Outcome {
        head(context, response, &self.classify).0
    }

    #[inline]
    fn response<P: Permit>(
        &self,
        context: HttpContext<C::Note>,
        mut response: Response<B>,
        permit: &mut InFlight<P>,
    ) -> Self::Response<P> {
        if !context.is_grpc {
            permit.usages(&mut |usage| quota::advertise(response.headers_mut(), usage));
        }
        observe(context, response, permit, &self.classify)
    }

    fn reject<P: Permit>(&self, context: HttpContext<C::Note>, rejection: Rejection) -> Result<Self::Response<P>, Err> {
        Ok(self.answer(&context, rejection).map(ObservedBody::answer))
    }

    fn inner(&self, error: Err) -> Err {
        error
    }

    fn outcome(&self, error: &Err) -> Outcome {
        error_outcome(error)
    }
}

impl<S: Speaks, C: ClassifyHead, R: Respond<B>, B, Err: Send + Sync + 'static>
    Bound<HttpContext<C::Note>, Response<B>, Err> for Server<S, C, R>
where
    B: Body + Send + 'static,
{
    type Bounded = Response<TimedBody<B>>;

    #[inline]
    fn bound(&self, response: Response<B>, bounds: &BodyBounds) -> Response<TimedBody<B>> {
        TimedBody::around::<S>(response, bounds, Some(READER_STALL), Side::Server)
    }

    fn expired(&self, context: HttpContext<C::Note>, rejection: Rejection) -> Result<Response<TimedBody<B>>, Err> {
        Ok(self.answer(&context, rejection).map(TimedBody::answer))
    }
}

impl<S: Speaks, C: ClassifyHead, R: Respond<B>, B, T, Err: Send + Sync + 'static>
    Substitute<HttpContext<C::Note>, Response<B>, Err, Response<T>> for Server<S, C, R>
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
}
