use crate::{answer::AnswerBody, classify, upload::Upload};
use buttress::{
    Rejection,
    error::find_rejection,
    outcome::{Failure, FailureKind, Outcome},
    policy::{InFlight, Permit, Progress},
};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

/// A response body with a permit inside, which is settled at the true end of the response: at the
/// trailers, after the last frame, at an error, or at the drop.
///
/// A body that is dropped before its end is settled as its head said: hyper drops a body unread
/// that it need not send, and a caller that does not read on has got what it wanted. A gRPC stream
/// has no outcome before its status, so one that is dropped before says nothing. Each frame is a
/// sign of life.
#[pin_project]
pub struct ObservedBody<B: Body, P: Permit> {
    #[pin]
    inner: AnswerBody<B>,
    watch: Watch<P>,
}

struct Watch<P: Permit> {
    permit: InFlight<P>,
    ending: StreamEnd,
    /// On a server, whether the caller broke off its upload: then a failure is no evidence.
    upload: Option<Upload>,
}

/// What it means that a body ends.
#[derive(Debug)]
pub(crate) enum StreamEnd {
    /// The head has decided already; the permit is kept to the end all the same.
    Decided(Box<Outcome>),
    /// Its end is a success, and so is its drop.
    Http,
    /// Its trailers say.
    Grpc,
}

impl StreamEnd {
    fn at_trailers(&self, trailers: &HeaderMap) -> Outcome {
        match self {
            Self::Decided(outcome) => **outcome,
            Self::Http => Outcome::Success,
            Self::Grpc => classify::grpc_headers(trailers).unwrap_or_else(classify::grpc_without_status),
        }
    }

    fn without_trailers(&self) -> Outcome {
        match self {
            Self::Decided(outcome) => **outcome,
            Self::Http => Outcome::Success,
            Self::Grpc => classify::grpc_without_status(),
        }
    }

    /// A bound on the body says itself what it is evidence of: a reader that stopped is none.
    fn at_error<E: 'static>(&self, error: &E) -> Outcome {
        match self {
            Self::Decided(outcome) => **outcome,
            Self::Http | Self::Grpc => classify::as_chain(error)
                .and_then(find_rejection)
                .map_or_else(|| Failure::new(FailureKind::Body).into(), Rejection::outcome),
        }
    }

    fn at_drop(&self) -> Outcome {
        match self {
            Self::Decided(outcome) => **outcome,
            Self::Http => Outcome::Success,
            Self::Grpc => Outcome::CANCELLED,
        }
    }
}

impl<B: Body, P: Permit> ObservedBody<B, P> {
    #[inline]
    pub(crate) fn new(inner: B, permit: InFlight<P>, ending: StreamEnd, upload: Option<Upload>) -> Self {
        let mut watch = Watch { permit, ending, upload };
        if inner.is_end_stream() && !watch.permit.is_settled() {
            watch.settle(watch.ending.without_trailers());
        }
        Self { inner: AnswerBody::inner(inner), watch }
    }

    /// A body that no policy waits for.
    pub(crate) fn unobserved(inner: B) -> Self {
        Self::answer(AnswerBody::inner(inner))
    }

    /// The body of a response that no service made.
    pub(crate) fn answer(inner: AnswerBody<B>) -> Self {
        Self { inner, watch: Watch { permit: InFlight::none(), ending: StreamEnd::Http, upload: None } }
    }
}

/// An empty body: layers of tower-http that answer for the service inside (CORS, timeout) make one.
impl<B: Body, P: Permit> Default for ObservedBody<B, P> {
    fn default() -> Self {
        Self::answer(AnswerBody::own(None))
    }
}

/// A failure after the caller broke off its upload says that the caller went away.
#[inline]
pub(crate) fn judged(outcome: Outcome, upload: Option<&Upload>) -> Outcome {
    if outcome.is_failure() && upload.is_some_and(Upload::is_broken) { Outcome::CANCELLED } else { outcome }
}

impl<P: Permit> Watch<P> {
    #[inline]
    fn settle(&mut self, outcome: Outcome) {
        self.permit.settle(&judged(outcome, self.upload.as_ref()));
    }
}

impl<P: Permit> Drop for Watch<P> {
    #[inline]
    fn drop(&mut self) {
        if !self.permit.is_settled() {
            self.settle(self.ending.at_drop());
        }
    }
}

impl<B: Body<Error: 'static>, P: Permit> Body for ObservedBody<B, P> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let watch = this.watch;
        let frame = ready!(watch.permit.guard(|| this.inner.as_mut().poll_frame(cx)));
        if watch.permit.is_settled() {
            return Poll::Ready(frame);
        }
        match &frame {
            None => watch.settle(watch.ending.without_trailers()),
            Some(Err(error)) => watch.settle(watch.ending.at_error(error)),
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    watch.settle(watch.ending.at_trailers(trailers));
                } else if this.inner.is_end_stream() {
                    watch.settle(watch.ending.without_trailers());
                } else {
                    watch.permit.progress(Progress::Frame);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B: Body + fmt::Debug, P: Permit> fmt::Debug for ObservedBody<B, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObservedBody")
            .field("inner", &self.inner)
            .field("ended", &self.watch.permit.is_settled())
            .finish()
    }
}
