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

/// One step of a [`TestBody`].
#[derive(Clone, Debug)]
pub enum Part {
    /// Yields a frame of data.
    Data(&'static str),
    /// Yields the trailers, which are the last frame.
    Trailers(HeaderMap),
    /// Is pending for one poll, and wakes the task at once.
    Pause,
    /// Is pending for this time, measured by tokio's clock.
    Wait(Duration),
    /// Is pending without end.
    Never,
    /// Yields an error with this message, and ends.
    Error(&'static str),
    /// Panics.
    Panic,
}

/// A body that follows a script of [`Part`]s.
///
/// `is_end_stream` and `size_hint` are exact, so a test finds a wrapper that does not forward them.
/// Polls after a [`Part::Wait`] need a tokio runtime with a timer.
///
/// ```
/// use buttress_test::{Part, TestBody};
/// use http_body::Body;
/// use http_body_util::BodyExt;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let mut body = TestBody::new([Part::Data("one"), Part::Pause, Part::Error("connection reset")]);
/// assert_eq!(body.size_hint().exact(), Some(3));
/// assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
/// assert_eq!(body.frame().await.unwrap().unwrap_err().to_string(), "connection reset");
/// assert!(body.is_end_stream());
/// # }
/// ```
#[derive(Debug, Default)]
pub struct TestBody {
    parts: VecDeque<Part>,
    /// The timer of the [`Part::Wait`] at the front of `parts`.
    wait: Option<Pin<Box<Sleep>>>,
    /// Counts this body as alive in the [`Inner`](crate::Inner) that made it.
    _alive: Option<Alive>,
}

impl TestBody {
    /// Makes a body that does `parts` in order and then ends.
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

/// Makes a body of one frame, or an empty body. Leaks the text, because [`Part::Data`] is static.
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
