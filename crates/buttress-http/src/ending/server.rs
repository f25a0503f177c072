use super::{
    ByCall, ByHead, ClassifyHead, Grpc, Http, HttpContext, RequestHead, ResponseHead, Speaks, Standard, begin,
    error_outcome, head, observe,
};
use crate::{
    ObservedBody,
    answer::{self, AnswerBody},
    timed::TimedBody,
};
use buttress::{
    Rejection,
    ending::{Begin, BodyBounds, Bound, Ended, Finish},
    outcome::Outcome,
    policy::{InFlight, Permit},
};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use std::{marker::PhantomData, time::Duration};

/// How long the body of a response may wait for a reader that does not ask for more, unless the
/// layer says otherwise.
const READER_STALL: Duration = Duration::from_secs(30);

/// The ending for servers: rejections leave as responses, and the error type stays that of the
/// inner service.
///
/// `C` classifies heads, `R` makes the responses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Server<S, C = Standard, R = Standard> {
    classify: C,
    respond: R,
    speaks: PhantomData<S>,
}

/// See [`HttpExt::http`](super::HttpExt::http).
pub type HttpServer<C = Standard, R = Standard> = Server<Http, C, R>;

/// See [`HttpExt::grpc`](super::HttpExt::grpc).
pub type GrpcServer<C = Standard, R = Standard> = Server<Grpc, C, R>;

impl<S: Speaks> Server<S> {
    /// With the usual rules and responses.
    pub const fn new() -> Self {
        Self { classify: Standard, respond: Standard, speaks: PhantomData }
    }
}

impl<S, C, R> Server<S, C, R> {
    /// Reads the outcome of a response's head with a function first. What it returns is final;
    /// `None` leaves a response to the usual rules. Rejections of this family never reach it.
    pub fn classify<F: Fn(&ResponseHead<'_>) -> Option<Outcome>>(self, classify: F) -> Server<S, ByHead<F>, R> {
        Server { classify: ByHead(classify), respond: self.respond, speaks: PhantomData }
    }

    /// The same, by method or route: `note` reads from the request what `classify` needs.
    ///
    /// ```
    /// use buttress::{CircuitBreakerLayer, Ending, outcome::Outcome};
    /// use buttress_http::ending::HttpServer;
    /// use http::{Method, StatusCode};
    ///
    /// // A DELETE that is overtaken by another one is no failure.
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

    /// Makes the responses of rejections with a function. It gets the usual response, without a
    /// body, and the rejection; what it returns can have any content.
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

/// Makes the response of a rejection, unless it is to a gRPC call: there the headers say all.
/// Implemented by [`Standard`], for any body, and by functions, for bodies of [`Bytes`].
pub trait Respond<B: Body> {
    /// The response, with its content. `response` is the usual one, without content.
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
        response: Response<B>,
        permit: &mut InFlight<P>,
    ) -> Self::Response<P> {
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
        TimedBody::around(response, bounds, Some(READER_STALL))
    }

    fn expired(&self, context: HttpContext<C::Note>, rejection: Rejection) -> Result<Response<TimedBody<B>>, Err> {
        Ok(self.answer(&context, rejection).map(TimedBody::answer))
    }
}
