//! Upgraded connections (WebSocket, CONNECT) hold the permit of their call until they close.
//!
//! Once a response switches protocols, the connection belongs to the handler, and no body tells when it ends. hyper's
//! `OnUpgrade` cannot be wrapped either. So the handler gets the upgrade of a connection in memory, and a task copies
//! between that one and the real one, and holds the permit until both directions have closed. It costs one copy of what goes
//! over the connection, where the policy holds its permits to the end, and nothing elsewhere.

#[cfg(feature = "hyper")]
pub(crate) use with_hyper::Bridge;

#[cfg(not(feature = "hyper"))]
pub(crate) use without_hyper::Bridge;

#[cfg(not(feature = "hyper"))]
mod without_hyper {
    use buttress::{InFlight, Outcome, Permit};
    use http::Extensions;

    /// Without hyper there is nothing to upgrade.
    #[derive(Debug)]
    pub(crate) enum Bridge {}

    impl Bridge {
        pub(crate) fn into_extensions(_: &mut Extensions) -> Option<Self> {
            None
        }

        pub(crate) fn hold<P: Permit>(self, _: InFlight<P>, _: Outcome) {
            match self {}
        }
    }
}

#[cfg(feature = "hyper")]
mod with_hyper {
    use buttress::{InFlight, Outcome, Permit};
    use bytes::Bytes;
    use http::{Extensions, Request, Response, StatusCode};
    use http_body_util::Empty;
    use hyper::{body::Incoming, server::conn::http1, service::service_fn, upgrade::OnUpgrade};
    use hyper_util::rt::TokioIo;
    use std::{
        cell::RefCell,
        convert::Infallible,
        fmt,
        future::{Future, ready},
        pin::{Pin, pin},
        rc::Rc,
        task::{Context, Poll, Waker},
    };
    use tokio::{
        io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, copy_bidirectional, duplex},
        runtime::Handle,
    };

    /// Bytes under way between the real connection and the one in memory, in each direction.
    const BUFFER: usize = 64 * 1024;

    /// The real connection, and the far end of the one in memory.
    pub(crate) struct Bridge {
        connection: OnUpgrade,
        far_end: DuplexStream,
    }

    impl Bridge {
        /// Puts the upgrade of a connection in memory in the place of the real one. `None` where there is no upgrade.
        pub(crate) fn into_extensions(extensions: &mut Extensions) -> Option<Self> {
            let connection = extensions.remove::<OnUpgrade>()?;
            match in_memory() {
                Some((near_end, far_end)) => {
                    extensions.insert(near_end);
                    Some(Self { connection, far_end })
                }
                None => {
                    extensions.insert(connection);
                    None
                }
            }
        }

        /// Holds `permit` until the connection has closed, and settles it then.
        pub(crate) fn hold<P: Permit>(self, mut permit: InFlight<P>, outcome: Outcome) {
            let Self { connection, mut far_end } = self;
            let Ok(runtime) = Handle::try_current() else { return };
            // The task ends with the connection.
            runtime.spawn(async move {
                if let Ok(connection) = connection.await {
                    // An error is a connection that broke: both ends see it.
                    let _ = copy_bidirectional(&mut TokioIo::new(connection), &mut far_end).await;
                }
                permit.settle(&outcome);
            });
        }
    }

    impl fmt::Debug for Bridge {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Bridge").finish_non_exhaustive()
        }
    }

    /// An upgrade that hyper has done on a connection in memory, and the other end of that connection. Nothing in it waits, so that
    /// it is done in one go.
    fn in_memory() -> Option<(OnUpgrade, DuplexStream)> {
        const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: memory\r\nconnection: upgrade\r\nupgrade: memory\r\n\r\n";
        let (near_end, mut far_end) = duplex(BUFFER);
        let cx = &mut Context::from_waker(Waker::noop());
        let written = Pin::new(&mut far_end).poll_write(cx, REQUEST);
        if !matches!(written, Poll::Ready(Ok(bytes)) if bytes == REQUEST.len()) {
            return None;
        }
        let upgrade = Rc::new(RefCell::new(None));
        let accept = {
            let upgrade = upgrade.clone();
            service_fn(move |mut request: Request<Incoming>| {
                *upgrade.borrow_mut() = Some(hyper::upgrade::on(&mut request));
                let mut response = Response::new(Empty::<Bytes>::new());
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                response.headers_mut().insert("connection", http::HeaderValue::from_static("upgrade"));
                ready(Ok::<_, Infallible>(response))
            })
        };
        let mut connection =
            pin!(http1::Builder::new().serve_connection(TokioIo::new(near_end), accept).with_upgrades());
        // One poll reads the request and writes the answer; the bound is for the case that hyper takes more.
        let done = (0..8).any(|_| connection.as_mut().poll(cx).is_ready());
        let upgrade = upgrade.borrow_mut().take();
        upgrade.filter(|_| done && skip_head(&mut far_end, cx)).map(|upgrade| (upgrade, far_end))
    }

    /// Reads the head of the answer, which ends with an empty line.
    fn skip_head(far_end: &mut DuplexStream, cx: &mut Context<'_>) -> bool {
        let mut last = [0; 4];
        loop {
            let mut byte = [0];
            let mut buffer = ReadBuf::new(&mut byte);
            let read = Pin::new(&mut *far_end).poll_read(cx, &mut buffer);
            if !matches!(read, Poll::Ready(Ok(()))) || buffer.filled().is_empty() {
                return false;
            }
            last.rotate_left(1);
            last[3] = byte[0];
            if last == *b"\r\n\r\n" {
                return true;
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        #[tokio::test]
        async fn an_upgrade_in_memory_carries_both_directions() {
            let (upgrade, mut far_end) = in_memory().expect("hyper upgrades a connection in memory in one go");
            let mut near_end = TokioIo::new(upgrade.await.unwrap());
            let mut four = [0; 4];
            near_end.write_all(b"ping").await.unwrap();
            far_end.read_exact(&mut four).await.unwrap();
            assert_eq!(&four, b"ping");
            far_end.write_all(b"pong").await.unwrap();
            near_end.read_exact(&mut four).await.unwrap();
            assert_eq!(&four, b"pong");
        }

        #[test]
        fn a_message_without_an_upgrade_has_no_bridge() {
            assert!(Bridge::into_extensions(&mut Extensions::new()).is_none());
        }
    }
}
