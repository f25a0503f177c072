//! A TCP proxy that can fall silent, as a pulled cable or a firewall that forgets its connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Forwards connections until it is dropped with the runtime.
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    /// Connections with a lower number are silent.
    silent: Arc<AtomicUsize>,
}

impl Proxy {
    pub(super) async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, silent) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (count, limit) = (accepted.clone(), silent.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let Ok(far) = TcpStream::connect(to).await else { continue };
                let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
                tokio::spawn(forward(near_read, far_write, number, limit.clone()));
                tokio::spawn(forward(far_read, near_write, number, limit.clone()));
            }
        });
        Self { address, accepted, silent }
    }

    /// Forwards nothing more on the connections that exist. They stay open on both sides.
    pub(super) fn silence(&self) {
        self.silent.store(self.accepted.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    number: usize,
    silent: Arc<AtomicUsize>,
) {
    let mut buffer = [0; 8192];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if number < silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
