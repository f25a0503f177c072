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
        let state = match deadlines.start(CallContext::current(), &terms) {
            Ok((context, started)) => {
                if let Some(deadline) = started.deadline() {
                    ends.hand_on(&mut request, Deadline(deadline), started.had());
                }
                let entered = context.enter();
                let future = self.inner.call(request);
                drop(entered);
                State::Running { future: with(context, future), timer: timer::Deadline::new(), started }
            }
            Err(rejection) => {
                events::rejected(&rejection);
                State::Rejected { rejection: Some(rejection) }
            }
        };
        ResponseFuture { state, begun, through_body: *through_body, ends: ends.clone() }
    }
}

/// The future of a [`DeadlineService`].
#[pin_project]
pub struct ResponseFuture<F, E, Cx> {
    #[pin]
    state: State<F>,
    /// Taken when the call is rejected or its deadline passes.
    begun: Cx,
    through_body: bool,
    ends: E,
}

#[pin_project(project = StateProj)]
enum State<F> {
    Running {
        #[pin]
        future: Scoped<F>,
        /// Made when the call is pending for the first time.
        #[pin]
        timer: timer::Deadline,
        started: Started,
    },
    Rejected {
        rejection: Option<Rejection>,
    },
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
        let rejection = match this.state.project() {
            StateProj::Running { future, mut timer, started } => {
                let (limit, context) = (Limit::enter(), future.context());
                match future.poll(cx) {
                    Poll::Ready(Ok(response)) => {
                        observe(started);
                        let bounded = match started.deadline() {
                            Some(at) => {
                                let (had, through_http) = (started.had(), *this.through_body);
                                let deadline = Some(BodyDeadline { at, had, through_http });
                                let bounds = BodyBounds { deadline, label: started.label(), ..NO_BOUNDS.clone() };
                                this.ends.bound(response, &bounds)
                            }
                            None => this.ends.bound(response, NO_BOUNDS),
                        };
                        return Poll::Ready(Ok(this.ends.stay(context, bounded)));
                    }
                    Poll::Ready(Err(error)) => {
                        observe(started);
                        return Poll::Ready(Err(this.ends.inner(error)));
                    }
                    Poll::Pending => {
                        let Some(deadline) = started.deadline() else { return Poll::Pending };
                        let end = Instant::from_std(deadline);
                        ready!(timer.as_mut().poll_end_around(end, limit.leave(), cx));
                        let rejection = started.exceed();
                        events::timed_out(&rejection);
                        rejection
                    }
                }
            }
            StateProj::Rejected { rejection } => rejection.take().expect("polled after completion"),
        };
        let answer = this.ends.expired(std::mem::take(this.begun), rejection);
        Poll::Ready(answer.map(|answer| this.ends.stay(CallContext::current(), answer)))
    }
}

/// Counts a call that ends after a deadline that is only observed.
#[inline]
fn observe(started: &Started) {
    if started.observed().is_some_and(|deadline| deadline <= TokioClock.now()) {
        let _rejection = started.exceed();
    }
}
