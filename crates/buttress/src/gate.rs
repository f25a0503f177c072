//! The shared implementation of the protective layers: admission, call, outcome.
//!
//! A [`GateLayer`] is a [policy](Policy) with an [ending](crate::ending). The module
//! [`policy`](crate::policy) shows how a custom policy becomes a layer.
//!
//! # Names of services
//!
//! `XLayer` makes the service `X`. Where the handle already has that name, the service is
//! `XService`.
//!
//! | layer | service | handle |
//! |---|---|---|
//! | [`AdaptiveLimitLayer`](crate::AdaptiveLimitLayer) | [`AdaptiveLimitService`](crate::concurrency::AdaptiveLimitService) | [`AdaptiveLimit`](crate::AdaptiveLimit) |
//! | [`BulkheadLayer`](crate::BulkheadLayer) | [`BulkheadService`](crate::bulkhead::BulkheadService) | [`Bulkhead`](crate::Bulkhead) |
//! | [`CircuitBreakerLayer`](crate::CircuitBreakerLayer) | [`CircuitBreakerService`](crate::circuit_breaker::CircuitBreakerService) | [`CircuitBreaker`](crate::CircuitBreaker) |
//! | [`HealthLayer`](crate::HealthLayer) | [`HealthService`](crate::health::HealthService) | [`Health`](crate::Health) |
//! | [`LoadShedLayer`](crate::LoadShedLayer) | [`LoadShedService`](crate::load_shed::LoadShedService) | [`LoadShed`](crate::LoadShed) |
//! | [`ThrottleLayer`](crate::ThrottleLayer) | [`ThrottleService`](crate::throttle::ThrottleService) | [`Throttle`](crate::Throttle) |
//! | [`ContextLayer`](crate::ContextLayer) | [`ContextService`](crate::context::ContextService) | [`CallContext`](crate::policy::CallContext) |
//! | [`DeadlineLayer`](crate::DeadlineLayer) | [`DeadlineService`](crate::deadline::DeadlineService) | [`Deadlines`](crate::Deadlines) |
//! | [`GateLayer`] | [`Gate`] | the policy |
//! | [`ReservingGateLayer`] | [`ReservingGate`] | the policy |
//! | [`QueuedLayer`](crate::bulkhead::QueuedLayer) | [`Queued`](crate::bulkhead::Queued) | [`Bulkhead`](crate::Bulkhead) |
//! | [`RateLimitLayer`](crate::RateLimitLayer) | [`RateLimitService`](crate::rate_limit::RateLimitService) | [`RateLimit`](crate::RateLimit) |
//! | [`AdaptiveRateLayer`](crate::AdaptiveRateLayer) | [`AdaptiveRateService`](crate::adaptive_rate::AdaptiveRateService) | [`AdaptiveRate`](crate::AdaptiveRate) |
//! | [`WaitLayer`](crate::wait::WaitLayer) | [`Wait`](crate::wait::Wait) | the policy |
//! | [`RetryLayer`](crate::RetryLayer) | [`Retry`](crate::retry::Retry) | [`RetryBudget`](crate::RetryBudget) |
//! | [`TimeoutLayer`](crate::TimeoutLayer) | [`Timeout`](crate::timeout::Timeout) | none |
//! | `ChaosLayer` (feature `chaos`) | `ChaosService` | `Chaos` |
//! | [`FallbackLayer`](crate::FallbackLayer) | [`Fallback`](crate::fallback::Fallback) | none |
//!
//! # Readiness
//!
//! A gate is ready when its inner service is ready. While the policy would reject every call, the
//! gate is ready at once, so that the caller gets the rejection without waiting for the inner
//! service, which may hang. A task that waits for the inner service is woken when a circuit opens,
//! but not when a bulkhead fills.
//!
//! When the inner service fails to become ready, the policy counts a failure. It counts no
//! rejection, and no call where it would reject.

mod reserving;

pub use reserving::{ReservingGate, ReservingGateLayer};

