//! Request bodies that can be sent again.
//!
//! [`tee`] forwards a body frame by frame and keeps its chunks, up to a cap in bytes. The
//! [`Handle`] makes the body of the next attempt: first the kept chunks, then the rest of the
//! original. Nothing is buffered ahead, and chunks are shared, not copied. A body that exceeds the
//! cap is sent to its end, and cannot be replayed. A body of which nothing was read can be replayed
//! whatever its size.
//!
//! The attempts share the body in one allocation, and behind a lock: an attempt that a transport
//! still holds must not keep the rest from the next one. Attempts do not read at the same time, so
//! no thread waits for the lock, and a body that came in one piece is sent again without it.

mod attempted;
mod head;
mod per_request;
mod request;

pub use attempted::{Attempted, EndpointId};
pub use per_request::RetryOverride;
pub use request::{ByMethod, Idempotent, KeptRequest, MapBody, Rebody, Replays, Same};

use buttress::BoxError;
use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use smallvec::SmallVec;
use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

/// Makes `body` replayable while at most `cap` bytes of it have been read.
///
/// Returns the body of the first attempt, and the handle that makes the bodies of further attempts.
/// An empty body allocates nothing.
///
/// ```
/// use buttress_http::replay::tee;
/// use bytes::Bytes;
/// use http_body_util::{BodyExt, Full};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), buttress::BoxError> {
/// let (first, handle) = tee(Full::<Bytes>::from("content"), 64 * 1024);
/// assert_eq!(first.collect().await?.to_bytes(), "content");
///
/// let second = handle.replay().expect("7 bytes are within the cap");
/// assert_eq!(second.collect().await?.to_bytes(), "content");
///
/// let (first, handle) = tee(Full::<Bytes>::from("content"), 3);
/// first.collect().await?;
/// assert!(handle.replay().is_none(), "the body is larger than the cap");
/// # Ok(())
/// # }
/// ```
pub fn tee<B: Body>(body: B, cap: u64) -> (ReplayBody<B>, Handle<B>) {
    if body.is_end_stream() {
        return (ReplayBody { repr: Repr::Empty }, Handle(None));
    }
    let hint = body.size_hint();
    let shared = Arc::new(Shared {
        attempt: AtomicU32::new(1),
        touched: AtomicU32::new(0),
        whole: OnceLock::new(),
        stream: Mutex::new(Stream {
            source: body,
            chunks: SmallVec::new(),
            trailers: None,
            kept: 0,
            cap,
            state: State::Kept,
            ended: false,
            reader: None,
        }),
    });
    (
        ReplayBody { repr: Repr::Teed { shared: shared.clone(), attempt: 1, next: 0, is_last: false, sent: 0, hint } },
        Handle(Some((shared, hint))),
    )
}

/// A handle that makes the bodies of further attempts. Made by [`tee`].
pub struct Handle<B>(Option<(Arc<Shared<B>>, SizeHint)>);

impl<B: Body> Handle<B> {
    /// Returns the body of another attempt, or `None` if the original exceeded the cap or failed.
    ///
    /// The body of the previous attempt then ends with an error, because two attempts cannot read
    /// one source.
    ///
    /// ```
    /// use buttress_http::replay::tee;
    /// use bytes::Bytes;
    /// use http_body_util::{BodyExt, Full};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), buttress::BoxError> {
    /// let (mut first, handle) = tee(Full::<Bytes>::from("content"), 64 * 1024);
    /// let second = handle.replay().expect("nothing was read yet");
    /// assert!(first.frame().await.unwrap().is_err());
    /// assert_eq!(second.collect().await?.to_bytes(), "content");
    /// # Ok(())
    /// # }
    /// ```
    pub fn replay(&self) -> Option<ReplayBody<B>> {
        let Some((shared, hint)) = &self.0 else { return Some(ReplayBody { repr: Repr::Empty }) };
        let mut stream = shared.stream();
        if stream.state != State::Kept {
            return None;
        }
        let attempt = shared.attempt.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(chunk) = stream.whole() {
            shared.whole.get_or_init(|| chunk.clone());
        }
        let reader = stream.reader.take();
        drop(stream);
        // The source wakes the task of the new attempt from now on. The task that reads the
        // previous attempt must be woken here, or it would wait without end.
        if let Some(reader) = reader {
            reader.wake();
        }
        let repr = Repr::Teed { shared: shared.clone(), attempt, next: 0, is_last: false, sent: 0, hint: *hint };
        Some(ReplayBody { repr })
    }

