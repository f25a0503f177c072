//! What RFC 9111 says of one response: whether it may be stored, and until when it may be served.

use super::handle::Config;
use crate::{
    cache_control::{RequestControl, ResponseControl, Vary},
    single_flight::is_stream,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use std::time::{Duration, SystemTime};

/// Statuses that may be stored without a time of the origin (RFC 9110, section 15.1), apart from
/// 206.
const HEURISTIC: [u16; 11] = [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501];

/// How a stored response may be used. Times count from its arrival.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Freshness {
    /// Its age at its arrival.
    pub(super) initial_age: Duration,
    /// The age from which on it is stale.
    pub(super) lifetime: Duration,
    /// Never served stale (section 4.2.4).
    pub(super) never_stale: bool,
    pub(super) while_revalidate: Duration,
    pub(super) if_error: Duration,
}

/// What to do with a request for which there is a stored response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Use {
    Fresh,
    /// Served stale, because the request accepts it.
    Accepted,
    /// Served stale while it is revalidated.
    WhileRevalidating,
    /// Revalidated first; served stale if that fails and `if_error`.
    Revalidate {
        if_error: bool,
    },
}

impl Freshness {
    /// Reads a response that came after `delay` at `now`. `None`: it must not be stored, or is of
    /// no use.
    pub(super) fn of(
        status: StatusCode,
        headers: &HeaderMap,
        config: &Config,
        delay: Duration,
        now: SystemTime,
    ) -> Option<Self> {
        let control = ResponseControl::of(headers);
        let is_partial = matches!(status, StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED);
        let is_heuristic = HEURISTIC.contains(&status.as_u16());
        if control.no_store
            || control.private
            || status.is_informational()
            || is_partial
            || (control.must_understand && !is_heuristic)
            || headers.contains_key(header::SET_COOKIE)
            || Vary::of(headers) == Vary::Any
            || is_stream(headers)
        {
            return None;
        }
        let date = date(headers, header::DATE);
        let explicit = control.s_maxage.or(control.max_age).or_else(|| {
            // An invalid date is in the past (section 5.3).
            let expires = headers.get(header::EXPIRES)?;
            let expires = expires.to_str().ok().and_then(|text| httpdate::parse_http_date(text).ok());
            Some(expires.and_then(|end| end.duration_since(date.unwrap_or(now)).ok()).unwrap_or_default())
        });
        let heuristic = match status.is_client_error() || status.is_server_error() {
            true => config.negative_ttl,
            false => config.default_ttl,
        };
        let lifetime = match explicit {
            _ if control.no_cache => Duration::ZERO,
            Some(lifetime) => lifetime,
            None if is_heuristic || control.public => heuristic,
            None => return None,
        };
        let apparent = date.and_then(|date| now.duration_since(date).ok()).unwrap_or_default();
        let freshness = Self {
            initial_age: apparent.max(age(headers).saturating_add(delay)),
            lifetime,
            // `s-maxage` is `proxy-revalidate` for a shared cache (section 5.2.2.10).
            never_stale: control.no_cache
                || control.must_revalidate
                || control.proxy_revalidate
                || control.s_maxage.is_some(),
            while_revalidate: control.stale_while_revalidate.unwrap_or(config.stale_while_revalidate),
            if_error: control.stale_if_error.unwrap_or(config.stale_if_error),
        };
        let can_be_used = freshness.initial_age < lifetime
            || has_validator(headers)
            || (!freshness.never_stale && !freshness.while_revalidate.max(freshness.if_error).is_zero());
        can_be_used.then_some(freshness)
    }

    /// Returns its age when it has been stored for `stored`.
    pub(super) fn age(&self, stored: Duration) -> Duration {
        self.initial_age.saturating_add(stored)
    }

