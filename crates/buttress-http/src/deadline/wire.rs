//! The headers. What a caller sends is never an error: a header that is no time, or is there twice,
//! is as none.

use http::{HeaderMap, HeaderName, HeaderValue};
use std::time::Duration;

/// gRPC: 1 to 8 digits and a unit (`doc/PROTOCOL-HTTP2.md` of gRPC).
const GRPC: HeaderName = HeaderName::from_static("grpc-timeout");
/// Ours, for HTTP: milliseconds.
const HTTP: HeaderName = HeaderName::from_static("x-request-timeout-ms");
/// Envoy's, for the service behind it: milliseconds.
const ENVOY: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// The largest number of a `grpc-timeout`.
const LARGEST: u64 = 99_999_999;
/// The units of a `grpc-timeout` in nanoseconds, from the finest.
const UNITS: [(u8, u64); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];

/// Returns the shortest time that the headers grant.
pub(super) fn read(headers: &HeaderMap) -> Option<Duration> {
    let times = [
        one(headers, &GRPC).and_then(parse_grpc),
        one(headers, &HTTP).and_then(parse_millis),
        // Envoy has no timeout where this is zero.
        one(headers, &ENVOY).and_then(parse_millis).filter(|time| !time.is_zero()),
    ];
    times.into_iter().flatten().min()
}

/// Writes the header of the protocol, and removes the others: they say what was left before.
pub(super) fn write(headers: &mut HeaderMap, left: Duration, is_grpc: bool) {
    let (own, other) = if is_grpc { (GRPC, HTTP) } else { (HTTP, GRPC) };
    headers.remove(other);
    headers.remove(ENVOY);
    headers.insert(own, if is_grpc { encode_grpc(left) } else { encode_millis(left) });
}

/// Shortens the times that the headers grant to what is left. Adds no header.
pub(crate) fn shorten(headers: &mut HeaderMap, left: Duration) {
    if one(headers, &GRPC).and_then(parse_grpc).is_some_and(|time| left < time) {
        headers.insert(GRPC, encode_grpc(left));
    }
    if one(headers, &HTTP).and_then(parse_millis).is_some_and(|time| left < time) {
        headers.insert(HTTP, encode_millis(left));
    }
}

fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Some(value.as_bytes()),
        _ => None,
    }
}

fn parse_grpc(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    let (_, nanos) = UNITS.iter().find(|(known, _)| known == unit)?;
    let number = parse_digits(digits).filter(|_| digits.len() <= 8)?;
    // At most 11,415 years: beyond 64 bits of nanoseconds, and within seconds.
    let (seconds, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    Some(Duration::from_secs(number * seconds) + Duration::from_nanos(number * rest))
}

fn parse_millis(value: &[u8]) -> Option<Duration> {
    parse_digits(value).map(Duration::from_millis)
}

/// Returns a number that consists of digits. `str::parse` would also take a sign.
fn parse_digits(digits: &[u8]) -> Option<u64> {
    let number = |number: u64, digit: &u8| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    };
    (!digits.is_empty()).then(|| digits.iter().try_fold(0, number))?
}

/// Uses the finest unit in which the number has at most 8 digits, rounded up: with less time, the
/// server would end the call before the client does.
fn encode_grpc(left: Duration) -> HeaderValue {
    let nanos = left.as_nanos();
    for (unit, length) in UNITS {
        let number = nanos.div_ceil(length.into());
        if number <= LARGEST.into() {
            return digits(number as u64, Some(unit));
        }
    }
    digits(LARGEST, Some(b'H'))
}

fn encode_millis(left: Duration) -> HeaderValue {
    digits(u64::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX), None)
}

fn digits(mut number: u64, unit: Option<u8>) -> HeaderValue {
    let mut text = [0; 21];
    let mut start = text.len();
    if let Some(unit) = unit {
        start -= 1;
        text[start] = unit;
    }
    loop {
        start -= 1;
        text[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    HeaderValue::from_bytes(&text[start..]).expect("digits and a letter are a valid value")
}

#[cfg(test)]
mod tests;
