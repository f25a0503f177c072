use crate::{
    BoxError,
    inner::{Alive, panics},
};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Sleep, sleep};

/// What a [`TestBody`] does when it is polled.
#[derive(Clone, Debug)]
pub enum Part {
    /// A frame of data.
    Data(&'static str),
    /// The trailers, which are the last frame.
    Trailers(HeaderMap),
    /// Pending once; wakes at once.
    Pause,
    /// Pending for this time.
    Wait(Duration),
    /// Pending without end.
    Never,
    /// Breaks.
    Error(&'static str),
    /// Panics.
    Panic,
}

/// A body that follows a script. It knows its length and its end, so that a wrapper can be caught
/// hiding them.
#[derive(Debug, Default)]
pub struct TestBody {
    parts: VecDeque<Part>,
    /// Of the [`Part::Wait`] that is the first of the parts.
    wait: Option<Pin<Box<Sleep>>>,
    /// Counted by the service that made it, to see whether it is still somewhere.
    _alive: Option<Alive>,
}

impl TestBody {
    /// A body that does this, and then ends.
    pub fn new(parts: impl IntoIterator<Item = Part>) -> Self {
        Self { parts: parts.into_iter().collect(), wait: None, _alive: None }
    }

    pub(crate) fn counted_by(self, alive: Alive) -> Self {
        Self { _alive: Some(alive), ..self }
    }

    fn is_over(&self) -> bool {
        self.parts.iter().all(|part| matches!(part, Part::Pause))
    }
}

impl Clone for TestBody {
    fn clone(&self) -> Self {
        Self { parts: self.parts.clone(), wait: None, _alive: self._alive.clone() }
    }
}

impl From<String> for TestBody {
    fn from(text: String) -> Self {
        Self::new((!text.is_empty()).then(|| Part::Data(text.leak())))
    }
}

impl Body for TestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.parts.front() {
            Some(Part::Never) => return Poll::Pending,
            Some(Part::Wait(time)) => {
                let time = *time;
                ready!(self.wait.get_or_insert_with(|| Box::pin(sleep(time))).as_mut().poll(cx));
                self.wait = None;
                self.parts.pop_front();
                return self.poll_frame(cx);
            }
            _ => {}
        }
        Poll::Ready(match self.parts.pop_front() {
            Some(Part::Data(text)) => Some(Ok(Frame::data(Bytes::from_static(text.as_bytes())))),
            Some(Part::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Some(Part::Error(message)) => {
                self.parts.clear();
                Some(Err(message.into()))
            }
            Some(Part::Panic) => panics("the body panics"),
            Some(Part::Pause) => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            None | Some(Part::Never | Part::Wait(_)) => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        let length = |part: &Part| if let Part::Data(text) = part { text.len() as u64 } else { 0 };
        SizeHint::with_exact(self.parts.iter().map(length).sum())
    }
}
