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

/// A response body that holds the permit of its call and settles it when the response ends.
///
/// The permit is settled at the trailers, after the last frame, at an error, or when the body is
/// dropped:
///
/// | end | HTTP | gRPC |
/// |---|---|---|
/// | trailers | success | the outcome of `grpc-status`; `UNKNOWN` if there is none |
/// | end without trailers | success | `UNKNOWN` |
/// | error | failure of the body; a rejection by a bound on the body counts as that bound says | as HTTP |
/// | dropped before its end | success | ignored, as a call that its caller cancelled |
///
/// If the head has decided the outcome already (a status of 500, `grpc-status` in the headers), the
/// end does not change it. An HTTP body that is dropped early counts as success, because hyper
/// drops the bodies that it does not send (HEAD, 304), and a caller that stops reading has what it
/// asked for. A gRPC stream has no outcome before its status. Each frame is reported to the permit
/// as progress. On a server, a failure after the caller broke off its upload is ignored.
///
/// ```
/// use buttress_http::{ObservedBody, prelude::*};
/// use http::{Request, Response};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let bulkhead = Bulkhead::new(10);
/// let handler = service_fn(async |_: Request<()>| Ok::<_, std::io::Error>(Response::new("content".to_owned())));
/// let server = BulkheadLayer::from(bulkhead.clone()).http().layer(handler);
///
/// let response: Response<ObservedBody<_, _>> = server.oneshot(Request::new(())).await?;
/// assert_eq!(bulkhead.in_flight(), 1); // until the body ends or is dropped
/// drop(response);
/// assert_eq!(bulkhead.in_flight(), 0);
/// # Ok(())
/// # }
/// ```
#[pin_project]
pub struct ObservedBody<B: Body, P: Permit> {
    #[pin]
    inner: AnswerBody<B>,
    watch: Watch<P>,
}

struct Watch<P: Permit> {
    permit: InFlight<P>,
    ending: StreamEnd,
    /// On a server, whether the caller broke off its upload. A failure is ignored then.
    upload: Option<Upload>,
}

/// The outcome of each way in which a body can end.
#[derive(Debug)]
pub(crate) enum StreamEnd {
    /// The head has decided the outcome. The permit is held until the body ends.
    Decided(Box<Outcome>),
    /// An HTTP body: its end is a success, and so is its drop.
    Http,
    /// A gRPC body: the outcome is in its trailers.
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

    /// A rejection by a bound on the body carries its own outcome: a stalled reader is ignored, an
    /// idle body is a failure.
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

    /// Makes a body without a permit.
    pub(crate) fn unobserved(inner: B) -> Self {
        Self::answer(AnswerBody::inner(inner))
    }

    /// Makes the body of a response that a layer made.
    pub(crate) fn answer(inner: AnswerBody<B>) -> Self {
        Self { inner, watch: Watch { permit: InFlight::none(), ending: StreamEnd::Http, upload: None } }
    }
}

/// Makes an empty body, which layers of tower-http need that answer instead of the inner service
/// (CORS, timeout).
impl<B: Body, P: Permit> Default for ObservedBody<B, P> {
    fn default() -> Self {
        Self::answer(AnswerBody::own(None))
    }
}

/// Turns a failure into [`Outcome::CANCELLED`] if the caller broke off its upload: the handler
/// failed because of the caller.
#[inline]
pub(crate) fn unless_upload_broke(outcome: Outcome, upload: Option<&Upload>) -> Outcome {
    if outcome.is_failure() && upload.is_some_and(Upload::is_broken) { Outcome::CANCELLED } else { outcome }
}

impl<P: Permit> Watch<P> {
    #[inline]
    fn settle(&mut self, outcome: Outcome) {
        self.permit.settle(&unless_upload_broke(outcome, self.upload.as_ref()));
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
