use crate::{BoxError, Part, TestBody};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use std::{
    collections::VecDeque,
    fmt,
    future::{Future, pending, poll_fn},
    panic::resume_unwind,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::sleep;
use tower::Service;

/// The behaviour of an [`Inner`]: how it becomes ready, and how and when it answers.
///
/// ```
/// use buttress_test::{Answer, Part, Plan, Ready};
/// use std::time::Duration;
///
/// // Ready at the second poll; after 20 ms, a body that breaks.
/// let plan = Plan::of(Answer::Body(vec![Part::Data("half"), Part::Error("connection reset")]))
///     .ready(Ready::After(1))
///     .slow(Duration::from_millis(20));
/// assert_eq!(plan.delay, Duration::from_millis(20));
/// ```
#[derive(Clone, Debug)]
pub struct Plan {
    /// How the service becomes ready.
    pub ready: Ready,
    /// How many polls of its future are pending before it answers.
    pub polls: usize,
    /// How long it takes to answer, after it has read the body of the request.
    pub delay: Duration,
    /// How it answers.
    pub answer: Answer,
}

/// How a service becomes ready.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ready {
    /// Each clone is ready after this many pending polls since its last call, as a service that
    /// connects on demand.
    After(usize),
    /// `poll_ready` returns an error.
    Fails,
    /// `poll_ready` is pending without end.
    Never,
    /// `poll_ready` panics.
    Panics,
}

/// How a service answers after it has read the body of the request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Returns a 200 with this body.
    Body(Vec<Part>),
    /// Returns this response.
    Response(Response<Vec<Part>>),
    /// Returns an error with the message `the inner service fails`.
    Error,
    /// Returns the error that this function makes.
    Fails(MakeError),
    /// Returns an error for this share of the calls (0.0 to 1.0), chosen at random, and the other
    /// answer for the rest. [`Inner::seed`] sets the sequence.
    Sometimes(f64, Box<Answer>),
    /// Is pending without end.
    Never,
    /// Is pending without end, and each poll spends tokio's cooperative budget of the task.
    SpendsBudget,
    /// Panics in `call`.
    PanicInCall,
    /// Panics when the future is polled.
    PanicInPoll,
}

/// A function that makes the errors of [`Answer::Fails`].
///
/// ```
/// use buttress_test::{Answer, MakeError, Plan};
/// use std::io;
///
/// let refused = MakeError::new(|| io::Error::from(io::ErrorKind::ConnectionRefused));
/// let plan = Plan::of(Answer::Fails(refused));
/// # let _ = plan;
/// ```
#[derive(Clone)]
pub struct MakeError(Arc<dyn Fn() -> BoxError + Send + Sync>);

impl MakeError {
    /// Wraps a function that is called for each error.
    pub fn new<E: Into<BoxError>>(make: impl Fn() -> E + Send + Sync + 'static) -> Self {
        Self(Arc::new(move || make().into()))
    }
}

impl fmt::Debug for MakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0().fmt(f)
    }
}

impl Plan {
    /// Makes a plan that is ready at once and answers at once with 200 and the body `hello world`,
    /// in two frames with a pending poll between them.
    pub fn healthy() -> Self {
        Self::of(Answer::Body(vec![Part::Data("hello "), Part::Pause, Part::Data("world")]))
    }

    /// Makes a plan that is ready at once and gives `answer` at once.
    pub fn of(answer: Answer) -> Self {
        Self { ready: Ready::After(0), polls: 0, delay: Duration::ZERO, answer }
    }

    /// Sets how the service becomes ready.
    pub fn ready(self, ready: Ready) -> Self {
        Self { ready, ..self }
    }

    /// Sets how many polls are pending before the answer.
    pub fn after(self, polls: usize) -> Self {
        Self { polls, ..self }
    }

    /// Sets the time before the answer.
    pub fn slow(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }
}

