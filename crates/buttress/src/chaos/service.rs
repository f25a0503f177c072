use super::{ChaosLayer, Fault, Faults, Injection};
use crate::{
    ending::{Begin, Ended, Inject},
    per_request::{PerRequest, Same},
    shell::{inner_service, opaque_debug},
    timer::Timer,
};
use pin_project::pin_project;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tower_layer::Layer;
use tower_service::Service;

/// A service behind a [`ChaosLayer`].
///
/// ```
/// use buttress::{PlainExt, chaos::{Chaos, ChaosLayer, ChaosService}, ending::Plain};
/// use tower::Layer;
///
/// fn client<S>(inner: S, chaos: Chaos) -> ChaosService<S, Plain> {
///     ChaosLayer::from(chaos).plain().layer(inner)
/// }
/// # let _ = client((), Chaos::new());
/// ```
#[derive(Clone, Debug)]
pub struct ChaosService<S, E, Scope = Same> {
    inner: S,
    layer: ChaosLayer<E, Scope>,
}

inner_service!(ChaosService<S, E, Scope>);

impl<S, E: Ended + Clone, Scope: Clone> Layer<S> for ChaosLayer<E, Scope> {
    type Service = ChaosService<S, E, Scope>;

    fn layer(&self, inner: S) -> Self::Service {
        ChaosService { inner, layer: self.clone() }
    }
}

impl<S, E, Scope, Req> Service<Req> for ChaosService<S, E, Scope>
where
    S: Service<Req> + Clone,
    Scope: PerRequest<Req, Faults>,
    E: Begin<Req> + Inject<E::Context, S::Response, S::Error> + Clone,
{
    type Response = E::Injected;
    type Error = E::Error;
    type Future = ResponseFuture<S::Future, Suffering<S, Req, S::Future, E::Context, S::Response, S::Error>, E>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E::Error>> {
        self.inner.poll_ready(cx).map_err(|error| self.layer.ends.inner(error))
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let injection = if self.layer.chaos.is_on() { self.draw(&request) } else { None };
        let state = match injection {
            None => State::Passing { future: self.inner.call(request) },
            Some(injection) => self.suffer(request, injection),
        };
        ResponseFuture { state, ends: self.layer.ends.clone() }
    }
}

impl<S, E, Scope> ChaosService<S, E, Scope> {
    #[cold]
    #[inline(never)]
    fn draw<Req>(&self, request: &Req) -> Option<Injection>
    where
        Scope: PerRequest<Req, Faults>,
    {
        self.layer.chaos.draw(self.layer.scope.of(request).as_ref())
    }

    #[cold]
    #[inline(never)]
    fn suffer<Req>(&mut self, mut request: Req, injection: Injection) -> StateOf<S, Req, E::Context>
    where
        S: Service<Req> + Clone,
        E: Begin<Req>,
    {
        let context = self.layer.ends.begin::<()>(&mut request);
        // The instance that was polled ready is called, perhaps later.
        let fresh = self.inner.clone();
        let service = std::mem::replace(&mut self.inner, fresh);
        let suffering = Suffering {
            latency: injection.drawn().latency.map(|latency| {
                injection.count(Fault::Latency);
                Box::pin(Timer::after(latency))
            }),
            call: Some((service, request)),
            future: None,
            result: None,
            context,
            injection: Some(injection),
            is_hanging: false,
        };
        State::Suffering { suffering: Box::pin(suffering) }
    }
}

type StateOf<S, Req, Cx> = State<
    <S as Service<Req>>::Future,
    Suffering<S, Req, <S as Service<Req>>::Future, Cx, <S as Service<Req>>::Response, <S as Service<Req>>::Error>,
>;

/// The future of a [`ChaosService`].
#[pin_project]
pub struct ResponseFuture<F, Faulty, E> {
    #[pin]
    state: State<F, Faulty>,
    ends: E,
}

#[pin_project(project = StateProj)]
enum State<F, Faulty> {
    Passing {
        #[pin]
        future: F,
    },
    /// In a box, so that other calls do not move it.
    Suffering { suffering: Pin<Box<Faulty>> },
}

