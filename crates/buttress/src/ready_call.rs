use pin_project::pin_project;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tower_service::Service;

// Public for `buttress-http` only.
/// Polls its own clone of a service until ready, calls it, and waits for the response.
///
/// For layers that call later than their `poll_ready`, or more than once: a clone does not inherit
/// readiness.
#[pin_project(project = Proj)]
#[derive(Debug)]
pub enum ReadyCall<S, Req, F> {
    Waiting {
        service: S,
        request: Option<Req>,
    },
    Called {
        #[pin]
        future: F,
    },
}

impl<S: Service<Req>, Req> ReadyCall<S, Req, S::Future> {
    pub fn new(service: S, request: Req) -> Self {
        Self::Waiting { service, request: Some(request) }
    }

    /// Returns `Ready` when the call can [start](Self::start), or has started.
    pub(crate) fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        match self.project() {
            Proj::Waiting { service, .. } => service.poll_ready(cx),
            Proj::Called { .. } => Poll::Ready(Ok(())),
        }
    }

    /// Calls the service, which must be ready.
    pub(crate) fn start(mut self: Pin<&mut Self>) {
        if let Proj::Waiting { service, request } = self.as_mut().project() {
            let future = service.call(request.take().expect("the request is taken once"));
            self.set(Self::Called { future });
        }
    }
}

impl<S, Req, F> ReadyCall<S, Req, F> {
    /// Returns the request until the service is called.
    pub(crate) fn request(&self) -> Option<&Req> {
        match self {
            Self::Waiting { request, .. } => request.as_ref(),
            Self::Called { .. } => None,
        }
    }
}

impl<S: Service<Req>, Req> Future for ReadyCall<S, Req, S::Future> {
    type Output = Result<S::Response, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match self.as_mut().project() {
                Proj::Waiting { service, .. } => {
                    ready!(service.poll_ready(cx))?;
                    self.as_mut().start();
                }
                Proj::Called { future } => return future.poll(cx),
            }
        }
    }
}
