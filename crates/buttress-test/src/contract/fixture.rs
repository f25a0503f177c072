use crate::{
    BoxError, Inner, Plan, TestBody,
    subject::{Boxed, Reply, Subject},
};
use http::Request;
use http_body_util::BodyExt;
use std::{
    future::{Future, poll_fn},
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{advance, timeout};
use tokio_test::task;
use tower::Service;

/// Time that passes between two polls: longer than the backoff of a retry, shorter than a timeout
/// or a lease of a layer under test.
const STEP: Duration = Duration::from_secs(60);

/// A call or a readiness that takes longer counts as hung.
const HUNG: Duration = Duration::from_secs(60 * 60);

/// A layer under test, and the inner service of all services that it makes.
pub(super) struct Fixture {
    pub(super) inner: Inner,
    layer: Subject,
}

impl Fixture {
    pub(super) fn new(layer: Subject, plan: Plan) -> Self {
        Self { inner: Inner::new(plan), layer }
    }

    /// Makes another service of the layer, as axum does for each connection.
    pub(super) fn service(&self) -> Boxed {
        self.layer.service(&self.inner)
    }

    /// Makes a service and waits until it is ready.
    pub(super) async fn ready(&self) -> Boxed {
        let mut service = self.service();
        become_ready(&mut service).await.expect("the inner service becomes ready");
        service
    }

    /// Asserts that nothing of the inner service is held, and that the next call reaches it.
    pub(super) async fn is_as_before(&self, after: &str) {
        assert_eq!(self.inner.alive(), 0, "after {after}: a future or a body of the inner service is still held");
        let before = self.inner.calls();
        self.inner.follow(Plan::healthy());
        let reply = self.ready().await.call(request()).await;
        let reached = self.inner.calls() - before;
        assert_eq!(reached, 1, "after {after}: a permit is lost, the next call is not admitted: {reply:?}");
        let body = reply.expect("the inner service is healthy").into_body().collect().await;
        assert_eq!(body.expect("the body is healthy").to_bytes(), "hello world");
    }
}

pub(super) fn request() -> Request<TestBody> {
    Request::new(TestBody::default())
}

/// Waits until a service is ready.
pub(super) async fn become_ready(service: &mut Boxed) -> Result<(), BoxError> {
    let ready = timeout(HUNG, poll_fn(|cx| service.poll_ready(cx)));
    ready.await.expect("the service is not ready after an hour: a permit or a wake-up is lost")
}

/// Waits for a reply.
pub(super) async fn reply(call: impl Future<Output = Reply>) -> Reply {
    timeout(HUNG, call).await.expect("the call has not ended after an hour: a permit or a wake-up is lost")
}

/// Polls a call up to `times` times, [`STEP`] apart. Returns its output if it has ended.
pub(super) async fn poll_times<F: Future>(call: &mut task::Spawn<F>, times: usize) -> Option<F::Output> {
    for _ in 0..times {
        if let Poll::Ready(output) = call.poll() {
            return Some(output);
        }
        advance(STEP).await;
    }
    None
}

/// Polls readiness once. Returns whether the service is ready.
pub(super) fn poll_ready(service: &mut Boxed, cx: &mut Context<'_>) -> bool {
    matches!(service.poll_ready(cx), Poll::Ready(Ok(())))
}
