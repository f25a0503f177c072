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
        for long in [Duration::MAX, Duration::from_millis(u64::MAX)] {
            let longest = decode(&encode("x", view(1, 1, Some(long))).unwrap()).unwrap().1;
            assert_eq!(longest.open, Some(Duration::from_millis(u64::MAX - 1)));
        }
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

    #[tokio::test(start_paused = true)]
    async fn an_announcement_that_is_repeated_does_not_begin_its_open_time_again() {
        let (store, opened) = (MemoryStore::default(), view(1, 1, Some(Duration::from_secs(5))));
        for left in [5, 2] {
            store.merge("x", opened, 1);
            assert_eq!(store.all(), [("x".to_owned(), view(1, 1, Some(Duration::from_secs(left))))]);
            tokio::time::advance(Duration::from_secs(3)).await;
        }
    }

    #[test]
    fn a_round_of_gossip_is_as_set_and_at_least_ten_milliseconds() {
        assert_eq!(Gossip::builder().round, Duration::from_millis(500));
        for (set, round) in [(0, 10), (9, 10), (10, 10), (11, 11)] {
            assert_eq!(Gossip::builder().round(Duration::from_millis(set)).round, Duration::from_millis(round));
        }
    }

    #[test]
    fn a_circuit_with_the_longest_name_is_announced() {
        let (name, longest) = ("x".repeat(MAX_NAME), view(1, 1, Some(Duration::from_millis(CLOSED - 1))));
        let datagram = encode(&name, longest).expect("the name is not too long");
        assert_eq!((datagram.len(), decode(&datagram)), (MAX_DATAGRAM, Some((&*name, longest))));
    }

    /// Returns a gossip on a free port, and a peer of it that is a plain socket.
    async fn with_plain_peer(round: Duration) -> (Gossip, UdpSocket) {
        let peer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let gossip = Gossip::builder().peers([peer.local_addr().unwrap()]).round(round).bind("127.0.0.1:0").await;
        (gossip.unwrap(), peer)
    }

    #[tokio::test]
    async fn an_announcement_is_sent_at_once_and_again_in_every_round() {
        const HOUR: Duration = Duration::from_secs(3600);
        let announcement = Announcement { node: 7, open: None, failures: 3, total: 7 };
        let mut datagram = [0; MAX_DATAGRAM];
        for (round, times) in [(HOUR, 1), (Duration::from_millis(10), 3)] {
            let (gossip, peer) = with_plain_peer(round).await;
            gossip.write("payments", None, announcement).await.unwrap();
            for _ in 0..times {
                let length = peer.recv(&mut datagram).await.unwrap();
                assert_eq!(decode(&datagram[..length]), Some(("payments", view(1, 7, None))));
            }
        }
    }

    #[tokio::test]
    async fn a_datagram_that_is_longer_than_an_announcement_is_ignored() {
        let (gossip, peer) = with_plain_peer(Duration::from_millis(10)).await;
        peer.connect(gossip.local_addr().unwrap()).await.unwrap();
        let longest = encode(&"x".repeat(MAX_NAME), view(1, 2, None)).unwrap();
        peer.send(&[&longest[..], b"x"].concat()).await.unwrap();
        peer.send(&longest).await.unwrap();
        while gossip.shared.known.all().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(gossip.shared.known.all(), [("x".repeat(MAX_NAME), view(1, 2, None))]);
    }

    #[tokio::test]
    async fn a_gossip_that_is_dropped_frees_its_socket() {
        let (gossip, _peer) = with_plain_peer(Duration::from_secs(3600)).await;
        let address = gossip.local_addr().unwrap();
        drop(gossip);
        while UdpSocket::bind(address).await.is_err() {
            tokio::task::yield_now().await;
        }
    }
}
