//! Reads the time that a server asks for before the next attempt.

#[cfg(feature = "tonic")]
mod retry_info;

#[cfg(feature = "tonic")]
pub(crate) use retry_info::retry_info;

use http::{HeaderMap, header};
use std::time::{Duration, SystemTime};

/// The time at which a server allows the next attempt.
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

/// Reads `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date.
///
/// A date is compared with the `Date` of the response, so the clocks of client and server may
/// differ. A date in the past is zero. Returns `None` if the header is missing or unreadable.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More seconds than a u64 holds count as the longest time.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    let date = headers.get(header::DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    Some(until.duration_since(date.unwrap_or_else(wall_clock)).unwrap_or_default())
}

/// Reads `grpc-retry-pushback-ms` (gRFC A6): a signed 32-bit number of milliseconds. A negative or
/// unreadable value means never, and so do two values.
pub(crate) fn pushback(headers: &HeaderMap) -> Option<Hint> {
    let mut values = headers.get_all("grpc-retry-pushback-ms").iter();
    let value = values.next()?;
    let only = values.next().is_none();
    let millis = value.to_str().ok().filter(|_| only).and_then(|value| value.parse::<i32>().ok());
    let millis = millis.and_then(|millis| u64::try_from(millis).ok());
    Some(millis.map_or(Hint::Never, |millis| Hint::After(Duration::from_millis(millis))))
}

#[expect(clippy::disallowed_methods, reason = "without a Date header, an HTTP date is compared with the wall clock")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

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

    fn any_value() -> impl Strategy<Value = HeaderValue> {
        let bytes = prop::collection::vec(any::<u8>(), 0..40);
        bytes.prop_filter_map("no value of a header", |bytes| HeaderValue::from_bytes(&bytes).ok())
    }

    proptest! {
        /// Reads what a server may send: never a panic, and no hint from what is none.
        #[test]
        fn any_bytes_are_read_without_a_panic(after in any_value(), date in any_value(), pushed in any_value()) {
            let headers = HeaderMap::from_iter([
                (header::RETRY_AFTER, after.clone()),
                (header::DATE, date),
                ("grpc-retry-pushback-ms".parse().unwrap(), pushed.clone()),
            ]);
            let digits = |value: &HeaderValue| value.to_str().is_ok_and(|text| text.bytes().any(|byte| byte.is_ascii_digit()));
            prop_assert!(retry_after(&headers).is_none() || digits(&after));
            prop_assert!(pushback(&headers) == Some(Hint::Never) || digits(&pushed));
        }

        #[test]
        fn a_number_of_seconds_of_any_length_is_the_longest_time_at_most(digits in "[0-9]{1,30}") {
            let headers = HeaderMap::from_iter([(header::RETRY_AFTER, digits.parse().unwrap())]);
            let seconds = digits.parse::<u128>().unwrap().min(u64::MAX.into());
            prop_assert_eq!(retry_after(&headers).map(|after| u128::from(after.as_secs())), Some(seconds));
        }

        #[test]
        fn texts_like_dates_are_read_without_a_panic(
            after in "(Mon|Sun|Xyz), [0-9]{2} (Jan|Feb|Dec|Xyz) [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} (GMT|UTC)",
            date in "(Mon|Sunday), [0-9]{2}[ -](Jan|Feb)[ -]([0-9]{4}|[0-9]{2}) [0-9]{2}:[0-9]{2}:[0-9]{2} GMT",
        ) {
            let headers = HeaderMap::from_iter([
                (header::RETRY_AFTER, after.parse::<HeaderValue>().unwrap()),
                (header::DATE, date.parse().unwrap()),
            ]);
            let ten_thousand_years = Duration::from_secs(10_000 * 366 * 86_400);
            prop_assert!(retry_after(&headers).is_none_or(|after| after < ten_thousand_years));
        }
    }
}
