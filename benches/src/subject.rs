//! What is measured: named subjects, each a way to make workers that repeat one call.

use std::fmt;
use std::future::{self, Future};
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use serde::Serialize;
use tokio::runtime::{Builder, Runtime};
use tower::Service;

/// Repeats one call `n` times. Workers of one subject share its state, as clones of a service do.
pub(crate) type Worker = Box<dyn FnMut(u64) + Send>;

/// The subject whose time is subtracted unless another is named.
pub(crate) const BARE: &str = "floor/bare_service";

pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// The question it answers: our subjects are compared with the peers of the same family.
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
    /// A breaker that wraps a closure or a future, not a service: less work than a layer.
    BreakerCall,
    OpenBreaker,
    Bulkhead,
    RateLimit,
    Retry,
    /// A stack that is cloned for every call.
    Stack,
    /// One that is kept.
    KeptStack,
    Timeout,
    /// Compared with nothing.
    Other,
}

/// What every call of a worker must come to; checked after each batch, so that no number is that of the wrong path.
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

    /// A service called over and over: `poll_ready`, `call`, and the future polled to its end, which is one poll.
    pub(crate) fn service<S>(name: &'static str, kind: Kind, family: Family, expect: Expect, service: S) -> Self
    where
        S: Service<u64> + Clone + Send + 'static,
    {
        Self::new(name, kind, family, move || {
            let mut service = service.clone();
            batch(name, expect, move || succeeds(&mut service, black_box(7)))
        })
    }

    /// The same, with a clone of the service for every call, as axum, retry and generated clients
    /// make one. Half of the cost of a clone is its drop, so that is in it too.
    pub(crate) fn cloned<S>(name: &'static str, kind: Kind, family: Family, service: S) -> Self
    where
        S: Service<u64> + Clone + Send + 'static,
    {
        Self::new(name, kind, family, move || {
            let service = service.clone();
            batch(name, Expect::Ok, move || succeeds(&mut service.clone(), black_box(7)))
        })
    }

    /// Something that is not a service, wrapped around (or run beside) a call of the bare service.
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

/// A worker from one call that says whether it came to `Ok`.
pub(crate) fn batch(name: &'static str, expect: Expect, mut once: impl FnMut() -> bool + Send + 'static) -> Worker {
    Box::new(move |n| {
        let ok: u64 = (0..n).map(|_| u64::from(once())).sum();
        let expected = if expect == Expect::Ok { n } else { 0 };
        assert_eq!(ok, expected, "{name}: calls that came to Ok");
    })
}

// === the service below every layer ===

/// Always ready, answers at once. What is left of a call when every layer is taken away.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bare;

/// A request that [`Bare`] fails: how breakers are tripped.
pub(crate) const FAIL: u64 = u64::MAX;

/// Why [`Bare`] failed. Made without an allocation, as good errors are.
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

/// [`Bare`] under another name, for a stack that is measured in two ways: what two subjects share
/// is not inlined into either.
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

/// One whole call, waited for in the rare case that a peer's lock makes it wait.
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

/// One whole call whose answer is looked at where it lies, as its caller would: moving a result out of the way costs by its width, and is not the
/// layer's work.
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

/// The output of a future that is expected to be ready when polled once.
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

/// Away from the loop that is measured: only two threads that fight over a peer's lock come here.
#[cold]
fn wait<F: Future>(future: F) -> F::Output {
    RUNTIME.with(|runtime| runtime.block_on(future))
}

thread_local! {
    /// Each thread has its own, as in a server with a runtime per core. Calls are not made inside a task of it: a task's turn
    /// is rationed, which would show.
    static RUNTIME: Runtime = Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime without IO needs nothing from the system");
}

/// Runs `f` where timers can be made.
pub(crate) fn within_runtime<R>(f: impl FnOnce() -> R) -> R {
    RUNTIME.with(|runtime| {
        let _guard = runtime.enter();
        f()
    })
}
