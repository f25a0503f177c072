//! Bodies at the edge: a request's with a deadline, and an answer's that ends its request.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::activity::InFlight;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A client took longer than [`Limits::body`](super::Limits::body) for the body of its request.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the request body was not sent in time")]
pub struct UploadTimedOut;

/// The body of a request, which must end by a deadline.
#[derive(Debug)]
pub(super) struct Upload<B> {
    body: B,
    deadline: Instant,
    /// Created when the body has to be waited for. Most arrive together with their head.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<B> Upload<B> {
    pub(super) fn new(body: B, deadline: Instant) -> Self {
        Self { body, deadline, timer: None }
    }
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin> Body for Upload<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(this.deadline)));
        timer.poll_unpin(context).map(|()| Some(Err(UploadTimedOut.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer. Its request is in flight until it is dropped.
#[derive(Debug)]
pub(super) struct Answer<B> {
    body: B,
    request: InFlight,
}

impl<B> Answer<B> {
    pub(super) fn new(body: B, request: InFlight) -> Self {
        request.sending(true);
        Self { body, request }
    }
}

impl<B: Body + Unpin> Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        // hyper asks for the next frame when this one is sent.
        self.request.sending(frame.is_ready());
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
