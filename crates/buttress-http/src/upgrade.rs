//! Holds the permit of a call until its upgraded connection (WebSocket, CONNECT) closes.
//!
//! Once a response switches protocols, the handler owns the connection, and no body shows when it
//! ends. hyper's `OnUpgrade` cannot be wrapped. Therefore the handler gets the upgrade of a
//! connection in memory, and a task copies between that connection and the real one. The task holds
//! the permit until both directions have closed or the handler has dropped its end. In the latter
//! case, the bytes that the handler has written are delivered, and the real connection is dropped.
//!
//! All bytes of the connection are copied once more if the policy holds its permits until the end
//! of the body. Other policies have no bridge.

#[cfg(feature = "hyper")]
pub(crate) use with_hyper::Bridge;

#[cfg(not(feature = "hyper"))]
pub(crate) use without_hyper::Bridge;

#[cfg(not(feature = "hyper"))]
mod without_hyper {
    use buttress::{
        outcome::Outcome,
        policy::{InFlight, Permit},
    };
    use http::Extensions;

    /// Without hyper, no request has an upgrade.
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
    use buttress::{
        outcome::Outcome,
        policy::{InFlight, Permit},
    };
    use bytes::Bytes;
    use http::{Extensions, Request, Response, StatusCode};
    use http_body_util::Empty;
    use hyper::{body::Incoming, server::conn::http1, service::service_fn, upgrade::OnUpgrade};
    use hyper_util::rt::TokioIo;
    use std::{
        cell::RefCell,
        convert::Infallible,
        fmt,
        future::{Future, poll_fn, ready},
        io,
        pin::{Pin, pin},
        rc::Rc,
        task::{Context, Poll, Waker},
        time::Duration,
    };
    use tokio::{
        io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, copy, duplex, split},
        runtime::Handle,
        sync::oneshot,
        task::unconstrained,
        time::timeout,
    };

    /// Capacity in bytes of the connection in memory, in each direction.
    const BUFFER: usize = 64 * 1024;

    /// Time that the peer has to receive the bytes that a handler wrote before it dropped its end.
    /// The same as the default bound on a stalled reader of a body.
    const LINGER: Duration = Duration::from_secs(30);

    /// The real connection, and the far end of the connection in memory.
    pub(crate) struct Bridge {
        connection: OnUpgrade,
        far_end: FarEnd,
    }

    struct FarEnd {
        stream: DuplexStream,
        /// Resolves when the near end is dropped. `stream` cannot tell that from a shutdown of the
        /// writing half.
        dropped: oneshot::Receiver<Infallible>,
    }

    /// The end of the connection in memory that hyper passes to the handler.
    struct NearEnd {
        stream: DuplexStream,
        /// Dropped with the near end, which resolves `FarEnd::dropped`.
        _alive: oneshot::Sender<Infallible>,
    }

    impl Bridge {
        /// Replaces the upgrade in `extensions` by that of a connection in memory. Returns `None`
        /// if there is no upgrade.
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

        /// Spawns a task that holds `permit` until the connection has closed, then settles it.
        pub(crate) fn hold<P: Permit>(self, mut permit: InFlight<P>, outcome: Outcome) {
            let Self { connection, far_end } = self;
            let Ok(runtime) = Handle::try_current() else { return };
            // The task ends with the connection.
            runtime.spawn(async move {
                if let Ok(connection) = connection.await {
                    carry(TokioIo::new(connection), far_end).await;
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

    /// Copies in both directions until both have closed, one has failed, or the handler has dropped
    /// its end.
    async fn carry(connection: impl AsyncRead + AsyncWrite, far_end: FarEnd) {
        let FarEnd { stream, mut dropped } = far_end;
        let (mut from_peer, mut to_peer) = split(connection);
        let (mut from_handler, mut to_handler) = split(stream);
        let mut outward = pin!(async move {
            copy(&mut from_handler, &mut to_peer).await?;
            to_peer.shutdown().await
        });
        let mut inward = pin!(async move {
            copy(&mut from_peer, &mut to_handler).await?;
            to_handler.shutdown().await
        });
        let (mut sent, mut received) = (false, false);
        let copied = poll_fn(|cx| -> Poll<io::Result<()>> {
            if !sent {
                sent = outward.as_mut().poll(cx)?.is_ready();
            }
            if !received {
                received = inward.as_mut().poll(cx)?.is_ready();
            }
            let is_over = (sent && received) || Pin::new(&mut dropped).poll(cx).is_ready();
            if is_over { Poll::Ready(Ok(())) } else { Poll::Pending }
        });
        if copied.await.is_ok() && !sent {
            let _ = timeout(LINGER, outward).await;
        }
    }

    /// Makes a connection in memory that hyper has upgraded, and returns its upgrade and its far
    /// end.
    ///
    /// Nothing in it waits, so one poll completes it. It is `unconstrained`, because the task's
    /// remaining cooperative budget could make it pending otherwise.
    fn in_memory() -> Option<(OnUpgrade, FarEnd)> {
        let mut upgraded = pin!(unconstrained(poll_fn(|cx| Poll::Ready(upgrade_in_memory(cx)))));
        match upgraded.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(upgraded) => upgraded,
            Poll::Pending => None,
        }
    }

    fn upgrade_in_memory(cx: &mut Context<'_>) -> Option<(OnUpgrade, FarEnd)> {
        const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: memory\r\nconnection: upgrade\r\nupgrade: memory\r\n\r\n";
        let (near_end, mut far_end) = duplex(BUFFER);
        let (alive, dropped) = oneshot::channel();
        let near_end = NearEnd { stream: near_end, _alive: alive };
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
                ready(Ok::<_, Infallible>(response))
            })
        };
        let mut connection =
            pin!(http1::Builder::new().serve_connection(TokioIo::new(near_end), accept).with_upgrades());
        // One poll reads the request and writes the response. The bound of 8 stops the loop if a
        // version of hyper needs more polls.
        let done = (0..8).any(|_| connection.as_mut().poll(cx).is_ready());
        let upgrade = upgrade.borrow_mut().take();
        let upgrade = upgrade.filter(|_| done && skip_head(&mut far_end, cx))?;
        Some((upgrade, FarEnd { stream: far_end, dropped }))
    }

    impl AsyncRead for NearEnd {
        fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().stream).poll_read(cx, buffer)
        }
    }

    impl AsyncWrite for NearEnd {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
        }

        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().stream).poll_flush(cx)
        }

        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffers: &[io::IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, buffers)
        }

        fn is_write_vectored(&self) -> bool {
            self.stream.is_write_vectored()
        }
    }

    /// Reads the head of the response, which ends with an empty line.
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
        use hyper::upgrade::Upgraded;
        use std::{sync::mpsc, time::Duration};
        use tokio::{
            io::{AsyncReadExt, join},
            time::sleep,
        };

        #[tokio::test]
        async fn an_upgrade_in_memory_carries_both_directions() {
            let (upgrade, far_end) = in_memory().expect("hyper upgrades a connection in memory in one poll");
            let mut far_end = far_end.stream;
            let mut near_end = TokioIo::new(upgrade.await.unwrap());
            let mut four = [0; 4];
            near_end.write_all(b"ping").await.unwrap();
            far_end.read_exact(&mut four).await.unwrap();
            assert_eq!(&four, b"ping");
            far_end.write_all(b"pong").await.unwrap();
            near_end.read_exact(&mut four).await.unwrap();
            assert_eq!(&four, b"pong");
        }

        /// A permit that sends the outcome with which it is settled.
        struct Held(mpsc::Sender<Outcome>);

        impl Permit for Held {
            const HOLDS_UNTIL_BODY_END: bool = true;

            fn settle(&mut self, outcome: &Outcome) {
                let _ = self.0.send(*outcome);
            }
        }

        /// Returns a bridged connection: the end of the peer, the end of the handler, and the
        /// channel that reports the outcome of the permit.
        async fn bridged() -> (DuplexStream, TokioIo<Upgraded>, mpsc::Receiver<Outcome>) {
            let (connection, peer) = in_memory().unwrap();
            let mut extensions = Extensions::new();
            extensions.insert(connection);
            let bridge = Bridge::into_extensions(&mut extensions).unwrap();
            let (sender, settled) = mpsc::channel();
            bridge.hold(InFlight::new(Held(sender)), Outcome::Success);
            (peer.stream, TokioIo::new(extensions.remove::<OnUpgrade>().unwrap().await.unwrap()), settled)
        }

        #[tokio::test(start_paused = true)]
        async fn a_connection_that_its_handler_drops_is_closed_also_when_the_other_side_does_not_close_it() {
            let (mut peer, mut handler, settled) = bridged().await;
            handler.write_all(b"bye").await.unwrap();
            drop(handler);
            let mut received = Vec::new();
            peer.read_to_end(&mut received).await.unwrap();
            assert_eq!(received, b"bye", "bytes written before the drop are delivered");
            sleep(Duration::from_secs(1)).await;
            assert_eq!(
                settled.try_recv(),
                Ok(Outcome::Success),
                "the permit is held for a connection without a handler"
            );
            assert!(peer.write_all(b"hello?").await.is_err(), "the connection is still open");
        }

        #[tokio::test(start_paused = true)]
        async fn an_other_side_that_takes_nothing_does_not_hold_the_place_of_a_handler_that_is_gone() {
            let (_peer, mut handler, settled) = bridged().await;
            handler.write_all(&[7; BUFFER]).await.unwrap();
            sleep(Duration::from_secs(1)).await;
            handler.write_all(&[7; BUFFER]).await.unwrap();
            drop(handler);
            sleep(LINGER - Duration::from_secs(1)).await;
            assert!(settled.try_recv().is_err(), "the peer has 30 s to receive the rest");
            sleep(Duration::from_secs(2)).await;
            assert_eq!(settled.try_recv(), Ok(Outcome::Success));
        }

        #[tokio::test(start_paused = true)]
        async fn a_handler_that_has_said_all_still_hears_the_other_side() {
            let (mut peer, mut handler, settled) = bridged().await;
            handler.shutdown().await.unwrap();
            assert_eq!(peer.read(&mut [0]).await.unwrap(), 0);
            peer.write_all(b"more").await.unwrap();
            let mut four = [0; 4];
            handler.read_exact(&mut four).await.unwrap();
            assert_eq!((&four, settled.try_recv().is_err()), (b"more", true));
            drop(peer);
            assert_eq!(handler.read(&mut four).await.unwrap(), 0);
            sleep(Duration::from_secs(1)).await;
            assert_eq!(settled.try_recv(), Ok(Outcome::Success));
        }

        #[tokio::test(start_paused = true)]
        async fn another_side_that_has_said_all_still_hears_the_handler() {
            let (mut peer, mut handler, settled) = bridged().await;
            peer.shutdown().await.unwrap();
            assert_eq!(timeout(LINGER, handler.read(&mut [0])).await.expect("the handler sees the end").unwrap(), 0);
            sleep(2 * LINGER).await;
            handler.write_all(b"more").await.unwrap();
            let mut four = [0; 4];
            peer.read_exact(&mut four).await.unwrap();
            assert_eq!((&four, settled.try_recv().is_err()), (b"more", true));
            handler.shutdown().await.unwrap();
            sleep(Duration::from_secs(1)).await;
            assert_eq!(settled.try_recv(), Ok(Outcome::Success));
        }

        #[tokio::test(start_paused = true)]
        async fn a_connection_that_breaks_in_one_direction_ends_at_once_for_its_handler_too() {
            /// A connection that was reset by the peer, which a reader sees.
            struct Reset;

            impl AsyncRead for Reset {
                fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                    Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
                }
            }

            let ((open, _peer), (closed, _)) = (duplex(BUFFER), duplex(BUFFER));
            let (reader, writer) = split(open);
            for connection in
                [Box::pin(join(reader, closed)) as Pin<Box<dyn Connection>>, Box::pin(join(Reset, writer))]
            {
                let (upgrade, far_end) = in_memory().unwrap();
                let mut handler = TokioIo::new(upgrade.await.unwrap());
                handler.write_all(b"lost").await.unwrap();
                timeout(Duration::from_secs(1), carry(connection, far_end)).await.expect("the connection is held");
                assert_eq!(handler.read(&mut [0]).await.unwrap(), 0);
            }
        }

        trait Connection: AsyncRead + AsyncWrite {}

        impl<C: AsyncRead + AsyncWrite> Connection for C {}

        #[tokio::test]
        async fn an_upgrade_in_memory_does_not_draw_on_the_budget_of_its_task() {
            assert!((0..10).all(|_| in_memory().is_some()));
        }

        #[test]
        fn a_message_without_an_upgrade_has_no_bridge() {
            assert!(Bridge::into_extensions(&mut Extensions::new()).is_none());
        }
    }
}
