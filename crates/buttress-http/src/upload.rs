//! Detects uploads that the caller broke off. A handler that fails for that reason says nothing
//! about the server.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// A flag that is set when the body of a request fails while it is read.
#[derive(Clone, Debug)]
pub(crate) struct Upload(Arc<AtomicBool>);

impl Upload {
    pub(crate) fn is_broken(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(any(feature = "axum", feature = "tonic"))]
mod watched {
    use super::{Arc, AtomicBool, Ordering, Upload};
    use buttress::BoxError;
    use http::Request;
    use http_body::{Body, Frame, SizeHint};
    use pin_project::pin_project;
    use std::{
        any::Any,
        pin::Pin,
        task::{Context, Poll, ready},
    };

    impl Upload {
        /// Watches the body of a request if it is a body of axum or tonic. Other body types cannot
        /// hold a replacement.
        pub(crate) fn watch<B: 'static>(request: &mut Request<B>) -> Option<Self> {
            let body: &mut dyn Any = request.body_mut();
            let upload = None;
            #[cfg(feature = "axum")]
            let upload = upload.or_else(|| watch(body, axum_core::body::Body::new, axum_core::Error::into_inner));
            #[cfg(feature = "tonic")]
            let upload = upload.or_else(|| watch(body, ::tonic::body::Body::new, Into::into));
            let _ = body;
            upload
        }
    }

    /// Replaces a body of type `B`. `unwrap` removes the layer that `new` adds around an error:
    /// axum's extractors look for the cause of an error at a fixed depth.
    fn watch<B>(body: &mut dyn Any, new: impl Fn(Watched<B>) -> B, unwrap: fn(B::Error) -> BoxError) -> Option<Upload>
    where
        B: Body + Default + 'static,
    {
        let body = body.downcast_mut::<B>().filter(|body| !body.is_end_stream())?;
        let upload = Upload(Arc::new(AtomicBool::new(false)));
        *body = new(Watched { inner: std::mem::take(body), upload: upload.clone(), unwrap });
        Some(upload)
    }

    #[pin_project]
    struct Watched<B: Body> {
        #[pin]
        inner: B,
        upload: Upload,
        unwrap: fn(B::Error) -> BoxError,
    }

    impl<B: Body> Body for Watched<B> {
        type Data = B::Data;
        type Error = BoxError;

        fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
            let this = self.project();
            let frame = ready!(this.inner.poll_frame(cx));
            if let Some(Err(_)) = frame {
                this.upload.0.store(true, Ordering::Relaxed);
            }
            Poll::Ready(frame.map(|frame| frame.map_err(this.unwrap)))
        }

        fn is_end_stream(&self) -> bool {
            self.inner.is_end_stream()
        }

        fn size_hint(&self) -> SizeHint {
            self.inner.size_hint()
        }
    }
}

#[cfg(all(test, feature = "axum"))]
mod tests {
    use super::Upload;
    use axum_core::body::Body;
    use buttress_test::{Part, TestBody};
    use http::Request;
    use http_body::Body as _;
    use http_body_util::BodyExt;

    fn request(parts: impl IntoIterator<Item = Part>) -> Request<Body> {
        Request::new(Body::new(TestBody::new(parts)))
    }

    #[tokio::test]
    async fn a_watched_body_keeps_its_length_and_its_end() {
        let mut request = request([Part::Data("four")]);
        assert!(Upload::watch(&mut request).is_some());
        let body = request.body_mut();
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(4), false));
        body.frame().await.unwrap().unwrap();
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(0), true));
    }

    #[test]
    fn a_body_at_its_end_is_not_watched() {
        assert!(Upload::watch(&mut request([])).is_none());
    }

    #[tokio::test]
    async fn the_cause_of_an_error_is_as_deep_as_without_the_watch() {
        let [mut bare, mut watched] = [(); 2].map(|()| request([Part::Error("the disk is gone")]));
        let upload = Upload::watch(&mut watched).unwrap();
        assert!(!upload.is_broken());
        let [bare, watched] = [bare.body_mut(), watched.body_mut()].map(BodyExt::frame);
        for frame in [bare.await, watched.await] {
            let error = frame.unwrap().unwrap_err().into_inner();
            assert_eq!((&*error.to_string(), error.source().is_none()), ("the disk is gone", true));
        }
        assert!(upload.is_broken());
    }

    #[cfg(feature = "tonic")]
    #[tokio::test]
    async fn the_status_of_a_broken_message_stays() {
        use tonic::{Code, Status, body::Body};
        let broken = TestBody::new([Part::Error("reset")]).map_err(|_| Status::cancelled("the client is gone"));
        let mut request = Request::new(Body::new(broken));
        let upload = Upload::watch(&mut request).unwrap();
        let status = request.body_mut().frame().await.unwrap().unwrap_err();
        assert_eq!((status.code(), upload.is_broken()), (Code::Cancelled, true));
    }
}
