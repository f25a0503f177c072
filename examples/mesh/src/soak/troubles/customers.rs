//! Clients that are slow, hostile, or hang up. Other customers must be served meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::launch::Name;
use crate::soak::hostile::{ask, bodies, get, order, order_head};
use crate::soak::trouble::{Step, Trouble};
use crate::soak::world::World;

/// Sockets that say nothing, and sockets that send one byte a second: of a head, or of a body.
#[derive(Debug, Default)]
pub(super) struct SlowClients {
    sockets: JoinSet<()>,
    closed: Arc<AtomicUsize>,
}

/// Text that no honest client sends.
#[derive(Debug)]
pub(super) struct HostileText;

/// Customers who order and hang up at once, again and again.
#[derive(Debug, Default)]
pub(super) struct HangUps(JoinSet<usize>);

const SLOW: usize = 500;
/// Customers who hang up, and how long each waits at most, in milliseconds: some hang up before the
/// order is stored, others while its saga runs.
const HASTY: usize = 20;
const HASTE: u64 = 300;

impl Trouble for SlowClients {
    fn name(&self) -> &'static str {
        "slow-clients"
    }

    fn harmless(&self) -> bool {
        true
    }

    fn lasts(&self) -> Duration {
        Duration::from_secs(20)
    }

    fn begin<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        async move {
            let gateway = world.children.address(Name::Gateway);
            self.closed = Arc::default();
            for number in 0..SLOW {
                let (closed, more) = (self.closed.clone(), world.authorization());
                self.sockets.spawn(async move {
                    let Ok(mut socket) = TcpStream::connect(gateway).await else { return };
                    let (first, drop) = match number % 3 {
                        0 => (String::new(), None),
                        1 => (order_head("x-slow: "), Some(b"x")),
                        _ => (order_head(&format!("{more}content-length: 5000\r\n\r\n{{")), Some(b" ")),
                    };
                    let _ = socket.write_all(first.as_bytes()).await;
                    drip(&mut socket, drop).await;
                    closed.fetch_add(1, Ordering::Relaxed);
                });
            }
            Ok(())
        }
        .boxed_local()
    }

    fn end<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        async move {
            let closed = self.closed.load(Ordering::Relaxed);
            world.say(format_args!("  {closed} of {SLOW} slow connections were closed by the gateway"));
            self.sockets.shutdown().await;
            Ok(())
        }
        .boxed_local()
    }
}

/// Sends a byte a second until the server closes the connection.
async fn drip(socket: &mut TcpStream, drop: Option<&[u8; 1]>) {
    let mut answer = [0; 1024];
    loop {
        match timeout(Duration::from_secs(1), socket.read(&mut answer)).await {
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(_)) => {}
            Err(_) => {
                let Some(drop) = drop else { continue };
                if socket.write_all(drop).await.is_err() {
                    return;
                }
            }
        }
    }
}

impl Trouble for HostileText {
    fn name(&self) -> &'static str {
        "hostile-text"
    }

    fn harmless(&self) -> bool {
        true
    }

    fn lasts(&self) -> Duration {
        Duration::from_secs(3)
    }

    fn begin<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        async move {
            let (gateway, more) = (world.children.address(Name::Gateway), world.authorization());
            let mut requests: Vec<_> =
                bodies(&mut world.rng).into_iter().map(|(what, body)| (what, order(&more, &body))).collect();
            let key = |key: &str| order(&format!("{more}idempotency-key: {key}\r\n"), b"{}");
            requests.push(("a key with a NUL", key("a\0b")));
            requests.push(("a key of 4 KiB", key(&"k".repeat(4 * 1024))));
            requests.push(("a header of 1 MiB", get("/v1/products", &format!("x: {}\r\n", "x".repeat(1 << 20)))));
            requests.push(("no HTTP at all", std::iter::repeat_with(|| world.rng.u8(..)).take(500).collect()));
            // Several of each: as many failures as would open a circuit.
            for (what, request) in requests {
                let answers = join_all((0..10).map(|_| ask(gateway, &request))).await;
                let wrong = answers.into_iter().flatten().find(|status| !(400..500).contains(status));
                world.wrong.extend(wrong.map(|status| format!("hostile-text: {what} was answered {status}")));
            }
            Ok(())
        }
        .boxed_local()
    }

    fn end<'a>(&'a mut self, _world: &'a mut World) -> Step<'a> {
        async { Ok(()) }.boxed_local()
    }
}

impl Trouble for HangUps {
    fn name(&self) -> &'static str {
        "hang-ups"
    }

    fn lasts(&self) -> Duration {
        Duration::from_secs(10)
    }

    fn begin<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        async move {
            let gateway = world.children.address(Name::Gateway);
            for _ in 0..HASTY {
                let (mut rng, more) = (world.rng.fork(), world.authorization());
                let lasts = self.lasts();
                self.0.spawn(async move {
                    let mut orders = 0;
                    let ordering = async {
                        loop {
                            let key = format!("{more}idempotency-key: {}\r\n", Uuid::now_v7());
                            let body = br#"{"customer":"alice","items":[{"sku":"tea","quantity":1}]}"#;
                            if let Ok(mut socket) = TcpStream::connect(gateway).await {
                                let _ = socket.write_all(&order(&key, body)).await;
                                orders += 1;
                                sleep(Duration::from_millis(rng.u64(..HASTE))).await;
                            }
                            sleep(Duration::from_millis(20)).await;
                        }
                    };
                    let _: Result<(), _> = timeout(lasts, ordering).await;
                    orders
                });
            }
            Ok(())
        }
        .boxed_local()
    }

    fn end<'a>(&'a mut self, world: &'a mut World) -> Step<'a> {
        async move {
            let orders: usize = std::mem::take(&mut self.0).join_all().await.into_iter().sum();
            world.say(format_args!("  {orders} times a customer ordered and hung up"));
            Ok(())
        }
        .boxed_local()
    }
}