use crate::{
    ending::{Begin, Ended, Ending, Finish, NoEnding},
    events,
    in_flight::InFlight,
    shell::{inner_service, opaque_debug},
};
use buttress_core::{Permit, Policy, Refused, Rejection, Reserve, policy::NOT_READY};
use pin_project::pin_project;
use std::{
    any::Any,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tower_layer::Layer;
use tower_service::Service;
use waiting::Waiting;

mod waiting;

/// A policy as a layer. It implements [`Layer`] once it has an [ending](crate::ending).
///
/// The state is in the policy's handle. All services that the layer and its clones make share it.
///
/// ```
/// use buttress::{Bulkhead, PlainExt, gate::GateLayer};
/// use tower::{BoxError, Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let echo = service_fn(|text: String| async { Ok::<_, BoxError>(text) });
/// let service = GateLayer::with_policy(Bulkhead::new(1)).plain().layer(echo);
/// assert_eq!(service.oneshot("hello".to_owned()).await.unwrap(), "hello");
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct GateLayer<Pol, E = NoEnding> {
    policy: Pol,
    ends: E,
}

impl<Pol> GateLayer<Pol> {
    /// Creates a layer that asks `policy` for each call.
    ///
    /// ```
    /// use buttress::{Bulkhead, gate::GateLayer};
    ///
    /// let bulkhead = Bulkhead::new(10);
    /// let layer = GateLayer::with_policy(bulkhead.clone());
    /// bulkhead.set_limit(20); // the handle and the layer share the state
    /// assert_eq!(layer.handle().limit(), 20);
    /// ```
    pub const fn with_policy(policy: Pol) -> Self {
        Self { policy, ends: NoEnding }
    }
}

impl<Pol, E> GateLayer<Pol, E> {
    /// Returns the policy, to observe or control it.
    ///
    /// ```
    /// use buttress::CircuitBreakerLayer;
    ///
    /// let layer = CircuitBreakerLayer::new("payments");
    /// let breaker = layer.handle().clone(); // for an operator
    /// breaker.force_open();
    /// assert_eq!(layer.handle().state(), buttress::circuit_breaker::State::ForcedOpen);
    /// ```
    pub fn handle(&self) -> &Pol {
        &self.policy
    }

    /// Replaces the policy by the result of `map`, for example to wrap it.
    ///
    /// ```
    /// use buttress::{Bulkhead, BulkheadLayer, keyed::Keyed};
    ///
    /// // One bulkhead for each tenant, with the limit of the given one:
    /// let layer = BulkheadLayer::new(10).map_policy(|bulkhead: Bulkhead| {
    ///     let limit = bulkhead.limit();
    ///     Keyed::new(|request: &(u32, String)| request.0, move |_: &u32| Bulkhead::new(limit))
    /// });
    /// # let _ = layer;
    /// ```
    pub fn map_policy<Other>(self, map: impl FnOnce(Pol) -> Other) -> GateLayer<Other, E> {
        GateLayer { policy: map(self.policy), ends: self.ends }
    }

    /// Takes the permit in `poll_ready`, which is pending while the policy refuses and wakes the
    /// task when that may have changed.
    ///
    /// For callers that wait for readiness: a balancer then chooses another endpoint. A call is
    /// rejected only if the policy began to refuse after the service was ready, as when the circuit
    /// opened in between; the next `poll_ready` is pending again.
    ///
    /// axum does not wait for readiness: do not use this in axum.
    ///
    /// A policy that needs the request to decide, such as a [keyed](crate::keyed) one, cannot
    /// [reserve](Reserve): calling this for it does not compile.
    ///
    /// ```
    /// use buttress::{BulkheadLayer, PlainExt};
    /// use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let echo = service_fn(|text: &'static str| async move { Ok::<_, BoxError>(text) });
    /// let mut service = BulkheadLayer::new(1).backpressure().plain().layer(echo);
    /// let call = service.ready().await.unwrap().call("hello");
    /// // The call holds the only place until it ends: a clone is not ready.
    /// let mut clone = service.clone();
    /// assert!(tokio_test::task::spawn(clone.ready()).poll().is_pending());
    /// assert_eq!(call.await.unwrap(), "hello");
    /// clone.ready().await.unwrap();
    /// # }
    /// ```
    pub fn backpressure(self) -> ReservingGateLayer<Pol, E>
    where
        Pol: Reserve,
    {
        ReservingGateLayer::new(self)
    }

    pub(crate) fn into_parts(self) -> (Pol, E) {
        (self.policy, self.ends)
    }
}

impl<Pol, E> Ending for GateLayer<Pol, E> {
    type Now = E;
    type With<Next> = GateLayer<Pol, Next>;

    fn end<Next>(self, ends: Next) -> GateLayer<Pol, Next> {
        GateLayer { policy: self.policy, ends }
    }
}

impl<S, Pol: Clone, E: Ended + Clone> Layer<S> for GateLayer<Pol, E> {
    type Service = Gate<S, Pol, E>;

    fn layer(&self, inner: S) -> Self::Service {
        Gate { inner, readiness: Readiness::UNKNOWN, gate: self.clone(), unready: None }
    }
}

/// A service behind a policy that decides when the service is called.
///
/// The [module](self) describes its readiness.
///
/// ```
/// use buttress::{Bulkhead, BulkheadLayer, PlainExt, ending::Plain, gate::Gate};
/// use tower::Layer;
///
/// /// A client with a named type.
/// struct Client<S>(Gate<S, Bulkhead, Plain>);
///
/// impl<S> Client<S> {
///     fn new(inner: S) -> Self {
///         Self(BulkheadLayer::new(10).plain().layer(inner))
///     }
/// }
/// # let _ = Client::new(()).0.get_ref();
/// ```
#[derive(Debug)]
pub struct Gate<S, Pol, E> {
    inner: S,
    readiness: Readiness,
    gate: GateLayer<Pol, E>,
    unready: Option<Box<Unready>>,
}

inner_service!(Gate<S, Pol, E>);

/// Result of the last `poll_ready`, in one word.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Readiness(u64);

impl Readiness {
    /// `poll_ready` was not called since the last call, or the inner service was not ready.
    const UNKNOWN: Self = Self(0);
    /// The inner service is ready for the next call.
    const READY: Self = Self(1);
    /// The policy would refuse the call, for an unknown time.
    const REFUSED: Self = Self(u64::MAX);

    /// The policy would refuse the call for the time in `retry_after`, kept in nanoseconds.
    fn refused(Refused { retry_after }: Refused) -> Self {
        let nanos = |after: Duration| u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        retry_after.map_or(Self::REFUSED, |after| Self(nanos(after).clamp(2, u64::MAX - 1)))
    }

    fn refusal(self) -> Option<Refused> {
        let retry_after = (self != Self::REFUSED).then(|| Duration::from_nanos(self.0));
        (self.0 > Self::READY.0).then_some(Refused { retry_after })
    }
}

/// State that a gate needs only while its inner service is not ready.
///
/// Boxed to keep the gate small: stacks move and clone it with every call.
#[derive(Debug)]
enum Unready {
    /// An entry in the policy's list of tasks to wake.
    Waiting(Waiting),
    /// The error of the inner service, converted by the ending. Kept for policies that need the
    /// request: the next call reports it to the policy and returns it.
    Failed(Box<dyn Any + Send + Sync>),
}

impl Unready {
    fn is_failed(&self) -> bool {
        matches!(self, Self::Failed(_))
    }
}

impl<S: Clone, Pol: Clone, E: Clone> Clone for Gate<S, Pol, E> {
    fn clone(&self) -> Self {
        // Readiness belongs to one instance: the clone must be polled itself.
        Self { inner: self.inner.clone(), readiness: Readiness::UNKNOWN, gate: self.gate.clone(), unready: None }
    }
}

/// Converts an error and settles the permit of its call.
fn settle_error<P, E, Cx, Res, Err>(ends: &E, error: Err, mut permit: InFlight<P>) -> E::Error
where
    P: Permit,
    E: Finish<Cx, Res, Err>,
{
    let error = ends.inner(error);
    permit.settle(&ends.outcome(&error));
    error
}

impl<S, Pol, E, Req> Service<Req> for Gate<S, Pol, E>
where
    S: Service<Req>,
    Pol: Policy<Req> + Clone,
    E: Begin<Req> + Finish<E::Context, S::Response, S::Error> + Clone,
{
    type Response = E::Response<Pol::Permit>;
    type Error = E::Error;
    type Future = ResponseFuture<S::Future, Pol::Permit, E, E::Context, E::Error>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E::Error>> {
        let Self { inner, readiness, gate, unready } = self;
        // A call that will be rejected must not hold a slot of the inner service meanwhile.
        if let Err(refused) = gate.policy.peek() {
            *readiness = Readiness::refused(refused);
            return Poll::Ready(Ok(()));
        }
        *readiness = Readiness::UNKNOWN;
        if unready.as_deref().is_some_and(Unready::is_failed) {
            // The next call returns the error. A service that failed must not be polled again.
            return Poll::Ready(Ok(()));
        }
        match inner.poll_ready(cx) {
            Poll::Ready(Ok(())) => {
                *readiness = Readiness::READY;
                if unready.is_some() {
                    *unready = None;
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => {
                *unready = None;
                match if Pol::Permit::LEARNS { gate.policy.unready() } else { Some(Err(NO_EVIDENCE)) } {
                    // Without a permit there is no call, and the policy counts nothing.
                    Some(permit) => {
                        let permit = permit.map_or_else(|_| InFlight::none(), InFlight::new);
                        Poll::Ready(Err(settle_error(&gate.ends, error, permit)))
                    }
                    // The policy needs the request to count a failure. The next call reports the
                    // error.
                    None => {
                        *unready = Some(Box::new(Unready::Failed(Box::new(gate.ends.inner(error)))));
                        Poll::Ready(Ok(()))
                    }
                }
            }
            Poll::Pending => match would_refuse::<Pol, Req>(unready, &gate.policy, cx) {
                Some(refused) => {
                    *readiness = Readiness::refused(refused);
                    Poll::Ready(Ok(()))
                }
                None => Poll::Pending,
            },
        }
    }

    #[inline]
    fn call(&mut self, mut request: Req) -> Self::Future {
        let readiness = std::mem::replace(&mut self.readiness, Readiness::UNKNOWN);
        let GateLayer { policy, ends } = &self.gate;
        let context = ends.begin::<Pol::Permit>(&mut request);
        if let Some(refused) = readiness.refusal() {
            self.unready = None;
            let state = State::Rejected { rejection: Some(policy.refuse(&request, refused)) };
            return ResponseFuture { state, context, ends: ends.clone() };
        }
        let state = match policy.admit(&request) {
            // The guard exists before the call, so that a panic in `call` settles the permit as a
            // failure.
            Ok(permit) if readiness == Readiness::READY => {
                let mut permit = InFlight::new(permit);
                let inner = &mut self.inner;
                State::Running { future: permit.guard(|| inner.call(request)), permit }
            }
            Ok(permit) => self.call_unready(permit, &request),
            Err(rejection) => {
                // An error of the inner service is not kept for a later call.
                self.unready = None;
                State::Rejected { rejection: Some(rejection) }
            }
        };
        ResponseFuture { state, context, ends: self.gate.ends.clone() }
    }
}

impl<S, Pol, E> Gate<S, Pol, E> {
    /// Ends an admitted call whose inner service is not ready: it failed to become ready, or the
    /// policy refused in `poll_ready` and admits now.
    #[cold]
    fn call_unready<F, Req, OutErr, Cx, Res, Err>(
        &mut self,
        permit: Pol::Permit,
        request: &Req,
    ) -> State<F, Pol::Permit, OutErr>
    where
        Pol: Policy<Req>,
        OutErr: Send + Sync + 'static,
        E: Finish<Cx, Res, Err, Error = OutErr>,
    {
        if let Some(Unready::Failed(error)) = self.unready.take().map(|unready| *unready)
            && let Ok(error) = error.downcast::<OutErr>()
        {
            InFlight::new(permit).settle(&self.gate.ends.outcome(&error));
            return State::Failed { error: Some(error) };
        }
        // The call does not start.
        self.gate.policy.undo(request, permit);
        State::Rejected { rejection: Some(Rejection::new("gate", &NOT_READY)) }
    }
}

/// Returns the refusal that a call would get now. If there is none, registers the task to be woken
/// when the policy begins to refuse.
#[cold]
fn would_refuse<Pol, Req>(unready: &mut Option<Box<Unready>>, policy: &Pol, cx: &mut Context<'_>) -> Option<Refused>
where
    Pol: Policy<Req>,
{
    if !matches!(unready.as_deref(), Some(Unready::Waiting(_))) {
        *unready = policy.watchers().map(|waiters| Box::new(Unready::Waiting(Waiting::new(waiters))));
    }
    if let Some(Unready::Waiting(waiting)) = unready.as_deref() {
        waiting.register(cx);
    }
    // Peek after registering: a change before the registration woke no task.
    policy.peek().err()
}

/// The future of a [`Gate`] or a [`ReservingGate`].
#[pin_project]
pub struct ResponseFuture<F, P: Permit, E, Cx, OutErr> {
    #[pin]
    state: State<F, P, OutErr>,
    /// Taken when the future completes.
    context: Cx,
    ends: E,
}

#[pin_project(project = StateProj)]
enum State<F, P: Permit, OutErr> {
    Running {
        #[pin]
        future: F,
        permit: InFlight<P>,
    },
    Rejected {
        rejection: Option<Rejection>,
    },
    /// The inner service failed to become ready.
    Failed {
        error: Option<Box<OutErr>>,
    },
}

opaque_debug!(ResponseFuture<F, P: Permit, E, Cx, OutErr>);

impl<F, P, E, Cx, Res, Err> Future for ResponseFuture<F, P, E, Cx, E::Error>
where
    F: Future<Output = Result<Res, Err>>,
    P: Permit,
    E: Finish<Cx, Res, Err>,
    Cx: Default,
{
    type Output = Result<E::Response<P>, E::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.state.project() {
            StateProj::Running { future, permit } => {
                let result = ready!(permit.guard(|| future.poll(cx)));
                finish(result, this.context, permit, this.ends)
            }
            StateProj::Rejected { rejection } => reject(rejection, this.context, this.ends),
            StateProj::Failed { error } => Poll::Ready(Err(*error.take().expect(POLLED_AGAIN))),
        }
    }
}

/// Replaces the permit where the policy does not use outcomes.
const NO_EVIDENCE: Refused = Refused { retry_after: None };

const POLLED_AGAIN: &str = "polled after completion";

/// Settles the permit of a completed call and converts its result.
///
/// Errors take a separate path (`fail`, not inlined). If both paths met again here, the compiler
/// would copy a response that fits in a register as if it were as large as the error.
#[inline(always)]
pub(crate) fn finish<Res, Err, P, E, Cx>(
    result: Result<Res, Err>,
    context: &mut Cx,
    permit: &mut InFlight<P>,
    ends: &E,
) -> Poll<Result<E::Response<P>, E::Error>>
where
    P: Permit,
    E: Finish<Cx, Res, Err>,
    Cx: Default,
{
    match result {
        Ok(response) => Poll::Ready(Ok(ends.response(std::mem::take(context), response, permit))),
        Err(error) => fail(error, permit, ends),
    }
}

#[cold]
#[inline(never)]
fn fail<Res, Err, P, E, Cx>(error: Err, permit: &mut InFlight<P>, ends: &E) -> Poll<Result<E::Response<P>, E::Error>>
where
    P: Permit,
    E: Finish<Cx, Res, Err>,
{
    Poll::Ready(Err(settle_error(ends, error, permit.take())))
}

/// Not inlined, to keep rejections out of the path of admitted calls.
#[inline(never)]
pub(crate) fn reject<Res, Err, P, E, Cx>(
    rejection: &mut Option<Rejection>,
    context: &mut Cx,
    ends: &E,
) -> Poll<Result<E::Response<P>, E::Error>>
where
    P: Permit,
    E: Finish<Cx, Res, Err>,
    Cx: Default,
{
    // Read in place: taking the address of a moved value makes the compiler copy it in parts.
    events::rejected(rejection.as_ref().expect(POLLED_AGAIN));
    Poll::Ready(ends.reject(std::mem::take(context), rejection.take().expect(POLLED_AGAIN)))
}
