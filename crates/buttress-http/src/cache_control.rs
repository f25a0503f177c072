//! Reads `Cache-Control` and `Vary` (RFC 9111, sections 4.1 and 5.2).

use http::{HeaderMap, HeaderName, header};
use std::time::Duration;

/// What `Cache-Control` of a response says, and `Pragma` where there is none.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct ResponseControl {
    pub(crate) no_store: bool,
    /// Also with field names, which would allow more.
    pub(crate) no_cache: bool,
    /// Also with field names, which would allow more.
    pub(crate) private: bool,
    pub(crate) public: bool,
    pub(crate) must_revalidate: bool,
    pub(crate) proxy_revalidate: bool,
    pub(crate) must_understand: bool,
    pub(crate) max_age: Option<Duration>,
    pub(crate) s_maxage: Option<Duration>,
    /// RFC 5861, section 3.
    pub(crate) stale_while_revalidate: Option<Duration>,
    /// RFC 5861, section 4.
    pub(crate) stale_if_error: Option<Duration>,
}

/// What `Cache-Control` of a request says, and `Pragma` where there is none.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct RequestControl {
    pub(crate) no_store: bool,
    pub(crate) no_cache: bool,
    pub(crate) only_if_cached: bool,
    pub(crate) max_age: Option<Duration>,
    pub(crate) min_fresh: Option<Duration>,
    /// [`Duration::MAX`] without a value.
    pub(crate) max_stale: Option<Duration>,
}

impl ResponseControl {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut control = Self::default();
        each_directive(headers, |name, value| match name {
            b"no-store" => control.no_store = true,
            b"no-cache" => control.no_cache = true,
            b"private" => control.private = true,
            b"public" => control.public = true,
            b"must-revalidate" => control.must_revalidate = true,
            b"proxy-revalidate" => control.proxy_revalidate = true,
            b"must-understand" => control.must_understand = true,
            b"max-age" => shorten(&mut control.max_age, value),
            b"s-maxage" => shorten(&mut control.s_maxage, value),
            b"stale-while-revalidate" => shorten(&mut control.stale_while_revalidate, value),
            b"stale-if-error" => shorten(&mut control.stale_if_error, value),
            _ => {}
        });
        control.no_cache |= is_pragma_no_cache(headers);
        control
    }
}

impl RequestControl {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut control = Self::default();
        each_directive(headers, |name, value| match name {
            b"no-store" => control.no_store = true,
            b"no-cache" => control.no_cache = true,
            b"only-if-cached" => control.only_if_cached = true,
            b"max-age" => shorten(&mut control.max_age, value),
            // The larger one asks for more.
            b"min-fresh" => control.min_fresh = control.min_fresh.max(Some(seconds(value))),
            b"max-stale" if value.is_none() => control.max_stale = Some(control.max_stale.unwrap_or(Duration::MAX)),
            b"max-stale" => shorten(&mut control.max_stale, value),
            _ => {}
        });
        control.no_cache |= is_pragma_no_cache(headers);
        control
    }
}

/// Of several values the shortest counts: RFC 9111, section 4.2.1 asks for the first, or for none.
fn shorten(time: &mut Option<Duration>, value: Option<&[u8]>) {
    let value = seconds(value);
    *time = Some(time.map_or(value, |time| time.min(value)));
}

/// Returns the time of a `delta-seconds`. One that is too long counts as 2^31 seconds (RFC 9111,
/// section 1.2.2), and one that is invalid as zero (section 4.2.1: consider it stale).
fn seconds(value: Option<&[u8]>) -> Duration {
    const FAR: u64 = 1 << 31;
    let digits = value.unwrap_or_default();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Duration::ZERO;
    }
    let add = |sum: u64, digit: &u8| (sum * 10 + u64::from(digit - b'0')).min(FAR);
    Duration::from_secs(digits.iter().fold(0, add))
}

/// Returns whether there is a `Pragma: no-cache` and no `Cache-Control` (RFC 9111, section 5.4).
fn is_pragma_no_cache(headers: &HeaderMap) -> bool {
    !headers.contains_key(header::CACHE_CONTROL)
        && headers
            .get_all(header::PRAGMA)
            .iter()
            .any(|value| value.as_bytes().to_ascii_lowercase().windows(8).any(|word| word == b"no-cache"))
}

/// Calls `visit` with the name in lower case and the value of each directive, without its quotes.
fn each_directive(headers: &HeaderMap, mut visit: impl FnMut(&[u8], Option<&[u8]>)) {
    for line in headers.get_all(header::CACHE_CONTROL) {
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| matches!(byte, b',' | b'=')).unwrap_or(rest.len());
            let name = rest[..end].trim_ascii().to_ascii_lowercase();
            let is_valued = rest.get(end) == Some(&b'=');
            rest = rest.get(end + 1..).unwrap_or_default();
            let mut value = None;
            if is_valued {
                let (read, after) = read_value(rest);
                (value, rest) = (Some(read), after);
            }
            if !name.is_empty() {
                visit(&name, value);
            }
        }
    }
}

