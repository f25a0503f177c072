//! One connection: hyper's, and the task around it that closes it in time.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::task::Poll;

use axum::body::Body;
use axum::extract::ConnectInfo;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::{Builder, Connection};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::activity::Activity;
use super::body::{Answer, Upload};
use super::io::Watched;
use super::{Answers, Limits};
use crate::clock::now;

/// The smallest buffer that hyper accepts for heads of HTTP/1.
const SMALLEST_HEAD: usize = 8 * 1024;

/// Serves connections in the protocol that the client speaks.
#[derive(Clone, Debug)]
pub(super) struct Protocols {
    builder: Builder<TokioExecutor>,
    limits: Limits,
}

impl Protocols {
    pub(super) fn new(limits: &Limits) -> Self {
        let mut builder = Builder::new(TokioExecutor::new());
        // No `header_read_timeout`: it covers the time between requests too, which has a deadline
        // of its own, and not the bytes before hyper knows the protocol.
        builder.http1().header_read_timeout(None).max_buf_size(limits.head_bytes.max(SMALLEST_HEAD));
        let head_bytes = u32::try_from(limits.head_bytes.max(SMALLEST_HEAD)).unwrap_or(u32::MAX);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(limits.ping)
            .keep_alive_timeout(limits.ping)
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(head_bytes);
        Self { builder, limits: *limits }
    }

    /// Serves one connection until it ends, or is closed because of a deadline or of `stop`.
    pub(super) fn serve<T, S>(
        &self,
        socket: T,
        peer: SocketAddr,
        service: S,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<T, S>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        S: Answers,
    {
        let (activity, limits) = (Activity::new(), self.limits);
        let requests = Requests { service, peer, activity: activity.clone(), limits };
        let io = TokioIo::new(Watched { socket, activity: activity.clone() });
        let connection = self.builder.serve_connection(io, requests).into_owned();
        async move { supervise(connection, &activity, &limits, stop).await }
    }
}

/// Drives a connection. The deadline is looked up when the timer fires, and the timer is set again
/// if there is time left, so that a request does not have to touch it.
async fn supervise<T, S>(
    connection: Connection<'static, TokioIo<Watched<T>>, Requests<S>, TokioExecutor>,
    activity: &Activity,
    limits: &Limits,
    stop: CancellationToken,
) where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Answers,
{
    let mut connection = pin!(connection);
    let mut stopped = pin!(stop.cancelled());
    let mut timer = pin!(sleep_until(now()));
    // Set when the connection should end: by when it is dropped if it is still quiet.
    let mut closing: Option<Instant> = None;
    poll_fn(|context| {
        loop {
            if let Poll::Ready(ended) = connection.as_mut().poll(context) {
                if let Err(error) = ended {
                    tracing::debug!(error = &*error, "connection ended with an error");
                }
                return Poll::Ready(());
            }
            if closing.is_none() && stopped.as_mut().poll(context).is_ready() {
                closing = Some(now() + limits.linger);
                connection.as_mut().graceful_shutdown();
                continue;
            }
            // Nothing is lost: whatever had arrived was read by the poll above. A client that has
            // sent half a head has to repeat it elsewhere.
            if closing.is_some() && activity.is_quiet() && !activity.is_http2() {
                return Poll::Ready(());
            }
            let lingering = closing.filter(|_| activity.is_quiet());
            let due = activity.deadline(limits).into_iter().chain(lingering).min();
            let due = due.unwrap_or_else(|| now() + limits.head);
            if due > now() {
                // Never set to a later time while it runs: it fires early at most once per
                // deadline.
                if timer.deadline() <= now() || due < timer.deadline() {
                    timer.as_mut().reset(due);
                }
                if timer.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
            } else if closing.is_none() && activity.is_http2() && activity.is_quiet() {
                closing = Some(now() + limits.linger);
                connection.as_mut().graceful_shutdown();
            } else {
                tracing::debug!("connection closed: nothing was sent or read in time");
                return Poll::Ready(());
            }
        }
    })
    .await;
}

/// Answers the requests of one connection.
struct Requests<S> {
    service: S,
    peer: SocketAddr,
    activity: Activity,
    limits: Limits,
}

impl<S: Answers> hyper::service::Service<Request<Incoming>> for Requests<S> {
    type Response = Response<Answer<Body>>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let in_flight = self.activity.begin(request.version());
        let deadline = now() + self.limits.body;
        let mut request = request.map(|body| Body::new(Upload::new(body, deadline)));
        request.extensions_mut().insert(ConnectInfo(self.peer));
        let answering = self.service.clone().oneshot(request);
        async move {
            let response = answering.await?;
            Ok(response.map(|body| Answer::new(body, in_flight)))
        }
        .boxed()
    }
}
