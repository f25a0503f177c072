use super::{
    CarryDeadline, Deadline,
    layer::{DeadlineLayer, Settings},
};
use crate::{
    clock::TokioClock,
    context::{Scoped, Stay, with},
    ending::{Begin, BodyBounds, BodyDeadline, Bound, Ended},
    events,
    per_request::{PerRequest, Same},
    shell::{inner_service, opaque_debug},
    timer::{self, Limit},
};
use buttress_core::{
    Clock, Rejection,
    context::CallContext,
    deadline::{Started, Terms},
};
use pin_project::pin_project;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

/// A service behind a [`DeadlineLayer`].
///
/// ```
/// use buttress::{DeadlineLayer, PlainExt, deadline::DeadlineService, ending::Plain};
/// use std::time::Duration;
/// use tower::Layer;
///
/// fn client<S>(inner: S) -> DeadlineService<S, Plain> {
///     DeadlineLayer::new(Duration::from_secs(2)).plain().layer(inner)
/// }
/// # let _ = client(());
/// ```
#[derive(Clone, Debug)]
pub struct DeadlineService<S, E, Per = Same> {
    inner: S,
    layer: DeadlineLayer<E, Per>,
}

inner_service!(DeadlineService<S, E, Per>);

impl<S, E: Ended + Clone, Per: Clone> Layer<S> for DeadlineLayer<E, Per> {
    type Service = DeadlineService<S, E, Per>;

    fn layer(&self, inner: S) -> Self::Service {
        DeadlineService { inner, layer: self.clone() }
    }
}

impl<S, E, Per, Req> Service<Req> for DeadlineService<S, E, Per>
where
    Per: PerRequest<Req, Duration>,
    S: Service<Req>,
    E: Begin<Req> + CarryDeadline<Req> + Bound<E::Context, S::Response, S::Error> + Clone,
    E: Stay<<E as Bound<<E as Begin<Req>>::Context, S::Response, S::Error>>::Bounded>,
{
    type Response = <E as Stay<<E as Bound<<E as Begin<Req>>::Context, S::Response, S::Error>>::Bounded>>::Response;
    type Error = E::Error;
    type Future = ResponseFuture<S::Future, E, E::Context>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E::Error>> {
        self.inner.poll_ready(cx).map_err(|error| self.layer.ends.inner(error))
    }

    #[inline]
    fn call(&mut self, mut request: Req) -> Self::Future {
        let DeadlineLayer { deadlines, settings: Settings { terms, through_body }, limit, ends } = &self.layer;
        let asked = ends.asked(&request);
        let mut terms = Terms { asked: asked.time, until: asked.until, ..*terms };
        if let Some(limit) = limit.of(&request) {
            (terms.default, terms.max) = (Some(limit), Some(limit));
        }
        let begun = ends.begin::<()>(&mut request);
        let mut context = CallContext::current();
        match deadlines.start_far(&mut context, &terms) {
            Ok(started) => self.start(request, begun, context, started, None),
            Err(near) => match near.start(deadlines, &mut context, &terms) {
                Ok((started, observed)) => self.start(request, begun, context, started, observed.map(Box::new)),
                Err(rejection) => {
                    events::rejected(&rejection);
                    ResponseFuture {
                        future: None,
                        timer: timer::Deadline::new(),
                        started: None,
                        observed: None,
                        rejection: Some(rejection),
                        begun,
                        through_body: *through_body,
                        ends: ends.clone(),
                    }
                }
            },
        }
    }
}

