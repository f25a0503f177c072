//! Making calls: from a loop that polls, and from a task.

use std::future::{self, Future};
use std::hint::black_box;
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use tokio::runtime::{Builder, Runtime};
use tower::{Layer, Service};

use crate::situation::{ASK, Situation};

/// Whatever makes calls. Clones share the state of the layer.
pub(crate) trait Caller: Clone + Send + 'static {
    /// Makes a call and returns whether it succeeded.
    fn call_once(&mut self, req: u64) -> impl Future<Output = bool> + Send;
}

/// A layer whose service makes calls.
pub(crate) trait Wraps<I>: Layer<I, Service: Caller> {}

/// Repeats a call this many times. The workers of a subject share its state.
pub(crate) type Worker = Box<dyn FnMut(u64) + Send>;

/// A task that repeats a call until the flag is set, and returns how many calls it made.
pub(crate) type Task = Pin<Box<dyn Future<Output = u64> + Send>>;

impl<L: Layer<I, Service: Caller>, I> Wraps<I> for L {}

impl<S> Caller for S
where
    S: Service<u64, Response: Send, Error: Send, Future: Send> + Clone + Send + 'static,
{
    #[inline(always)]
    fn call_once(&mut self, req: u64) -> impl Future<Output = bool> + Send {
        async move {
            if future::poll_fn(|cx| self.poll_ready(cx)).await.is_err() {
                return false;
            }
            let mut call = pin!(self.call(req));
            future::poll_fn(|cx| look(call.as_mut().poll(cx))).await
        }
    }
}

/// Looks at a result where it lies, as its caller would do. Moving it costs time proportional to
/// its size, which is not the layer's work.
#[inline(always)]
pub(crate) fn look<R, E>(polled: Poll<Result<R, E>>) -> Poll<bool> {
    match black_box(&polled) {
        Poll::Ready(result) => Poll::Ready(result.is_ok()),
        Poll::Pending => Poll::Pending,
    }
}

/// A closure that makes a call by itself: a wrapper of calls, or a part of a layer.
#[derive(Clone)]
pub(crate) struct Around<F>(pub(crate) F);

impl<F: FnMut(u64) -> bool + Clone + Send + 'static> Caller for Around<F> {
    #[inline(always)]
    fn call_once(&mut self, req: u64) -> impl Future<Output = bool> + Send {
        future::ready((self.0)(req))
    }
}

// === repeating calls ===

struct Repeat<C, T> {
    caller: C,
    number: u32,
    situation: PhantomData<T>,
}

impl<C: Caller, T: Situation> Repeat<C, T> {
    fn new(caller: C, _: T) -> Self {
        Self { caller, number: 0, situation: PhantomData }
    }

    /// Makes a call and returns whether it ended as it should.
    #[inline(always)]
    async fn once(&mut self) -> bool {
        let req = black_box(T::request(self.number));
        self.number = self.number.wrapping_add(1);
        let succeeded =
            if T::CLONES { self.caller.clone().call_once(req).await } else { self.caller.call_once(req).await };
        succeeded == (!T::REJECTS && req == ASK)
    }

    /// Where no call succeeds, shows that they reached the service: one that it answers succeeds.
    async fn is_on_its_path(&mut self) -> bool {
        !T::ALL_FAIL || self.caller.call_once(ASK).await
    }
}

/// A worker that polls each call itself. It checks after each batch that every call ended as its
/// situation says, so that no number comes from another code path.
pub(crate) fn worker<C: Caller, T: Situation>(name: String, caller: C, situation: T) -> Worker {
    let mut repeat = Repeat::new(caller, situation);
    Box::new(move |n| {
        let right: u64 = (0..n).map(|_| u64::from(now(repeat.once()))).sum();
        let on_path = now(repeat.is_on_its_path());
        assert!(right == n && on_path, "{name}: {right} of {n} calls ended as they should");
    })
}

/// A task that makes calls and yields now and then, as tasks do that wait for requests.
pub(crate) fn task<C: Caller, T: Situation>(name: String, caller: C, situation: T, stop: Arc<AtomicBool>) -> Task {
    const TURN: u64 = 32;
    let mut repeat = Repeat::new(caller, situation);
    Box::pin(async move {
        let mut calls = 0;
        while !stop.load(Ordering::Relaxed) {
            let mut right = 0;
            for _ in 0..TURN {
                right += u64::from(repeat.once().await);
            }
            assert!(right == TURN, "{name}: {right} of {TURN} calls in a task ended as they should");
            calls += TURN;
            tokio::task::yield_now().await;
        }
        assert!(repeat.is_on_its_path().await, "{name}: the calls of a task did not reach the service");
        calls
    })
}

/// The output of a future that is ready on its first poll, or on its second if it waits for what
/// the bare service does.
#[inline(always)]
pub(crate) fn now<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
        return output;
    }
    match future.as_mut().poll(&mut cx) {
        Poll::Ready(output) => output,
        Poll::Pending => wait(future),
    }
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
