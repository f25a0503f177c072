use http::{HeaderMap, HeaderName, HeaderValue, Response};
use std::fmt::Write;

/// How the cache handled a request: in the extensions of each response, and in its header
/// `Cache-Status` (RFC 9211).
///
/// | | `Cache-Status` |
/// |---|---|
/// | [`Hit`](Self::Hit) | `rows; hit; ttl=30` |
/// | [`Stale`](Self::Stale) | `rows; hit; ttl=-5`, also after a failed call: `rows; fwd=stale; ttl=-5` |
/// | [`Revalidated`](Self::Revalidated) | `rows; fwd=stale; fwd-status=304` |
/// | [`Miss`](Self::Miss) | `rows; fwd=miss`, with `stored` or `collapsed` |
/// | [`Bypass`](Self::Bypass) | `rows; fwd=bypass` |
///
/// ```
/// use buttress_http::cache::CacheStatus;
/// use http::Response;
///
/// fn is_from_cache<B>(response: &Response<B>) -> bool {
///     matches!(response.extensions().get(), Some(CacheStatus::Hit | CacheStatus::Stale))
/// }
/// assert!(!is_from_cache(&Response::new(())));
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum CacheStatus {
    /// A stored response that is fresh.
    Hit,
    /// A stored response that is stale.
    Stale,
    /// A stored response that the backend has just confirmed.
    Revalidated,
    /// The response of a call.
    Miss,
    /// The response to a request that the cache does not handle.
    Bypass,
}

/// A line of `Cache-Status`.
pub(super) struct Line(String);

impl Line {
    /// Begins the line with the name of the cache, as a token where it is one, or else as a string.
    pub(super) fn of(name: &str) -> Self {
        let is_token = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '*')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte));
        let mut line = String::with_capacity(48);
        if is_token {
            line.push_str(name);
        } else {
            line.push('"');
            for printable in name.chars().filter(|char| matches!(char, ' '..='~')) {
                if matches!(printable, '"' | '\\') {
                    line.push('\\');
                }
                line.push(printable);
            }
            line.push('"');
        }
        Self(line)
    }

    pub(super) fn with(mut self, parameter: &str) -> Self {
        self.0.push_str("; ");
        self.0.push_str(parameter);
        self
    }

    pub(super) fn with_number(mut self, name: &str, number: i64) -> Self {
        let _ = write!(self.0, "; {name}={number}");
        self
    }

    pub(super) fn append_to(self, headers: &mut HeaderMap) {
        if let Ok(value) = HeaderValue::try_from(self.0) {
            headers.append(HeaderName::from_static("cache-status"), value);
        }
    }
}

/// Marks a response.
pub(super) fn mark<B>(response: &mut Response<B>, status: CacheStatus, line: Line) {
    line.append_to(response.headers_mut());
    response.extensions_mut().insert(status);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_no_token_is_a_string() {
        let line = |name: &str| Line::of(name).with("hit").with_number("ttl", -5).0;
        assert_eq!(line("rows.v1"), "rows.v1; hit; ttl=-5");
        assert_eq!(line("my \"rows\"é"), "\"my \\\"rows\\\"\"; hit; ttl=-5");
        assert_eq!(line("7"), "\"7\"; hit; ttl=-5");
    }
}
