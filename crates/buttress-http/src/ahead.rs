//! Reads request bodies while their calls wait in a queue.
//!
//! HTTP/2 has one flow-control window for all streams of a connection. A call that waits in a queue
//! does not read its body, so the bodies of waiting calls fill that window, and the calls in flight
//! receive no data. When the unread bodies fill the whole window, the connection stalls until the
//! calls leave the queue by its timeout. Therefore the body of a waiting call is read ahead, up to
//! a bound. A call that sends more than the bound is rejected, which releases its share of the
//! window.

use buttress::{BoxError, ending::Ahead};
use bytes::{Bytes, BytesMut};
use http::{Request, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use std::{
    any::Any,
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

/// Maximum number of bytes kept of one call: 1 MiB, the default stream window of hyper's server,
/// which is what a client can send before the server reads anything.
const MAX_CALL: usize = 1024 * 1024;

/// Maximum number of bytes kept of all calls of the process: 64 calls with [`MAX_CALL`] each.
const MAX_ALL: usize = 64 * 1024 * 1024;

/// Frames below this size are merged. A frame takes about 100 bytes besides its content and keeps a
/// read buffer of the connection alive, so many small frames would exceed the bounds above.
const SMALL: usize = 1024;

/// Number of bytes kept of all calls of the process.
static KEPT: AtomicUsize = AtomicUsize::new(0);

type Source = Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>;

/// Reads the body of an HTTP/2 request while its call waits in a queue.
///
/// Keeps up to 1 MiB of one call and 64 MiB of all calls of the process; a call that sends more
/// while it waits is rejected. Unread bodies of waiting calls would fill the flow-control window of
/// the connection and stall the calls in flight on it. Made by the server endings.
pub struct ReadAhead(Arc<Mutex<Shared>>);

struct Shared {
    source: Source,
    frames: VecDeque<Frame<Bytes>>,
    /// The content of small frames that followed `frames`.
    small: BytesMut,
    /// Number of bytes in `frames` and `small`, which is counted in [`KEPT`].
    kept: usize,
    error: Option<BoxError>,
    is_over: bool,
}

/// The body that the handler reads: the frames that were read ahead, then the rest of the source.
struct AheadBody(Arc<Mutex<Shared>>);

impl ReadAhead {
    /// Replaces the body of an HTTP/2 request if it is a body of axum or tonic. Other body types
    /// cannot hold a replacement.
    pub(crate) fn of<B: 'static>(request: &mut Request<B>) -> Option<Self> {
        if request.version() != Version::HTTP_2 {
            return None;
        }
        let body: &mut dyn Any = request.body_mut();
        let ahead = None;
        #[cfg(feature = "axum")]
        let ahead = ahead.or_else(|| replace(body, axum_core::body::Body::new, axum_core::Error::into_inner));
        #[cfg(feature = "tonic")]
        let ahead = ahead.or_else(|| replace(body, ::tonic::body::Body::new, Into::into));
        let _ = body;
        ahead
    }
}

/// Replaces a body of type `B`. `unwrap` removes the layer that `new` adds around an error: axum's
/// extractors look for the cause of an error at a fixed depth.
fn replace<B>(body: &mut dyn Any, new: impl Fn(AheadBody) -> B, unwrap: fn(B::Error) -> BoxError) -> Option<ReadAhead>
where
    B: Body<Data = Bytes> + Default + Send + 'static,
{
    let body = body.downcast_mut::<B>().filter(|body| !body.is_end_stream())?;
    let source = Box::pin(std::mem::take(body).map_err(unwrap));
    let shared =
        Shared { source, frames: VecDeque::new(), small: BytesMut::new(), kept: 0, error: None, is_over: false };
    let shared = Arc::new(Mutex::new(shared));
    *body = new(AheadBody(shared.clone()));
    Some(ReadAhead(shared))
}

impl Ahead for ReadAhead {
    fn poll_too_large(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut shared = lock(&self.0);
        while !shared.is_over {
            if shared.kept > MAX_CALL || KEPT.load(Ordering::Relaxed) > MAX_ALL {
                return Poll::Ready(());
            }
            match ready!(shared.source.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => shared.keep(frame),
                Some(Err(error)) => (shared.error, shared.is_over) = (Some(error), true),
                None => shared.is_over = true,
            }
        }
        Poll::Pending
    }
}

impl Shared {
    fn keep(&mut self, frame: Frame<Bytes>) {
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        self.kept += bytes;
        KEPT.fetch_add(bytes, Ordering::Relaxed);
        match frame.into_data() {
            Ok(data) if data.len() < SMALL => self.small.extend_from_slice(&data),
            Ok(data) => self.push(Frame::data(data)),
            Err(trailers) => self.push(trailers),
        }
    }

    fn push(&mut self, frame: Frame<Bytes>) {
        self.flush_small();
        self.frames.push_back(frame);
    }

    /// Makes one frame of the small ones.
    fn flush_small(&mut self) {
        if !self.small.is_empty() {
            self.frames.push_back(Frame::data(std::mem::take(&mut self.small).freeze()));
        }
    }

    fn pop(&mut self) -> Option<Frame<Bytes>> {
        if self.frames.is_empty() {
            self.flush_small();
        }
        let frame = self.frames.pop_front()?;
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        self.kept -= bytes;
        KEPT.fetch_sub(bytes, Ordering::Relaxed);
        Some(frame)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        KEPT.fetch_sub(self.kept, Ordering::Relaxed);
    }
}

impl Body for AheadBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut shared = lock(&self.0);
        if let Some(frame) = shared.pop() {
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Some(error) = shared.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        if shared.is_over { Poll::Ready(None) } else { shared.source.as_mut().poll_frame(cx) }
    }

    fn is_end_stream(&self) -> bool {
        let shared = lock(&self.0);
        let is_read = shared.frames.is_empty() && shared.small.is_empty();
        is_read && shared.error.is_none() && (shared.is_over || shared.source.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let shared = lock(&self.0);
        let (rest, kept) = (shared.source.size_hint(), shared.kept as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + kept);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(kept));
        }
        hint
    }
}

