//! Bounds on a response body that expire even if the body is not polled.

use crate::{
    answer::{self, AnswerBody},
    ending::Speaks,
};
use buttress::{
    BoxError, Error, Reason, Rejection,
    deadline::EXCEEDED,
    ending::BodyBounds,
    policy::{Clock, Label, TokioClock},
    timeout::{BODY_IDLE, BODY_TOTAL, READER_STALLED},
    timer::Timer,
};
use http::Response;
use http_body::{Body, Frame, SizeHint};
use pin_project::{pin_project, pinned_drop};
use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, Ordering, fence},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};
use tokio::runtime::Handle;

/// A response body with bounds on its time. Made by a timeout layer with an HTTP or gRPC ending.
///
/// | bound | expires when | set by | default |
/// |---|---|---|---|
/// | idle | a polled body yields no frame for this time | [`body_idle`](buttress::TimeoutLayer::body_idle) | none |
/// | total | the body has not ended after this time | [`body_total`](buttress::TimeoutLayer::body_total) | none |
/// | deadline | the deadline of the call has passed | [`DeadlineLayer`](buttress::DeadlineLayer) | for gRPC |
/// | reader stall | the reader does not poll the body for this time | [`reader_stall`](buttress::TimeoutLayer::reader_stall) | 30 s on servers, none on clients |
///
/// When a bound expires, the body of the inner service is dropped at once, with everything that it
/// holds, and the reader of this body gets a [`Rejection`] as an error, or on a gRPC server whose
/// deadline has passed the trailers of that status. hyper does not poll a body
/// while an HTTP/2 client grants no window, so the timer acts outside of a poll. Without a tokio
/// runtime the body has no bounds.
///
/// ```
/// use buttress_http::{TimedBody, buttress::{error::find_rejection, timeout::BODY_TOTAL}, prelude::*};
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::{BodyExt, channel::Channel};
/// use std::{convert::Infallible, time::Duration};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// // A response whose body never ends.
/// let (sender, body) = Channel::<Bytes, Infallible>::new(1);
/// let response = std::sync::Mutex::new(Some(Response::new(body)));
/// let backend = service_fn(move |_: Request<()>| {
///     let response = response.lock().unwrap().take().unwrap();
///     async move { Ok::<_, std::io::Error>(response) }
/// });
/// let timeout = TimeoutLayer::total(Duration::from_secs(2)).body_total(Duration::from_secs(60));
///
/// let response: Response<TimedBody<_>> = timeout.http_client().layer(backend).oneshot(Request::new(())).await?;
/// let error = response.into_body().collect().await.unwrap_err();
/// assert_eq!(find_rejection(&*error).unwrap().reason(), &BODY_TOTAL);
/// # drop(sender);
/// # Ok(())
/// # }
/// ```
#[pin_project(PinnedDrop)]
pub struct TimedBody<B: Body> {
    #[pin]
    repr: Repr<B>,
}