    /// Returns whether the body is not empty and the latest attempt has not polled it.
    ///
    /// ```
    /// use buttress_http::replay::tee;
    /// use bytes::Bytes;
    /// use http_body_util::{BodyExt, Full};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), buttress::BoxError> {
    /// let (mut first, handle) = tee(Full::<Bytes>::from("content"), 64 * 1024);
    /// assert!(handle.is_untouched());
    /// first.frame().await.unwrap()?;
    /// assert!(!handle.is_untouched());
    /// # Ok(())
    /// # }
    /// ```
    pub fn is_untouched(&self) -> bool {
        self.0.as_ref().is_some_and(|(shared, _)| !shared.is_touched())
    }
}

impl<B> fmt::Debug for Handle<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("empty", &self.0.is_none()).finish()
    }
}

/// What the attempts share.
struct Shared<B> {
    /// The attempt whose body may read. Bodies of earlier attempts return an error.
    attempt: AtomicU32,
    /// The latest attempt that has polled for a frame.
    touched: AtomicU32,
    /// The body for further attempts, if it came in one piece and was read to its end.
    whole: OnceLock<Bytes>,
    stream: Mutex<Stream<B>>,
}

struct Stream<B> {
    source: B,
    /// Most bodies have one chunk.
    chunks: SmallVec<[Bytes; 1]>,
    trailers: Option<Box<HeaderMap>>,
    kept: u64,
    cap: u64,
    state: State,
    ended: bool,
    /// The task that waits for a frame of the source.
    reader: Option<Waker>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Kept,
    TooLarge,
    Failed,
}