/// The queue and the handler never read at the same time, so the lock is not contended.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for ReadAhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadAhead").field("kept", &lock(&self.0).kept).finish()
    }
}

#[cfg(all(test, feature = "axum"))]
mod tests {
    use super::*;
    use axum_core::body::Body as AxumBody;
    use buttress_test::{Part, TestBody};
    use http_body_util::Full;
    use std::task::Waker;

    fn request(bytes: usize) -> Request<AxumBody> {
        let mut request = Request::new(AxumBody::new(Full::from(vec![7; bytes])));
        *request.version_mut() = Version::HTTP_2;
        request
    }

    fn read(ahead: &mut ReadAhead) -> Poll<()> {
        ahead.poll_too_large(&mut Context::from_waker(Waker::noop()))
    }

    fn kept() -> usize {
        KEPT.load(Ordering::Relaxed)
    }

    /// One test, because [`KEPT`] counts for the whole process.
    #[tokio::test]
    async fn what_is_kept_of_waiting_calls_is_given_back_once_it_is_read_or_dropped() {
        let mut waits = request(5);
        let mut ahead = ReadAhead::of(&mut waits).unwrap();
        assert_eq!((read(&mut ahead), read(&mut ahead), kept()), (Poll::Pending, Poll::Pending, 5));
        assert_eq!(waits.body().size_hint().exact(), Some(5));
        drop(ahead);
        assert_eq!(waits.into_body().collect().await.unwrap().to_bytes().len(), 5);
        assert_eq!(kept(), 0);

        let mut fits = request(MAX_CALL);
        let mut ahead = ReadAhead::of(&mut fits).unwrap();
        assert_eq!((read(&mut ahead), kept()), (Poll::Pending, MAX_CALL));
        drop((fits, ahead));

        let mut too_large = request(MAX_CALL + 1);
        let mut ahead = ReadAhead::of(&mut too_large).unwrap();
        assert_eq!((read(&mut ahead), kept()), (Poll::Ready(()), MAX_CALL + 1));
        drop(too_large);
        assert_eq!(kept(), MAX_CALL + 1);
        drop(ahead);
        assert_eq!(kept(), 0);

        small_frames_are_merged().await;
        an_upload_that_breaks_while_it_waits_breaks_for_its_handler().await;
        trailers_come_last().await;
        all_calls_have_a_bound_together();
        assert_eq!(kept(), 0);
    }

