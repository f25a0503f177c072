//! A layer under test: its services, its backend, and calls through it.

use super::{
    Caller, Traffic,
    shape::Outgoing,
    table::{self, grpc},
};
use crate::{
    Answer, BoxError, Inner, Plan,
    subject::{AnyBody, Boxed, Reply, Subject},
};
use buttress::policy::{Clock, TokioClock};
use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::BodyExt;
use std::{
    fmt,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};
use tower::Service;

/// A call that takes longer counts as hung: longer than any call or timeout of the traffic, shorter
/// than the two years that tokio's timers reach.
const HUNG: Duration = Duration::from_secs(365 * 24 * 3600);

/// A service that is not ready after this time counts as rejecting: the backend of most shapes is
/// ready at once.
const READY_WITHIN: Duration = Duration::from_millis(1);

/// After this time every open circuit admits a probe: the longest open time is 30 seconds by
/// default, and some tests set it to minutes.
pub(super) const PROBES_BY: Duration = Duration::from_secs(15 * 60);

pub(super) struct Field<'a> {
    pub(super) inner: Inner,
    pub(super) traffic: &'a Traffic,
    layer: Subject,
}

/// Measures virtual time.
pub(super) struct Stopwatch(Instant);

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self(TokioClock.now())
    }

    pub(super) fn elapsed(&self) -> Duration {
        TokioClock.now() - self.0
    }
}

/// The result of a call, as its caller sees it.
#[derive(Debug)]
pub(super) enum Came {
    /// The whole response.
    Whole(StatusCode, Bytes),
    /// A response whose body ended with an error.
    Broken(BoxError),
    Error(BoxError),
    Panic,
    /// The caller dropped the call or the body before its end.
    Left,
    /// The service was not ready within [`READY_WITHIN`].
    NotReady,
}

impl fmt::Display for Came {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(status, body) => write!(f, "{status}, {:?}", String::from_utf8_lossy(body)),
            Self::Broken(error) => write!(f, "a body with an error: {error}"),
            Self::Error(error) => write!(f, "an error: {error}"),
            Self::Panic => f.write_str("a panic"),
            Self::Left => f.write_str("nothing, because the caller left"),
            Self::NotReady => f.write_str("nothing, because the service is not ready"),
        }
    }
}

/// The observations of one call.
#[derive(Debug)]
pub(super) struct Seen {
    /// Number of attempts that reached the backend.
    pub(super) reached: usize,
    pub(super) came: Came,
}

impl Seen {
    pub(super) fn is_refused(&self) -> bool {
        self.reached == 0
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reached, came } = self;
        write!(f, "{reached} attempts reached the backend, the caller got {came}")
    }
}

impl<'a> Field<'a> {
    pub(super) fn new(traffic: &'a Traffic) -> Self {
        Self { inner: Inner::new(table::healthy(traffic.protocol)), traffic, layer: (traffic.layer)() }
    }

    /// Makes another service of the layer, as axum does for each connection.
    pub(super) fn service(&self) -> Boxed {
        self.layer.service(&self.inner)
    }

    pub(super) fn healthy(&self) -> Plan {
        table::healthy(self.traffic.protocol)
    }

    /// Returns the request of calls that are not of a shape.
    pub(super) fn request(&self) -> Outgoing {
        match self.traffic.protocol {
            super::Protocol::Grpc => grpc(Outgoing::new(Method::POST)),
            _ => Outgoing::new(Method::GET),
        }
    }

    /// Makes one call, from readiness to the end of its body.
    pub(super) async fn call(&self, plan: &Plan, request: &Outgoing, caller: Caller) -> Seen {
        (self.traffic.between_calls)();
        self.inner.follow(plan.clone());
        let before = self.inner.calls();
        let came =
            timeout(HUNG, unwinds(self.talk(request, caller))).await.expect("the call has not ended after a year");
        Seen { reached: self.inner.calls() - before, came: came.unwrap_or(Came::Panic) }
    }

