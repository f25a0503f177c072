//! tower's `ConcurrencyLimit` behind its `LoadShed`.

use std::convert::Infallible;
use std::future::{Future, Pending, pending};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use buttress_core::Priority;
use tower::limit::ConcurrencyLimit;
use tower::load_shed::LoadShed;
use tower::{Service, service_fn};

use crate::arm::{Admission, Limiter, Slots};

/// An inner service whose calls end when the simulation drops them.
type Inner = tower::util::ServiceFn<fn(()) -> Pending<Result<(), Infallible>>>;
type Shedding = LoadShed<ConcurrencyLimit<Inner>>;
type Call = <Shedding as Service<()>>::Future;

struct Tower {
    service: Shedding,
    calls: Slots<Pin<Box<Call>>>,
}

/// A limit as an operator would guess it: it has to be above what the server can do.
pub(crate) fn limit(_: u64) -> Box<dyn Limiter> {
    let inner: Inner = service_fn(|()| pending());
    Box::new(Tower { service: LoadShed::new(ConcurrencyLimit::new(inner, 100)), calls: Slots::default() })
}

impl Limiter for Tower {
    fn admit(&mut self, _: Duration, id: usize, _: Priority) -> Admission {
        let mut cx = Context::from_waker(Waker::noop());
        let _always_ready = self.service.poll_ready(&mut cx);
        let mut call = Box::pin(self.service.call(()));
        if let Poll::Ready(_overloaded) = call.as_mut().poll(&mut cx) {
            return Admission::Rejected;
        }
        self.calls.put(id, call);
        Admission::Admitted
    }

    fn head(&mut self, _: Duration, _: usize) {}

    fn end(&mut self, _: Duration, id: usize, _: bool) {
        drop(self.calls.take(id));
    }

    fn limit(&self) -> Option<usize> {
        Some(100)
    }
}
