//! Our breaker as the layer around an HTTP client.
//!
//! The backend is a service that answers when the trace tells it to, first with a head and then
//! with the frames of a body. No runtime drives it, as in [`future`](crate::future).

use crate::{
    ours::{Ours, outcome_of},
    run::{Breaker, Call},
    trace::{self, Outcome, Part, Trace},
};
use buttress::{CircuitBreaker, CircuitBreakerLayer, Ending, circuit_breaker::CircuitBreakerService};
use buttress_http::ending::{ByHead, HttpClient, ResponseHead};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tower::{Layer, Service};

/// The state of one call's response.
#[derive(Debug, Default)]
struct Answer {
    reached: bool,
    /// The head, if it was sent, with an outcome if the head alone determines it.
    head: Option<Option<Outcome>>,
    frames: u32,
    /// Whether the body ends without an error.
    end: Option<bool>,
}

type Place = Arc<Mutex<Answer>>;

fn answer(place: &Place) -> MutexGuard<'_, Answer> {
    place.lock().expect("no call panics with it")
}

#[derive(Clone, Copy, Debug)]
struct Backend;

impl Service<Request<Place>> for Backend {
    type Response = Response<Frames>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Frames>, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Place>) -> Self::Future {
        let place = request.into_body();
        Box::pin(poll_fn(move |_| {
            let mut inner = answer(&place);
            inner.reached = true;
            let Some(outcome) = inner.head else { return Poll::Pending };
            let mut response = Response::new(Frames(Arc::clone(&place)));
            response.extensions_mut().extend(
                outcome
                    .map(|outcome| {
                        let mut said = http::Extensions::new();
                        said.insert(outcome_of(outcome));
                        said
                    })
                    .unwrap_or_default(),
            );
            Poll::Ready(Ok(response))
        }))
    }
}

/// The body of a response: frames, then its end.
#[derive(Debug)]
struct Frames(Place);

impl Body for Frames {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let mut inner = answer(&self.0);
        if inner.frames > 0 {
            inner.frames -= 1;
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"event")))));
        }
        match inner.end {
            None => Poll::Pending,
            Some(true) => Poll::Ready(None),
            Some(false) => Poll::Ready(Some(Err(std::io::Error::other("reset")))),
        }
    }
}

type Classify = fn(&ResponseHead<'_>) -> Option<buttress_core::Outcome>;
type Guarded = CircuitBreakerService<Backend, HttpClient<ByHead<Classify>>>;
type Sent = <Guarded as Service<Request<Place>>>::Future;
type GuardedBody = <<Guarded as Service<Request<Place>>>::Response as IntoBody>::Body;

trait IntoBody {
    type Body;
}

impl<B> IntoBody for Response<B> {
    type Body = B;
}

pub(crate) fn make(trace: &Trace) -> Box<dyn Breaker> {
    let breaker = trace::configure!(CircuitBreaker::builder(trace.name.clone()), &trace.config);
    let breaker = breaker.build().expect("the traces' configurations are valid");
    let classify: Classify = |head| head.extensions.get().copied();
    let layer = CircuitBreakerLayer::from(breaker.clone()).end(HttpClient::new().classify(classify));
    let mut service = layer.layer(Backend);
    Box::new(Ours::new(breaker, move || admit(&mut service)))
}

fn admit(service: &mut Guarded) -> Result<Box<dyn Call>, Option<Duration>> {
    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(service.poll_ready(&mut cx), Poll::Ready(Ok(()))), "it exerts no backpressure by default");
    let place = Place::default();
    let mut future = Box::pin(service.call(Request::new(Arc::clone(&place))));
    match future.as_mut().poll(&mut cx) {
        Poll::Pending => {
            assert!(answer(&place).reached, "a call that was admitted reaches the backend at once");
            Ok(Box::new(OurCall { place, stage: Stage::Head(future) }))
        }
        Poll::Ready(Ok(_)) => unreachable!("no head was sent yet"),
        Poll::Ready(Err(error)) => Err(error.rejection().expect("nothing else fails before the backend").retry_after()),
    }
}

struct OurCall {
    place: Place,
    stage: Stage,
}

enum Stage {
    Head(Pin<Box<Sent>>),
    Body(Pin<Box<GuardedBody>>),
}

impl OurCall {
    /// Consumes what has arrived: the head and the available frames.
    fn take(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        if let Stage::Head(future) = &mut self.stage {
            let Poll::Ready(Ok(response)) = future.as_mut().poll(&mut cx) else { unreachable!("the head is there") };
            self.stage = Stage::Body(Box::pin(response.into_body()));
        }
        if let Stage::Body(body) = &mut self.stage {
            while let Poll::Ready(Some(Ok(_))) = body.as_mut().poll_frame(&mut cx) {}
        }
    }
}

impl Call for OurCall {
    fn progress(&mut self, part: Part) {
        match part {
            Part::Head => answer(&self.place).head = Some(None),
            Part::Frame => answer(&self.place).frames += 1,
        }
        self.take();
    }

    fn end(mut self: Box<Self>, outcome: Outcome) {
        if outcome == Outcome::Cancelled {
            return;
        }
        let success = outcome == Outcome::Success;
        {
            let mut inner = answer(&self.place);
            inner.head.get_or_insert((!success).then_some(outcome));
            inner.end = Some(success);
        }
        self.take();
    }
}