/// A mock backend that follows a [`Plan`].
///
/// Clones share the plan and the counters. Each clone has its own readiness. The whole body of a
/// request is read before the answer; if that body fails, the answer is 400, or `CANCELLED` to a
/// gRPC request.
///
/// ```
/// use buttress_test::{Answer, Inner, Plan, TestBody};
/// use http::Request;
/// use tower::{Layer, ServiceExt, timeout::TimeoutLayer};
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let backend = Inner::new(Plan::of(Answer::Never));
/// let service = TimeoutLayer::new(Duration::from_secs(1)).layer(backend.clone());
/// let request = || Request::post("/pay").body(TestBody::from("42 EUR".to_owned())).unwrap();
///
/// assert!(service.clone().oneshot(request()).await.is_err(), "the timeout expires");
/// assert_eq!(backend.alive(), 0, "the future of the backend was dropped");
///
/// backend.follow(Plan::healthy());
/// assert_eq!(service.oneshot(request()).await.unwrap().status(), 200);
/// assert_eq!((backend.calls(), backend.received().len()), (2, 2));
/// assert_eq!(backend.received()[1].body, "42 EUR");
/// # }
/// ```
///
/// # Panics
///
/// `call` panics if `poll_ready` of the same clone has not returned ready since the last call.
#[derive(Debug)]
pub struct Inner {
    shared: Arc<Shared>,
    /// Number of pending polls of `poll_ready` since the last call.
    polled: usize,
    ready: bool,
}

#[derive(Debug)]
struct Shared {
    plan: Mutex<Plan>,
    calls: AtomicUsize,
    received: Mutex<VecDeque<Received>>,
    rng: Mutex<fastrand::Rng>,
    alive: Arc<Count>,
}

/// A request that an [`Inner`] has received.
#[derive(Clone, Debug)]
pub struct Received {
    /// The method.
    pub method: Method,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

/// Number of requests that an [`Inner`] keeps: bounds the memory of scenarios with many calls, and
/// is more than the attempts of any one call.
const KEPT_REQUESTS: usize = 100;

impl Inner {
    /// Makes a service that follows `plan`.
    pub fn new(plan: Plan) -> Self {
        let shared = Shared {
            plan: Mutex::new(plan),
            calls: AtomicUsize::new(0),
            received: Mutex::default(),
            rng: Mutex::new(fastrand::Rng::with_seed(0)),
            alive: Arc::default(),
        };
        Self { shared: Arc::new(shared), polled: 0, ready: false }
    }

    /// Replaces the plan of all clones. Calls in flight keep the plan that they started with.
    pub fn follow(&self, plan: Plan) {
        *lock(&self.shared.plan) = plan;
    }

    /// Sets the seed of the random errors of [`Answer::Sometimes`]. Default 0.
    pub fn seed(&self, seed: u64) {
        *lock(&self.shared.rng) = fastrand::Rng::with_seed(seed);
    }

    /// Returns the number of calls since the service was made.
    pub fn calls(&self) -> usize {
        self.shared.calls.load(Ordering::SeqCst)
    }

    /// Returns the last 100 requests whose bodies arrived whole, oldest first.
    pub fn received(&self) -> Vec<Received> {
        lock(&self.shared.received).iter().cloned().collect()
    }

    /// Returns the number of its futures and bodies that have not been dropped.
    pub fn alive(&self) -> usize {
        self.shared.alive.now.load(Ordering::SeqCst)
    }

    /// Returns the highest number of futures and bodies that were alive at the same time since the
    /// last call of this method, and resets it.
    pub fn take_peak(&self) -> usize {
        self.shared.alive.peak.swap(self.alive(), Ordering::SeqCst)
    }

    fn plan(&self) -> Plan {
        lock(&self.shared.plan).clone()
    }
}

impl Clone for Inner {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), polled: 0, ready: false }
    }
}

/// A guard that counts one future or body of an [`Inner`] as alive.
#[derive(Debug)]
pub(crate) struct Alive(Arc<Count>);

#[derive(Debug, Default)]
struct Count {
    now: AtomicUsize,
    peak: AtomicUsize,
}

impl Alive {
    fn new(count: Arc<Count>) -> Self {
        let now = count.now.fetch_add(1, Ordering::SeqCst) + 1;
        count.peak.fetch_max(now, Ordering::SeqCst);
        Self(count)
    }
}

