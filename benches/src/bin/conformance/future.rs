//! Calls through breakers that wrap a future or a service. The backend answers when the trace tells
//! it to.
//!
//! No runtime drives them. A future is polled once when it is admitted and once when its answer is
//! set, and not in between, so that each step of a trace is finished before the next.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::breaker::Call;
use crate::trace::Outcome;

/// The error of the backend.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failed;

/// The backend's side of one call. Also the request that passes through a service.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    reached: bool,
    answer: Option<Result<(), Failed>>,
}

impl Place {
    /// The backend: pending until the answer is set.
    pub(crate) async fn serve(self) -> Result<(), Failed> {
        poll_fn(|_| {
            let mut inner = self.0.lock().expect("no holder of the lock panics");
            inner.reached = true;
            inner.answer.take().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// The backend as a service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backend;

impl tower::Service<Place> for Backend {
    type Response = ();
    type Error = Failed;
    type Future = Pin<Box<dyn Future<Output = Result<(), Failed>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, place: Place) -> Self::Future {
        Box::pin(place.serve())
    }
}

/// Starts a call. `wrap` passes the backend's side to the breaker. A call that is ready without
/// having reached the backend was rejected.
pub(crate) fn begin<F: Future + 'static>(wrap: impl FnOnce(Place) -> F) -> Option<FutureCall> {
    let place = Place::default();
    let future = wrap(place.clone());
    let mut future: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
        future.await;
    });
    let answered = future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
    let reached = place.0.lock().expect("no holder of the lock panics").reached;
    assert_ne!(answered, reached, "a call is either rejected at once, or reaches the backend at once");
    reached.then_some(FutureCall { future, place, is_probe: None })
}

/// Checks that a service is ready, and calls it.
pub(crate) fn call<S: tower::Service<Place>>(service: &mut S, place: Place) -> S::Future {
    let ready = service.poll_ready(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(ready, Poll::Ready(Ok(()))), "no breaker exerts backpressure by default");
    service.call(place)
}

/// The output of a future that is ready on its first poll.
pub(crate) fn at_once<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("its lock is not contended"),
    }
}

pub(crate) struct FutureCall {
    future: Pin<Box<dyn Future<Output = ()>>>,
    place: Place,
    pub(crate) is_probe: Option<bool>,
}

impl Call for FutureCall {
    fn is_probe(&self) -> Option<bool> {
        self.is_probe
    }

    fn end(mut self: Box<Self>, outcome: Outcome, _: Duration) {
        let answer = match outcome {
            Outcome::Success => Ok(()),
            Outcome::Failure => Err(Failed),
            Outcome::Cancelled => return,
            Outcome::Graceful | Outcome::Ignored | Outcome::Overload => {
                unreachable!("only where it is required, and no peer has it")
            }
        };
        self.place.0.lock().expect("no holder of the lock panics").answer = Some(answer);
        let ended = self.future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        assert!(ended, "an answer ends the call");
    }
}
