use super::{ReplayMemory, into_bytes, lock};
use buttress::BoxError;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use smallvec::SmallVec;
use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
};

/// Which attempts may read the body.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Readers {
    /// The one that was made last.
    Latest,
    /// All, at the same time.
    All,
}

/// What the attempts share.
pub(super) struct Shared<B> {
    readers: Readers,
    /// The attempts that were made.
    attempts: AtomicU32,
    /// The only attempt whose body may read, or [`ALL`]. The bodies of the others return an error.
    reader: AtomicU32,
    /// The latest attempt that has polled for a frame.
    touched: AtomicU32,
    /// The body for further attempts, if it came in one piece and was read to its end.
    whole: OnceLock<Bytes>,
    stream: Mutex<Stream<B>>,
}

/// All attempts may read.
const ALL: u32 = 0;

struct Stream<B> {
    source: B,
    /// Most bodies have one chunk.
    chunks: SmallVec<[Bytes; 1]>,
    trailers: Option<Box<HeaderMap>>,
    /// The bytes that were kept. They count in the memory until they are forgotten.
    kept: u64,
    cap: u64,
    memory: &'static ReplayMemory,
    state: State,
    ended: bool,
    /// The attempt that waits for a frame of the source, while there is one.
    waiting: Option<(u32, Waker)>,
    /// The attempts that wait for a frame of the source, once there were several.
    crowd: Option<Arc<Crowd>>,
}

/// Wakes all attempts that wait for a frame.
///
/// A source wakes the task that polled it last. With two attempts that may be one whose transport
/// does not go on, and the other would wait without end.
#[derive(Default)]
struct Crowd(Mutex<SmallVec<[(u32, Waker); 2]>>);

impl Crowd {
    fn join(&self, attempt: u32, waker: &Waker) {
        let mut waiting = lock(&self.0);
        match waiting.iter_mut().find(|(waits, _)| *waits == attempt) {
            Some((_, old)) => old.clone_from(waker),
            None => waiting.push((attempt, waker.clone())),
        }
    }

    fn leave(&self, attempt: u32) {
        lock(&self.0).retain(|(waits, _)| *waits != attempt);
    }
}

impl Wake for Crowd {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let waiting = std::mem::take(&mut *lock(&self.0));
        waiting.into_iter().for_each(|(_, waker)| waker.wake());
    }
}

/// The next frame of a source.
type NextFrame<B> = Option<Result<Frame<<B as Body>::Data>, <B as Body>::Error>>;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Kept,
    TooLarge,
    Failed,
}

impl<B> Shared<B> {
    pub(super) fn may_read(&self, attempt: u32) -> bool {
        let reader = self.reader.load(Ordering::Acquire);
        reader == attempt || reader == ALL
    }

    /// Returns whether the latest attempt has polled for a frame.
    pub(super) fn is_touched(&self) -> bool {
        self.attempts.load(Ordering::Acquire) == self.touched.load(Ordering::Acquire)
    }

    fn stream(&self) -> MutexGuard<'_, Stream<B>> {
        lock(&self.stream)
    }
}

impl<B: Body> Shared<B> {
    pub(super) fn new(source: B, cap: u64, memory: &'static ReplayMemory, readers: Readers) -> Self {
        let stream = Stream {
            source,
            chunks: SmallVec::new(),
            trailers: None,
            kept: 0,
            cap,
            memory,
            state: State::Kept,
            ended: false,
            waiting: None,
            crowd: None,
        };
        Self {
            readers,
            attempts: AtomicU32::new(1),
            reader: AtomicU32::new(if readers == Readers::All { ALL } else { 1 }),
            touched: AtomicU32::new(0),
            whole: OnceLock::new(),
            stream: Mutex::new(stream),
        }
    }

    /// Returns the number of another attempt, which may read, or `None` if the body is not kept.
    pub(super) fn next_attempt(&self) -> Option<u32> {
        let mut stream = self.stream();
        if stream.state != State::Kept {
            return None;
        }
        let attempt = self.attempts.fetch_add(1, Ordering::AcqRel) + 1;
        if let Some(chunk) = stream.whole() {
            self.whole.get_or_init(|| chunk.clone());
        }
        let waiting = stream.waiting.take();
        if self.readers == Readers::All {
            let crowd = stream.crowd.get_or_insert_default();
            waiting.iter().for_each(|(attempt, waker)| crowd.join(*attempt, waker));
            return Some(attempt);
        }
        self.reader.store(attempt, Ordering::Release);
        drop(stream);
        // The source wakes the task of the new attempt from now on. The task that reads the
        // previous attempt must be woken here, or it would wait without end.
        if let Some((_, waker)) = waiting {
            waker.wake();
        }
        Some(attempt)
    }
}

impl<B: Body + Unpin> Shared<B>
where
    B::Error: Into<BoxError>,
{
    /// Returns frame number `next` of an attempt, and sets whether it is known to be the last one.
    pub(super) fn poll_frame(
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
        if !self.may_read(attempt) {
            return superseded();
        }
        // No other attempt is made or polled under the lock.
        self.touched.fetch_max(attempt, Ordering::AcqRel);
        let was_kept = stream.state == State::Kept;
        let polled = stream.poll_from(attempt, next, cx);
        if was_kept && stream.state != State::Kept && self.readers == Readers::All {
            // What this attempt has read is not kept for the others.
            self.reader.store(attempt, Ordering::Release);
        }
        if polled.is_ready() {
            *is_last = stream.is_end(next + 1);
        }
        let others = stream.crowd.clone().filter(|_| polled.is_ready());
        drop(stream);
        if let Some(others) = others {
            others.leave(attempt);
            others.wake();
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
        if !self.may_read(attempt) {
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
    /// Returns frame number `next` of an attempt: from the kept chunks, or from the source
    /// once all of them were read or the cap was exceeded.
    fn poll_from(
        &mut self,
        attempt: u32,
        next: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
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
        let Some(frame) = ready!(self.poll_source(attempt, cx)) else {
            self.ended = true;
            return Poll::Ready(None);
        };
        match frame {
            Ok(frame) => Poll::Ready(Some(Ok(self.keep(into_bytes(frame))))),
            Err(error) => {
                self.forget(State::Failed);
                self.ended = true;
                Poll::Ready(Some(Err(error.into())))
            }
        }
    }

    fn poll_source(&mut self, attempt: u32, cx: &mut Context<'_>) -> Poll<NextFrame<B>> {
        let source = Pin::new(&mut self.source);
        if let Some(crowd) = &self.crowd {
            crowd.join(attempt, cx.waker());
            return source.poll_frame(&mut Context::from_waker(&crowd.clone().into()));
        }
        let polled = source.poll_frame(cx);
        self.waiting = polled.is_pending().then(|| (attempt, cx.waker().clone()));
        polled
    }
}

impl<B> Stream<B> {
    fn keep(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        if let Some(data) = frame.data_ref() {
            let length = data.len() as u64;
            let fits = self.state == State::Kept && length <= self.cap - self.kept && self.memory.reserve(length);
            if fits {
                self.kept += length;
                self.chunks.push(data.clone());
            } else {
                self.forget(State::TooLarge);
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
        self.memory.release(std::mem::take(&mut self.kept));
    }
}

impl<B> Drop for Stream<B> {
    fn drop(&mut self) {
        self.memory.release(self.kept);
    }
}
