//! The edge of a service: accepts connections and serves HTTP/1 and HTTP/2 on them, with a deadline
//! or a limit for everything that a client can make the server wait for or hold.
//!
//! | what a client may do | what ends it |
//! |---|---|
//! | connect and send nothing, or half a head | [`Limits::head`] |
//! | keep a connection open between requests | [`Limits::idle`] |
//! | send a body slowly | [`Limits::body`]; the answer is 408 |
//! | not read an answer | [`Limits::write`] |
//! | disappear without closing an HTTP/2 connection | [`Limits::ping`] |
//! | open many connections | [`Limits::connections`]; further ones are closed at once |
//! | open many streams on one connection | [`Limits::streams`] |
//! | send large headers | [`Limits::head_bytes`]; the answer is 431 |
//!
//! Connections beyond the limit are closed instead of left in the listener's queue: a client that
//! is refused at once can go to another instance, and a health probe that waits looks like a server
//! that has died. Errors of `accept`, such as a full table of file descriptors, are logged at most
//! once in ten seconds; the listener stays open.
//!
//! [`upload::read`] belongs to it: the middleware that reads a request's body before the request
//! takes a place in a bulkhead, so that a slow upload holds nothing but its own connection.
//!
//! Nothing here knows the mesh: [`serve`] takes any [`Listener`] and any service of axum's types.

mod activity;
mod body;
mod connection;
mod io;
pub mod upload;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use body::UploadTimedOut;

use crate::clock::now;
use crate::seldom::Seldom;
use connection::Protocols;

/// Deadlines and limits of a server. [`Limits::default`] suits a service behind a load balancer.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of open connections. Default: 1,024, which leaves descriptors for databases
    /// and clients under the usual limit of a process.
    pub connections: usize,
    /// How long a client may take for the head of an HTTP/1 request: from the connection or from
    /// its first byte, whichever is later. Default: 10 s.
    pub head: Duration,
    /// How long a client may take for the body of a request, from the end of its head. Default:
    /// 10 s.
    pub body: Duration,
    /// How long a connection may stay open without a request. Default: 75 s, longer than the 60 s
    /// of common load balancers, which must be the first to close.
    pub idle: Duration,
    /// How long a client may leave an answer unread while the socket's buffer is full, or on HTTP/2
    /// without a window for a frame of it. Default: 30 s.
    pub write: Duration,
    /// Maximum size of a request's head, in bytes. Default: 16 KiB; at least 8 KiB.
    pub head_bytes: usize,
    /// Maximum number of concurrent requests on an HTTP/2 connection. Default: 128.
    pub streams: u32,
    /// Interval of pings on HTTP/2 connections. A peer that does not answer one within this time is
    /// disconnected. Default: 20 s.
    pub ping: Duration,
    /// How long an HTTP/2 connection without requests stays open after its GOAWAY, so that a
    /// request that the client had already sent is served. Default: 1 s.
    pub linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            head: Duration::from_secs(10),
            body: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            write: Duration::from_secs(30),
            head_bytes: 16 * 1024,
            streams: 128,
            ping: Duration::from_secs(20),
            linger: Duration::from_secs(1),
        }
    }
}

/// Accepts connections.
pub trait Listener: Send + 'static {
    type Io: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Accepts the next connection. Must be cancel safe.
    fn accept(&mut self) -> impl Future<Output = std::io::Result<(Self::Io, SocketAddr)>> + Send;
}

impl Listener for tokio::net::TcpListener {
    type Io = tokio::net::TcpStream;

    async fn accept(&mut self) -> std::io::Result<(Self::Io, SocketAddr)> {
        let (stream, peer) = Self::accept(self).await?;
        // Nagle's algorithm would delay small responses. A connection on which this fails is about
        // to fail anyway.
        let _ = stream.set_nodelay(true);
        Ok((stream, peer))
    }
}

/// A service that answers HTTP requests, such as axum's `Router`.
pub trait Answers:
    tower::Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static
{
}

impl<S> Answers for S where
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static
{
}

/// Pause after an error of `accept` that is not about one connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A line about refused connections or failures of `accept` is logged at most once in this time.
const LOGGED: Duration = Duration::from_secs(10);

/// Serves until `stop` is cancelled, then until the requests in progress are answered. Connections
/// without a request in progress are closed at once. Dropping the future closes all connections.
///
/// Requests carry axum's `ConnectInfo<SocketAddr>`.
pub async fn serve<L: Listener, S: Answers>(mut listener: L, service: S, limits: Limits, stop: CancellationToken) {
    let protocols = Protocols::new(&limits);
    let places = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
    let mut connections = JoinSet::new();
    let (refused, failed) = (Seldom::every(LOGGED), Seldom::every(LOGGED));
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            // Frees what a finished task holds. A panic of a handler ends its connection only.
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match places.clone().try_acquire_owned() {
                Ok(place) => {
                    let serving = protocols.serve(stream, peer, service.clone(), stop.clone());
                    connections.spawn(async move {
                        serving.await;
                        drop(place);
                    });
                }
                Err(_) => {
                    if let Some(left_out) = refused.passes(now().into_std()) {
                        tracing::warn!(
                            limit = limits.connections,
                            count = left_out + 1,
                            "too many connections, refused"
                        );
                    }
                }
            },
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                if let Some(left_out) = failed.passes(now().into_std()) {
                    tracing::error!(%error, count = left_out + 1, "cannot accept connections");
                }
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
    // Clients that connect from now on are refused by the operating system.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Whether an error of `accept` is about the connection that was to be accepted, and not about the
/// listener or this process.
fn is_of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests;