/// A request body that can be sent again. Made by [`tee`].
///
/// A client under a retry layer takes requests with this body:
///
/// ```
/// use buttress_http::{ReplayBody, buttress::BoxError, prelude::*};
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::{BodyExt, Full};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let client = service_fn(async |request: Request<ReplayBody<Full<Bytes>>>| {
///     Ok::<_, BoxError>(Response::new(Full::new(request.into_body().collect().await?.to_bytes())))
/// });
/// let stack = RetryLayer::new(3).http_client().layer(client);
/// let echoed = stack.oneshot(Request::new(Full::from("content"))).await?;
/// assert_eq!(echoed.into_body().collect().await?.to_bytes(), "content");
/// # Ok(())
/// # }
/// ```
pub struct ReplayBody<B> {
    repr: Repr<B>,
}

/// Makes an empty body, which clients that follow redirects need.
impl<B> Default for ReplayBody<B> {
    fn default() -> Self {
        Self { repr: Repr::Empty }
    }
}

/// The source lies in the shared state, not in the body of an attempt.
impl<B> Unpin for ReplayBody<B> {}

enum Repr<B> {
    Empty,
    Teed { shared: Arc<Shared<B>>, attempt: u32, next: usize, is_last: bool, sent: u64, hint: SizeHint },
}

impl<B: Body + Unpin> Body for ReplayBody<B>
where
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Repr::Teed { shared, attempt, next, is_last, sent, .. } = &mut self.get_mut().repr else {
            return Poll::Ready(None);
        };
        let frame = match ready!(shared.poll_frame(*attempt, *next, is_last, cx)) {
            Some(Ok(frame)) => frame,
            end_or_error => return Poll::Ready(end_or_error),
        };
        *next += 1;
        *sent += frame.data_ref().map_or(0, |data| data.len() as u64);
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.repr {
            Repr::Empty => true,
            // A superseded body must end with an error. If it were at its end, its reader would
            // take half a body for the whole.
            Repr::Teed { shared, attempt, is_last, .. } => *is_last && shared.is_latest(*attempt),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.repr {
            Repr::Empty => SizeHint::with_exact(0),
            Repr::Teed { sent, hint, .. } => {
                let mut rest = SizeHint::new();
                rest.set_lower(hint.lower().saturating_sub(*sent));
                if let Some(upper) = hint.upper() {
                    rest.set_upper(upper.saturating_sub(*sent).max(rest.lower()));
                }
                rest
            }
        }
    }
}

impl<B> Shared<B> {
    fn is_latest(&self, attempt: u32) -> bool {
        self.attempt.load(Ordering::Acquire) == attempt
    }

    /// Returns whether the latest attempt has polled for a frame.
    fn is_touched(&self) -> bool {
        self.is_latest(self.touched.load(Ordering::Acquire))
    }

    fn stream(&self) -> MutexGuard<'_, Stream<B>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Body + Unpin> Shared<B>
where
    B::Error: Into<BoxError>,
{
    /// Returns frame number `next` of an attempt, and sets whether it is known to be the last one.
    fn poll_frame(
        &self,
        attempt: u32,
        next: usize,
        is_last: &mut bool,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(whole) = self.whole.get() {
            return self.poll_whole(whole, attempt, next, is_last);
        }
        let mut stream = self.stream();
        if !self.is_latest(attempt) {
            return superseded();
        }
        // No other attempt is made or polled under the lock.
        self.touched.store(attempt, Ordering::Release);
        let polled = stream.poll_from(next, cx);
        if polled.is_pending() {
            stream.reader = Some(cx.waker().clone());
        } else {
            *is_last = stream.is_end(next + 1);
        }
        polled
    }

    fn poll_whole(
        &self,
        whole: &Bytes,
        attempt: u32,
        next: usize,
        is_last: &mut bool,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if !self.is_latest(attempt) {
            return superseded();
        }
        // An earlier attempt may get here late, and must not hide that a later one was polled.
        self.touched.fetch_max(attempt, Ordering::AcqRel);
        *is_last = true;
        Poll::Ready((next == 0).then(|| Ok(Frame::data(whole.clone()))))
    }
}

fn superseded() -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
    Poll::Ready(Some(Err("superseded by another attempt".into())))
}

impl<B: Body> Stream<B> {
    fn is_end(&self, next: usize) -> bool {
        let rest = self.trailers.is_none() && next >= self.chunks.len();
        (rest && (self.ended || self.source.is_end_stream())) || (self.trailers.is_some() && next > self.chunks.len())
    }

    /// Returns the body if it has ended and came in one piece.
    fn whole(&self) -> Option<&Bytes> {
        let is_whole = self.state == State::Kept
            && self.chunks.len() == 1
            && self.trailers.is_none()
            && (self.ended || self.source.is_end_stream());
        is_whole.then(|| &self.chunks[0])
    }
}

impl<B: Body + Unpin> Stream<B>
where
    B::Error: Into<BoxError>,
{
    /// Returns frame number `next` of the current attempt: from the kept chunks, or from the source
    /// once all of them were read or the cap was exceeded.
    fn poll_from(&mut self, next: usize, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.state == State::Kept {
            if let Some(chunk) = self.chunks.get(next) {
                return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
            }
            if let Some(trailers) = self.trailers.as_ref().filter(|_| next == self.chunks.len()) {
                return Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::clone(trailers)))));
            }
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let Some(frame) = ready!(Pin::new(&mut self.source).poll_frame(cx)) else {
            self.ended = true;
            return Poll::Ready(None);
        };
        match frame {
            Ok(frame) => {
                Poll::Ready(Some(Ok(self.keep(frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))))))
            }
            Err(error) => {
                self.forget(State::Failed);
                self.ended = true;
                Poll::Ready(Some(Err(error.into())))
            }
        }
    }

    fn keep(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        if let Some(data) = frame.data_ref() {
            self.kept = self.kept.saturating_add(data.len() as u64);
            if self.kept > self.cap {
                self.forget(State::TooLarge);
            } else if self.state == State::Kept {
                self.chunks.push(data.clone());
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.ended = true;
            if self.state == State::Kept {
                self.trailers = Some(Box::new(trailers.clone()));
            }
        }
        frame
    }

    fn forget(&mut self, why: State) {
        if self.state == State::Kept {
            self.state = why;
        }
        self.chunks = SmallVec::new();
        self.trailers = None;
    }
}

impl<B> fmt::Debug for ReplayBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayBody").field("empty", &matches!(self.repr, Repr::Empty)).finish()
    }
}

#[cfg(test)]
mod tests;
