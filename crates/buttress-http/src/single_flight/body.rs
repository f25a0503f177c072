use buttress::{BoxError, ending::SharedError};
use bytes::{Buf, Bytes};
use http::{HeaderMap, Response, response::Parts};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

/// A response body that may be shared with other callers, or come from a cache.
///
/// Its error is [`BoxError`]: an error of the body is shared as well.
///
/// ```
/// use buttress_http::{HttpKey, SharedBody, prelude::*};
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::{BodyExt, Full};
/// use std::convert::Infallible;
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let backend =
///     service_fn(async |_: Request<String>| Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("content")))));
/// let client = SingleFlightLayer::with_key(HttpKey::new()).http_client().layer(backend);
/// let response: Response<SharedBody<Full<Bytes>>> = client.oneshot(Request::new(String::new())).await.unwrap();
/// assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "content");
/// # }
/// ```
#[pin_project]
pub struct SharedBody<B>(#[pin] Source<B>);

#[pin_project(project = SourceProj)]
enum Source<B> {
    /// The body of the inner service.
    Inner(#[pin] B),
    /// A body of which a part was read.
    Resumed { read: std::vec::IntoIter<Bytes>, rest: Pin<Box<B>> },
    /// A copy of a whole body: the frames from `next` on, and `left` bytes.
    Whole { content: Arc<Content>, next: usize, left: u64 },
}

#[derive(Debug)]
pub(crate) enum End {
    Trailers(HeaderMap),
    /// The backend broke it off.
    Broken(SharedError),
}

/// A whole body.
#[derive(Debug, Default)]
pub(crate) struct Content {
    pub(crate) frames: Vec<Bytes>,
    /// How it ends, if not with the last frame.
    pub(crate) end: Option<End>,
    pub(crate) length: u64,
}

impl<B> SharedBody<B> {
    pub(crate) fn inner(body: B) -> Self {
        Self(Source::Inner(body))
    }

    pub(crate) fn resumed(read: Vec<Bytes>, rest: Pin<Box<B>>) -> Self {
        Self(Source::Resumed { read: read.into_iter(), rest })
    }

    pub(crate) fn whole(content: Arc<Content>) -> Self {
        Self(Source::Whole { left: content.length, content, next: 0 })
    }

    pub(crate) fn respond(parts: Parts, content: Arc<Content>) -> Response<Self> {
        Response::from_parts(parts, Self::whole(content))
    }
}

/// Makes an empty body, which layers of tower-http need that answer instead of the inner service.
impl<B> Default for SharedBody<B> {
    fn default() -> Self {
        Self::whole(Arc::default())
    }
}

fn to_bytes<D: Buf>(frame: Frame<D>) -> Frame<Bytes> {
    frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))
}

impl<B: Body<Error: Into<BoxError>>> Body for SharedBody<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = match self.project().0.project() {
            SourceProj::Inner(body) => ready!(body.poll_frame(cx)),
            SourceProj::Resumed { read, rest } => match read.next() {
                Some(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                None => ready!(rest.as_mut().poll_frame(cx)),
            },
            SourceProj::Whole { content, next, left } => {
                let index = *next;
                *next += 1;
                return Poll::Ready(match content.frames.get(index) {
                    Some(data) => {
                        *left -= data.len() as u64;
                        Some(Ok(Frame::data(data.clone())))
                    }
                    None if index > content.frames.len() => None,
                    None => match &content.end {
                        Some(End::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers.clone()))),
                        Some(End::Broken(error)) => Some(Err(Box::new(error.clone()))),
                        None => None,
                    },
                });
            }
        };
        Poll::Ready(frame.map(|frame| frame.map(to_bytes).map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Inner(body) => body.is_end_stream(),
            Source::Resumed { read, rest } => read.len() == 0 && rest.is_end_stream(),
            Source::Whole { content, next, .. } => *next >= content.frames.len() + usize::from(content.end.is_some()),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Inner(body) => body.size_hint(),
            Source::Resumed { read, rest } => {
                let (read, rest) =
                    (read.as_slice().iter().map(|data| data.len() as u64).sum::<u64>(), rest.size_hint());
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower().saturating_add(read));
                if let Some(upper) = rest.upper() {
                    hint.set_upper(upper.saturating_add(read));
                }
                hint
            }
            Source::Whole { left, .. } => SizeHint::with_exact(*left),
        }
    }
}

impl<B: fmt::Debug> fmt::Debug for SharedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Inner(body) => f.debug_tuple("Inner").field(body).finish(),
            Source::Resumed { rest, .. } => f.debug_tuple("Resumed").field(rest).finish(),
            Source::Whole { left, .. } => f.debug_tuple("Whole").field(left).finish(),
        }
    }
}