    /// Decides for a request.
    pub(super) fn use_for(&self, request: &RequestControl, stored: Duration) -> Use {
        let age = self.age(stored);
        let left = self.lifetime.saturating_sub(age);
        // How long it has been stale. An age of the whole lifetime is stale already.
        let stale = (age >= self.lifetime).then(|| age.saturating_sub(self.lifetime));
        let is_within = |limit: Duration| !self.never_stale && stale.is_none_or(|stale| stale < limit);
        let refused = request.no_cache
            || request.max_age.is_some_and(|max| age > max)
            || request.min_fresh.is_some_and(|min| left < min);
        let if_error = is_within(self.if_error) && !request.no_cache;
        match stale {
            _ if refused => Use::Revalidate { if_error },
            None => Use::Fresh,
            Some(stale) if !self.never_stale && request.max_stale.is_some_and(|max| stale <= max) => Use::Accepted,
            Some(_) if is_within(self.while_revalidate) => Use::WhileRevalidating,
            Some(_) => Use::Revalidate { if_error },
        }
    }
}

/// Returns the value of `Age`; zero if there is none that is valid.
fn age(headers: &HeaderMap) -> Duration {
    let age = headers.get(header::AGE).and_then(|age| age.to_str().ok()?.trim().parse().ok());
    Duration::from_secs(age.unwrap_or(0))
}

fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

fn has_validator(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ETAG) || headers.contains_key(header::LAST_MODIFIED)
}

/// Makes a request conditional on the validators of a stored response (section 4.3.1).
pub(super) fn make_conditional(request: &mut HeaderMap, stored: &HeaderMap) {
    let validators = [(header::ETAG, header::IF_NONE_MATCH), (header::LAST_MODIFIED, header::IF_MODIFIED_SINCE)];
    for (validator, condition) in validators {
        if let Some(value) = stored.get(validator) {
            request.insert(condition, value.clone());
        }
    }
}

/// Returns the headers of a stored response with those of a 304 in their place (section 3.2).
/// `None`: the 304 is about another response (section 4.3.4).
pub(super) fn update(stored: &HeaderMap, not_modified: &HeaderMap) -> Option<HeaderMap> {
    fn opaque(tag: &HeaderValue) -> &[u8] {
        tag.as_bytes().strip_prefix(b"W/").unwrap_or(tag.as_bytes())
    }
    if let (Some(old), Some(new)) = (stored.get(header::ETAG), not_modified.get(header::ETAG))
        && opaque(old) != opaque(new)
    {
        return None;
    }
    let mut headers = stored.clone();
    let of_content = [header::CONTENT_LENGTH, header::CONTENT_ENCODING, header::CONTENT_RANGE, header::CONTENT_TYPE];
    let new = without_connection(not_modified);
    for name in new.keys().filter(|name| !of_content.contains(name)) {
        headers.remove(name);
        for value in new.get_all(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    // The age of the stored response is not that of the new one.
    if !new.contains_key(header::AGE) {
        headers.remove(header::AGE);
    }
    Some(headers)
}

/// Returns the headers without those that are about a connection (section 3.1).
pub(super) fn without_connection(headers: &HeaderMap) -> HeaderMap {
    const OF_CONNECTION: [&str; 9] = [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "upgrade",
    ];
    let mut kept = headers.clone();
    for line in headers.get_all(header::CONNECTION) {
        for name in line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if let Ok(name) = HeaderName::from_bytes(name) {
                kept.remove(name);
            }
        }
    }
    OF_CONNECTION.iter().for_each(|name| drop(kept.remove(*name)));
    kept
}

/// The values of the headers of a request by which its response varies.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Selected(Vec<(HeaderName, Vec<HeaderValue>)>);

impl Selected {
    pub(super) fn new(request: &HeaderMap, response: &HeaderMap) -> Self {
        let Vary::Names(names) = Vary::of(response) else { return Self::default() };
        let values = |name: &HeaderName| request.get_all(name).iter().cloned().collect();
        Self(names.into_iter().map(|name| (name.clone(), values(&name))).collect())
    }

    /// Returns whether the request selects the same response (section 4.1).
    pub(super) fn is_of(&self, request: &HeaderMap) -> bool {
        self.0.iter().all(|(name, values)| request.get_all(name).iter().eq(values))
    }
}
