//! How a service reaches the network: over TCP, or over a network that a test simulates.
//!
//! The simulations in `tests/sim` run the unmodified services on simulated hosts, links and clocks
//! in one thread. This module has the two interfaces they need: one accepts connections, the other
//! opens them.

use std::fmt::Debug;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::Uri;
use http::uri::Authority;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::edge::Listener;

/// Where a service accepts connections.
#[derive(Debug)]
pub enum Door {
    /// A bound listener.
    Tcp(TcpListener),
    Simulated(Box<dyn Accept>),
}

/// Accepts connections in a simulation.
pub trait Accept: Debug + Send + 'static {
    fn address(&self) -> SocketAddr;
    fn connection(&mut self) -> BoxFuture<'_, (Stream, SocketAddr)>;
}

/// Opens connections in a simulation.
pub trait Dial: Debug + Send + Sync + 'static {
    fn dial(&self, to: Authority) -> BoxFuture<'static, io::Result<Stream>>;
}

/// A connector over [`Dial`], for the clients' transports.
#[derive(Clone, Debug)]
pub struct Dialer(Arc<dyn Dial>);

/// A connection in a simulation.
pub struct Stream(Box<dyn Io>);

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

// === impl Door ===

impl Door {
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Simulated(door) => Ok(door.address()),
        }
    }
}

impl Listener for Box<dyn Accept> {
    type Io = Stream;

    async fn accept(&mut self) -> io::Result<(Stream, SocketAddr)> {
        Ok(self.connection().await)
    }
}

// === impl Dialer ===

impl Dialer {
    pub fn new(dial: impl Dial) -> Self {
        Self(Arc::new(dial))
    }
}

impl tower::Service<Uri> for Dialer {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<TokioIo<Stream>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Some(authority) = uri.authority() else {
            return std::future::ready(Err(io::Error::from(io::ErrorKind::InvalidInput))).boxed();
        };
        let dialling = self.0.dial(authority.clone());
        async move { Ok(TokioIo::new(dialling.await?)) }.boxed()
    }
}

// === impl Stream ===

impl Stream {
    pub fn new(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self(Box::new(io))
    }
}

impl Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
