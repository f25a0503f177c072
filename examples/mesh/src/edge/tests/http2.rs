//! The limits of HTTP/2, for a client that does not keep them. So it is made of frames (RFC 9113,
//! section 6), because the clients of libraries keep the rules.

use super::*;

const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
const ACK: u8 = 0x1;
const END_STREAM_AND_HEADERS: u8 = 0x5;
const MAX_CONCURRENT_STREAMS: u8 = 0x3;
const REFUSED_STREAM: u8 = 0x7;

struct Client2(TcpStream);

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Client2 {
    async fn connect(server: &Server) -> Self {
        let mut client = Self(server.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await);
        client.send(SETTINGS, 0, 0, &[]).await;
        client
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.0.write_all(&frame).await.unwrap();
    }

    async fn get(&mut self, stream: u32, path: &str) {
        // `:method: GET` and `:scheme: http` from the static table of HPACK; `:path` and
        // `:authority` with a name from it and a literal value.
        let mut head = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
        head.extend(path.bytes());
        head.extend([0x01, 1, b'x']);
        self.send(HEADERS, END_STREAM_AND_HEADERS, stream, &head).await;
    }

    /// The next frame. `None` at the end of the connection.
    async fn next(&mut self) -> Option<Frame> {
        let reading = async {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            self.0.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            Some(Frame { kind: head[3], flags: head[4], stream, payload })
        };
        tokio::time::timeout(NEVER / 10, reading).await.expect("a frame, or the end")
    }

    /// The next frame of a kind that is no acknowledgement.
    async fn next_of(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.expect("the connection is open");
            if frame.kind == kind && (![SETTINGS, PING].contains(&kind) || frame.flags & ACK == 0) {
                return frame;
            }
        }
    }
}

#[tokio::test]
async fn a_stream_beyond_the_limit_is_refused_and_its_place_comes_back() {
    let server = Server::start(Limits { streams: 2, ..limits() }).await;
    let mut client = Client2::connect(&server).await;
    let settings = client.next_of(SETTINGS).await.payload;
    let limit = settings.chunks(6).find(|setting| setting[..2] == [0, MAX_CONCURRENT_STREAMS]);
    assert_eq!(limit, Some(&[0, MAX_CONCURRENT_STREAMS, 0, 0, 0, 2][..]), "it is announced");
    client.send(SETTINGS, ACK, 0, &[]).await;
    for stream in [1, 3, 5] {
        client.get(stream, "/wait").await;
    }
    let refused = client.next_of(RST_STREAM).await;
    assert_eq!((refused.stream, refused.payload), (5, vec![0, 0, 0, REFUSED_STREAM]));
    let mut answered = Vec::new();
    for _ in 0..2 {
        server.release.notify_one();
        answered.push(client.next_of(HEADERS).await.stream);
    }
    answered.sort_unstable();
    assert_eq!(answered, [1, 3]);
    client.get(7, "/").await;
    assert_eq!(client.next_of(HEADERS).await.stream, 7);
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_disconnected_and_one_that_does_is_not() {
    let server = Server::start(Limits { ping: SOON, ..limits() }).await;
    let mut gone = Client2::connect(&server).await;
    gone.send(SETTINGS, ACK, 0, &[]).await;
    gone.get(1, "/wait").await;
    gone.next_of(PING).await;
    while gone.next().await.is_some() {}

    // A busy machine may be late with the answers of this one.
    let server = Server::start(Limits { ping: 20 * SOON, ..limits() }).await;
    let mut alive = Client2::connect(&server).await;
    alive.send(SETTINGS, ACK, 0, &[]).await;
    for _ in 0..2 {
        let ping = alive.next_of(PING).await;
        alive.send(PING, ACK, 0, &ping.payload).await;
    }
    alive.get(1, "/").await;
    assert_eq!(alive.next_of(HEADERS).await.stream, 1);
}