    fn waits(parts: impl IntoIterator<Item = Part>) -> (Request<AxumBody>, ReadAhead) {
        let mut request = Request::new(AxumBody::new(TestBody::new(parts)));
        *request.version_mut() = Version::HTTP_2;
        let ahead = ReadAhead::of(&mut request).unwrap();
        (request, ahead)
    }

    async fn small_frames_are_merged() {
        let parts = ["a", "", "bc"].map(Part::Data).into_iter().cycle().take(3000).chain([Part::Never]);
        let (waiting, mut ahead) = waits(parts);
        assert_eq!(read(&mut ahead), Poll::Pending);
        let frames = lock(&ahead.0).frames.len();
        assert!(frames == 0, "{frames} frames are kept of 3000 bytes");
        drop(ahead);
        let mut body = waiting.into_body();
        let mut got = Vec::new();
        while got.len() < 3000 {
            got.extend_from_slice(&body.frame().await.unwrap().unwrap().into_data().unwrap());
        }
        assert_eq!(got, b"abc".repeat(1000));

        let large: &'static str = "x".repeat(SMALL).leak();
        let (waiting, mut ahead) = waits([Part::Data("before"), Part::Data(large), Part::Data("after")]);
        assert_eq!(read(&mut ahead), Poll::Pending);
        assert!(!waiting.body().is_end_stream());
        let mut body = waiting.into_body();
        for expected in ["before", large, "after"] {
            assert_eq!(body.size_hint().lower(), body.size_hint().exact().unwrap());
            let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(data, expected);
            assert_eq!(data.as_ptr() == large.as_ptr(), expected == large, "a large frame is not copied");
        }
        assert!(body.is_end_stream() && body.frame().await.is_none());
    }

    async fn an_upload_that_breaks_while_it_waits_breaks_for_its_handler() {
        let (waiting, mut ahead) = waits([Part::Data("half"), Part::Error("connection reset")]);
        assert_eq!((read(&mut ahead), read(&mut ahead)), (Poll::Pending, Poll::Pending));
        let mut body = waiting.into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
        assert!(!body.is_end_stream(), "the upload would pass for a whole one");
        assert_eq!(body.frame().await.unwrap().unwrap_err().to_string(), "connection reset");
        assert!(body.frame().await.is_none() && body.is_end_stream());
    }

    async fn trailers_come_last() {
        let (waiting, mut ahead) = waits([Part::Data("small")]);
        assert_eq!(read(&mut ahead), Poll::Pending);
        assert!(!waiting.body().is_end_stream());
        drop((waiting, ahead));

        let trailers = http::HeaderMap::from_iter([(http::header::ETAG, "x".parse().unwrap())]);
        let (waiting, mut ahead) = waits([Part::Data("all"), Part::Trailers(trailers.clone())]);
        assert_eq!((read(&mut ahead), kept()), (Poll::Pending, 3));
        drop(ahead);
        let body = waiting.into_body().collect().await.unwrap();
        assert_eq!((body.trailers(), kept()), (Some(&trailers), 0));
        assert_eq!(body.to_bytes(), "all");
    }

    fn all_calls_have_a_bound_together() {
        let large = Bytes::from(vec![7; MAX_CALL]);
        let mut calls: Vec<_> = (0..MAX_ALL / MAX_CALL)
            .map(|_| {
                let mut request = request(0).map(|_| AxumBody::new(Full::new(large.clone())));
                let mut ahead = ReadAhead::of(&mut request).unwrap();
                assert_eq!(read(&mut ahead), Poll::Pending);
                (request, ahead)
            })
            .collect();
        assert_eq!(kept(), MAX_ALL);
        let (one_more, mut ahead) = waits([Part::Data("x")]);
        assert_eq!(read(&mut ahead), Poll::Ready(()), "the process keeps more than it may");
        calls.pop();
        drop((one_more, ahead));
        let (_one_more, mut ahead) = waits([Part::Data("x")]);
        assert_eq!(read(&mut ahead), Poll::Pending);
    }

    #[test]
    fn only_a_body_that_shares_a_connection_with_others_is_read_ahead() {
        assert!(ReadAhead::of(&mut Request::new(AxumBody::new(Full::from("over HTTP/1")))).is_none());
        assert!(ReadAhead::of(&mut request(0)).is_none(), "an empty body is not read ahead");
        assert!(ReadAhead::of(&mut request(0).map(|_| Full::<Bytes>::from("of another type"))).is_none());
    }
}