#[pin_project(project = ReprProj)]
enum Repr<B: Body> {
    Unbounded(#[pin] AnswerBody<B>),
    Bounded(Arc<Bounded<B>>),
}

struct Bounded<B> {
    bounds: BodyBounds,
    /// Whether a deadline that passes ends the body with the trailers of gRPC and not with an
    /// error, which would reach the caller as a reset.
    has_trailers: bool,
    /// The runtime of the timer. The body may be polled outside of it.
    runtime: Handle,
    /// Whether the timer has fired and the bounds have not been checked since.
    has_fired: AtomicBool,
    state: Mutex<State<B>>,
}

struct State<B> {
    /// `None` once the body has ended or a bound has expired.
    body: Option<Pin<Box<B>>>,
    /// The time at which the bound on the whole body expires.
    ends: Option<Instant>,
    /// The start of the current pause: of the reader's wait for a frame, or of the body's wait for
    /// its reader.
    since: Instant,
    /// Whether the reader waits for a frame. If not, the body waits for its reader.
    is_polled: bool,
    timer: Option<Pin<Box<Timer>>>,
    /// Whether the runtime was shut down, so that no timer fires any more.
    is_shut_down: bool,
    /// The time for which the timer is set.
    fires: Instant,
    reader: Option<Waker>,
    /// The rejection by the bound that expired, until the reader has received it.
    rejection: Option<Rejection>,
}

impl<B: Body + Send + 'static> TimedBody<B> {
    /// Puts bounds around the body of a response, unless there are no bounds or the body is at its
    /// end. `stalled` is the default of the bound on a stalled reader.
    pub(crate) fn around<S: Speaks>(
        response: Response<B>,
        bounds: &BodyBounds,
        stalled: Option<Duration>,
        side: Side,
    ) -> Response<Self> {
        let stalled = bounds.stalled.or(stalled).filter(|stalled| *stalled != Duration::MAX);
        let is_grpc = bounds.deadline.is_some() && S::is_grpc(response.headers());
        let deadline = bounds.deadline.filter(|deadline| is_grpc || deadline.through_http);
        let is_bounded = bounds.idle.is_some() || bounds.total.is_some() || stalled.is_some() || deadline.is_some();
        response.map(|body| {
            let runtime = (is_bounded && !body.is_end_stream()).then(Handle::try_current);
            let Some(Ok(runtime)) = runtime else { return Self { repr: Repr::Unbounded(AnswerBody::inner(body)) } };
            let bounds = BodyBounds { stalled, deadline, ..bounds.clone() };
            Self { repr: Repr::Bounded(Bounded::start(body, bounds, is_grpc && side == Side::Server, runtime)) }
        })
    }
}

/// Who reads the body: another process, or the caller of a client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Side {
    Client,
    Server,
}

impl<B: Body> TimedBody<B> {
    /// Makes the body of a response that a layer made.
    pub(crate) fn answer(body: AnswerBody<B>) -> Self {
        Self { repr: Repr::Unbounded(body) }
    }
}

/// Makes an empty body, which layers of tower-http need that answer instead of the inner service
/// (CORS, timeout).
impl<B: Body> Default for TimedBody<B> {
    fn default() -> Self {
        Self::answer(AnswerBody::own(None))
    }
}

impl<B: Send + 'static> Bounded<B> {
    fn start(body: B, bounds: BodyBounds, has_trailers: bool, runtime: Handle) -> Arc<Self> {
        let now = TokioClock.coarse();
        let state = State {
            body: Some(Box::pin(body)),
            ends: bounds.total.and_then(|total| now.checked_add(total)),
            since: now,
            is_polled: false,
            timer: None,
            is_shut_down: false,
            fires: now,
            reader: None,
            rejection: None,
        };
        let (has_fired, state) = (AtomicBool::new(false), Mutex::new(state));
        let bounded = Arc::new(Self { bounds, has_trailers, runtime, has_fired, state });
        bounded.arm(&mut bounded.lock(), now);
        bounded.check_bounds();
        bounded
    }

    /// Sets the timer, unless one is set that fires no later than the next bound expires.
    fn arm(self: &Arc<Self>, state: &mut State<B>, now: Instant) {
        let Some((_, _, due)) = self.next(state) else { return };
        if state.is_shut_down || (state.timer.is_some() && state.fires <= due) {
            return;
        }
        let waker = Waker::from(self.clone());
        let _entered = self.runtime.enter();
        let mut left = due.saturating_duration_since(now);
        loop {
            let mut timer = Box::pin(Timer::after(left.max(Duration::from_millis(1))));
            // If this thread was delayed past `due`, the timer is ready and will not wake the
            // waker. Set another one, so that the bound expires late instead of never.
            if timer.as_mut().poll_expired(&mut Context::from_waker(&waker)).is_pending() {
                (state.timer, state.fires) = (Some(timer), due);
                return;
            }
            left = Duration::ZERO;
        }
    }
}

