//! What a call hands on to the calls that are made while it is served: its priority and its
//! deadline.
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

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = this.context.enter();
        this.future.poll(cx)
    }
}
