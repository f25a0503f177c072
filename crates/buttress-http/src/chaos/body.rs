use crate::answer::AnswerBody;
use buttress::{
    BoxError,
    chaos::{Fault, Injected, Injection},
    timer::Timer,
};
use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};

/// A response body that may suffer from injected faults. Made by a
/// [`ChaosLayer`](buttress::chaos::ChaosLayer) with an HTTP or gRPC ending.
///
/// A body that ends early keeps the size of the whole one, so that a transport that announced it
/// notices, as with a real one.
#[pin_project]
pub struct ChaosBody<B: Body> {
    #[pin]
    inner: AnswerBody<B>,
    broken: Option<Box<Broken>>,
}

/// The faults of a body.
struct Broken {
    injection: Injection,
    pause: Option<Pin<Box<Timer>>>,
    /// Whether the next frame has had its pause.
    is_due: bool,
    is_slow: bool,
    /// Whether the head was let out before a reset.
    is_head_out: bool,
    is_ended: bool,
}

impl<B: Body> ChaosBody<B> {
    #[inline]
    pub(super) fn untouched(inner: B) -> Self {
        Self { inner: AnswerBody::inner(inner), broken: None }
    }

    pub(super) fn empty() -> Self {
        Self { inner: AnswerBody::own(None), broken: None }
    }

    pub(super) fn broken(inner: B, injection: Injection) -> Self {
        let broken =
            Broken { injection, pause: None, is_due: false, is_slow: false, is_head_out: false, is_ended: false };
        Self { inner: AnswerBody::inner(inner), broken: Some(Box::new(broken)) }
    }
}

impl Broken {
    /// Returns the reset of a body, if it has one.
    ///
    /// The first poll is pending: a server that gets the error together with the head sends
    /// neither.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Option<BoxError>> {
        if !self.injection.drawn().reset {
            return Poll::Ready(None);
        }
        if !std::mem::replace(&mut self.is_head_out, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.is_ended = true;
        self.injection.count(Fault::Reset);
        let reset = io::Error::new(io::ErrorKind::ConnectionReset, Injected::new(Fault::Reset));
        Poll::Ready(Some(reset.into()))
    }

    /// Waits before a frame, if the body is slow.
    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(pause) = self.injection.drawn().pause else { return Poll::Ready(()) };
        if self.is_due {
            return Poll::Ready(());
        }
        if !std::mem::replace(&mut self.is_slow, true) {
            self.injection.count(Fault::SlowBody);
        }
        let timer = self.pause.get_or_insert_with(|| Box::pin(Timer::after(pause)));
        ready!(timer.as_mut().poll_expired(cx));
        self.pause = None;
        self.is_due = true;
        Poll::Ready(())
    }

    /// Returns what is left of a frame. `None` ends the body.
    fn cut<D: Buf + From<Bytes>>(&mut self, frame: Frame<D>) -> Option<Frame<D>> {
        let drawn = self.injection.drawn();
        match frame.into_data() {
            Ok(mut data) if drawn.truncation => {
                self.injection.count(Fault::Truncation);
                self.is_ended = true;
                let half = data.remaining() / 2;
                (half > 0).then(|| Frame::data(data.copy_to_bytes(half).into()))
            }
            Ok(data) => Some(Frame::data(data)),
            Err(_) if drawn.lost_trailers => {
                self.injection.count(Fault::LostTrailers);
                self.is_ended = true;
                None
            }
            Err(trailers) => Some(trailers),
        }
    }
}

impl<B: Body<Data: From<Bytes>, Error: Into<BoxError>>> Body for ChaosBody<B> {
    type Data = B::Data;
    type Error = BoxError;

    #[inline]
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let this = self.project();
        let Some(broken) = this.broken else {
            return this.inner.poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Into::into)));
        };
        if broken.is_ended {
            return Poll::Ready(None);
        }
        if let Some(reset) = ready!(broken.poll_reset(cx)) {
            return Poll::Ready(Some(Err(reset)));
        }
        ready!(broken.poll_pause(cx));
        let frame = ready!(this.inner.poll_frame(cx));
        broken.is_due = false;
        Poll::Ready(match frame {
            Some(Ok(frame)) => broken.cut(frame).map(Ok),
            Some(Err(error)) => Some(Err(error.into())),
            None => {
                broken.is_ended = true;
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.broken {
            None => self.inner.is_end_stream(),
            Some(broken) => broken.is_ended || (self.inner.is_end_stream() && !broken.injection.drawn().reset),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Makes an empty body, which layers of tower-http need that answer instead of the inner service
/// (CORS, timeout).
impl<B: Body> Default for ChaosBody<B> {
    fn default() -> Self {
        Self::empty()
    }
}

impl<B: Body> fmt::Debug for ChaosBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChaosBody").field("broken", &self.broken.is_some()).finish_non_exhaustive()
    }
}
