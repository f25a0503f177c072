//! The text form of a message, which a fuzzer finds its way in, and which people can read:
//!
//! ```text
//! 503 or GET /path
//! retry-after: 3
//!
//! body
//! --
//! grpc-status: 14
//! ```
//!
//! Lines of the body are frames. A body that ends with the line `!` fails there.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::Frame;
use http_body_util::StreamBody;
use std::io;

/// A body as the transport would read it.
pub(crate) type Body = StreamBody<futures_util::stream::Iter<std::vec::IntoIter<io::Result<Frame<Bytes>>>>>;

#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) first: Vec<u8>,
    pub(crate) headers: HeaderMap,
    lines: Vec<Bytes>,
    trailers: HeaderMap,
}

impl Message {
    pub(crate) fn parse(data: &[u8]) -> Self {
        let mut lines = data.split(|byte| *byte == b'\n');
        let first = lines.next().unwrap_or_default().to_vec();
        let headers = headers_of(lines.by_ref().take_while(|line| !line.is_empty()));
        let body = lines.by_ref().take_while(|line| *line != b"--").map(Bytes::copy_from_slice).collect();
        Self { first, headers, lines: body, trailers: headers_of(lines) }
    }

    pub(crate) fn body(&self) -> Body {
        let mut frames: Vec<io::Result<Frame<Bytes>>> = Vec::new();
        for line in &self.lines {
            if &**line == b"!" {
                frames.push(Err(io::ErrorKind::ConnectionReset.into()));
                break;
            }
            frames.push(Ok(Frame::data(line.clone())));
        }
        if !self.trailers.is_empty() && frames.last().is_none_or(Result::is_ok) {
            frames.push(Ok(Frame::trailers(self.trailers.clone())));
        }
        StreamBody::new(futures_util::stream::iter(frames))
    }
}

fn headers_of<'a>(lines: impl Iterator<Item = &'a [u8]>) -> HeaderMap {
    let pair = |line: &'a [u8]| {
        let at = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (HeaderName::from_bytes(&line[..at]).ok()?, line[at + 1..].trim_ascii_start());
        Some((name, HeaderValue::from_bytes(value).ok()?))
    };
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(pair) {
        headers.append(name, value);
    }
    headers
}