impl Clone for Alive {
    fn clone(&self) -> Self {
        Self::new(self.0.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<B> Service<Request<B>> for Inner
where
    B: Body<Error: Into<BoxError>> + Send + 'static,
    B::Data: Send,
{
    type Response = Response<TestBody>;
    type Error = BoxError;
    type Future = Answering;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let ready = lock(&self.shared.plan).ready;
        match ready {
            Ready::Fails => Poll::Ready(Err("cannot become ready".into())),
            Ready::Never => Poll::Pending,
            Ready::Panics => panics("the inner service panics in poll_ready"),
            Ready::After(polls) if self.polled < polls => {
                self.polled += 1;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Ready::After(_) => {
                self.ready = true;
                Poll::Ready(Ok(()))
            }
        }
    }

    fn call(&mut self, request: Request<B>) -> Answering {
        assert!(std::mem::take(&mut self.ready), "a clone was called before its poll_ready returned ready");
        self.polled = 0;
        self.shared.calls.fetch_add(1, Ordering::SeqCst);
        let plan = self.plan();
        if let Answer::PanicInCall = plan.answer {
            panics("the inner service panics in call");
        }
        let alive = Alive::new(self.shared.alive.clone());
        Answering(Box::pin(answer(self.shared.clone(), plan, request, alive)))
    }
}

async fn answer<B>(
    shared: Arc<Shared>,
    plan: Plan,
    request: Request<B>,
    alive: Alive,
) -> Result<Response<TestBody>, BoxError>
where
    B: Body<Error: Into<BoxError>>,
{
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return Ok(bad_request(&head.headers)) };
    {
        let mut received = lock(&shared.received);
        received.push_back(Received { method: head.method, headers: head.headers, body: body.to_bytes() });
        if received.len() > KEPT_REQUESTS {
            received.pop_front();
        }
    }
    if !plan.delay.is_zero() {
        sleep(plan.delay).await;
    }
    for _ in 0..plan.polls {
        pause().await;
    }
    let mut answer = plan.answer;
    if let Answer::Sometimes(share, other) = answer {
        let fails = lock(&shared.rng).f64() < share;
        answer = if fails { Answer::Error } else { *other };
    }
    let response = match answer {
        Answer::Body(parts) => Response::new(parts),
        Answer::Response(response) => response,
        Answer::Error => return Err("the inner service fails".into()),
        Answer::Fails(make) => return Err(make.0()),
        Answer::Never => pending().await,
        Answer::SpendsBudget => poll_fn(spend_budget).await,
        Answer::PanicInCall | Answer::PanicInPoll | Answer::Sometimes(..) => panics("the inner service panics in poll"),
    };
    Ok(response.map(|parts| TestBody::new(parts).counted_by(alive)))
}

/// Returns the answer to a request whose body failed: 400, or `CANCELLED` (1) to a gRPC request.
fn bad_request(headers: &HeaderMap) -> Response<TestBody> {
    let mut response = Response::new(TestBody::default());
    if headers.get("content-type").is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        response.headers_mut().insert("grpc-status", 1.into());
    } else {
        *response.status_mut() = StatusCode::BAD_REQUEST;
    }
    response
}

/// Panics without the panic hook, because 1,000 backtraces take longer than the test.
pub(crate) fn panics(message: &'static str) -> ! {
    resume_unwind(Box::new(message))
}

/// Is pending for one poll, and wakes the task at once.
async fn pause() {
    let mut paused = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut paused, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Spends the budget of the task, then is pending. Tokio has woken the task by then.
fn spend_budget<T>(cx: &mut Context<'_>) -> Poll<T> {
    while pin!(tokio::task::consume_budget()).poll(cx).is_ready() {}
    Poll::Pending
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The future of an [`Inner`].
pub struct Answering(Pin<Box<dyn Future<Output = Result<Response<TestBody>, BoxError>> + Send>>);

impl Future for Answering {
    type Output = Result<Response<TestBody>, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Answering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answering").finish_non_exhaustive()
    }
}
