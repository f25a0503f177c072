use crate::classify;
use buttress::{Failure, FailureKind, InFlight, Outcome, Permit};
use bytes::Buf;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

pin_project! {
    /// A response body with a permit inside, which is settled when the body comes to its true end: at the trailers, after the last
    /// frame, at an error, or at the drop.
    ///
    /// A body that is dropped after its end was settled at its end: hyper stops polling once `is_end_stream` is true, or once it has sent
    /// as many bytes as promised. One that is dropped before says that the caller went away, which is evidence against nobody.
    pub struct ObservedBody<B, P: Permit> {
        #[pin]
        inner: B,
        watch: Watch<P>,
    }
}

struct Watch<P: Permit> {
    permit: InFlight<P>,
    ending: Ending,
    /// An outcome that the head decided, for permits that are kept to the end all the same.
    decided: Option<Outcome>,
    /// How many bytes are to come, where that was promised.
    remaining: Option<u64>,
}

/// What it means that a body ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending {
    Http,
    Grpc,
}

impl Ending {
    fn at_trailers(self, trailers: &HeaderMap) -> Outcome {
        match self {
            Self::Http => Outcome::Success,
            Self::Grpc => classify::grpc_headers(trailers).unwrap_or_else(classify::grpc_without_status),
        }
    }

    fn without_trailers(self) -> Outcome {
        match self {
            Self::Http => Outcome::Success,
            Self::Grpc => classify::grpc_without_status(),
        }
    }
}

impl<B: Body, P: Permit> ObservedBody<B, P> {
    /// `promised` is the `Content-Length`: hyper goes by it where a body does not know its own size, as that of a file.
    pub(crate) fn new(
        inner: B,
        permit: InFlight<P>,
        ending: Ending,
        decided: Option<Outcome>,
        promised: Option<u64>,
    ) -> Self {
        let remaining = inner.size_hint().exact().or(promised);
        let mut watch = Watch { permit, ending, decided, remaining };
        if inner.is_end_stream() {
            watch.settle(ending.without_trailers());
        } else if let Some(outcome) = decided.filter(|_| !P::HELD_TO_END) {
            watch.settle(outcome);
        }
        Self { inner, watch }
    }
}

impl<P: Permit> Watch<P> {
    fn settle(&mut self, outcome: Outcome) {
        self.permit.settle(&self.decided.unwrap_or(outcome));
    }

    fn data(&mut self, bytes: u64) {
        self.remaining = self.remaining.map(|remaining| remaining.saturating_sub(bytes));
    }
}

impl<P: Permit> Drop for Watch<P> {
    fn drop(&mut self) {
        // All promised bytes were there, and nobody asked for the end that would have followed. Without a permit nothing happens.
        let complete = self.remaining == Some(0) && matches!(self.ending, Ending::Http);
        self.settle(if complete { Outcome::Success } else { Outcome::CANCELLED });
    }
}

impl<B: Body, P: Permit> Body for ObservedBody<B, P> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        if this.watch.permit.is_settled() {
            return Poll::Ready(frame);
        }
        match &frame {
            None => this.watch.settle(this.watch.ending.without_trailers()),
            Some(Err(_)) => this.watch.settle(Failure::new(FailureKind::Body).into()),
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    this.watch.settle(this.watch.ending.at_trailers(trailers));
                } else {
                    this.watch.data(frame.data_ref().map_or(0, |data| data.remaining() as u64));
                    if this.inner.is_end_stream() {
                        this.watch.settle(this.watch.ending.without_trailers());
                    }
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

/// The body of a response that no service made.
impl<B: Default, P: Permit> Default for ObservedBody<B, P> {
    fn default() -> Self {
        Self::unobserved(B::default())
    }
}

impl<B: From<String>, P: Permit> From<String> for ObservedBody<B, P> {
    fn from(text: String) -> Self {
        Self::unobserved(text.into())
    }
}

impl<B, P: Permit> ObservedBody<B, P> {
    fn unobserved(inner: B) -> Self {
        Self { inner, watch: Watch { permit: InFlight::none(), ending: Ending::Http, decided: None, remaining: None } }
    }
}

impl<B: fmt::Debug, P: Permit> fmt::Debug for ObservedBody<B, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObservedBody")
            .field("inner", &self.inner)
            .field("ended", &self.watch.permit.is_settled())
            .finish()
    }
}
