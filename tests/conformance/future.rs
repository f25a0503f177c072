//! Calls through breakers that wrap a future or a service. The backend answers when the trace tells
//! it to.
//!
//! No runtime drives them. A future is polled once when it is admitted and once when its answer is
//! set, and not in between, so that each step of a trace is finished before the next.

use crate::{
    run::Call,
    trace::{Outcome, Part},
};
use std::{
    error, fmt,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

/// The error of the backend: every outcome but a success.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failed(pub(crate) Outcome);

impl Failed {
    /// What a user tells a breaker that knows failures and successes only.
    pub(crate) fn is_failure(&self) -> bool {
        self.0 != Outcome::Benign
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl error::Error for Failed {}

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
    reached.then_some(FutureCall { future, place, answered: false, is_probe: None })
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
    answered: bool,
    pub(crate) is_probe: Option<bool>,
}

impl Call for FutureCall {
    fn is_probe(&self) -> Option<bool> {
        self.is_probe
    }

    /// The head of a response ends the call: this is all that a service sees of a response.
    fn progress(&mut self, part: Part) {
        assert_eq!(part, Part::Head, "only traces that require `progress` have more");
        self.answer(Ok(()));
    }

    fn end(mut self: Box<Self>, outcome: Outcome) {
        match outcome {
            Outcome::Cancelled => {}
            Outcome::Success => self.answer(Ok(())),
            failed => self.answer(Err(Failed(failed))),
        }
    }
}

impl FutureCall {
    fn answer(&mut self, answer: Result<(), Failed>) {
        if self.answered {
            return;
        }
        self.answered = true;
        self.place.0.lock().expect("no holder of the lock panics").answer = Some(answer);
        let ended = self.future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        assert!(ended, "an answer ends the call");
    }
}
