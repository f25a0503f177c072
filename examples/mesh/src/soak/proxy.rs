//! A TCP proxy whose connections can fall silent: no more bytes, and neither FIN nor RST. This is
//! how a failover looks to a client whose server has vanished from the network.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// A running proxy. Dropping it closes the listener and all connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    /// Connections of earlier generations are silent.
    generation: Arc<watch::Sender<u64>>,
    serving: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port and forwards to `server`, as `host:port`.
    pub async fn start(server: String) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (address, generation) = (listener.local_addr()?, Arc::new(watch::Sender::new(0)));
        let current = generation.clone();
        let serving = tokio::spawn(async move {
            let mut open = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        if let Ok((client, _)) = accepted {
                            open.spawn(forward(client, server.clone(), current.subscribe()));
                        }
                    }
                    Some(_) = open.join_next(), if !open.is_empty() => {}
                }
            }
        });
        Ok(Self { address, generation, serving })
    }

    /// The address that the proxy listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes all connections that exist now silent. New ones work.
    pub fn silence(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn forward(mut client: TcpStream, server: String, mut generation: watch::Receiver<u64>) {
    let mine = *generation.borrow_and_update();
    // If the server refuses, the client's connection is closed.
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let _ = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
    let silent = async {
        // An error means that the proxy has ended.
        let _ = generation.wait_for(|generation| *generation > mine).await.map(drop);
    };
    tokio::select! {
        biased;
        () = silent => {
            // Both sockets stay open and unread until the proxy ends.
            std::future::pending::<()>().await;
        }
        _ = copy_bidirectional(&mut client, &mut server) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_silent_connection_neither_answers_nor_closes_and_a_new_one_works() {
        let echo = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = Proxy::start(echo.local_addr().unwrap().to_string()).await.unwrap();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = echo.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = socket.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        let asks = async |socket: &mut TcpStream| {
            socket.write_all(b"x").await.unwrap();
            let mut answer = [0];
            timeout(Duration::from_millis(300), socket.read(&mut answer)).await.map(Result::unwrap).ok()
        };
        let mut old = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(asks(&mut old).await, Some(1));
        proxy.silence();
        assert_eq!(asks(&mut old).await, None, "not even an end");
        let mut new = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(asks(&mut new).await, Some(1));
    }
}
