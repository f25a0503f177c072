use super::{Announcement, BoxFuture, MemoryStore, ProbeLease, SharedState, Stamp, View, Written};
use crate::error::BoxError;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::UdpSocket, task::AbortHandle, time::sleep};

/// Shares circuits between instances over UDP, without a store. Each instance keeps the
/// announcement with the greatest [`Stamp`].
///
/// An announcement is sent to all peers at once, and again in every round, so that a lost datagram
/// or a peer that starts later is delayed by one round. There is no instance that could grant
/// leases: every instance gets a probe lease, and probes within its own limits.
///
/// Datagrams are not authenticated: a host that can send to the address can open circuits. Use it
/// only in a trusted network.
///
/// ```no_run
/// # use std::{error::Error, net::SocketAddr};
/// # async fn start(breaker: buttress::CircuitBreaker, peers: Vec<SocketAddr>) -> Result<(), Box<dyn Error>> {
/// use buttress::circuit_breaker::sharing::{Gossip, Sharing};
/// use std::sync::Arc;
///
/// let gossip = Gossip::builder().peers(peers).bind("0.0.0.0:7946").await?;
/// let sharing = Sharing::builder(breaker, Arc::new(gossip)).start()?;
/// # drop(sharing); Ok(()) }
/// ```
#[derive(Debug)]
pub struct Gossip {
    shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
}

/// Builds a [`Gossip`].
#[derive(Clone, Debug)]
#[must_use]
pub struct GossipBuilder {
    peers: Vec<SocketAddr>,
    round: Duration,
}

#[derive(Debug)]
struct Shared {
    socket: UdpSocket,
    peers: Vec<SocketAddr>,
    known: MemoryStore,
}

/// Maximum number of circuits that are accepted from peers, so that a foreign sender cannot exhaust
/// the memory.
const MAX_CIRCUITS: usize = 1_000;

impl Gossip {
    /// Starts from the defaults: no peers, a round of 500 ms.
    pub fn builder() -> GossipBuilder {
        GossipBuilder { peers: Vec::new(), round: Duration::from_millis(500) }
    }

    /// Returns the local address of the socket.
    ///
    /// # Errors
    /// When the operating system does not return the address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.shared.socket.local_addr()
    }
}

impl GossipBuilder {
    /// Sets the addresses of the peers. The own address may be among them. Default: none. Peers
    /// that do not answer are not removed.
    pub fn peers(mut self, peers: impl IntoIterator<Item = SocketAddr>) -> Self {
        self.peers = peers.into_iter().collect();
        self
    }

    /// Sets the interval at which all announcements are sent again. At least 10 ms: smaller values
    /// are raised to 10 ms. Default 500 ms.
    pub fn round(mut self, round: Duration) -> Self {
        self.round = round.max(Duration::from_millis(10));
        self
    }

    /// Binds `addr` and spawns tasks on the current runtime. They end when the gossip is dropped.
    ///
    /// # Errors
    /// When the address cannot be bound.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn bind(self, addr: impl tokio::net::ToSocketAddrs) -> io::Result<Gossip> {
        Ok(self.on(UdpSocket::bind(addr).await?))
    }

    /// Uses a socket that is already bound, and spawns tasks like [`bind`](Self::bind).
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn on(self, socket: UdpSocket) -> Gossip {
        let shared = Arc::new(Shared { socket, peers: self.peers, known: MemoryStore::default() });
        let tasks = [
            tokio::spawn(receive(shared.clone())).abort_handle(),
            tokio::spawn(resend(shared.clone(), self.round)).abort_handle(),
        ];
        Gossip { shared, tasks }
    }
}

