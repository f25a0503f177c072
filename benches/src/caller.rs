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
    /// Whether a call may start: false if it fails now.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<bool> {
        Poll::Ready(true)
    }

    /// Starts a call.
    fn start(&mut self, req: u64) -> impl Future<Output = Result<impl Send, impl Send>> + Send;
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
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        Service::poll_ready(self, cx).map(|ready| ready.is_ok())
    }

    #[inline(always)]
    fn start(&mut self, req: u64) -> impl Future<Output = Result<impl Send, impl Send>> + Send {
        self.call(req)
    }
}

/// A closure that makes a call by itself: a wrapper of calls, or a part of a layer.
#[derive(Clone)]
pub(crate) struct Around<F>(pub(crate) F);

impl<F: FnMut(u64) -> bool + Clone + Send + 'static> Caller for Around<F> {
    #[inline(always)]
    fn start(&mut self, req: u64) -> impl Future<Output = Result<impl Send, impl Send>> + Send {
        future::ready(if (self.0)(req) { Ok(()) } else { Err(()) })
    }
}

/// Makes a call within a loop and returns whether it succeeded. The bare service is ready at the
/// second poll at the latest.
#[inline(always)]
pub(crate) fn call(caller: &mut impl Caller, req: u64) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    let is_ready = match caller.poll_ready(&mut cx) {
        Poll::Ready(is_ready) => is_ready,
        Poll::Pending => wait(future::poll_fn(|cx| caller.poll_ready(cx))),
    };
    if !is_ready {
        return false;
    }
    let mut future = pin!(caller.start(req));
    for _ in 0..2 {
        if let Poll::Ready(succeeded) = look(future.as_mut().poll(&mut cx)) {
            return succeeded;
        }
    }
    wait(future::poll_fn(|cx| look(future.as_mut().poll(cx))))
}

/// Makes a call within a task.
async fn call_in_task(caller: &mut impl Caller, req: u64) -> bool {
    if !future::poll_fn(|cx| caller.poll_ready(cx)).await {
        return false;
    }
    let mut future = pin!(caller.start(req));
    future::poll_fn(|cx| look(future.as_mut().poll(cx))).await
}

/// Looks at a result where it lies, as its caller would do. Moving it costs time proportional to
/// its size, which is not the layer's work.
#[inline(always)]
fn look<R, E>(polled: Poll<Result<R, E>>) -> Poll<bool> {
    match black_box(&polled) {
        Poll::Ready(result) => Poll::Ready(result.is_ok()),
        Poll::Pending => Poll::Pending,
    }
}

/// Outside the measured loop: reached only if two threads contend for a peer's lock.
#[cold]
fn wait<F: Future>(future: F) -> F::Output {
    RUNTIME.with(|runtime| runtime.block_on(future))
}

// === repeating calls ===

/// On cache lines of its own: two workers write to theirs with every call.
#[repr(align(128))]
struct Repeat<C, T> {
    caller: C,
    number: u32,
    situation: PhantomData<T>,
}

impl<C: Caller, T: Situation> Repeat<C, T> {
    fn new(caller: C, _: T) -> Self {
        Self { caller, number: 0, situation: PhantomData }
    }

    #[inline(always)]
    fn next_request(&mut self) -> u64 {
        let number = self.number;
        self.number = number.wrapping_add(1);
        black_box(T::request(number))
    }

    /// Makes a call and returns whether it ended as it should.
    #[inline(always)]
    fn once(&mut self) -> bool {
        let req = self.next_request();
        let succeeded = if T::CLONES { call(&mut self.caller.clone(), req) } else { call(&mut self.caller, req) };
        succeeded == (!T::REJECTS && req == ASK)
    }

    async fn once_in_task(&mut self) -> bool {
        let req = self.next_request();
        let succeeded = if T::CLONES {
            call_in_task(&mut self.caller.clone(), req).await
        } else {
            call_in_task(&mut self.caller, req).await
        };
        succeeded == (!T::REJECTS && req == ASK)
    }
}

/// A worker that polls each call itself. It checks after each batch that every call ended as its
/// situation says, so that no number comes from another code path.
pub(crate) fn worker<C: Caller, T: Situation>(name: String, caller: C, situation: T) -> Worker {
    let mut repeat = Repeat::new(caller, situation);
    Box::new(move |n| {
        let right: u64 = (0..n).map(|_| u64::from(repeat.once())).sum();
        // If no call succeeds, one shows that they reached the service, which answers it.
        let on_path = !T::ALL_FAIL || call(&mut repeat.caller, ASK);
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
                right += u64::from(repeat.once_in_task().await);
            }
            assert!(right == TURN, "{name}: {right} of {TURN} calls in a task ended as they should");
            calls += TURN;
            tokio::task::yield_now().await;
        }
        let on_path = !T::ALL_FAIL || call_in_task(&mut repeat.caller, ASK).await;
        assert!(on_path, "{name}: the calls of a task did not reach the service");
        calls
    })
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
