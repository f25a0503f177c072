use crate::{answer::AnswerBody, classify};
use buttress::{Failure, FailureKind, InFlight, Outcome, Permit, Progress};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

/// A response body with a permit inside, which is settled at the true end of the response: at the trailers, after the last
/// frame, at an error, or at the drop.
///
/// A body that is dropped before its end is settled as its head said: hyper drops a body unread that it need not send, and a
/// caller that does not read on has got what it wanted. A gRPC stream has no outcome before its status, so one that is
/// dropped before says nothing. Each frame is a sign of life.
#[pin_project]
pub struct ObservedBody<B: Body, P: Permit> {
    #[pin]
    inner: AnswerBody<B>,
    watch: Watch<P>,
}

struct Watch<P: Permit> {
    permit: InFlight<P>,
    ending: StreamEnd,
}

/// What it means that a body ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StreamEnd {
    /// The head has decided already; the permit is kept to the end all the same.
    Decided(Outcome),
    /// Its end is a success, and so is its drop.
    Http,
    /// Its trailers say.
    Grpc,
}

impl StreamEnd {
    fn at_trailers(self, trailers: &HeaderMap) -> Outcome {
        match self {
            Self::Decided(outcome) => outcome,
            Self::Http => Outcome::Success,
            Self::Grpc => classify::grpc_headers(trailers).unwrap_or_else(classify::grpc_without_status),
        }
    }

    fn without_trailers(self) -> Outcome {
        match self {
            Self::Decided(outcome) => outcome,
            Self::Http => Outcome::Success,
            Self::Grpc => classify::grpc_without_status(),
        }
    }

    fn at_error(self) -> Outcome {
        match self {
            Self::Decided(outcome) => outcome,
            Self::Http | Self::Grpc => Failure::new(FailureKind::Body).into(),
        }
    }

    fn at_drop(self) -> Outcome {
        match self {
            Self::Decided(outcome) => outcome,
            Self::Http => Outcome::Success,
            Self::Grpc => Outcome::CANCELLED,
        }
    }
}

impl<B: Body, P: Permit> ObservedBody<B, P> {
    pub(crate) fn new(inner: B, permit: InFlight<P>, ending: StreamEnd) -> Self {
        let mut watch = Watch { permit, ending };
        if inner.is_end_stream() {
            watch.settle(ending.without_trailers());
        } else if let StreamEnd::Decided(outcome) = ending
            && !P::HELD_TO_END
        {
            watch.settle(outcome);
        }
        Self { inner: AnswerBody::inner(inner), watch }
    }

    /// A body that no policy waits for.
    pub(crate) fn unobserved(inner: B) -> Self {
        Self::answer(AnswerBody::inner(inner))
    }

    /// The body of a response that no service made.
    pub(crate) fn answer(inner: AnswerBody<B>) -> Self {
        Self { inner, watch: Watch { permit: InFlight::none(), ending: StreamEnd::Http } }
    }
}

/// An empty body: layers of tower-http that answer for the service inside (CORS, timeout) make one.
impl<B: Body, P: Permit> Default for ObservedBody<B, P> {
    fn default() -> Self {
        Self::answer(AnswerBody::own(None))
    }
}

impl<P: Permit> Watch<P> {
    fn settle(&mut self, outcome: Outcome) {
        self.permit.settle(&outcome);
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

impl<B: Body, P: Permit> Body for ObservedBody<B, P> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let Watch { permit, ending } = this.watch;
        let frame = ready!(permit.guard(|| this.inner.as_mut().poll_frame(cx)));
        if permit.is_settled() {
            return Poll::Ready(frame);
        }
        match &frame {
            None => permit.settle(&ending.without_trailers()),
            Some(Err(_)) => permit.settle(&ending.at_error()),
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    permit.settle(&ending.at_trailers(trailers));
                } else if this.inner.is_end_stream() {
                    permit.settle(&ending.without_trailers());
                } else {
                    permit.progress(Progress::Frame);
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
