//! Single flight: a call that no other joins, and one that joins a call under way.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use buttress::{PlainExt, SingleFlightLayer};
use tower::{Layer, Service};

use crate::family::NONE;
use crate::inner::Bare;
use crate::situation::{HOLD, Kept, Rejecting};
use crate::subject::{Kind::Ours, Rows};

pub(super) fn add(rows: &mut Rows) {
    let layer = || SingleFlightLayer::new(|request: &u64| *request).plain();
    rows.of(Ours, "buttress/single_flight(leader)", NONE).when(Kept, layer);
    let mut service = layer().layer(Bare::<Rejecting>::new());
    let mut held = Box::pin(service.call(HOLD));
    assert!(held.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    // Without its end, the call stays under way for all that join it.
    std::mem::forget(held);
    rows.of(Ours, "buttress/single_flight(hit)", NONE).caller(Kept, Joins(service));
}

/// Joins the call that is held, polls it once as a task would, and leaves it.
#[derive(Clone)]
struct Joins<S>(S);

impl<S: Service<u64>> Service<u64> for Joins<S> {
    type Response = u64;
    type Error = Infallible;
    type Future = Ready<Result<u64, Infallible>>;

    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, request: u64) -> Self::Future {
        let mut joined = pin!(self.0.call(HOLD));
        let is_pending = joined.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending();
        assert!(black_box(is_pending));
        ready(Ok(request))
    }
}
