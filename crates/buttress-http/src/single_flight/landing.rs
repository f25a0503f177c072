use super::{
    HttpKey, SharedBody,
    body::{Content, End},
};
use crate::ending::{Client, Http};
use buttress::{
    BoxError, Error,
    ending::{Share, ShareLimits, SharedError},
    single_flight::Landed,
    timer::Deadline,
};
use bytes::{Buf, Bytes};
use http::{Response, header, response::Parts};
use http_body::Body;
use pin_project::pin_project;
use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

/// A complete response, which is copied for every caller.
#[derive(Clone, Debug)]
pub struct Whole(Arc<(Parts, Arc<Content>)>);

impl Whole {
    fn new(parts: Parts, content: Content) -> Self {
        Self(Arc::new((parts, Arc::new(content))))
    }

    pub(crate) fn into_parts(self) -> (Parts, Arc<Content>) {
        Arc::try_unwrap(self.0).unwrap_or_else(|shared| (*shared).clone())
    }

    pub(crate) fn response<B>(self) -> Response<SharedBody<B>> {
        let (parts, content) = self.into_parts();
        SharedBody::respond(parts, content)
    }

    #[cfg(feature = "cache")]
    pub(crate) fn headers(&self) -> &http::HeaderMap {
        &self.0.0.headers
    }

    /// Returns whether the backend broke the body off.
    #[cfg(feature = "cache")]
    pub(crate) fn is_broken(&self) -> bool {
        matches!(self.0.1.end, Some(End::Broken(_)))
    }
}

/// Shares whole responses, and leaves the others to the caller that has made the call.
impl<C, R, B, Err> Share<HttpKey, Response<B>, Err> for Client<Http, C, R>
where
    B: Body<Error: Into<BoxError>> + Send + 'static,
    Err: Into<BoxError>,
{
    type Shared = Result<Whole, SharedError>;
    type Own = Response<SharedBody<B>>;
    type Landing = HttpLanding<B>;
    type Response = Response<SharedBody<B>>;

    fn land(&self, by: &HttpKey, result: Result<Response<B>, Err>, limits: &ShareLimits) -> HttpLanding<B> {
        let response = match result {
            Ok(response) => response,
            Err(error) => {
                return HttpLanding::ended(Landed::Shared(Err(SharedError::new(Error::from_inner(error)))));
            }
        };
        HttpLanding::of(response, |response| by.shares(response), limits)
    }

    fn shared(&self, result: Self::Shared) -> Result<Self::Response, Error> {
        result.map(Whole::response).map_err(SharedError::into_error)
    }

    fn own(&self, result: Response<SharedBody<B>>) -> Self::Response {
        result
    }

    fn alone(&self, result: Result<Response<B>, Err>) -> Result<Self::Response, Error> {
        result.map(|response| response.map(SharedBody::inner)).map_err(Error::from_inner)
    }

    fn is_late(&self, result: &Self::Shared) -> bool {
        result.as_ref().is_err_and(SharedError::is_late)
    }
}

type Outcome<B> = Landed<Result<Whole, SharedError>, Response<SharedBody<B>>>;

/// Reads the body of a response to its end, unless it is too long or takes too long.
#[pin_project]
pub struct HttpLanding<B>(#[pin] State<B>);

#[pin_project(project = StateProj)]
#[expect(clippy::large_enum_variant, reason = "a part of the boxed future of a call")]
enum State<B> {
    Ended(Option<Outcome<B>>),
    Reading {
        /// Boxed, because it leaves the pinned state if it turns out to be too long.
        reading: Option<Reading<B>>,
        #[pin]
        deadline: Deadline,
        limits: ShareLimits,
    },
}

struct Reading<B> {
    parts: Parts,
    body: Pin<Box<B>>,
    content: Content,
    /// What is kept of the body, with the place that each frame takes.
    weight: u64,
}

impl<B> fmt::Debug for HttpLanding<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpLanding").finish_non_exhaustive()
    }
}

impl<B: Body> HttpLanding<B> {
    pub(crate) fn ended(outcome: Outcome<B>) -> Self {
        Self(State::Ended(Some(outcome)))
    }

    pub(crate) fn of(response: Response<B>, shares: impl FnOnce(&Response<B>) -> bool, limits: &ShareLimits) -> Self {
        if !shares(&response) || declared_length(&response) > limits.max_body {
            return Self::ended(Landed::Own(response.map(SharedBody::inner)));
        }
        let (parts, body) = response.into_parts();
        if body.is_end_stream() {
            return Self::ended(Landed::Shared(Ok(Whole::new(parts, Content::default()))));
        }
        let reading = Reading { parts, body: Box::pin(body), content: Content::default(), weight: 0 };
        Self(State::Reading { reading: Some(reading), deadline: Deadline::new(), limits: *limits })
    }
}

/// Returns the length of the body as the head tells, or else what the body knows.
fn declared_length<B: Body>(response: &Response<B>) -> u64 {
    let header = response.headers().get(header::CONTENT_LENGTH);
    let header = header.and_then(|length| length.to_str().ok()?.parse().ok());
    // A response to HEAD declares the length that its GET would have.
    if response.body().is_end_stream() { 0 } else { response.body().size_hint().lower().max(header.unwrap_or(0)) }
}

impl<B: Body<Error: Into<BoxError>>> Reading<B> {
    /// Reads to the end. Returns whether what is kept is within the limit.
    fn poll_end(&mut self, max: u64, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            let frame = match ready!(self.body.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    let error = SharedError::new(Error::from_inner(error));
                    self.content.end = Some(End::Broken(error));
                    return Poll::Ready(true);
                }
                None => return Poll::Ready(true),
            };
            match frame.into_data() {
                Ok(mut data) => {
                    let data = data.copy_to_bytes(data.remaining());
                    self.content.length += data.len() as u64;
                    // Without the place of a frame, a body of single bytes would take many times
                    // the limit.
                    self.weight += (data.len() + size_of::<Bytes>()) as u64;
                    self.content.frames.push(data);
                }
                Err(frame) => self.content.end = frame.into_trailers().ok().map(End::Trailers),
            }
            let is_ended = self.content.end.is_some() || self.body.is_end_stream();
            if is_ended || self.content.length > max || self.weight > max.saturating_mul(2) {
                return Poll::Ready(is_ended && self.content.length <= max);
            }
        }
    }

    fn whole(self) -> Outcome<B> {
        Landed::Shared(Ok(Whole::new(self.parts, self.content)))
    }

    fn own(self) -> Outcome<B> {
        let Self { parts, body, content, .. } = self;
        Landed::Own(match content.end {
            // Too long, and at its end.
            Some(_) => SharedBody::respond(parts, Arc::new(content)),
            None => Response::from_parts(parts, SharedBody::resumed(content.frames, body)),
        })
    }
}

impl<B: Body<Error: Into<BoxError>>> Future for HttpLanding<B> {
    type Output = Outcome<B>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome<B>> {
        match self.project().0.project() {
            StateProj::Ended(outcome) => Poll::Ready(outcome.take().expect("a future is not polled after its end")),
            StateProj::Reading { reading, deadline, limits } => {
                let read = reading.as_mut().expect("a future is not polled after its end");
                let polled = read.poll_end(limits.max_body, cx);
                if polled.is_pending() {
                    ready!(deadline.poll_expired(limits.max_wait, cx));
                }
                let reading = reading.take().expect("it was there");
                Poll::Ready(match polled {
                    Poll::Ready(true) => reading.whole(),
                    Poll::Ready(false) | Poll::Pending => reading.own(),
                })
            }
        }
    }
}