/// A call with faults.
#[pin_project]
pub struct Suffering<S, Req, F, Cx, Res, Err> {
    latency: Option<Pin<Box<Timer>>>,
    /// Until the inner service is called.
    call: Option<(S, Req)>,
    #[pin]
    future: Option<F>,
    result: Option<Result<Res, Err>>,
    context: Cx,
    /// Until the call ends, or its response takes it.
    injection: Option<Injection>,
    is_hanging: bool,
}

opaque_debug!(ResponseFuture<F, Faulty, E>);
opaque_debug!(Suffering<S, Req, F, Cx, Res, Err>);

impl<S, Req, F, E, Cx, Res, Err> Future for ResponseFuture<F, Suffering<S, Req, F, Cx, Res, Err>, E>
where
    F: Future<Output = Result<Res, Err>>,
    S: Service<Req, Response = Res, Error = Err, Future = F>,
    E: Inject<Cx, Res, Err>,
    Cx: Default,
{
    type Output = Result<E::Injected, E::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.state.project() {
            StateProj::Passing { future } => Poll::Ready(match ready!(future.poll(cx)) {
                Ok(response) => Ok(this.ends.untouched(response)),
                Err(error) => Err(this.ends.inner(error)),
            }),
            StateProj::Suffering { suffering } => suffering.as_mut().poll_suffering(this.ends, cx),
        }
    }
}

impl<S, Req, Cx, Res, Err> Suffering<S, Req, S::Future, Cx, Res, Err>
where
    S: Service<Req, Response = Res, Error = Err>,
    Cx: Default,
{
    #[inline(never)]
    fn poll_suffering<E>(self: Pin<&mut Self>, ends: &E, cx: &mut Context<'_>) -> Poll<Result<E::Injected, E::Error>>
    where
        E: Inject<Cx, Res, Err>,
    {
        let mut this = self.project();
        if let Some(latency) = this.latency {
            ready!(latency.as_mut().poll_in_call(None, cx));
            *this.latency = None;
        }
        let injection = this.injection.as_mut().expect("polled after completion");
        if this.call.is_some() && !injection.drawn().is_late {
            ready!(poll_hang(injection, this.is_hanging, cx));
            if injection.drawn().error {
                return Poll::Ready(fail(ends, this.context, this.injection));
            }
        }
        if let Some((mut service, request)) = this.call.take() {
            this.future.set(Some(service.call(request)));
        }
        if let Some(future) = this.future.as_mut().as_pin_mut() {
            *this.result = Some(ready!(future.poll(cx)));
            this.future.set(None);
        }
        if injection.drawn().is_late {
            ready!(poll_hang(injection, this.is_hanging, cx));
            if injection.drawn().error {
                // The response is lost.
                *this.result = None;
                return Poll::Ready(fail(ends, this.context, this.injection));
            }
        }
        let injection = this.injection.take().expect("it was there above");
        Poll::Ready(match this.result.take().expect("the future has ended") {
            Ok(response) if injection.drawn().breaks_body() => Ok(ends.break_body(response, injection)),
            Ok(response) => Ok(ends.untouched(response)),
            Err(error) => Err(ends.inner(error)),
        })
    }
}

/// Hangs, if the call drew that.
fn poll_hang(injection: &mut Injection, is_hanging: &mut bool, cx: &mut Context<'_>) -> Poll<()> {
    if !injection.drawn().hang {
        return Poll::Ready(());
    }
    if !std::mem::replace(is_hanging, true) {
        injection.count(Fault::Hang);
    }
    injection.poll_hang(cx)
}

fn fail<E, Cx, Res, Err>(ends: &E, context: &mut Cx, injection: &mut Option<Injection>) -> Result<E::Injected, E::Error>
where
    E: Inject<Cx, Res, Err>,
    Cx: Default,
{
    let injection = injection.take().expect("a call with faults has them until it ends");
    injection.count(Fault::Error);
    ends.fail(std::mem::take(context), injection.drawn())
}
