//! The subjects: named, and each creates workers that repeat one call.

use std::fmt;
use std::future::{self, Future};
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use serde::Serialize;
use tokio::runtime::{Builder, Runtime};
use tower::Service;

/// Repeats one call `n` times. The workers of a subject share its state, like clones of a service.
pub(crate) type Worker = Box<dyn FnMut(u64) + Send>;

/// The subject whose time is subtracted unless another is named.
pub(crate) const BARE: &str = "floor/bare_service";

pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Our subjects are compared with the peers of the same family.
    pub(crate) family: Family,
    /// The subject whose time is subtracted to get the added cost.
    pub(crate) baseline: &'static str,
    make: Box<dyn Fn() -> Worker>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Ours,
    Peer,
    Floor,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Family {
    Breaker,
    /// A breaker that wraps a closure or a future instead of a service, which is less work than a
    /// layer.
    BreakerCall,
    OpenBreaker,
    Bulkhead,
    RateLimit,
    Retry,
    /// A stack that is cloned for every call.
    Stack,
    /// A stack that is not cloned.
    KeptStack,
    Timeout,
    /// Not compared.
    Other,
}

/// The expected result of every call of a worker. Checked after each batch, so that no number comes
/// from another code path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Expect {
    Ok,
    Err,
}

// === impl Subject ===

impl Subject {
    pub(crate) fn new(name: &'static str, kind: Kind, family: Family, make: impl Fn() -> Worker + 'static) -> Self {
        Self { name, kind, family, baseline: BARE, make: Box::new(make) }
    }

    /// A service that is called repeatedly: `poll_ready`, `call`, and one poll of the future, which
    /// completes it.
    pub(crate) fn service<S>(name: &'static str, kind: Kind, family: Family, expect: Expect, service: S) -> Self
    where
        S: Service<u64> + Clone + Send + 'static,
    {
        Self::new(name, kind, family, move || {
            let mut service = service.clone();
            batch(name, expect, move || succeeds(&mut service, black_box(7)))
        })
    }

    /// Like [`service`](Self::service), with a clone of the service for every call, as axum, retry
    /// and generated clients do. Includes the drop of the clone, which is half of its cost.
    pub(crate) fn cloned<S>(name: &'static str, kind: Kind, family: Family, service: S) -> Self
    where
        S: Service<u64> + Clone + Send + 'static,
    {
        Self::new(name, kind, family, move || {
            let service = service.clone();
            batch(name, Expect::Ok, move || succeeds(&mut service.clone(), black_box(7)))
        })
    }

    /// Something other than a service, wrapped around a call of the bare service or run beside it.
    pub(crate) fn around<F>(name: &'static str, kind: Kind, family: Family, make: impl Fn() -> F + 'static) -> Self
    where
        F: FnMut(&mut Bare) -> bool + Send + 'static,
    {
        Self::new(name, kind, family, move || {
            let mut bare = Bare;
            let mut f = make();
            batch(name, Expect::Ok, move || f(&mut bare))
        })
    }

    pub(crate) fn baseline(mut self, name: &'static str) -> Self {
        self.baseline = name;
        self
    }

    pub(crate) fn worker(&self) -> Worker {
        (self.make)()
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A worker that repeats a call, which returns whether it succeeded.
pub(crate) fn batch(name: &'static str, expect: Expect, mut once: impl FnMut() -> bool + Send + 'static) -> Worker {
    Box::new(move |n| {
        let ok: u64 = (0..n).map(|_| u64::from(once())).sum();
        let expected = if expect == Expect::Ok { n } else { 0 };
        assert_eq!(ok, expected, "{name}: calls that came to Ok");
    })
}

// === the service below every layer ===

/// Always ready, answers at once. It is the part of a call that remains without layers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bare;

/// A request that [`Bare`] fails, to trip breakers.
pub(crate) const FAIL: u64 = u64::MAX;

/// Error of [`Bare`]. Created without an allocation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure;

impl Service<u64> for Bare {
    type Response = u64;
    type Error = Failure;
    type Future = future::Ready<Result<u64, Failure>>;

    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, req: u64) -> Self::Future {
        future::ready(if req == FAIL { Err(Failure) } else { Ok(black_box(req)) })
    }
}

/// [`Bare`] under another name, for a stack that is measured in two ways: code that two subjects
/// share would not be inlined into either.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Again(pub(crate) Bare);

impl Service<u64> for Again {
    type Response = u64;
    type Error = Failure;
    type Future = future::Ready<Result<u64, Failure>>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.0.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, req: u64) -> Self::Future {
        self.0.call(req)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the service failed")
    }
}

impl std::error::Error for Failure {}

// === calling ===

/// One complete call. Blocks in the rare case that a peer's lock makes it wait.
#[inline]
pub(crate) fn call<S, R>(service: &mut S, req: R) -> Result<S::Response, S::Error>
where
    S: Service<R>,
{
    let mut cx = Context::from_waker(Waker::noop());
    match service.poll_ready(&mut cx) {
        Poll::Ready(Ok(())) => {}
        Poll::Ready(Err(error)) => return Err(error),
        Poll::Pending => wait(future::poll_fn(|cx| service.poll_ready(cx)))?,
    }
    now(service.call(req))
}

/// One complete call whose result is inspected in place, as its caller would do. Moving the result
/// costs time proportional to its size, which is not the layer's work.
#[inline(always)]
fn succeeds<S, R>(service: &mut S, req: R) -> bool
where
    S: Service<R>,
{
    let mut cx = Context::from_waker(Waker::noop());
    match service.poll_ready(&mut cx) {
        Poll::Ready(Ok(())) => {}
        Poll::Ready(Err(_)) => return false,
        Poll::Pending => {
            if wait(future::poll_fn(|cx| service.poll_ready(cx))).is_err() {
                return false;
            }
        }
    }
    let mut future = pin!(service.call(req));
    let polled = future.as_mut().poll(&mut cx);
    match black_box(&polled) {
        Poll::Ready(answer) => answer.is_ok(),
        Poll::Pending => wait(future).is_ok(),
    }
}

/// The output of a future that is expected to be ready on its first poll.
#[inline]
pub(crate) fn now<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    let output = match future.as_mut().poll(&mut cx) {
        Poll::Ready(output) => output,
        Poll::Pending => wait(future),
    };
    black_box(output)
}

/// Outside the measured loop: reached only if two threads contend for a peer's lock.
#[cold]
fn wait<F: Future>(future: F) -> F::Output {
    RUNTIME.with(|runtime| runtime.block_on(future))
}

thread_local! {
    /// One runtime per thread, as in a server with a runtime per core. Calls do not run inside a
    /// task, whose cooperative budget would affect the measurement.
    static RUNTIME: Runtime = Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime without IO needs nothing from the system");
}

/// Runs `f` in a runtime context, so that timers can be created.
pub(crate) fn within_runtime<R>(f: impl FnOnce() -> R) -> R {
    RUNTIME.with(|runtime| {
        let _guard = runtime.enter();
        f()
    })
}
