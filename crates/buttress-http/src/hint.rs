//! The hints of a server about when to try again.

use http::{HeaderMap, header};
use std::time::{Duration, SystemTime};

/// When a server allows the next attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Hint {
    After(Duration),
    Never,
}

impl Hint {
    pub(crate) fn after(self) -> Option<Duration> {
        match self {
            Self::After(after) => Some(after),
            Self::Never => None,
        }
    }
}

/// `Retry-After`: seconds, or a date. A date counts from the response's own `Date`, so that clocks
/// that differ do no harm. A date in the past is zero. Returns `None` when it is unreadable.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More seconds than a u64 holds: the longest time there is.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    let date = headers.get(header::DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    Some(until.duration_since(date.unwrap_or_else(wall_clock)).unwrap_or_default())
}

/// `grpc-retry-pushback-ms`: a signed 32-bit number. Negative or unreadable means never (gRFC A6),
/// and two values are unreadable.
pub(crate) fn pushback(headers: &HeaderMap) -> Option<Hint> {
    let mut values = headers.get_all("grpc-retry-pushback-ms").iter();
    let value = values.next()?;
    let only = values.next().is_none();
    let millis = value.to_str().ok().filter(|_| only).and_then(|value| value.parse::<i32>().ok());
    let millis = millis.and_then(|millis| u64::try_from(millis).ok());
    Some(millis.map_or(Hint::Never, |millis| Hint::After(Duration::from_millis(millis))))
}

#[expect(clippy::disallowed_methods, reason = "an HTTP date without a Date header can only be read by the wall clock")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_by_the_servers_own_clock() {
        let after = |pairs: &[_]| retry_after(&headers(pairs));
        assert_eq!(after(&[("retry-after", "7")]), Some(Duration::from_secs(7)));
        assert_eq!(after(&[("retry-after", "99999999999999999999999")]), Some(Duration::from_secs(u64::MAX)));
        let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(after(&[("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT"), date]), Some(Duration::from_secs(10)));
        assert_eq!(after(&[("retry-after", "Sun, 06 Nov 1994 08:49:27 GMT"), date]), Some(Duration::ZERO));
        for nonsense in ["", "-1", "soon", "1.5", "٣"] {
            assert_eq!(after(&[("retry-after", nonsense)]), None, "{nonsense}");
        }
    }

    #[test]
    fn a_negative_or_unreadable_pushback_means_never() {
        let hint = |value| pushback(&headers(&[("grpc-retry-pushback-ms", value)]));
        assert_eq!(hint("250"), Some(Hint::After(Duration::from_millis(250))));
        for never in ["-1", "soon", "99999999999"] {
            assert_eq!(hint(never), Some(Hint::Never), "{never}");
        }
        assert_eq!(pushback(&HeaderMap::new()), None);
        let two = [("grpc-retry-pushback-ms", "100"), ("grpc-retry-pushback-ms", "100")];
        assert_eq!(pushback(&headers(&two)), Some(Hint::Never));
    }
}