impl Drop for Gossip {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

async fn receive(shared: Arc<Shared>) {
    // One byte longer than the longest announcement, so that a longer datagram is detected.
    let mut datagram = [0; MAX_DATAGRAM + 1];
    loop {
        match shared.socket.recv(&mut datagram).await {
            Ok(length) if length > MAX_DATAGRAM => {}
            Ok(length) => {
                if let Some((name, view)) = decode(&datagram[..length]) {
                    shared.known.merge(name, view, MAX_CIRCUITS);
                }
            }
            // Some systems report an unreachable peer here. The pause prevents a busy loop on a
            // lasting error.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn resend(shared: Arc<Shared>, round: Duration) {
    loop {
        sleep(round).await;
        for (name, view) in shared.known.all() {
            shared.send(&name, view).await;
        }
    }
}

impl Shared {
    /// Sends an announcement to all peers. Errors are ignored, like datagrams that are lost on the
    /// way.
    async fn send(&self, name: &str, view: View) {
        if let Some(datagram) = encode(name, view) {
            for peer in &self.peers {
                let _ = self.socket.send_to(&datagram, peer).await;
            }
        }
    }
}

impl SharedState for Gossip {
    fn read<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<View>, BoxError>> {
        self.shared.known.read(name)
    }

    fn write<'a>(
        &'a self,
        name: &'a str,
        expected: Option<Stamp>,
        announcement: Announcement,
    ) -> BoxFuture<'a, Result<Written, BoxError>> {
        Box::pin(async move {
            let written = self.shared.known.announce(name, expected, announcement);
            if let Written::Accepted(stamp) = written {
                let Announcement { open, failures, total, .. } = announcement;
                self.shared.send(name, View { stamp, open, failures, total }).await;
            }
            Ok(written)
        })
    }

    fn lease_probe<'a>(&'a self, _: &'a str, _: Stamp, _: ProbeLease) -> BoxFuture<'a, Result<bool, BoxError>> {
        Box::pin(async { Ok(true) })
    }
}

// === Wire format ===
//
// "BTR1", then 5 big-endian u64: version, node, remaining milliseconds (all ones: closed),
// failures, total; then the name in UTF-8, at most 255 bytes.

const MAGIC: &[u8; 4] = b"BTR1";
const NUMBERS: usize = 5;
const MAX_NAME: usize = 255;
const MAX_DATAGRAM: usize = MAGIC.len() + NUMBERS * 8 + MAX_NAME;
const CLOSED: u64 = u64::MAX;

/// Returns `None` if the name is longer than [`MAX_NAME`].
fn encode(name: &str, View { stamp, open, failures, total }: View) -> Option<Vec<u8>> {
    if name.len() > MAX_NAME {
        return None;
    }
    let left = open.map_or(CLOSED, |left| u64::try_from(left.as_millis()).unwrap_or(CLOSED - 1).min(CLOSED - 1));
    let numbers: [u64; NUMBERS] = [stamp.version, stamp.node, left, failures, total];
    let mut datagram = MAGIC.to_vec();
    numbers.iter().for_each(|number| datagram.extend(number.to_be_bytes()));
    datagram.extend(name.as_bytes());
    Some(datagram)
}

/// Returns `None` for a datagram that [`encode`] does not produce.
fn decode(datagram: &[u8]) -> Option<(&str, View)> {
    let rest = datagram.strip_prefix(MAGIC)?;
    let (numbers, name) = rest.split_at_checked(NUMBERS * 8)?;
    let name = std::str::from_utf8(name).ok()?;
    let mut numbers = numbers.chunks_exact(8).filter_map(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)));
    let mut number = || numbers.next();
    let stamp = Stamp { version: number()?, node: number()? };
    let left = number()?;
    let open = (left != CLOSED).then(|| Duration::from_millis(left));
    Some((name, View { stamp, open, failures: number()?, total: number()? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(version: u64, node: u64, open: Option<Duration>) -> View {
        View { stamp: Stamp { version, node }, open, failures: 3, total: 7 }
    }

    #[test]
    fn what_is_told_is_what_is_heard() {
        for open in [None, Some(Duration::ZERO), Some(Duration::from_millis(1234))] {
            let sent = view(5, u64::MAX, open);
            assert_eq!(decode(&encode("payments", sent).unwrap()), Some(("payments", sent)));
        }
        let longest = decode(&encode("x", view(1, 1, Some(Duration::MAX))).unwrap()).unwrap().1;
        assert_eq!(longest.open, Some(Duration::from_millis(u64::MAX - 1)));
        assert!(encode(&"x".repeat(MAX_NAME + 1), view(1, 1, None)).is_none());
    }

    #[test]
    fn strangers_are_not_understood_and_break_nothing() {
        let mut rng = fastrand::Rng::with_seed(1);
        let good = encode("payments", view(1, 2, None)).unwrap();
        for _ in 0..10_000 {
            let mut datagram = good.clone();
            for _ in 0..rng.usize(1..6) {
                let at = rng.usize(..datagram.len());
                datagram[at] = rng.u8(..);
            }
            datagram.truncate(rng.usize(..=datagram.len()));
            if let Some((name, view)) = decode(&datagram) {
                assert_eq!(decode(&encode(name, view).unwrap()), Some((name, view)));
            }
        }
        assert_eq!(decode(b""), None);
        assert_eq!(decode(&good[..MAGIC.len() + NUMBERS * 8 - 1]), None);
        assert_eq!(decode(&[&good[..], &[0xff]].concat()), None, "a name must be UTF-8");
    }

    #[tokio::test(start_paused = true)]
    async fn in_whatever_order_words_come_the_greatest_is_the_last() {
        let words = [(1, 1), (1, 2), (2, 1), (3, 1), (3, 9), (2, 5)].map(|(version, node)| view(version, node, None));
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..50 {
            let mut words = words;
            rng.shuffle(&mut words);
            let store = MemoryStore::default();
            words.iter().for_each(|word| store.merge("x", *word, 1));
            store.merge("one too many", words[0], 1);
            assert_eq!(store.all(), [("x".to_owned(), view(3, 9, None))]);
        }
    }
}
