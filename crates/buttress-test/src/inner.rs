use crate::{BoxError, Part, TestBody};
use http::Response;
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};
use tower::Service;

/// What an [`Inner`] does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How it becomes ready.
    pub ready: Ready,
    /// How often its future is pending before it answers.
    pub polls: usize,
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
}

/// How a service answers.
#[derive(Clone, Debug)]
pub enum Answer {
    /// 200 with this body.
    Body(Vec<Part>),
    /// An error.
    Error,
    /// Not at all.
    Never,
    /// It panics in `call`.
    PanicInCall,
    /// Its future panics.
    PanicInPoll,
}

impl Plan {
    /// Ready at once, and answers at once, in two frames.
    pub fn healthy() -> Self {
        Self::of(Answer::Body(vec![Part::Data("hello "), Part::Pause, Part::Data("world")]))
    }

    /// Ready at once, and answers at once.
    pub fn of(answer: Answer) -> Self {
        Self { ready: Ready::After(0), polls: 0, answer }
    }

    /// Becomes ready in another way.
    pub fn ready(self, ready: Ready) -> Self {
        Self { ready, ..self }
    }

    /// Answers after this many polls.
    pub fn after(self, polls: usize) -> Self {
        Self { polls, ..self }
    }
}

/// A service that follows a [`Plan`]. Clones share the plan and the counters, and each has a readiness of its own.
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
    alive: Arc<()>,
}

impl Inner {
    /// A service that follows `plan`.
    pub fn new(plan: Plan) -> Self {
        let shared = Shared { plan: Mutex::new(plan), calls: AtomicUsize::new(0), alive: Arc::default() };
        Self { shared: Arc::new(shared), polled: 0, ready: false }
    }

    /// Follows another plan from now on.
    pub fn follow(&self, plan: Plan) {
        *self.plan() = plan;
    }

    /// How many calls reached it.
    pub fn calls(&self) -> usize {
        self.shared.calls.load(Ordering::SeqCst)
    }

    /// How many of its futures and bodies have not been dropped.
    pub fn alive(&self) -> usize {
        Arc::strong_count(&self.shared.alive) - 1
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.shared.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clone for Inner {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), polled: 0, ready: false }
    }
}

impl<Req> Service<Req> for Inner {
    type Response = Response<TestBody>;
    type Error = BoxError;
    type Future = Answering;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let ready = self.plan().ready;
        match ready {
            Ready::Fails => Poll::Ready(Err("cannot become ready".into())),
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

    fn call(&mut self, _: Req) -> Answering {
        assert!(std::mem::take(&mut self.ready), "an instance was called that had not been polled ready");
        self.polled = 0;
        self.shared.calls.fetch_add(1, Ordering::SeqCst);
        let plan = self.plan().clone();
        if let Answer::PanicInCall = plan.answer {
            panic!("the inner service panics in call");
        }
        Answering { plan, alive: self.shared.alive.clone() }
    }
}

/// The future of an [`Inner`].
#[derive(Debug)]
pub struct Answering {
    plan: Plan,
    alive: Arc<()>,
}

impl Future for Answering {
    type Output = Result<Response<TestBody>, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.plan.polls > 0 {
            self.plan.polls -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match &self.plan.answer {
            Answer::Body(parts) => {
                let body = TestBody::new(parts.clone());
                Poll::Ready(Ok(Response::new(body.counted_by(self.alive.clone()))))
            }
            Answer::Error => Poll::Ready(Err("the inner service fails".into())),
            Answer::Never => Poll::Pending,
            Answer::PanicInCall | Answer::PanicInPoll => panic!("the inner service panics in poll"),
        }
    }
}