impl<B> Bounded<B> {
    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the bound that expires next: its reason, its length, and the time at which it
    /// expires.
    fn next(&self, state: &State<B>) -> Option<(&'static Reason, Duration, Instant)> {
        let BodyBounds { idle, total, stalled, deadline, .. } = self.bounds;
        let (reason, limit) = if state.is_polled { (&BODY_IDLE, idle) } else { (&READER_STALLED, stalled) };
        let pause = limit.and_then(|limit| Some((reason, limit, state.since.checked_add(limit)?)));
        let whole = total.zip(state.ends).map(|(total, ends)| (&BODY_TOTAL, total, ends));
        let deadline = deadline.map(|deadline| (&EXCEEDED, deadline.had, deadline.at));
        pause.into_iter().chain(whole).chain(deadline).min_by_key(|(_, _, due)| *due)
    }
}

/// The timer fires on the thread that fires all timers of the runtime.
impl<B: Send + 'static> Wake for Bounded<B> {
    fn wake(self: Arc<Self>) {
        self.has_fired.store(true, Ordering::Relaxed);
        self.check_bounds();
    }
}

impl<B: Send + 'static> Bounded<B> {
    /// Checks the bounds if the timer has fired.
    ///
    /// Does not wait for a thread that holds the lock: polling the body may take long, and would
    /// delay all other timers of the runtime. Every thread calls this after it released the lock.
    fn check_bounds(self: &Arc<Self>) {
        loop {
            // One thread sets the flag and then tries the lock; the other releases the lock and
            // then reads the flag. The fence orders both, so that one of them sees the other's
            // write.
            fence(Ordering::SeqCst);
            if !self.has_fired.load(Ordering::Relaxed) {
                return;
            }
            let state = match self.state.try_lock() {
                Ok(state) => state,
                Err(TryLockError::Poisoned(state)) => state.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            if self.has_fired.swap(false, Ordering::Relaxed) {
                self.expire(state);
            }
        }
    }

    fn expire(self: &Arc<Self>, mut state: MutexGuard<'_, State<B>>) {
        if state.body.is_none() {
            return;
        }
        let now = TokioClock.now();
        state.timer = None;
        // A timer never fires early. The runtime wakes all timers when it is shut down, and no
        // timer can be made after that.
        if now < state.fires {
            state.is_shut_down = true;
            return;
        }
        let expired = self.next(&state).filter(|(_, _, due)| *due <= now);
        let Some((reason, limit, _)) = expired else { return self.arm(&mut state, now) };
        let policy = if reason == &EXCEEDED { "deadline" } else { "timeout" };
        let label = self.bounds.label.clone().unwrap_or(Label::new(policy));
        state.rejection = Some(Rejection::timed_out(label, reason, limit));
        let (body, reader) = (state.body.take(), state.reader.take());
        drop(state);
        // Without the lock, because the drop of the body runs code of the inner service.
        drop(body);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl<B> Body for TimedBody<B>
where
    B: Body<Error: Into<BoxError>> + Send + 'static,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        match self.project().repr.project() {
            ReprProj::Unbounded(body) => body.poll_frame(cx).map_err(Into::into),
            ReprProj::Bounded(bounded) => bounded.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.repr {
            Repr::Unbounded(body) => body.is_end_stream(),
            Repr::Bounded(bounded) => {
                let state = bounded.lock();
                let is_over = state.body.as_ref().map_or(state.rejection.is_none(), |body| body.is_end_stream());
                drop(state);
                bounded.check_bounds();
                is_over
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.repr {
            Repr::Unbounded(body) => body.size_hint(),
            Repr::Bounded(bounded) => {
                let state = bounded.lock();
                let hint = match &state.body {
                    Some(body) => body.size_hint(),
                    None if state.rejection.is_some() => SizeHint::new(),
                    None => SizeHint::with_exact(0),
                };
                drop(state);
                bounded.check_bounds();
                hint
            }
        }
    }
}

impl<B> Bounded<B>
where
    B: Body<Error: Into<BoxError>> + Send + 'static,
{
    #[allow(clippy::type_complexity, reason = "the type of `Body::poll_frame`")]
    fn poll_frame(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let mut state = self.lock();
        if let Some(rejection) = state.rejection.take() {
            return Poll::Ready(Some(if self.has_trailers && rejection.reason() == &EXCEEDED {
                Ok(Frame::trailers(answer::grpc_trailers(&rejection)))
            } else {
                Err(Error::from(rejection).into())
            }));
        }
        let Some(body) = &mut state.body else { return Poll::Ready(None) };
        let frame = body.as_mut().poll_frame(cx);
        let is_over = match &frame {
            Poll::Ready(Some(Ok(_))) => body.is_end_stream(),
            Poll::Ready(_) => true,
            Poll::Pending => false,
        };
        let mut over = None;
        if is_over {
            over = Some((state.body.take(), state.timer.take()));
        } else {
            if frame.is_pending() {
                state.reader = Some(cx.waker().clone());
            }
            if frame.is_ready() || !state.is_polled {
                let now = TokioClock.coarse();
                (state.is_polled, state.since) = (frame.is_pending(), now);
                self.arm(&mut state, now);
            }
        }
        drop(state);
        drop(over);
        self.check_bounds();
        frame.map_err(Into::into)
    }
}

#[pinned_drop]
impl<B: Body> PinnedDrop for TimedBody<B> {
    fn drop(self: Pin<&mut Self>) {
        if let ReprProj::Bounded(bounded) = self.project().repr.project() {
            let mut state = bounded.lock();
            // The timer holds a waker that holds `bounded`, which holds the timer: break the cycle.
            let left = (state.timer.take(), state.body.take(), state.reader.take());
            drop(state);
            drop(left);
        }
    }
}

impl<B: Body + fmt::Debug> fmt::Debug for TimedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("TimedBody");
        match &self.repr {
            Repr::Unbounded(body) => debug.field("inner", body),
            Repr::Bounded(bounded) => debug.field("bounds", &bounded.bounds),
        };
        debug.finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buttress_test::{Part, TestBody};
    use std::{
        pin::pin,
        sync::{OnceLock, Weak, mpsc},
    };
    use tokio::runtime::{Builder, Runtime};

    const IDLE: Duration = Duration::from_millis(20);

    fn around<B>(response: Response<B>, bounds: &BodyBounds, stalled: Option<Duration>) -> Response<TimedBody<B>>
    where
        B: Body + Send + 'static,
    {
        TimedBody::around::<crate::ending::Http>(response, bounds, stalled, Side::Client)
    }

    /// Returns a body with bounds, and its runtime.
    fn bounded(parts: [Part; 2]) -> (Pin<Box<TimedBody<TestBody>>>, Runtime) {
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        let bounds = BodyBounds { idle: Some(IDLE), stalled: Some(3600 * 50 * IDLE), ..BodyBounds::default() };
        let response = Response::new(TestBody::new(parts));
        let body = runtime.block_on(async { around(response, &bounds, None).into_body() });
        (Box::pin(body), runtime)
    }

    fn poll<B>(body: &mut Pin<Box<TimedBody<B>>>) -> Poll<Option<Result<(), BoxError>>>
    where
        B: Body<Error: Into<BoxError>> + Send + 'static,
    {
        let frame = body.as_mut().poll_frame(&mut Context::from_waker(Waker::noop()));
        frame.map(|frame| frame.map(|frame| frame.map(|_| ())))
    }

    #[test]
    fn a_runtime_may_end_before_the_bodies_that_it_times() {
        let (mut body, runtime) = bounded([Part::Data("content"), Part::Never]);
        drop(runtime);
        assert!(matches!(poll(&mut body), Poll::Ready(Some(Ok(())))));
        assert!(poll(&mut body).is_pending());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_whose_bound_has_expired_is_not_at_its_end_before_its_reader_has_the_error() {
        for (parts, is_polled, reason) in [
            (vec![Part::Data("content"), Part::Never], true, &BODY_IDLE),
            (vec![Part::Data("content"), Part::Never], false, &READER_STALLED),
            (vec![Part::Wait(IDLE / 2), Part::Data("a"), Part::Never], true, &BODY_TOTAL),
        ] {
            let named = Label::named("timeout", "payments".into());
            let bounds =
                BodyBounds { idle: Some(IDLE), stalled: Some(IDLE), label: Some(named), ..BodyBounds::default() };
            let total = (reason == &BODY_TOTAL).then_some(IDLE);
            let bounds = BodyBounds {
                total,
                idle: bounds.idle.map(|idle| if total.is_some() { 9 * idle } else { idle }),
                ..bounds
            };
            let mut body = Box::pin(around(Response::new(TestBody::new(parts)), &bounds, None).into_body());
            assert_eq!((body.is_end_stream(), body.size_hint().exact().is_some()), (false, true));
            while is_polled && poll(&mut body).is_ready() {}
            tokio::time::sleep(IDLE / 2 + Duration::from_millis(1)).await;
            assert!(!is_polled || total.is_none() || poll(&mut body).is_ready());
            tokio::time::sleep(IDLE).await;
            assert_eq!((body.is_end_stream(), body.size_hint().exact()), (false, None), "{reason}");
            let Poll::Ready(Some(Err(error))) = poll(&mut body) else { panic!("{reason} did not expire") };
            let rejection = buttress::error::find_rejection(&*error).unwrap();
            assert_eq!(
                (rejection.reason(), rejection.name(), rejection.limit()),
                (reason, Some("payments"), Some(IDLE))
            );
            assert!(matches!(poll(&mut body), Poll::Ready(None)));
            assert_eq!((body.is_end_stream(), body.size_hint().exact()), (true, Some(0)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_waits_is_woken_when_a_bound_expires() {
        let bounds = BodyBounds { idle: Some(IDLE), ..BodyBounds::default() };
        let response = Response::new(TestBody::new([Part::Never]));
        let mut body = Box::pin(around(response, &bounds, None).into_body());
        let reader = tokio::spawn(async move { std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await });
        let frame = tokio::time::timeout(10 * IDLE, reader).await.expect("the reader is not woken");
        assert!(matches!(frame.unwrap(), Some(Err(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_bound_on_a_stalled_reader_is_that_of_the_layer_or_else_of_the_ending_and_max_is_none() {
        let expires = async |set: Option<Duration>, default| {
            let bounds = BodyBounds { stalled: set, ..BodyBounds::default() };
            let response = Response::new(TestBody::new([Part::Never]));
            let mut body = Box::pin(around(response, &bounds, default).into_body());
            let start = TokioClock.now();
            while body.size_hint().exact().is_some() && TokioClock.now() - start < 100 * IDLE {
                tokio::time::sleep(IDLE).await;
            }
            poll(&mut body).is_ready().then(|| TokioClock.now() - start)
        };
        let near = |time: Option<Duration>, expected: Duration| {
            time.is_some_and(|time| time >= expected && time <= expected + 2 * IDLE)
        };
        assert!(near(expires(Some(10 * IDLE), None).await, 10 * IDLE));
        assert!(near(expires(Some(10 * IDLE), Some(30 * IDLE)).await, 10 * IDLE));
        assert!(near(expires(None, Some(30 * IDLE)).await, 30 * IDLE));
        assert_eq!(expires(None, None).await, None);
        assert_eq!(expires(Some(Duration::MAX), Some(30 * IDLE)).await, None);
    }

    #[test]
    fn a_body_that_is_read_outside_of_its_runtime_is_timed_all_the_same() {
        let (mut body, runtime) = bounded([Part::Never, Part::Never]);
        assert!(poll(&mut body).is_pending());
        runtime.block_on(async { tokio::time::sleep(2 * IDLE).await });
        assert!(matches!(poll(&mut body), Poll::Ready(Some(Err(_)))));
    }

    /// A body of which each poll blocks for this long.
    struct Slow(Duration);

    impl Body for Slow {
        type Data = bytes::Bytes;
        type Error = BoxError;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<bytes::Bytes>, BoxError>>> {
            std::thread::sleep(self.0);
            Poll::Ready(Some(Ok(Frame::data(bytes::Bytes::from_static(b"slow")))))
        }
    }

    #[test]
    fn a_bound_that_runs_out_while_the_body_is_polled_holds_up_no_other_timer_and_is_not_forgotten() {
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        let (started, slow) = (TokioClock.now(), 25 * IDLE);
        let bounds = BodyBounds { total: Some(IDLE), ..BodyBounds::default() };
        let body = runtime.block_on(async { around(Response::new(Slow(slow)), &bounds, None).into_body() });
        let reader = std::thread::spawn(move || {
            let (mut body, cx) = (pin!(body), &mut Context::from_waker(Waker::noop()));
            [(); 2].map(|()| matches!(body.as_mut().poll_frame(cx), Poll::Ready(Some(Ok(_)))))
        });
        runtime.block_on(async { tokio::time::sleep(4 * IDLE).await });
        let late = TokioClock.now() - started;
        assert_eq!(reader.join().unwrap(), [true, false]);
        assert!(late < slow, "another timer of the runtime was delayed by {late:?}");
    }

    /// Moves tokio's clock and lets no timer fire.
    fn pass(time: Duration) {
        let _ = pin!(tokio::time::advance(time)).poll(&mut Context::from_waker(Waker::noop()));
    }

    /// A body of one frame or error, in one of whose methods the timer of its bounds fires.
    struct Probe {
        bounds: Arc<OnceLock<Weak<Bounded<Probe>>>>,
        fires_in: &'static str,
        frame: Option<Result<&'static str, BoxError>>,
        /// Whether `is_end_stream` tells the end before a poll does.
        tells_end: bool,
        /// Is sent whether the lock is free when the body is dropped.
        dropped: mpsc::Sender<bool>,
    }

    impl Probe {
        fn bounds(&self) -> Option<Arc<Bounded<Self>>> {
            self.bounds.get().and_then(Weak::upgrade)
        }

        fn called(&self, method: &str) {
            if let Some(bounds) = self.bounds().filter(|_| method == self.fires_in) {
                Waker::from(bounds).wake();
            }
        }
    }

    impl Drop for Probe {
        fn drop(&mut self) {
            let is_free = self.bounds().is_some_and(|bounds| bounds.state.try_lock().is_ok());
            let _ = self.dropped.send(is_free);
        }
    }

    impl Body for Probe {
        type Data = bytes::Bytes;
        type Error = BoxError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<bytes::Bytes>, BoxError>>> {
            self.called("poll_frame");
            Poll::Ready(self.frame.take().map(|frame| Ok(Frame::data(frame?.into()))))
        }

        fn is_end_stream(&self) -> bool {
            self.called("is_end_stream");
            self.tells_end && self.frame.is_none()
        }

        fn size_hint(&self) -> SizeHint {
            self.called("size_hint");
            SizeHint::new()
        }
    }

    /// Returns a body with a bound of `IDLE` on the whole, and what [`Probe::dropped`] receives.
    fn probed(
        fires_in: &'static str,
        frame: Option<Result<&'static str, BoxError>>,
        tells_end: bool,
    ) -> (Pin<Box<TimedBody<Probe>>>, mpsc::Receiver<bool>) {
        let (dropped, drops) = mpsc::channel();
        let cell = Arc::new(OnceLock::new());
        let body = Probe { bounds: cell.clone(), fires_in, frame, tells_end, dropped };
        let bounds = BodyBounds { total: Some(IDLE), ..BodyBounds::default() };
        let body = Box::pin(around(Response::new(body), &bounds, None).into_body());
        let Repr::Bounded(bounded) = &body.repr else { panic!("the body has no bounds") };
        cell.set(Arc::downgrade(bounded)).unwrap();
        (body, drops)
    }

    #[tokio::test(start_paused = true)]
    async fn a_bound_that_expires_while_the_body_is_used_is_checked_afterwards() {
        for method in ["poll_frame", "is_end_stream", "size_hint"] {
            let (mut body, drops) = probed(method, Some(Ok("content")), false);
            pass(2 * IDLE);
            match method {
                "poll_frame" => assert!(matches!(poll(&mut body), Poll::Ready(Some(Ok(()))))),
                "is_end_stream" => assert!(!body.is_end_stream()),
                _ => assert_eq!(body.size_hint().exact(), None),
            }
            assert_eq!(drops.try_recv(), Ok(true), "the body is kept after {method}, or dropped under the lock");
            assert!(matches!(poll(&mut body), Poll::Ready(Some(Err(_)))), "{method}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_bound_that_expires_during_the_last_poll_does_not_follow_the_end_with_an_error() {
        let (mut body, _drops) = probed("poll_frame", Some(Ok("content")), true);
        pass(2 * IDLE);
        assert!(matches!(poll(&mut body), Poll::Ready(Some(Ok(())))));
        assert!(body.is_end_stream());
        assert!(matches!(poll(&mut body), Poll::Ready(None)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_dropped_with_its_end_and_without_the_lock() {
        for (frame, tells_end) in [(Some(Ok("last")), true), (Some(Err("broken".into())), false), (None, false)] {
            let (mut body, drops) = probed("", frame, tells_end);
            assert!(poll(&mut body).is_ready());
            assert_eq!(drops.try_recv(), Ok(true));
            assert_eq!((body.is_end_stream(), body.size_hint().exact()), (true, Some(0)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_dropped_before_its_end_leaves_nothing_behind() {
        let (body, drops) = probed("", Some(Ok("content")), false);
        let Repr::Bounded(bounded) = &body.repr else { panic!("the body has no bounds") };
        let bounded = Arc::downgrade(bounded);
        drop(body);
        assert_eq!((drops.try_recv(), bounded.strong_count()), (Ok(true), 0));
    }

    #[tokio::test(start_paused = true)]
    async fn polls_without_a_frame_do_not_lengthen_the_pause() {
        let bounds = BodyBounds { idle: Some(4 * IDLE), ..BodyBounds::default() };
        let body = around(Response::new(TestBody::new([Part::Never])), &bounds, None).into_body();
        let mut body = Box::pin(body);
        for _ in 0..4 {
            assert!(poll(&mut body).is_pending());
            tokio::time::sleep(IDLE).await;
        }
        tokio::time::sleep(IDLE).await;
        assert!(poll(&mut body).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn each_frame_begins_a_pause_of_its_own_which_is_bounded() {
        let bounds = BodyBounds { idle: Some(IDLE), stalled: Some(IDLE), ..BodyBounds::default() };
        let part = [Part::Wait(IDLE / 2), Part::Data("part")];
        let parts = [part.clone(), part.clone(), part, [Part::Never, Part::Never]].into_iter().flatten();
        let mut body = Box::pin(around(Response::new(TestBody::new(parts)), &bounds, None).into_body());
        let mut frame = async || {
            let frame = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx));
            let frame = tokio::time::timeout(2 * IDLE, frame).await.expect("no bound expires");
            tokio::time::sleep(IDLE / 2).await;
            frame.is_some_and(|frame| frame.is_ok())
        };
        assert_eq!([frame().await, frame().await, frame().await, frame().await], [true, true, true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bound_of_zero_expires_at_once() {
        let bounds = BodyBounds { total: Some(Duration::ZERO), ..BodyBounds::default() };
        let response = Response::new(TestBody::new([Part::Never]));
        let mut body = Box::pin(around(response, &bounds, None).into_body());
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert!(matches!(poll(&mut body), Poll::Ready(Some(Err(_)))));
    }

    #[tokio::test]
    async fn a_body_without_bounds_or_at_its_end_has_no_timer() {
        let bounded = BodyBounds { idle: Some(IDLE), ..BodyBounds::default() };
        for (parts, bounds) in [(vec![], bounded), (vec![Part::Never], BodyBounds::default())] {
            let body = around(Response::new(TestBody::new(parts)), &bounds, None).into_body();
            assert!(matches!(body.repr, Repr::Unbounded(_)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_panics_is_dropped_by_its_bound_and_with_its_owner() {
        for expires in [true, false] {
            let bounds = BodyBounds { total: Some(IDLE), ..BodyBounds::default() };
            let parts = [Part::Panic, Part::Never];
            let mut body = Box::pin(around(Response::new(TestBody::new(parts)), &bounds, None).into_body());
            let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| poll(&mut body)));
            assert!(polled.is_err());
            if expires {
                tokio::time::sleep(2 * IDLE).await;
                assert!(matches!(poll(&mut body), Poll::Ready(Some(Err(_)))));
            }
        }
    }
}
