//! Request bodies that can be sent again.
//!
//! [`tee`] forwards a body frame by frame and keeps its chunks, up to a cap in bytes. The
//! [`Handle`] makes the body of the next attempt: first the kept chunks, then the rest of the
//! original. Nothing is buffered ahead, and chunks are shared, not copied. A body that exceeds the
//! cap is sent to its end, and cannot be replayed. A body of which nothing was read can be replayed
//! whatever its size. [`ReplayMemory`] is a cap for all calls together, and a [`BodyFactory`] makes
//! bodies again that are too large to be kept.
//!
//! The attempts of [`tee`] follow each other: the next one ends the body of the one before. Those
//! of [`tee_at_once`], for hedging, read at the same time. All of them get every frame, and the
//! source is read by the one that is ahead.
//!
//! The attempts share the body in one allocation, and behind a lock: an attempt that a transport
//! still holds must not keep the rest from the next one. The lock is held while a frame is taken,
//! and a body that came in one piece is sent again without it.

mod attempted;
mod factory;
mod head;
mod memory;
mod per_request;
mod request;
mod shared;

pub use attempted::{Attempted, EndpointId};
pub use factory::BodyFactory;
pub use memory::ReplayMemory;
pub use per_request::RetryOverride;
pub use request::{ByMethod, Idempotent, KeptRequest, MapBody, Rebody, Replays, Same};

use buttress::BoxError;
use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use shared::{Readers, Shared};
use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
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
    teed(body, cap, ReplayMemory::process(), Readers::Latest)
}

/// Makes `body` replayable as [`tee`] does, for attempts at the same time.
///
/// A further attempt leaves the body of the ones before as it is. If the body exceeds the cap while
/// several attempts read it, the one that is ahead goes on, and the bodies of the others end with
/// an error.
///
/// ```
/// use buttress_http::replay::tee_at_once;
/// use bytes::Bytes;
/// use http_body_util::{BodyExt, Full};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), buttress::BoxError> {
/// let (first, handle) = tee_at_once(Full::<Bytes>::from("content"), 64 * 1024);
/// let second = handle.replay().expect("nothing was read yet");
/// assert_eq!(second.collect().await?.to_bytes(), "content");
/// assert_eq!(first.collect().await?.to_bytes(), "content");
/// # Ok(())
/// # }
/// ```
pub fn tee_at_once<B: Body>(body: B, cap: u64) -> (ReplayBody<B>, Handle<B>) {
    teed(body, cap, ReplayMemory::process(), Readers::All)
}

fn teed<B: Body>(body: B, cap: u64, memory: &'static ReplayMemory, readers: Readers) -> (ReplayBody<B>, Handle<B>) {
    if body.is_end_stream() {
        return (ReplayBody { repr: Repr::Empty }, Handle(Source::Empty));
    }
    let hint = body.size_hint();
    let shared = Arc::new(Shared::new(body, cap, memory, readers));
    (ReplayBody::of(shared.clone(), 1, hint), Handle(Source::Teed(shared, hint)))
}

/// Makes bodies with `factory`. `body` is that of the first attempt.
fn made<B: Body>(body: B, factory: BodyFactory<B>) -> (ReplayBody<B>, Handle<B>) {
    let touched = Arc::<AtomicU32>::default();
    let first = ReplayBody { repr: Repr::Own { source: Mutex::new(body), touches: Some((1, touched.clone())) } };
    (first, Handle(Source::Made { factory, attempts: AtomicU32::new(1), touched }))
}

/// A handle that makes the bodies of further attempts. Made by [`tee`].
pub struct Handle<B>(Source<B>);

enum Source<B> {
    Empty,
    Teed(Arc<Shared<B>>, SizeHint),
    Made {
        factory: BodyFactory<B>,
        attempts: AtomicU32,
        /// The latest attempt that has polled for a frame.
        touched: Arc<AtomicU32>,
    },
}

impl<B: Body> Handle<B> {
    /// Returns the body of another attempt, or `None` if the original exceeded the cap or failed.
    ///
    /// After [`tee`], the body of the previous attempt then ends with an error.
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
        match &self.0 {
            Source::Empty => Some(ReplayBody::default()),
            Source::Teed(shared, hint) => Some(ReplayBody::of(shared.clone(), shared.next_attempt()?, *hint)),
            Source::Made { factory, attempts, touched } => {
                let attempt = attempts.fetch_add(1, Ordering::Relaxed) + 1;
                let touches = Some((attempt, touched.clone()));
                Some(ReplayBody { repr: Repr::Own { source: Mutex::new(factory.make()), touches } })
            }
        }
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
        match &self.0 {
            Source::Empty => false,
            Source::Teed(shared, _) => !shared.is_touched(),
            Source::Made { attempts, touched, .. } => {
                touched.load(Ordering::Acquire) != attempts.load(Ordering::Relaxed)
            }
        }
    }
}

impl<B> fmt::Debug for Handle<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("empty", &matches!(self.0, Source::Empty)).finish()
    }
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

/// A body is polled only if it is [`Unpin`].
impl<B> Unpin for ReplayBody<B> {}

enum Repr<B> {
    Empty,
    /// A body of this attempt alone.
    Own {
        /// Locked only to be asked, so that the body can be shared as the others can.
        source: Mutex<B>,
        /// The number of the attempt, which is noted when it polls for a frame.
        touches: Option<(u32, Arc<AtomicU32>)>,
    },
    Teed {
        shared: Arc<Shared<B>>,
        attempt: u32,
        next: usize,
        is_last: bool,
        sent: u64,
        hint: SizeHint,
    },
}

impl<B> ReplayBody<B> {
    fn of(shared: Arc<Shared<B>>, attempt: u32, hint: SizeHint) -> Self {
        Self { repr: Repr::Teed { shared, attempt, next: 0, is_last: false, sent: 0, hint } }
    }

    /// Makes the body of a request that is sent once.
    fn once(source: B) -> Self {
        Self { repr: Repr::Own { source: Mutex::new(source), touches: None } }
    }
}

impl<B: Body + Unpin> Body for ReplayBody<B>
where
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let (shared, attempt, next, is_last, sent) = match &mut self.get_mut().repr {
            Repr::Empty => return Poll::Ready(None),
            Repr::Own { source, touches } => {
                if let Some((attempt, touched)) = touches.take() {
                    touched.fetch_max(attempt, Ordering::AcqRel);
                }
                let source = source.get_mut().unwrap_or_else(PoisonError::into_inner);
                let frame = ready!(Pin::new(source).poll_frame(cx));
                return Poll::Ready(frame.map(|frame| frame.map(into_bytes).map_err(Into::into)));
            }
            Repr::Teed { shared, attempt, next, is_last, sent, .. } => (shared, attempt, next, is_last, sent),
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
            Repr::Own { source, .. } => lock(source).is_end_stream(),
            // A superseded body must end with an error. If it were at its end, its reader would
            // take half a body for the whole.
            Repr::Teed { shared, attempt, is_last, .. } => *is_last && shared.may_read(*attempt),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.repr {
            Repr::Empty => SizeHint::with_exact(0),
            Repr::Own { source, .. } => lock(source).size_hint(),
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn into_bytes<D: Buf>(frame: Frame<D>) -> Frame<Bytes> {
    frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))
}

impl<B> fmt::Debug for ReplayBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayBody").field("empty", &matches!(self.repr, Repr::Empty)).finish()
    }
}

#[cfg(test)]
mod tests;
