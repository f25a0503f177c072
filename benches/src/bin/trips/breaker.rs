//! The interface between the simulation and a breaker.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tower::Service;

pub(crate) trait Breaker {
    /// Makes a call at this time, which the backend fails or not. Returns whether it was admitted.
    fn call(&mut self, now: Duration, fails: bool) -> bool;

    fn is_closed(&self) -> bool;
}

/// The error of the backend.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failed;

/// A backend that answers at once, as the request demands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backend;

impl Service<bool> for Backend {
    /// An admitted call.
    type Response = ();
    type Error = Failed;
    type Future = std::future::Ready<Result<(), Failed>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, fails: bool) -> Self::Future {
        std::future::ready(if fails { Err(Failed) } else { Ok(()) })
    }
}

/// The result of a call through a service that is always ready and answers at once.
pub(crate) fn call<S: Service<bool>>(service: &mut S, fails: bool) -> Result<S::Response, S::Error> {
    let mut cx = Context::from_waker(Waker::noop());
    let ready = service.poll_ready(&mut cx);
    assert!(matches!(ready, Poll::Ready(Ok(()))), "no breaker exerts backpressure by default");
    match pin!(service.call(fails)).poll(&mut cx) {
        Poll::Ready(result) => result,
        Poll::Pending => unreachable!("the backend answers at once"),
    }
}