/// Returns the value at the beginning, and what follows its comma. A comma within quotes belongs to
/// the value.
fn read_value(bytes: &[u8]) -> (&[u8], &[u8]) {
    let bytes = bytes.trim_ascii_start();
    let (value, after) = match bytes.strip_prefix(b"\"") {
        Some(quoted) => {
            let mut escaped = false;
            let end = quoted.iter().position(|byte| {
                let is_end = *byte == b'"' && !escaped;
                escaped = *byte == b'\\' && !escaped;
                is_end
            });
            // Without its end, the rest of the line is the value.
            let end = end.unwrap_or(quoted.len());
            (&quoted[..end], quoted.get(end + 1..).unwrap_or_default())
        }
        None => {
            let end = bytes.iter().position(|byte| *byte == b',').unwrap_or(bytes.len());
            (bytes[..end].trim_ascii_end(), &bytes[end..])
        }
    };
    let comma = after.iter().position(|byte| *byte == b',').map_or(after.len(), |comma| comma + 1);
    (value, &after[comma..])
}

/// The header fields of requests that `Vary` of a response names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Vary {
    Names(Vec<HeaderName>),
    /// `*`, or a name that is none.
    Any,
}

impl Vary {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut names = Vec::new();
        for line in headers.get_all(header::VARY) {
            for name in line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                match HeaderName::from_bytes(name) {
                    Ok(name) if name.as_str() != "*" => names.push(name),
                    _ if name.is_empty() => {}
                    _ => return Self::Any,
                }
            }
        }
        names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        names.dedup();
        Self::Names(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    const S: Duration = Duration::from_secs(1);

    fn headers(name: HeaderName, lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (name.clone(), line.parse().unwrap())).collect()
    }

    fn response(lines: &[&str]) -> ResponseControl {
        ResponseControl::of(&headers(header::CACHE_CONTROL, lines))
    }

    fn request(lines: &[&str]) -> RequestControl {
        RequestControl::of(&headers(header::CACHE_CONTROL, lines))
    }

    #[test]
    fn directives_are_read_in_any_case_and_over_lines() {
        let read = response(&["Public , MAX-AGE=60,", "S-MaxAge=\"10\", stale-while-revalidate=5,stale-if-error = 7"]);
        let expected = ResponseControl {
            public: true,
            max_age: Some(60 * S),
            s_maxage: Some(10 * S),
            stale_while_revalidate: Some(5 * S),
            stale_if_error: Some(7 * S),
            ..ResponseControl::default()
        };
        assert_eq!(read, expected);
        assert!(response(&["No-Store"]).no_store);
    }

    #[test]
    fn a_comma_in_quotes_does_not_begin_a_directive() {
        let read = response(&[r#"private="a, max-age=100, \", public", max-age=5"#]);
        assert_eq!((read.private, read.public, read.max_age), (true, false, Some(5 * S)));
        assert_eq!(response(&[r#"no-cache="never ends, max-age=100"#]).max_age, None);
    }

    #[test]
    fn of_two_times_the_shorter_counts_and_an_invalid_one_is_zero() {
        assert_eq!(response(&["max-age=60, max-age=10"]).max_age, Some(10 * S));
        for invalid in ["max-age", "max-age=", "max-age=-1", "max-age=1.5", "max-age=x", "max-age=1 0"] {
            assert_eq!(response(&[invalid]).max_age, Some(Duration::ZERO), "{invalid}");
        }
        assert_eq!(response(&["max-age=99999999999999999999999"]).max_age, Some(S * (1 << 31)));
    }

    #[test]
    fn requests_say_what_they_accept() {
        let read = request(&["max-stale, min-fresh=3, min-fresh=5, max-age=0, only-if-cached"]);
        assert_eq!(
            (read.max_stale, read.min_fresh, read.max_age),
            (Some(Duration::MAX), Some(5 * S), Some(Duration::ZERO))
        );
        assert!(read.only_if_cached && !read.no_cache);
        assert_eq!(request(&["max-stale=9, max-stale"]).max_stale, Some(9 * S));
    }

    #[test]
    fn pragma_counts_where_there_is_no_cache_control() {
        let mut pragma = headers(header::PRAGMA, &["No-Cache"]);
        assert!(RequestControl::of(&pragma).no_cache);
        pragma.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=1"));
        assert!(!RequestControl::of(&pragma).no_cache);
    }

    #[test]
    fn vary_lists_names_and_a_star_or_nonsense_is_any() {
        let of = |lines: &[&str]| Vary::of(&headers(header::VARY, lines));
        assert_eq!(
            of(&["Accept, accept-encoding", "ACCEPT"]),
            Vary::Names(vec![header::ACCEPT, header::ACCEPT_ENCODING])
        );
        assert_eq!(of(&[]), Vary::Names(Vec::new()));
        assert_eq!((of(&["accept, *"]), of(&["b@d"])), (Vary::Any, Vary::Any));
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let headers: HeaderMap = [(header::CACHE_CONTROL, value.clone()), (header::VARY, value)].into_iter().collect();
                let _ = (ResponseControl::of(&headers), RequestControl::of(&headers), Vary::of(&headers));
            }
        }

        /// What forbids reuse is found wherever it stands.
        #[test]
        fn no_store_is_found_among_other_directives(
            before in "[a-z]{1,8}(=(\"[a-z, =]{0,8}\"|[0-9]{1,4}))?",
            after in "[a-z]{1,8}(=(\"[a-z, =]{0,8}\"|[0-9]{1,4}))?",
            word in "[nN][oO]-[sS]tore",
        ) {
            let line = format!("{before}, {word} ,{after}");
            prop_assert!(response(&[&line]).no_store);
        }
    }
}
