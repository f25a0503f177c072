//! HTTP/1.1 written by hand, for requests that no client library sends.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// The head of a request for an order, without the empty line that ends it.
pub(super) fn order_head(more: &str) -> String {
    format!("POST /v1/orders HTTP/1.1\r\nhost: shop\r\ncontent-type: application/json\r\n{more}")
}

/// A whole request for an order.
pub(super) fn order(more: &str, body: &[u8]) -> Vec<u8> {
    let mut request = order_head(&format!("{more}content-length: {}\r\n\r\n", body.len())).into_bytes();
    request.extend_from_slice(body);
    request
}

/// A whole request without a body.
pub(super) fn get(path: &str, more: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: shop\r\n{more}\r\n").into_bytes()
}

/// Sends a request on a new connection. Returns the status, or `None` if the connection was closed
/// without an answer or no answer came in time.
pub(super) async fn ask(addr: SocketAddr, request: &[u8]) -> Option<u16> {
    status(&head(addr, request, b"\r\n").await?)
}

/// Whether a service answers a request with something else than a refusal. A gRPC server refuses a
/// path that it does not know with a status of 200 and an error in another header.
pub(super) async fn reveals(addr: SocketAddr, request: &[u8]) -> Option<u16> {
    let head = head(addr, request, b"\r\n\r\n").await?;
    let grpc = String::from_utf8_lossy(&head).to_lowercase().contains("content-type: application/grpc");
    status(&head).filter(|status| !(400..500).contains(status) && !grpc)
}

/// Sends a request and returns the answer up to `end`.
async fn head(addr: SocketAddr, request: &[u8], end: &[u8]) -> Option<Vec<u8>> {
    let asking = async {
        let mut socket = TcpStream::connect(addr).await.ok()?;
        // The server may answer and close before it has read everything.
        let _ = socket.write_all(request).await;
        let mut answer = Vec::new();
        while !answer.windows(end.len()).any(|window| window == end) && answer.len() < 16 * 1024 {
            if socket.read_buf(&mut answer).await.ok()? == 0 {
                break;
            }
        }
        Some(answer)
    };
    timeout(PATIENCE, asking).await.ok().flatten()
}

/// The status of `HTTP/1.1 200 OK`.
fn status(answer: &[u8]) -> Option<u16> {
    let line = String::from_utf8_lossy(answer.get(..answer.len().min(64))?).into_owned();
    line.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()
}

/// Bodies that no honest client sends as an order. All are to be rejected with a 4xx.
pub(super) fn bodies(rng: &mut fastrand::Rng) -> Vec<(&'static str, Vec<u8>)> {
    let item = |sku: &str| format!(r#"{{"customer":"alice","items":[{{"sku":"{sku}","quantity":1}}]}}"#).into_bytes();
    let customer =
        |name: &str| format!(r#"{{"customer":"{name}","items":[{{"sku":"tea","quantity":1}}]}}"#).into_bytes();
    let quantity = |number: &str| format!(r#"{{"customer":"alice","items":[{{"sku":"tea","quantity":{number}}}]}}"#);
    vec![
        ("NUL in a sku", item("tea\\u0000")),
        ("NUL in a customer", customer("alice\\u0000")),
        ("control characters in a sku", item("tea\\u0007\\u001b[2J")),
        ("a line break in a customer", customer("alice\\r\\nx: y")),
        ("half a surrogate pair", item("\\ud800")),
        ("text directions", customer("\\u202eecila")),
        ("a sku of 8 KiB", item(&"t".repeat(8 * 1024))),
        ("a customer of 64 KiB", customer(&"a".repeat(64 * 1024))),
        ("deep JSON", [b"[".repeat(5_000), b"]".repeat(5_000)].concat()),
        ("deep JSON in a field", format!(r#"{{"customer":{}1{}}}"#, "[".repeat(2_000), "]".repeat(2_000)).into_bytes()),
        (
            "the same field twice",
            br#"{"customer":"alice","customer":"bob","items":[{"sku":"tea","quantity":1}]}"#.to_vec(),
        ),
        ("a number of 4000 digits", quantity(&"9".repeat(4_000)).into_bytes()),
        ("a number beyond all", quantity("1e400").into_bytes()),
        ("the largest integer", quantity("9223372036854775807").into_bytes()),
        ("the smallest integer", quantity("-9223372036854775808").into_bytes()),
        ("not a number", quantity("NaN").into_bytes()),
        ("random bytes", std::iter::repeat_with(|| rng.u8(..)).take(2_000).collect()),
        ("bytes that are no text", b"{\"customer\":\"\xff\xfe\",\"items\":[]}".to_vec()),
        ("nothing", Vec::new()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_read_from_the_first_line_and_from_nothing_else() {
        assert_eq!(status(b"HTTP/1.1 404 Not Found\r\n"), Some(404));
        assert_eq!(status(b"HTTP/1.0 200\r\n"), Some(200));
        for wrong in [&b""[..], b"HTTP/1.1", b"HTTP/1.1 x", b"SSH-2.0-OpenSSH", b"\xff\xfe"] {
            assert_eq!(status(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_request_has_its_length() {
        let text = String::from_utf8(order("x: y\r\n", b"{}")).unwrap();
        assert!(text.ends_with("x: y\r\ncontent-length: 2\r\n\r\n{}"), "{text}");
    }
}