    async fn talk(&self, request: &Outgoing, caller: Caller) -> Came {
        let mut service = self.service();
        match timeout(READY_WITHIN, poll_fn(|cx| service.poll_ready(cx))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Came::Error(error),
            Err(_) => return Came::NotReady,
        }
        match caller {
            Caller::LeavesWhenReady(time) => {
                sleep(time).await;
                return Came::Left;
            }
            Caller::IdlesWhenReady(time) => sleep(time).await,
            _ => {}
        }
        let call = service.call(request.make());
        match caller {
            Caller::Polls(polls) => {
                let mut call = Box::pin(call);
                for _ in 0..polls {
                    if let Poll::Ready(reply) = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await {
                        return read(reply, usize::MAX).await;
                    }
                    sleep(Duration::from_millis(1)).await;
                }
                Came::Left
            }
            Caller::HangsUpAfter(time) => {
                let whole = async { read(call.await, usize::MAX).await };
                timeout(time, whole).await.unwrap_or(Came::Left)
            }
            Caller::ReadsFrames(frames) => read(call.await, frames).await,
            _ => read(call.await, usize::MAX).await,
        }
    }

    /// Makes a call to a healthy backend.
    pub(super) async fn healthy_call(&self) -> Seen {
        self.call(&self.healthy(), &self.request(), Caller::ReadsAll).await
    }

    /// Calls a failing backend until the circuit rejects. Returns how many calls reached it.
    pub(super) async fn trip(&self) -> usize {
        let before = self.inner.calls();
        for _ in 0..200 {
            if self.call(&Plan::of(Answer::Error), &self.request(), Caller::ReadsAll).await.is_refused() {
                return self.inner.calls() - before;
            }
        }
        panic!("200 consecutive errors do not open the circuit");
    }

    /// Asserts that nothing of the backend is held, and that the next call reaches it once.
    pub(super) async fn is_as_before(&self) {
        self.holds_nothing();
        let seen = self.healthy_call().await;
        assert!(matches!(seen.came, Came::Whole(..)), "the next call is not admitted: {seen}");
        assert_eq!(seen.reached, 1, "the next call reaches the backend more than once");
    }

    /// Asserts that all futures and bodies of the backend were dropped.
    pub(super) fn holds_nothing(&self) {
        assert_eq!(self.inner.alive(), 0, "a future or a body of the backend is still held");
    }

    /// Asserts that the circuit is closed: up to 10 calls that hang are all admitted.
    pub(super) async fn is_closed(&self) {
        let calls = self.traffic.at_once.unwrap_or(10).min(10);
        self.inner.follow(Plan::of(Answer::Never));
        let before = self.inner.calls();
        let mut hung = Vec::new();
        for _ in 0..calls {
            let mut service = self.service();
            let ready = timeout(READY_WITHIN, poll_fn(|cx| service.poll_ready(cx))).await;
            ready.expect("the circuit has not closed: a service is not ready").expect("the service is ready");
            let mut call = Box::pin(service.call(self.request().make()));
            let polled = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
            assert!(polled.is_pending(), "the circuit has not closed: {polled:?}");
            hung.push((service, call));
        }
        assert_eq!(self.inner.calls() - before, calls, "the circuit has not closed");
    }
}

/// Reads up to `frames` frames of a reply.
pub(super) async fn read(reply: Reply, frames: usize) -> Came {
    let response = match reply {
        Ok(response) => response,
        Err(error) => return Came::Error(error),
    };
    read_body(response, frames).await
}

async fn read_body(response: Response<AnyBody>, frames: usize) -> Came {
    let (head, mut body) = response.into_parts();
    let mut whole = Vec::new();
    for _ in 0..frames {
        match body.frame().await {
            None => return Came::Whole(head.status, whole.into()),
            Some(Err(error)) => return Came::Broken(error),
            Some(Ok(frame)) => whole.extend(frame.into_data().unwrap_or_default()),
        }
    }
    Came::Left
}

/// Runs a part of a call as a task does: a panic ends it.
async fn unwinds<T>(part: impl Future<Output = T>) -> Result<T, ()> {
    let mut part = pin!(part);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| part.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(_) => Poll::Ready(Err(())),
    })
    .await
}
