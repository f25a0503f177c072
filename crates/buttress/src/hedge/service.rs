use super::{
    hedging::{Hedging, Next, Verdict},
    layer::{HedgeLayer, Shared},
};
use crate::{
    ending::{Begin, Duplicate, Ended, Finish, Kept},
    per_request::{PerRequest, Same},
    retry::{CallInFlight, enter},
    shell::{inner_service, opaque_debug},
    timer::{Deadline, Limit},
};
use buttress_core::shard::Ticket;
use pin_project::{pin_project, pinned_drop};
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tower_layer::Layer;
use tower_service::Service;

/// A service behind a [`HedgeLayer`](crate::HedgeLayer).
///
/// ```
/// use buttress::{HedgeLayer, PlainExt, ending::Plain, hedge::Hedge};
/// use std::time::Duration;
/// use tower::Layer;
///
/// fn client<S>(inner: S) -> Hedge<S, Plain> {
///     HedgeLayer::after(Duration::from_millis(30)).plain().layer(inner)
/// }
/// # let _ = client(());
/// ```
#[derive(Clone, Debug)]
pub struct Hedge<S, E, After = Same> {
    inner: S,
    layer: HedgeLayer<E, After>,
}

inner_service!(Hedge<S, E, After>);

impl<S, E: Ended + Clone, After: Clone> Layer<S> for HedgeLayer<E, After> {
    type Service = Hedge<S, E, After>;

    fn layer(&self, inner: S) -> Self::Service {
        Hedge { inner, layer: self.clone() }
    }
}

impl<S, E, After, Req> Service<Req> for Hedge<S, E, After>
where
    After: PerRequest<Req, Duration>,
    E: Begin<Req> + Duplicate<Req> + Finish<E::Context, S::Response, S::Error> + Clone,
    S: Service<E::Attempt> + Clone,
{
    type Response = S::Response;
    type Error = E::Error;
    type Future = ResponseFuture<
        S,
        E::Kept,
        E,
        E::Context,
        E::Attempt,
        S::Future,
        Result<S::Response, <E as Finish<E::Context, S::Response, S::Error>>::Error>,
    >;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(|error| self.layer.ends.inner(error))
    }

    #[inline]
    fn call(&mut self, mut request: Req) -> Self::Future {
        let HedgeLayer { ends, after, shared } = &self.layer;
        let ticket = shared.ticket();
        let config = &ticket.config;
        let context = ends.begin::<()>(&mut request);
        let in_flight = if config.deposits && ends.deposits(&request) { enter(&config.budget) } else { None };
        let own_delay = after.of(&request);
        let (attempt, kept) = match config.max_hedges {
            0 => (ends.only(request), None),
            _ => ends.first_of_several(request),
        };
        let (first, hedging) = match kept {
            None => (self.inner.call(attempt), None),
            Some(kept) => {
                // The instance that was polled ready makes the first attempt.
                let fresh = self.inner.clone();
                let mut service = std::mem::replace(&mut self.inner, fresh);
                (service.call(attempt), Some(Hedging::new(kept, service, own_delay, &ticket)))
            }
        };
        let timer = Deadline::new();
        ResponseFuture { first: Some(first), timer, hedging, context, in_flight, ends: ends.clone(), ticket }
    }
}

/// The future of a [`Hedge`].
#[pin_project(PinnedDrop)]
pub struct ResponseFuture<S, Stored, E, Cx, Req, F, T> {
    /// The first attempt, until it has failed or lost.
    #[pin]
    first: Option<F>,
    #[pin]
    timer: Deadline,
    /// `None` if the request is sent once, and after the call has ended.
    hedging: Option<Hedging<S, Stored, Req, F, T>>,
    context: Cx,
    in_flight: Option<CallInFlight>,
    ends: E,
    ticket: Ticket<Shared>,
}

opaque_debug!(ResponseFuture<S, Stored, E, Cx, Req, F, T>);

impl<S, Stored, E, Cx> Future
    for ResponseFuture<S, Stored, E, Cx, Stored::Attempt, S::Future, Result<S::Response, E::Error>>
where
    Stored: Kept,
    S: Service<Stored::Attempt> + Clone,
    E: Finish<Cx, S::Response, S::Error>,
{
    type Output = Result<S::Response, E::Error>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.as_mut().project();
        let limit = Limit::enter();
        let polled = this.first.as_mut().as_pin_mut().map_or(Poll::Pending, |first| first.poll(cx));
        let before = limit.leave();
        let Some(hedging) = this.hedging.as_mut() else {
            return polled.map_err(|error| this.ends.inner(error));
        };
        if let Poll::Ready(result) = polled {
            let verdict = Verdict::of(this.ends, this.context, result, this.ticket);
            let elapsed = hedging.first_elapsed();
            this.first.set(None);
            if let Some(result) = hedging.settle(1, elapsed, verdict, this.ticket, this.timer.as_mut()) {
                self.end();
                return Poll::Ready(result);
            }
        } else if hedging.next == Next::Unknown {
            hedging.begin(this.ticket, this.timer.as_mut());
        }
        let mut index = 0;
        loop {
            if let Some((number, elapsed, result)) = hedging.poll_others(&mut index, this.ticket, cx) {
                let verdict = Verdict::of(this.ends, this.context, result, this.ticket);
                if let Some(result) = hedging.settle(number, elapsed, verdict, this.ticket, this.timer.as_mut()) {
                    self.end();
                    return Poll::Ready(result);
                }
                continue;
            }
            match hedging.next {
                Next::Now => {}
                Next::After(wait) | Next::Hint(wait)
                    if this.timer.as_mut().poll_expired_around(wait, before, cx).is_ready() => {}
                Next::After(_) | Next::Hint(_) | Next::Never | Next::Unknown => break,
            }
            hedging.launch(this.ticket, this.timer.as_mut());
        }
        match hedging.take_failure(this.first.is_some()) {
            Some(failure) => {
                self.end();
                Poll::Ready(failure)
            }
            None => Poll::Pending,
        }
    }
}

impl<S, Stored, E, Cx, Req, F, T> ResponseFuture<S, Stored, E, Cx, Req, F, T> {
    /// Drops the attempts in flight.
    fn end(self: Pin<&mut Self>) {
        let mut this = self.project();
        if let Some(hedging) = this.hedging.take() {
            hedging.record_in_flight(this.first.is_some(), this.ticket);
        }
        this.first.set(None);
        *this.in_flight = None;
    }
}

/// A call that is dropped after its delay is slow. Without these calls, the percentile would not
/// follow a backend that is slower than a timeout around this layer.
#[pinned_drop]
impl<S, Stored, E, Cx, Req, F, T> PinnedDrop for ResponseFuture<S, Stored, E, Cx, Req, F, T> {
    fn drop(self: Pin<&mut Self>) {
        if self.hedging.is_some() {
            self.end();
        }
    }
}
