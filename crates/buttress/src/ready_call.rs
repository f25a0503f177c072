use pin_project::pin_project;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tower_service::Service;

/// Polls its own clone of a service until ready, calls it, and waits for the response.
///
/// For layers that call later than their `poll_ready`, or more than once: a clone does not inherit
/// readiness.
#[pin_project(project = Proj)]
#[derive(Debug)]
pub(crate) enum ReadyCall<S, Req, F> {
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
    pub(crate) fn new(service: S, request: Req) -> Self {
        Self::Waiting { service, request: Some(request) }
    }
}

impl<S: Service<Req>, Req> Future for ReadyCall<S, Req, S::Future> {
    type Output = Result<S::Response, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match self.as_mut().project() {
                Proj::Waiting { service, request } => {
                    ready!(service.poll_ready(cx))?;
                    let future = service.call(request.take().expect("the request is taken once"));
                    self.set(Self::Called { future });
                }
                Proj::Called { future } => return future.poll(cx),
            }
        }
    }
}
