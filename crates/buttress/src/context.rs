//! What a call hands on to the calls that are made while it is served: its priority and its
//! deadline. On the wire they are headers, which a [`ContextLayer`] reads and writes.
//!
//! ```
//! use buttress::{ContextLayer, PlainExt, context, policy::Criticality};
//! use std::convert::Infallible;
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! struct Job {
//!     is_report: bool,
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let service = ServiceBuilder::new()
//!     .layer(
//!         ContextLayer::new()
//!             .priority_by(|job: &Job| job.is_report.then_some(Criticality::Sheddable.into()))
//!             .plain(),
//!     )
//!     .service_fn(async |_: Job| Ok::<_, Infallible>(context::current().priority));
//! let priority = service.oneshot(Job { is_report: true }).await.unwrap();
//! assert_eq!(priority, Some(Criticality::Sheddable.into()));
//! # }
//! ```
//!
//! # When to use it
//!
//! On every service whose calls differ in importance, or that calls others: one layer around the
//! server, and one around each client. With the endings of `buttress-http`, the server's reads
//! `x-priority`, and the client's writes it.
//!
//! # Where it belongs
//!
//! Outermost on a client. On a server outermost but for health, so that all other layers, and the
//! handler, see the context.
//!
//! # Trust
//!
//! Anyone can send a header. A server layer ignores the priority of the caller, and removes the
//! header, unless [`trust_priority`](ContextLayer::trust_priority) is set. Services behind the edge
//! set it; the edge decides by itself, with [`priority_by`](ContextLayer::priority_by).
//!
//! # Differences
//!
//! `tower` has no context of a call. gRPC's libraries hand on a deadline and no priority. Envoy has
//! priorities of routes, for its own limits on connections and requests, which it does not send on.
//!
//! # Spawned work
//!
//! Everything that runs in the future of a call can read its context with [`current`], and the
//! layers of this crate do. Work that is spawned runs in a task of its own, and gets the context by
//! [`scope`]:
//!
//! ```
//! use buttress::{context, policy::{Criticality, CallContext}};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let call = CallContext::default().with_priority(Criticality::Sheddable.into());
//! context::with(call, async {
//!     let spawned = tokio::spawn(context::scope(async { context::current().priority }));
//!     assert_eq!(spawned.await.unwrap(), Some(Criticality::Sheddable.into()));
//! })
//! .await;
//! # }
//! ```

//!
//! # Retries over tiers
//!
//! Where each of three tiers makes three attempts, the lowest service gets 27. So only the lowest
//! caller of a failing service repeats its calls: a failure that a service has repeated, or for
//! which its budget was empty, is marked, and the services above return it at once. A response that
//! passes through a proxy is marked by the [retry layer](crate::retry). A handler makes a response
//! of its own; the server's [`ContextLayer`] marks that one, if it is a failure: retry layers note
//! for the thread that they gave up, and the layer collects these notes while it polls the handler.
//! Work in another task cannot hand its notes back, not even with [`scope`]; the handler can do
//! that with [`Retried`].
//!
//! The server's layer also reads whether the caller repeats this call. If so, the calls that are
//! made for it add nothing to retry budgets ([`CallContext::is_repeated`]).

mod carry;
mod layer;

pub use buttress_core::context::Retried;
pub use carry::{Carry, Known, Stay};
pub use layer::{ContextLayer, ContextService, ResponseFuture};

use buttress_core::context::CallContext;
use pin_project::pin_project;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

/// Returns the context of the call that is being served, or an empty one.
#[inline]
pub fn current() -> CallContext {
    CallContext::current()
}

/// Runs `future` in the current context, for work that is spawned. The [module](self) has an
/// example.
pub fn scope<F>(future: F) -> Scoped<F> {
    with(current(), future)
}

/// Runs `future` in `context`.
pub fn with<F>(context: CallContext, future: F) -> Scoped<F> {
    Scoped { future, context }
}

/// A future in a [context](CallContext). Made by [`scope`] and [`with`].
#[pin_project]
#[derive(Clone, Copy, Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Scoped<F> {
    #[pin]
    future: F,
    context: CallContext,
}

impl<F> Scoped<F> {
    /// Returns the context in which the future runs.
    ///
    /// ```
    /// use buttress::{context, policy::CallContext};
    ///
    /// let scoped = context::with(CallContext::default(), async {});
    /// assert_eq!(scoped.context(), CallContext::default());
    /// ```
    pub fn context(&self) -> CallContext {
        self.context
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = this.context.enter();
        this.future.poll(cx)
    }
}
