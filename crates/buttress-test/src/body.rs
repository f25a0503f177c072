use crate::BoxError;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

/// What a [`TestBody`] does when it is polled.
#[derive(Clone, Debug)]
pub enum Part {
    /// A frame of data.
    Data(&'static str),
    /// The trailers, which are the last frame.
    Trailers(HeaderMap),
    /// Pending once; wakes at once.
    Pause,
    /// Breaks.
    Error(&'static str),
}

/// A body that follows a script. It knows its length and its end, so that a wrapper can be caught hiding them.
#[derive(Clone, Debug, Default)]
pub struct TestBody {
    parts: VecDeque<Part>,
    /// Counted by the service that made it, to see whether it is still somewhere.
    _alive: Option<Arc<()>>,
}

impl TestBody {
    /// A body that does this, and then ends.
    pub fn new(parts: impl IntoIterator<Item = Part>) -> Self {
        Self { parts: parts.into_iter().collect(), _alive: None }
    }

    pub(crate) fn counted_by(self, alive: Arc<()>) -> Self {
        Self { _alive: Some(alive), ..self }
    }

    fn is_over(&self) -> bool {
        self.parts.iter().all(|part| matches!(part, Part::Pause))
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
        Poll::Ready(match self.parts.pop_front() {
            None => None,
            Some(Part::Data(text)) => Some(Ok(Frame::data(Bytes::from_static(text.as_bytes())))),
            Some(Part::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Some(Part::Error(message)) => {
                self.parts.clear();
                Some(Err(message.into()))
            }
            Some(Part::Pause) => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
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
