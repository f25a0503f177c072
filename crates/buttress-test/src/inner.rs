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

/// What an [`Inner`] does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How it becomes ready.
    pub ready: Ready,
    /// How often its future is pending before it answers.
    pub polls: usize,
    /// How long it takes to answer.
    pub delay: Duration,
    /// How it answers.
    pub answer: Answer,
}

/// How a service becomes ready.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ready {
    /// Each instance after this many polls of its own, as one that has to connect.
    After(usize),
    /// With an error.
    Fails,
    /// Not at all.
    Never,
    /// It panics.
    Panics,
}

/// How a service answers, once it has read the body of the request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// 200 with this body.
    Body(Vec<Part>),
    /// This response.
    Response(Response<Vec<Part>>),
    /// An error.
    Error,
    /// This error.
    Fails(MakeError),
    /// An error for this share of the calls, at random; the other answer for the rest. See
    /// [`Inner::seed`].
    Sometimes(f64, Box<Answer>),
    /// Not at all.
    Never,
    /// Not at all, and each poll spends tokio's cooperative budget.
    SpendsBudget,
    /// It panics in `call`.
    PanicInCall,
    /// Its future panics.
    PanicInPoll,
}

/// Makes the error of [`Answer::Fails`].
#[derive(Clone)]
pub struct MakeError(Arc<dyn Fn() -> BoxError + Send + Sync>);

impl MakeError {
    /// Calls `make` for each error.
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
    /// Ready at once, and answers at once, in two frames.
    pub fn healthy() -> Self {
        Self::of(Answer::Body(vec![Part::Data("hello "), Part::Pause, Part::Data("world")]))
    }

    /// Ready at once, and answers at once.
    pub fn of(answer: Answer) -> Self {
        Self { ready: Ready::After(0), polls: 0, delay: Duration::ZERO, answer }
    }

    /// Becomes ready in another way.
    pub fn ready(self, ready: Ready) -> Self {
        Self { ready, ..self }
    }

    /// Answers after this many polls.
    pub fn after(self, polls: usize) -> Self {
        Self { polls, ..self }
    }

    /// Answers after this time.
    pub fn slow(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }
}

/// A backend that follows a [`Plan`]. Clones share the plan and the counters, and each has a
/// readiness of its own.
///
/// It reads the whole body of a request before it answers. Where that body breaks, it answers 400,
/// or `CANCELLED` to a gRPC request, as a handler does.
#[derive(Debug)]
pub struct Inner {
    shared: Arc<Shared>,
    /// Polls of `poll_ready` since the last call.
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

/// A request that an [`Inner`] received.
#[derive(Clone, Debug)]
pub struct Received {
    /// The method.
    pub method: Method,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

/// How many requests an [`Inner`] remembers.
const REMEMBERED: usize = 100;

impl Inner {
    /// A service that follows `plan`.
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

    /// Follows another plan from now on.
    pub fn follow(&self, plan: Plan) {
        *lock(&self.shared.plan) = plan;
    }

    /// Starts another sequence of random errors.
    pub fn seed(&self, seed: u64) {
        *lock(&self.shared.rng) = fastrand::Rng::with_seed(seed);
    }

    /// How many calls reached it.
    pub fn calls(&self) -> usize {
        self.shared.calls.load(Ordering::SeqCst)
    }

    /// The last hundred requests whose bodies arrived whole.
    pub fn received(&self) -> Vec<Received> {
        lock(&self.shared.received).iter().cloned().collect()
    }

    /// How many of its futures and bodies have not been dropped.
    pub fn alive(&self) -> usize {
        self.shared.alive.now.load(Ordering::SeqCst)
    }

    /// How many were alive at the same time at the most, since the last look.
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

/// Counts the futures and bodies of an [`Inner`].
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
        assert!(std::mem::take(&mut self.ready), "an instance was called that had not been polled ready");
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
        if received.len() > REMEMBERED {
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

/// The answer to a request whose body broke.
fn bad_request(headers: &HeaderMap) -> Response<TestBody> {
    let mut response = Response::new(TestBody::default());
    if headers.get("content-type").is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        response.headers_mut().insert("grpc-status", 1.into());
    } else {
        *response.status_mut() = StatusCode::BAD_REQUEST;
    }
    response
}

/// A panic that is part of the script. It does not call the panic hook, because a thousand
/// backtraces take longer than the test.
pub(crate) fn panics(message: &'static str) -> ! {
    resume_unwind(Box::new(message))
}

/// Pending once; wakes at once.
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

/// Pending once nothing is left of the task's budget. Tokio has woken the task by then.
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