impl<S, E: Clone, Per> DeadlineService<S, E, Per> {
    /// Inlined, so that the future is made in place: what is stored and moved in other widths
    /// stalls the processor for longer than all else that is done here.
    #[inline(always)]
    fn start<Req, Cx>(
        &mut self,
        mut request: Req,
        begun: Cx,
        context: CallContext,
        started: Started,
        observed: Option<Box<std::time::Instant>>,
    ) -> ResponseFuture<S::Future, E, Cx>
    where
        S: Service<Req>,
        E: CarryDeadline<Req>,
    {
        let DeadlineLayer { settings, ends, .. } = &self.layer;
        if let (Some(left), Some(deadline)) = (started.had(), context.deadline) {
            ends.hand_on(&mut request, Deadline(deadline), left);
        }
        let entered = context.enter();
        let future = self.inner.call(request);
        drop(entered);
        ResponseFuture {
            future: Some(with(context, future)),
            timer: timer::Deadline::new(),
            started: Some(started),
            observed,
            rejection: None,
            begun,
            through_body: settings.through_body,
            ends: ends.clone(),
        }
    }
}

/// The future of a [`DeadlineService`].
#[pin_project]
pub struct ResponseFuture<F, E, Cx> {
    /// `None` if the call was rejected.
    #[pin]
    future: Option<Scoped<F>>,
    /// Made when the call is pending for the first time.
    #[pin]
    timer: timer::Deadline,
    started: Option<Started>,
    /// A deadline that is only observed.
    observed: Option<Box<std::time::Instant>>,
    rejection: Option<Rejection>,
    /// Taken when the call is rejected or its deadline passes.
    begun: Cx,
    through_body: bool,
    ends: E,
}

opaque_debug!(ResponseFuture<F, E, Cx>);

/// Not even the default of server endings for readers that stall: that is a timeout's.
const NO_BOUNDS: &BodyBounds =
    &BodyBounds { idle: None, total: None, stalled: Some(Duration::MAX), deadline: None, label: None };

impl<F, E, Cx, Res, Err> Future for ResponseFuture<F, E, Cx>
where
    F: Future<Output = Result<Res, Err>>,
    E: Bound<Cx, Res, Err> + Stay<<E as Bound<Cx, Res, Err>>::Bounded>,
    Cx: Default,
{
    type Output = Result<<E as Stay<<E as Bound<Cx, Res, Err>>::Bounded>>::Response, E::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let rejection = match (this.future.as_pin_mut(), this.started) {
            (Some(future), Some(started)) => {
                let (limit, context) = (Limit::enter(), future.context());
                match future.poll(cx) {
                    Poll::Ready(Ok(response)) => {
                        observe(started, this.observed.as_deref());
                        let bounded = match (context.deadline, started.had()) {
                            (Some(at), Some(had)) => {
                                let through_http = *this.through_body;
                                let deadline = Some(BodyDeadline { at, had, through_http });
                                let bounds = BodyBounds { deadline, label: started.label(), ..NO_BOUNDS.clone() };
                                this.ends.bound(response, &bounds)
                            }
                            _ => this.ends.bound(response, NO_BOUNDS),
                        };
                        return Poll::Ready(Ok(this.ends.stay(context, bounded)));
                    }
                    Poll::Ready(Err(error)) => {
                        observe(started, this.observed.as_deref());
                        return Poll::Ready(Err(this.ends.inner(error)));
                    }
                    Poll::Pending => {
                        let (Some(deadline), Some(_)) = (context.deadline, started.had()) else { return Poll::Pending };
                        let end = Instant::from_std(deadline);
                        ready!(this.timer.poll_end_around(end, limit.leave(), cx));
                        let rejection = started.exceed();
                        events::timed_out(&rejection);
                        rejection
                    }
                }
            }
            _ => this.rejection.take().expect("a call completes once"),
        };
        let answer = this.ends.expired(std::mem::take(this.begun), rejection);
        Poll::Ready(answer.map(|answer| this.ends.stay(CallContext::current(), answer)))
    }
}

/// Counts a call that ends after a deadline that is only observed.
#[inline]
fn observe(started: &Started, deadline: Option<&std::time::Instant>) {
    if deadline.is_some_and(|deadline| *deadline <= TokioClock.now()) {
        let _rejection = started.exceed();
    }
}
