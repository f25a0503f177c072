use super::{Carry, Known, Scoped, Stay, with};
use crate::{
    ending::{Ended, Ending, NoEnding},
    per_request::{By, PerRequest, Same},
    shell::{inner_service, opaque_debug},
};
use buttress_core::{Priority, context::Retried};
use pin_project::pin_project;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tower_layer::Layer;
use tower_service::Service;

/// Runs each call in its [context](super), as a layer. It implements [`Layer`] once it has an
/// [ending](crate::ending).
///
/// With an ending for servers it takes the context from the request, with one for clients it puts
/// the context into the request. The inner service is called and polled in the context, and on
/// servers so is the body of its response.
///
/// ```
/// use buttress::{ContextLayer, PlainExt, context, policy::CallContext};
/// use std::convert::Infallible;
/// use tower::{ServiceBuilder, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// // A context of the caller is handed on where the layer knows no other.
/// let service = ServiceBuilder::new()
///     .layer(ContextLayer::new().plain())
///     .service_fn(async |_: ()| Ok::<_, Infallible>(context::current()));
/// let call = CallContext::default().with_priority("3".parse().unwrap());
/// assert_eq!(context::with(call, service.oneshot(())).await.unwrap(), call);
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct ContextLayer<E = NoEnding, P = Same> {
    trusts_priority: bool,
    priority: P,
    ends: E,
}

impl ContextLayer {
    /// Creates a layer that trusts no header and hands on the current context.
    ///
    /// ```
    /// use buttress::{ContextLayer, PlainExt};
    ///
    /// let layer = ContextLayer::new().plain();
    /// # let _ = layer;
    /// ```
    pub const fn new() -> Self {
        Self { trusts_priority: false, priority: Same, ends: NoEnding }
    }
}

impl<E, P> ContextLayer<E, P> {
    /// Takes the priority that the caller sent. For servers that only services of yours can reach.
    /// Has no effect on clients.
    ///
    /// ```
    /// # use buttress::ContextLayer;
    /// let behind_the_edge = ContextLayer::new().trust_priority();
    /// # let _ = behind_the_edge;
    /// ```
    pub fn trust_priority(self) -> Self {
        Self { trusts_priority: true, ..self }
    }

    /// Chooses the priority by the request. `None` leaves it to the request and the current
    /// context. On a client, a header that the request has wins.
    ///
    /// ```
    /// # use buttress::{ContextLayer, PlainExt};
    /// use buttress::policy::Criticality;
    ///
    /// struct Order {
    ///     is_paid: bool,
    /// }
    ///
    /// let layer = ContextLayer::new()
    ///     .priority_by(|order: &Order| order.is_paid.then_some(Criticality::CriticalPlus.into()))
    ///     .plain();
    /// # let _ = layer;
    /// ```
    pub fn priority_by<Req, F: Fn(&Req) -> Option<Priority>>(self, priority: F) -> ContextLayer<E, By<F>> {
        ContextLayer { trusts_priority: self.trusts_priority, priority: By(priority), ends: self.ends }
    }
}

impl<E, P> Ending for ContextLayer<E, P> {
    type Now = E;
    type With<Next> = ContextLayer<Next, P>;

    fn end<Next>(self, ends: Next) -> ContextLayer<Next, P> {
        ContextLayer { trusts_priority: self.trusts_priority, priority: self.priority, ends }
    }
}

impl<S, E: Ended + Clone, P: Clone> Layer<S> for ContextLayer<E, P> {
    type Service = ContextService<S, E, P>;

    fn layer(&self, inner: S) -> Self::Service {
        ContextService { inner, layer: self.clone() }
    }
}

/// A service behind a [`ContextLayer`].
///
/// ```
/// use buttress::{ContextLayer, PlainExt, context::ContextService, ending::Plain};
/// use tower::Layer;
///
/// fn client<S>(inner: S) -> ContextService<S, Plain> {
///     ContextLayer::new().plain().layer(inner)
/// }
/// # let _ = client(());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ContextService<S, E, P = Same> {
    inner: S,
    layer: ContextLayer<E, P>,
}

inner_service!(ContextService<S, E, P>);

impl<S, E, P, Req> Service<Req> for ContextService<S, E, P>
where
    S: Service<Req>,
    P: PerRequest<Req, Priority>,
    E: Carry<Req> + Stay<S::Response> + Clone,
{
    type Response = E::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, E>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, mut request: Req) -> Self::Future {
        let ContextLayer { trusts_priority, priority, ends } = &self.layer;
        let known = Known { priority: priority.of(&request), trusts_priority: *trusts_priority };
        let context = ends.carry(&mut request, &known);
        // A service may do its work in `call`, and admission always happens there.
        let entered = context.enter();
        let mut retried = Retried::default();
        let future = {
            let _collecting = E::TELLS_RETRIED.then(|| retried.collect());
            self.inner.call(request)
        };
        drop(entered);
        ResponseFuture { future: with(context, future), retried, ends: ends.clone() }
    }
}

/// The future of a [`ContextService`].
#[pin_project]
pub struct ResponseFuture<F, E> {
    #[pin]
    future: Scoped<F>,
    /// What the calls that were made for this one have noted.
    retried: Retried,
    ends: E,
}

opaque_debug!(ResponseFuture<F, E>);

impl<F, E, Res, Err> Future for ResponseFuture<F, E>
where
    F: Future<Output = Result<Res, Err>>,
    E: Stay<Res>,
{
    type Output = Result<E::Response, Err>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let context = this.future.context();
        let polled = {
            let _collecting = E::TELLS_RETRIED.then(|| this.retried.collect());
            this.future.poll(cx)
        };
        let mut result = ready!(polled);
        if let (Ok(response), Some(retries)) = (&mut result, this.retried.retries()) {
            this.ends.tell_retried(response, retries);
        }
        Poll::Ready(result.map(|response| this.ends.stay(context, response)))
    }
}
